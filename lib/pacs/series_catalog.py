"""The series of a PACS that can be contoured, kept in memory and in the database.

The list is requested every few seconds. A series that is new or changed is checked by its slices' headers:
if it is not a regular CT, it is refused with a reason, before an annotator opens it; localizers and screen
captures are ignored. The results are in the database, so the server can start without the PACS.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy import select

from lib.errors import DatastoreError, NotDeliveredError, PacsError, ScanError
from lib.imaging.dicom_series import ct_slices
from lib.imaging.scans import require_volume
from lib.imaging.slice_selection import is_capture, is_localizer
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import RetryBackoff, Undelivered
from lib.storage.database import Database
from lib.storage.tables import PacsSeries

logger = logging.getLogger(__name__)

ABOUT = ("PatientID", "StudyDate", "SeriesDate", "SeriesDescription", "Modality")
"""Attributes of a series that are kept and shown to users; no patient name."""
SCANS: Mapping[str, Any] = {"Modality": "CT"}


class SeriesCheck(str, Enum):
    """Result of checking a series.

    `UNCHECKED` until the headers of its slices were read; `IGNORED` for a series that is no scan, such as a
    localizer.
    """

    UNCHECKED = "unchecked"
    USABLE = "usable"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """A series as a PACS lists it; if an attribute differs from the stored one, the series changed."""

    study_uid: str
    about: dict[str, Any]
    """Further attributes as in `PacsSeries.about`: by DICOM keyword, and
    `slices`: NumberOfSeriesRelatedInstances (0020,1209); None if the PACS does not send it;
    `studies`: number of studies in which the PACS has a series of that UID."""

    def is_stored_in(self, row: PacsSeries) -> bool:
        """Return whether a row has these attributes."""
        return (row.study_uid, row.about) == (self.study_uid, self.about)


@dataclass(frozen=True)
class SeriesRecords:
    """The series of one PACS in the database."""

    database: Database
    pacs: str
    """Address of the PACS."""

    def listed(self) -> list[PacsSeries]:
        """Return the series in the PACS's last list, sorted by UID."""
        query = select(PacsSeries).where(PacsSeries.pacs == self.pacs, PacsSeries.is_listed)
        with self.database.reading() as session:
            return list(session.scalars(query.order_by(PacsSeries.uid)))

    def replace(self, listed: Mapping[str, ListedSeries]) -> bool:
        """Store a new list, and return whether it differs; a series that changed becomes unchecked.

        Args:
            listed: SeriesInstanceUID -> series.
        """
        stored = {row.uid: row for row in self.listed()}
        if stored.keys() == listed.keys() and all(
            series.is_stored_in(stored[uid]) for uid, series in listed.items()
        ):
            return False
        with self.database.writing() as session:
            all_series = session.scalars(select(PacsSeries).where(PacsSeries.pacs == self.pacs))
            rows = {row.uid: row for row in all_series}
            for uid, row in rows.items():
                row.is_listed = uid in listed
            for uid, series in listed.items():
                row = rows.get(uid) or PacsSeries(pacs=self.pacs, uid=uid)
                if not series.is_stored_in(row):
                    row.study_uid, row.about = series.study_uid, series.about
                    row.verdict = SeriesCheck.UNCHECKED.value
                    session.add(row)
        return True

    def set_check(self, uid: str, verdict: SeriesCheck, reason: str = "") -> PacsSeries | None:
        """Store the result of checking a series, and return its row."""
        with self.database.writing() as session:
            row = session.get(PacsSeries, (self.pacs, uid))
            if row is not None:
                row.verdict, row.reason = verdict.value, reason
        return row


class SeriesCatalog:
    """The scans of one PACS; thread-safe.

    Args:
        series: The series in the database.
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
        self._backoff = RetryBackoff()
        self._rows: Mapping[str, PacsSeries] = {}
        self.revision = 0
        """Number that changes whenever the list does."""
        self._read()

    def images(self) -> dict[str, dict[str, Any]]:
        """Return SeriesInstanceUID -> attributes, of each scan that can be contoured."""
        return {
            uid: _shown_attributes(row)
            for uid, row in self._rows.items()
            if row.verdict == SeriesCheck.USABLE
        }

    def slices(self) -> dict[str, int | None]:
        """Return SeriesInstanceUID -> number of instances in the PACS; None if unknown."""
        return {uid: row.about["slices"] for uid, row in self._rows.items()}

    def refused(self) -> dict[str, str]:
        """Return SeriesInstanceUID -> reason, of each CT that cannot be contoured."""
        return {
            uid: row.reason for uid, row in self._rows.items() if row.verdict == SeriesCheck.REFUSED
        }

    def unchecked(self) -> list[str]:
        """Return the series that were not checked yet, the newest first."""
        waiting = [row for row in self._rows.values() if row.verdict == SeriesCheck.UNCHECKED]
        waiting.sort(key=lambda row: (row.first_seen_at, row.uid), reverse=True)
        return [row.uid for row in waiting]

    def undelivered(self) -> list[Undelivered]:
        """Return the series whose headers the PACS did not deliver."""
        unchecked = self.unchecked()
        return [item for item in self._backoff.undelivered() if item.uid in unchecked]

    def require(self, uid: str) -> PacsSeries:
        """Return the row of a scan that can be contoured; it is checked now if it was not yet.

        Raises:
            DatastoreError: If the PACS lists no such scan.
            ScanError: If it is no CT that can be contoured.
            PacsError: If it was not checked yet and the PACS does not answer.
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
        """Request the list, and return whether it changed.

        Raises:
            PacsError: If the PACS does not answer; the last list stays.
        """
        changed = self._series.replace(_listed(self._pacs.series(**self._filters)))
        if changed:
            self._read()
        return changed

    def check_next(self) -> bool:
        """Check one series that was not checked yet, and return whether there was one.

        A series whose headers the PACS does not deliver waits; the next ones do not.

        Raises:
            PacsError: If the PACS does not answer.
        """
        uid = next(filter(self._backoff.is_due, self.unchecked()), None)
        if uid is None:
            return False
        with suppress(NotDeliveredError):
            self.check(uid)
        return True

    def check(self, uid: str) -> None:
        """Check whether a series is a CT that can be contoured; do nothing if it is not listed any more.

        Raises:
            NotDeliveredError: If the PACS answers, but not with the headers of its slices.
            PacsError: If the PACS does not answer.
        """
        row = self._rows.get(uid)
        if row is None:
            return
        try:
            verdict, reason = self._check_headers(row)
        except PacsError as error:
            # Also if the PACS does not answer: if this series is the cause, the others come first.
            self._backoff.record_failure(uid, str(error))
            raise
        self._backoff.record_success(uid)
        self._record(uid, verdict, reason)

    def refuse(self, uid: str, reason: str) -> None:
        """Record that a series cannot be contoured, because of its pixels."""
        self._record(uid, SeriesCheck.REFUSED, reason)

    def _record(self, uid: str, verdict: SeriesCheck, reason: str) -> None:
        if verdict is not SeriesCheck.USABLE:
            logger.info("%s: %s: %s", uid, verdict.value, reason)
        row = self._series.set_check(uid, verdict, reason)
        with self._mutex:
            if row is not None and uid in self._rows:
                self._rows = {**self._rows, uid: row}
                self.revision += 1

    def _check_headers(self, row: PacsSeries) -> tuple[SeriesCheck, str]:
        if row.about["studies"] > 1:
            return SeriesCheck.REFUSED, (
                f"{row.uid}: the PACS has this series in {row.about['studies']} studies, so its "
                "patient is unknown; remove the wrong one there"
            )
        headers = self._pacs.headers(row.study_uid, row.uid)
        if not headers:
            raise NotDeliveredError(f"{row.uid}: the PACS lists this series, but no slice of it")
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


def _listed(items: list[Dataset]) -> dict[str, ListedSeries]:
    """Return SeriesInstanceUID -> series; if it is in several studies, with the last study by UID."""
    studies = Counter(str(item.SeriesInstanceUID) for item in items)
    return {
        str(item.SeriesInstanceUID): ListedSeries(
            study_uid=str(item.StudyInstanceUID),
            about={
                **{key: str(item.get(key, "") or "") for key in ABOUT},
                "slices": item.get("NumberOfSeriesRelatedInstances"),
                "studies": studies[str(item.SeriesInstanceUID)],
            },
        )
        for item in sorted(items, key=lambda item: str(item.StudyInstanceUID))
    }


def _shown_attributes(row: PacsSeries) -> dict[str, Any]:
    about = {key: value for key, value in row.about.items() if key in ABOUT}
    return {**about, "SeriesInstanceUID": row.uid, "StudyInstanceUID": row.study_uid}
