"""Asking a PACS over DICOMweb (PS3.18): what it has, fetching it, storing into it.

dicomweb-client speaks the protocol. What is added: time limits, one kind of error that says what to do, lists
that come in pieces, and no retries of its own: who asks decides when to ask again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from lib.errors import ConfigError, NotDeliveredError, PacsError
from lib.imaging.dicom_series import PARSING_ERRORS

CONNECT_S = 5.0
READ_S = 120.0
"""Between two pieces of an answer: a PACS that first gets a study from its tape takes its time."""
PAGE = 1000
"""How many items a list is asked for at once; many servers cut longer ones off."""
_LOG_IN = (401, 403)
_BUSY = (408, 429, 502, 503, 504)
"""HTTP status codes that say something of the server, whatever was asked for."""


class Pacs:
    """A DICOMweb server.

    Args:
        url: Its address, such as `http://127.0.0.1:8042/dicom-web`.
        user: Empty where it needs no login.
        password: Of that user.
        prefixes: `qido`, `wado` and `stow`, where these services have addresses of their own below `url`.

    Raises:
        ConfigError: If the address is none.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        password: str = "",
        prefixes: Mapping[str, str | None] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        session = requests.Session()
        if user:
            session.auth = (user, password)
        for scheme in ("http://", "https://"):
            # Once more: a server may close a connection that was kept open just when it is used again.
            again = Retry(1, allowed_methods=["GET"], backoff_factor=0.2, raise_on_status=False)
            session.mount(scheme, HTTPAdapter(max_retries=again))
        paths = {name: path or None for name, path in (prefixes or {}).items()}
        try:
            self._client = DICOMwebClient(
                self.url,
                session=session,
                qido_url_prefix=paths.get("qido"),
                wado_url_prefix=paths.get("wado"),
                stow_url_prefix=paths.get("stow"),
                timeout=(CONNECT_S, READ_S),
            )
        except ValueError as error:
            raise ConfigError(f"{self.url}: no address of a DICOMweb server ({error})") from error
        self._client.set_http_retry_params(retry=False)

    def series(self, **filters: Any) -> list[Dataset]:
        """Return what it lists of its series (QIDO-RS, PS3.18 10.6), each once for each study that it is in.

        Args:
            filters: DICOM keyword -> value that must match.

        Raises:
            PacsError: If it does not answer.
        """
        names = ("StudyInstanceUID", "SeriesInstanceUID")
        return self._listed(self._client.search_for_series, names, filters)

    def instances(self, **filters: Any) -> list[Dataset]:
        """Return what it lists of its instances; as `series`."""
        return self._listed(self._client.search_for_instances, ("SOPInstanceUID",), filters)

    def headers(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """Return what it tells of a series' instances: all but the pixels (PS3.18 10.4, metadata).

        Raises:
            NotDeliveredError: If it answers, but not for this series.
            PacsError: If it does not answer.
        """
        with self._asked(NotDeliveredError):
            found = self._client.retrieve_series_metadata(study_uid, series_uid)
            return [_plain(item) for item in found]

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """Write the instances of a series into `folder`, one file each, and return how many.

        Raises:
            NotDeliveredError: If it answers, but not for this series, or sends what is no DICOM.
            PacsError: If it does not answer.
        """
        count = 0
        with self._asked(NotDeliveredError):
            for instance in self._client.iter_series(study_uid, series_uid):
                count += 1
                instance.save_as(folder / f"{count:05d}.dcm", enforce_file_format=True)
        return count

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, path: Path) -> None:
        """Write one instance to `path`.

        Raises:
            NotDeliveredError: If it answers, but not for this instance, or sends what is no DICOM.
            PacsError: If it does not answer.
        """
        with self._asked(NotDeliveredError):
            found = self._client.retrieve_instance(study_uid, series_uid, sop_uid)
            found.save_as(path, enforce_file_format=True)

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        """Return whether it has an instance.

        Raises:
            PacsError: If it does not answer.
        """
        return bool(self.instances(StudyInstanceUID=study_uid, SOPInstanceUID=sop_uid))

    def store(self, path: Path) -> None:
        """Store one instance (STOW-RS, PS3.18 10.5), and see that it is there; again changes nothing.

        Raises:
            PacsError: If it does not answer, or does not take it.
        """
        instance = pydicom.dcmread(path)
        with self._asked():
            answer = self._client.store_instances([instance])
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", "unknown")
            raise PacsError(
                f"the PACS at {self.url} did not store {path.name} (failure reason {reason}, PS3.18 10.5.3)"
            )
        # Orthanc 1.10 answers that all is well where it could not write.
        if not self.holds(instance.StudyInstanceUID, instance.SOPInstanceUID):
            raise PacsError(
                f"the PACS at {self.url} says that it stored {path.name}, but does not have it; "
                "is its disk full?"
            )

    def _listed(
        self, search: Any, names: Sequence[str], filters: Mapping[str, Any]
    ) -> list[Dataset]:
        """Return a list that may come in pieces; a server that ignores what was asked for ends it, too."""
        found: dict[tuple[str, ...], Dataset] = {}
        with self._asked():
            while True:
                page = [
                    _plain(item)
                    for item in search(offset=len(found), limit=PAGE, search_filters=filters)
                ]
                new = {tuple(str(item.get(name, "")) for name in names): item for item in page}
                new = {key: item for key, item in new.items() if key not in found}
                found |= new
                if len(page) < PAGE or not new:
                    return list(found.values())

    @contextmanager
    def _asked(self, refusal: type[PacsError] = PacsError) -> Iterator[None]:
        """Turn what goes wrong while asking into a sentence; `refusal` is raised where the PACS did answer."""
        try:
            yield
        except requests.HTTPError as error:
            status = None if error.response is None else error.response.status_code
            if status in _LOG_IN:
                raise PacsError(
                    f"the PACS at {self.url} does not let this server in (HTTP {status}); set "
                    "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD and start it again"
                ) from error
            said = "" if error.response is None else error.response.text[:200].strip()
            kind = PacsError if status in _BUSY else refusal
            raise kind(f"the PACS at {self.url} answers HTTP {status}: {said}") from error
        except requests.JSONDecodeError as error:
            raise self._is_none(error, refusal) from error
        except (requests.RequestException, ConnectionError) as error:
            raise PacsError(
                f"the PACS at {self.url} cannot be reached ({type(error).__name__}); is it running, and is the "
                "address right?"
            ) from error
        except (*PARSING_ERRORS, IndexError) as error:
            # IndexError: an answer without any part.
            if isinstance(error, OSError) and error.errno is not None:
                # Our own disk.
                raise
            raise self._is_none(error, refusal) from error

    def _is_none(self, error: Exception, refusal: type[PacsError]) -> PacsError:
        return refusal(
            f"the PACS at {self.url} answers what is no DICOMweb ({error}); is the address right?"
        )


def _plain(item: Mapping[str, Any]) -> Dataset:
    """Return a data set without what is only referred to: nothing here looks at that."""
    return Dataset.from_json(dict(item), bulk_data_uri_handler=lambda *_: None)
