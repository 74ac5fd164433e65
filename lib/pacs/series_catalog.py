"""Which series of a PACS are scans that can be contoured, known without asking it each time.

The list is asked for every few seconds. A series that is new or changed is judged by its slices' headers: one
that is no regular CT is refused by name, long before anybody wants it contoured; localizers and screen captures
are passed over. What was found out is in the database, so a start without the PACS knows its patients.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydicom.dataset import Dataset

from lib.errors import DatastoreError, NotDeliveredError, PacsError, ScanError
from lib.imaging.dicom_series import ct_slices, is_capture, is_localizer
from lib.imaging.scans import require_volume
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import RetryBackoff, Undelivered
from lib.pacs.series_records import ListedSeries, SeriesCheck, SeriesRecords
from lib.storage.tables import PacsSeries

logger = logging.getLogger(__name__)

ABOUT = ("PatientID", "StudyDate", "SeriesDate", "SeriesDescription", "Modality")
"""What is kept of a series, and told to whoever may list it; no names."""
SCANS: Mapping[str, Any] = {"Modality": "CT"}


class SeriesCatalog:
    """The scans of one PACS; safe to use from threads.

    Args:
        series: What is remembered of it.
        pacs: The PACS.
        filters: DICOM keyword -> value that a scan's series must have.
    """

    def __init__(
        self, series: SeriesRecords, pacs: Pacs, *, filters: Mapping[str, Any] = SCANS
    ) -> None:
        self._series = series
        self._pacs = pacs
        self._filters = dict(filters)
        self._mutex = threading.Lock()
        self._later = RetryBackoff()
        self._rows: Mapping[str, PacsSeries] = {}
        self.revision = 0
        """Changes with the list."""
        self.trouble = ""
        """Why the PACS was asked in vain last time; empty where it answered."""
        self._read()

    def images(self) -> dict[str, dict[str, Any]]:
        """Return SeriesInstanceUID -> what is known of each scan that can be contoured."""
        return {
            uid: _told(row) for uid, row in self._rows.items() if row.verdict == SeriesCheck.USABLE
        }

    def slices(self) -> dict[str, int | None]:
        """Return SeriesInstanceUID -> how many instances the PACS lists of it; None where it does not say."""
        return {uid: row.about["slices"] for uid, row in self._rows.items()}

    def refused(self) -> dict[str, str]:
        """Return SeriesInstanceUID -> what is wrong with it, of each CT that cannot be contoured."""
        return {
            uid: row.reason for uid, row in self._rows.items() if row.verdict == SeriesCheck.REFUSED
        }

    def unchecked(self) -> list[str]:
        """Return the series that nobody looked at yet, the newest first."""
        waiting = [row for row in self._rows.values() if row.verdict == SeriesCheck.UNCHECKED]
        waiting.sort(key=lambda row: (row.first_seen_at, row.uid), reverse=True)
        return [row.uid for row in waiting]

    def undelivered(self) -> list[Undelivered]:
        """Return the series whose slices the PACS was asked for in vain."""
        waiting = self.unchecked()
        return [one for one in self._later.undelivered() if one.uid in waiting]

    def require(self, uid: str) -> PacsSeries:
        """Return what is known of a scan that can be contoured, looked at now if it was not yet.

        Raises:
            DatastoreError: If the PACS lists no such scan.
            ScanError: If it is no CT that can be contoured.
            PacsError: If it was not looked at yet and the PACS does not answer.
        """
        row = self._rows.get(uid)
        if row is not None and row.verdict == SeriesCheck.UNCHECKED:
            self.check(uid)
            row = self._rows.get(uid)
        if row is None or row.verdict == SeriesCheck.IGNORED:
            raise DatastoreError(f"{uid}: the PACS lists no such CT series")
        if row.verdict == SeriesCheck.REFUSED:
            raise ScanError(row.reason)
        return row

    def refresh(self) -> bool:
        """Ask for the list, and return whether it changed.

        Raises:
            PacsError: If the PACS does not answer; what it listed before stays.
        """
        try:
            found = _listed(self._pacs.series(**self._filters))
        except PacsError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        changed = self._series.replace(found)
        if changed:
            self._read()
        return changed

    def check_next(self) -> bool:
        """Look at one series that nobody looked at yet, and return whether there was one.

        One that the PACS does not tell of is left out for a while; the next ones are not.

        Raises:
            PacsError: If the PACS does not answer.
        """
        uid = next(filter(self._later.is_due, self.unchecked()), None)
        if uid is None:
            return False
        with suppress(NotDeliveredError):
            self.check(uid)
        return True

    def check(self, uid: str) -> None:
        """Find out whether a series is a CT that can be contoured; nothing where it is listed no longer.

        Raises:
            NotDeliveredError: If the PACS answers, but does not tell of its slices.
            PacsError: If the PACS does not answer.
        """
        row = self._rows.get(uid)
        if row is None:
            return
        try:
            verdict, reason = self._judged(row)
        except PacsError as error:
            # Whatever it was: where only this series makes the PACS fall silent, the others come first.
            self._later.record_failure(uid, str(error))
            raise
        self._later.record_success(uid)
        self._decide(uid, verdict, reason)

    def refuse(self, uid: str, reason: str) -> None:
        """Remember that a series cannot be contoured, as its pixels show."""
        self._decide(uid, SeriesCheck.REFUSED, reason)

    def _decide(self, uid: str, verdict: SeriesCheck, reason: str) -> None:
        if verdict is not SeriesCheck.USABLE:
            logger.info("%s: %s: %s", uid, verdict.value, reason)
        judged = self._series.set_check(uid, verdict, reason)
        with self._mutex:
            if judged is not None and uid in self._rows:
                self._rows = {**self._rows, uid: judged}
                self.revision += 1

    def _judged(self, row: PacsSeries) -> tuple[SeriesCheck, str]:
        if row.about["studies"] > 1:
            return SeriesCheck.REFUSED, (
                f"{row.uid}: the PACS has this series in {row.about['studies']} studies; which patient it is "
                "of cannot be told: remove the wrong one there"
            )
        headers = self._pacs.headers(row.study_uid, row.uid)
        if not headers:
            raise NotDeliveredError(f"{row.uid}: the PACS lists this series and tells of no slice")
        if all(is_localizer(header) or is_capture(header) for header in headers):
            return SeriesCheck.IGNORED, "localizers or screen captures only"
        try:
            _, grid = ct_slices(headers, image_id=row.uid)
            require_volume(row.uid, grid)
        except ScanError as error:
            return SeriesCheck.REFUSED, str(error)
        return SeriesCheck.USABLE, ""

    def _read(self) -> None:
        with self._mutex:
            self._rows = {row.uid: row for row in self._series.listed()}
            self.revision += 1


def _listed(found: list[Dataset]) -> list[ListedSeries]:
    """Return what a PACS listed, each series once."""
    studies = Counter(str(item.SeriesInstanceUID) for item in found)
    named = {
        str(item.SeriesInstanceUID): ListedSeries(
            uid=str(item.SeriesInstanceUID),
            study_uid=str(item.StudyInstanceUID),
            about={key: str(item.get(key, "") or "") for key in ABOUT},
            slices=item.get("NumberOfSeriesRelatedInstances"),
            studies=studies[str(item.SeriesInstanceUID)],
        )
        for item in sorted(found, key=lambda one: str(one.StudyInstanceUID))
    }
    return list(named.values())


def _told(row: PacsSeries) -> dict[str, Any]:
    about = {key: value for key, value in row.about.items() if key in ABOUT}
    return {**about, "SeriesInstanceUID": row.uid, "StudyInstanceUID": row.study_uid}
