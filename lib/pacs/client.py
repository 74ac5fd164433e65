"""Client of a PACS over DICOMweb (PS3.18): search, retrieve and store.

dicomweb-client implements the protocol. This module adds time limits, one class of errors whose messages say
what to do, and paged lists. It does not retry: the caller decides when to ask again.
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
from lib.imaging.dicom_files import PARSING_ERRORS

CONNECT_S = 5.0
"""Longest time in s to connect."""
READ_S = 120.0
"""Longest time in s between two parts of a response; a PACS that reads a study from tape is slow."""
PAGE = 1000
"""Number of items per request of a list; many servers cut longer lists off."""
_NOT_AUTHORIZED = (401, 403)
_BUSY = (408, 429, 502, 503, 504)
"""HTTP status codes about the server as a whole, not about the item that was requested."""


class Pacs:
    """A DICOMweb server.

    Each request raises PacsError if the server does not answer, and its subclass NotDeliveredError if it
    answers without the requested series or instance, or with invalid DICOM.

    Args:
        url: Address of the server, such as `http://127.0.0.1:8042/dicom-web`.
        user: User name; empty if the server needs no login.
        password: Password of that user.
        prefixes: Paths below `url` of the services `qido`, `wado` and `stow`, where they have their own.

    Raises:
        ConfigError: If the address is invalid.
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
            # One retry: a server may close a kept-alive connection just when it is used again.
            retry = Retry(1, allowed_methods=["GET"], backoff_factor=0.2, raise_on_status=False)
            session.mount(scheme, HTTPAdapter(max_retries=retry))
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
            raise ConfigError(
                f"{self.url}: not the address of a DICOMweb server ({error})"
            ) from error
        self._client.set_http_retry_params(retry=False)

    def series(self, **filters: Any) -> list[Dataset]:
        """Return the series in the PACS (QIDO-RS, PS3.18 10.6), each once per study that contains it.

        Args:
            filters: DICOM keyword -> value to match.
        """
        names = ("StudyInstanceUID", "SeriesInstanceUID")
        return self._all_pages(self._client.search_for_series, names, filters)

    def instances(self, **filters: Any) -> list[Dataset]:
        """Return the instances in the PACS, as `series` returns series."""
        return self._all_pages(self._client.search_for_instances, ("SOPInstanceUID",), filters)

    def headers(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """Return the metadata of a series' instances: all attributes but bulk data (PS3.18 10.4)."""
        with self._request(NotDeliveredError):
            items = self._client.retrieve_series_metadata(study_uid, series_uid)
            return [_without_bulk_data(item) for item in items]

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """Write the instances of a series into `folder`, one file each, and return their number."""
        count = 0
        with self._request(NotDeliveredError):
            for instance in self._client.iter_series(study_uid, series_uid):
                count += 1
                instance.save_as(folder / f"{count:05d}.dcm", enforce_file_format=True)
        return count

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, path: Path) -> None:
        """Write one instance to `path`."""
        with self._request(NotDeliveredError):
            instance = self._client.retrieve_instance(study_uid, series_uid, sop_uid)
            instance.save_as(path, enforce_file_format=True)

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        """Return whether the PACS has an instance."""
        return bool(self.instances(StudyInstanceUID=study_uid, SOPInstanceUID=sop_uid))

    def store(self, path: Path) -> None:
        """Store one instance (STOW-RS, PS3.18 10.5), and verify that it is there; storing it twice is harmless.

        Raises:
            PacsError: Also if the PACS refuses the instance.
        """
        instance = pydicom.dcmread(path)
        with self._request():
            answer = self._client.store_instances([instance])
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", "unknown")
            raise PacsError(
                f"the PACS at {self.url} did not store {path.name} (failure reason {reason}, PS3.18 10.5.3)"
            )
        # Orthanc 1.10 reports success even when it could not write.
        if not self.holds(instance.StudyInstanceUID, instance.SOPInstanceUID):
            raise PacsError(
                f"the PACS at {self.url} reports that it stored {path.name}, but does not list it; "
                "is its disk full?"
            )

    def _all_pages(
        self, search: Any, names: Sequence[str], filters: Mapping[str, Any]
    ) -> list[Dataset]:
        """Request a list page by page, and return it; stops also if the server ignores `offset` and `limit`."""
        listed: dict[tuple[str, ...], Dataset] = {}
        with self._request():
            while True:
                page = [
                    _without_bulk_data(item)
                    for item in search(offset=len(listed), limit=PAGE, search_filters=filters)
                ]
                new = {tuple(str(item.get(name, "")) for name in names): item for item in page}
                new = {key: item for key, item in new.items() if key not in listed}
                listed |= new
                if len(page) < PAGE or not new:
                    return list(listed.values())

    @contextmanager
    def _request(self, refusal: type[PacsError] = PacsError) -> Iterator[None]:
        """Raise PacsError in place of any error of a request; `refusal` if the PACS did answer."""
        try:
            yield
        except requests.HTTPError as error:
            status = None if error.response is None else error.response.status_code
            if status in _NOT_AUTHORIZED:
                raise PacsError(
                    f"the PACS at {self.url} refuses this server's login (HTTP {status}); set "
                    "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD and restart the server"
                ) from error
            text = "" if error.response is None else error.response.text[:200].strip()
            kind = PacsError if status in _BUSY else refusal
            raise kind(f"the PACS at {self.url} answers HTTP {status}: {text}") from error
        except requests.JSONDecodeError as error:
            raise self._invalid_answer(error, refusal) from error
        except (requests.RequestException, ConnectionError) as error:
            raise PacsError(
                f"the PACS at {self.url} cannot be reached ({type(error).__name__}); is it running, and is the "
                "address right?"
            ) from error
        except PARSING_ERRORS as error:
            # IndexError: a multipart answer without any part.
            if isinstance(error, OSError) and error.errno is not None:
                # An error of this machine's disk, not of the PACS.
                raise
            raise self._invalid_answer(error, refusal) from error

    def _invalid_answer(self, error: Exception, refusal: type[PacsError]) -> PacsError:
        return refusal(
            f"the answer of the PACS at {self.url} is not DICOMweb ({error}); is the address right?"
        )


def _without_bulk_data(item: Mapping[str, Any]) -> Dataset:
    """Return a data set without its bulk data references, which nothing here reads."""
    return Dataset.from_json(dict(item), bulk_data_uri_handler=lambda *_: None)
