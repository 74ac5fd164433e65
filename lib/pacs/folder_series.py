"""The DICOM series of a studies folder in an Orthanc of this server's own, so that OHIF can open them.

    orthanc/            Orthanc's files: a second copy of each series
    orthanc/series.json the images whose series Orthanc holds

The folder stays what counts: series are added, replaced and removed as it changes. Orthanc answers this machine
only (its port is open on every interface, and refuses other machines), needs a password that is new at each
start, and ends with the server.
"""

import hashlib
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.errors import OrganNetError, PacsError
from lib.imaging.dicom_series import read_headers
from lib.isolation.inputs import Input
from lib.jobs.supervisor import PeriodicTask
from lib.pacs.orthanc import Orthanc
from lib.storage.atomic_files import write_json
from lib.storage.process_locks import ProcessLock

logger = logging.getLogger(__name__)

FOLDER = "orthanc"
CHECK_S = 2.0
"""Interval in s between two comparisons of Orthanc with the studies folder."""

_INDEX = "series.json"
_LOCK = "orthanc.lock"
_USER = "organnet"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSeries:
    """The series of one image, as Orthanc holds it."""

    study_uid: str
    """StudyInstanceUID (0020,000D)."""
    series_uid: str
    """SeriesInstanceUID (0020,000E)."""
    orthanc_id: str
    """Orthanc's own id."""
    state: str
    """Changes when the files in the studies folder change."""


class FolderPacs:
    """An Orthanc with the DICOM series of a studies folder; of several servers over it, one has it.

    Args:
        folders: Returns image id -> folder, of the images that are DICOM series.
        state: Folder of the workflow database.
    """

    def __init__(self, folders: Callable[[], Mapping[str, Path]], state: Path) -> None:
        self._folders = folders
        self._state = state
        self._folder = state / FOLDER
        self._lock = ProcessLock(state / _LOCK)
        self._series: dict[str, FolderSeries] = {}
        self._refused: dict[str, tuple[str, str]] = {}
        """Image id -> state of its files, and why OHIF cannot show it."""
        self._orthanc: Orthanc | None = None
        self._task = PeriodicTask(
            "ohif-folder",
            self.update,
            every_s=CHECK_S,
            error_message="the series of the studies folder could not be given to Orthanc",
        )

    def start(self) -> "FolderPacs":
        """Start the thread that starts Orthanc and keeps it in step with the folder."""
        self._task.start()
        return self

    def stop(self) -> None:
        """End the thread, and Orthanc."""
        self._task.stop()
        if self._orthanc is not None:
            self._orthanc.stop()
        self._lock.release()

    def orthanc(self) -> Orthanc:
        """Return the running Orthanc.

        Raises:
            PacsError: If it does not run yet, or another server over the folder has it.
        """
        if self._orthanc is None or self._orthanc.process is None:
            raise PacsError(
                "the Orthanc with the series of the studies folder does not run yet; try again in seconds, "
                "or open OHIF on the other server over this folder, if there is one"
            )
        return self._orthanc

    def series_of(self, image_id: str) -> FolderSeries | None:
        """Return the series of an image; None if Orthanc does not hold it (yet)."""
        return self._series.get(image_id)

    def image_of(self, series_uid: str) -> str | None:
        """Return the image whose series has a SeriesInstanceUID; None if there is none."""
        found = (
            image for image, series in list(self._series.items()) if series.series_uid == series_uid
        )
        return next(found, None)

    def refused(self) -> dict[str, str]:
        """Return image id -> why OHIF cannot show a DICOM series of the folder."""
        return {image_id: reason for image_id, (_, reason) in list(self._refused.items())}

    def update(self) -> bool:
        """Start Orthanc if need be, and bring one series in step; return whether there may be more to do."""
        if not self._lock.try_acquire():
            return False
        orthanc = self._running()
        folders = self._folders()
        states = {image_id: _state_of(folder) for image_id, folder in folders.items()}
        for image_id, series in list(self._series.items()):
            if states.get(image_id) != series.state:
                del self._series[image_id]
                self._write_index()
                orthanc.remove_series(series.orthanc_id)
        self._refused = {i: r for i, r in self._refused.items() if states.get(i) == r[0]}
        for image_id, state in sorted(states.items()):
            if image_id not in self._series and image_id not in self._refused:
                self._add(orthanc, image_id, folders[image_id], state)
                return True
        return False

    def _running(self) -> Orthanc:
        """Return the Orthanc, which is started if it does not run."""
        found = self._orthanc
        if found is not None and found.process is not None and found.process.poll() is None:
            return found
        found = Orthanc(
            self._folder,
            _free_port(),
            users={_USER: secrets.token_urlsafe(32)},
            options={"Name": "OrganNet Label: studies folder", "StorageCompression": True},
            ends_with_thread=True,
        )
        found.start()
        self._orthanc = found
        self._series = self._read_index(found.all_series())
        self._remove_unknown(found)
        logger.info("Orthanc holds %d series of the studies folder for OHIF", len(self._series))
        return found

    def _add(self, orthanc: Orthanc, image_id: str, folder: Path, state: str) -> None:
        """Store the slices of one image in Orthanc, or record why that is not possible."""
        try:
            headers, _ = read_headers(folder, image_id=image_id)
            uid = str(headers[0].SeriesInstanceUID)
            other = self.image_of(uid)
            if other is not None:
                raise PacsError(
                    f"{image_id}: it has the SeriesInstanceUID of {other}, which OHIF shows; remove one of "
                    "the two"
                )
            (orthanc_id,) = orthanc.upload(Path(str(header.filename)) for header in headers)
        except (OrganNetError, OSError, ValueError) as error:
            if orthanc.process is None or orthanc.process.poll() is not None:
                raise
            logger.warning("%s: not shown by OHIF: %s", image_id, error)
            self._refused[image_id] = (state, str(error))
            # The files can be removed while they are sent: Orthanc has some of the slices then.
            self._remove_unknown(orthanc)
            return
        series = FolderSeries(
            study_uid=str(headers[0].StudyInstanceUID),
            series_uid=uid,
            orthanc_id=orthanc_id,
            state=state,
        )
        self._series[image_id] = series
        self._write_index()

    def _remove_unknown(self, orthanc: Orthanc) -> None:
        """Remove the series that belong to no image, such as one of which only a part was sent."""
        known = {series.orthanc_id for series in self._series.values()}
        for orthanc_id in orthanc.all_series() - known:
            orthanc.remove_series(orthanc_id)

    def _read_index(self, present: set[str]) -> dict[str, FolderSeries]:
        """Return the series of the last run that Orthanc still holds."""
        try:
            stored = json.loads((self._folder / _INDEX).read_text(encoding="utf-8"))
            found = {image_id: FolderSeries(**values) for image_id, values in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
        return {i: series for i, series in found.items() if series.orthanc_id in present}

    def _write_index(self) -> None:
        write_json(self._folder / _INDEX, {i: asdict(series) for i, series in self._series.items()})


def _state_of(folder: Path) -> str:
    return hashlib.sha256(repr(Input(folder).state).encode()).hexdigest()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
