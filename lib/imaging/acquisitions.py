"""Check that the slices of one CT series come from one acquisition and one reconstruction.

Scanners and archives sometimes put two passes, time points or cardiac phases into one series. If their slices
alternate, the positions alone look like one CT with half the step. Attributes that differ are no proof: a
sequential scanner numbers each slice or each position of the couch. Those groups follow each other along the
normal; two passes alternate.
"""

import re
from collections.abc import Hashable, Sequence
from itertools import groupby, pairwise

from pydicom.dataset import Dataset

from lib.errors import ScanError
from lib.imaging.dicom_files import text_of

_IDENTICAL = ("PatientID", "StudyInstanceUID", "ConvolutionKernel")
"""Attributes with one value in all slices of a CT, where they are present."""

_TIME_POINTS = ("TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase",
                "NominalCardiacTriggerDelayTime")  # fmt: skip
"""Attributes that number the time points of a dynamic or gated scan (PS3.3 C.7.6.2, C.7.6.18)."""

_MAY_FOLLOW = ("AcquisitionNumber", "AcquisitionUID", *_TIME_POINTS, "TriggerTime", "TriggerDelayTime",
               "ImageType", "KVP", "FilterType", "ReconstructionDiameter", "ReconstructionAlgorithm",
               "ScanOptions", "SeriesDescription", "SeriesNumber", "AcquisitionDate", "ContrastBolusAgent",
               "ImageComments")  # fmt: skip
"""Attributes whose values may follow each other along the normal, but not alternate."""

PAUSE_S = 5.0
"""Shortest time in s between two passes."""

_TIME = re.compile(r"(\d{8})?(\d\d)(\d\d)(\d\d(?:\.\d+)?)")


def require_one_acquisition(slices: Sequence[Dataset], image_id: str) -> None:
    """Raise if the slices are of two acquisitions, time points or reconstructions.

    Args:
        slices: The headers of one series, sorted along the normal.
        image_id: For messages.

    Raises:
        ScanError: If they are.
    """
    for keyword in _IDENTICAL:
        values = {text_of(header, keyword) for header in slices} - {""}
        if len(values) > 1:
            shown = "" if keyword == "PatientID" else f" ({'; '.join(sorted(values)[:3])})"
            raise ScanError(
                f"{image_id}: {keyword} has {len(values)} values in one series{shown}, one expected; export "
                "one reconstruction of one patient"
            )
    for keyword in _MAY_FOLLOW:
        values_along = [value for header in slices if (value := text_of(header, keyword))]
        number = len(set(values_along))
        is_dynamic = keyword in _TIME_POINTS and 1 < number <= len(values_along) / 2
        if is_dynamic or _alternate(values_along):
            raise ScanError(_message(image_id, keyword, values_along))
    for keyword in ("AcquisitionTime", "AcquisitionDateTime"):
        times = [_time_s(text_of(header, keyword)) for header in slices]
        known = [time for time in times if time is not None]
        if len(known) == len(slices) and _alternate(_passes(known)):
            raise ScanError(_message(image_id, keyword, _passes(known)))


def _message(image_id: str, keyword: str, values: Sequence[Hashable]) -> str:
    shown = ", ".join(str(value) for value in dict.fromkeys(values[:4]))
    return (
        f"{image_id}: the series holds more than one acquisition: {keyword} is {shown}, ... from slice to "
        "slice; export each acquisition or time point as a series of its own"
    )


def _alternate(values: Sequence[Hashable]) -> bool:
    """Return whether values come back along the slices; one slice that was acquired again does not count."""
    runs, number = sum(1 for _ in groupby(values)), len(set(values))
    return runs > number + 1 and 2 * number <= len(values)


def _time_s(text: str) -> float | None:
    """Return a time (VR TM, or VR DT with its date) in s, for comparisons only; None if it is none."""
    match = _TIME.match(text)
    if match is None:
        return None
    day, hours, minutes, seconds = (float(value or 0) for value in match.groups())
    return 86_400 * day + 3600 * hours + 60 * minutes + seconds


def _passes(times_s: Sequence[float]) -> list[int]:
    """Return the number of the pass of each slice: a pause starts the next one."""
    ordered = sorted(set(times_s))
    number, passes = 1, {ordered[0]: 1}
    for before, time in pairwise(ordered):
        number += time - before >= PAUSE_S
        passes[time] = number
    return [passes[time] for time in times_s]
