"""One row for every organ of every case, and the statistics over them."""

import csv
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import ConfigError, OrganNetError
from lib.evaluation.case_loading import (
    Box,
    CaseContours,
    CroppedMask,
    card_values,
    read_contours,
    same_grid,
)
from lib.evaluation.metrics import agreement
from lib.imaging.quantities import SpacingMm
from lib.organs.table import ORGANS
from lib.storage.atomic_files import replacing

_log = logging.getLogger(__name__)

WORKERS = 2
SPACING_DECIMALS = 4
"""NIfTI's 32-bit affines make 2.5 mm into 2.4999999: a tenth of a micrometre is noise, not anatomy."""

METRICS = ("dsc", "hd95_mm", "surface_dsc", "msd_mm", "volume_reference_ml", "volume_prediction_ml",
           "volume_difference_ml")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One organ that the reference contains, in one case; the fields are the columns of `metrics.csv`.

    Attributes:
        case: The case's name.
        organ: TG-263 name.
        dsc: 0 to 1; 0 where the organ was missed.
        hd95_mm: NaN where the organ was missed: a distance to nothing is unknown, not zero.
        surface_dsc: 0 to 1, at `tolerance_mm`; 0 where the organ was missed.
        tolerance_mm: The organ's, from the organ table.
        msd_mm: NaN where the organ was missed.
        volume_reference_ml: Volume of the reference.
        volume_prediction_ml: Volume of the prediction; 0 where the organ was missed.
    """

    case: str
    organ: str
    dsc: float
    hd95_mm: float
    surface_dsc: float
    tolerance_mm: float
    msd_mm: float
    volume_reference_ml: float
    volume_prediction_ml: float

    @property
    def is_missed(self) -> bool:
        """Whether the prediction holds nothing of the organ."""
        return self.volume_prediction_ml == 0

    @property
    def volume_difference_ml(self) -> float:
        """Prediction minus reference."""
        return self.volume_prediction_ml - self.volume_reference_ml


COLUMNS = tuple(f.name for f in fields(Row))


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        rows: One for each organ in each reference.
        cases: Cases that were compared.
        unknown: Case -> organs that other references contain, or its prediction does, and its reference does
            not: unknown, not absent, and left out.
        unmatched: Side -> name or value that means no organ of ours -> cases.
        refused: Case -> why it could not be compared.
        only_reference: Cases without a prediction.
        only_prediction: Cases without a reference.
        unasked: Organs of some reference that were not asked for.
        values_from: Side -> where the names of label values come from -> number of cases.
        seconds: Case -> time it took.
    """

    rows: list[Row] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    unmatched: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    only_reference: list[str] = field(default_factory=list)
    only_prediction: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    values_from: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def organs(self) -> list[str]:
        """Organs with a row, best mean DSC first; left and right of a pair next to each other."""
        means: dict[str, list[float]] = {}
        for row in self.rows:
            means.setdefault(stem(row.organ), []).append(row.dsc)
        return sorted(
            {row.organ for row in self.rows},
            key=lambda organ: (-float(np.mean(means[stem(organ)])), organ),
        )

    def of(self, organ: str) -> list[Row]:
        """Return the rows of one organ."""
        return [row for row in self.rows if row.organ == organ]


def stem(organ: str) -> str:
    """Return an organ's name without its side."""
    return organ.removesuffix(ORGANS[organ].side or "")


def evaluate(
    references: Mapping[str, Path],
    predictions: Mapping[str, Path],
    *,
    values: Mapping[str, int] | None = None,
    organs: Collection[str] | None = None,
    workers: int = WORKERS,
    on_case: Callable[[str], object] = str,
) -> Evaluation:
    """Return the agreement of every organ of every case that both sides have.

    A case that cannot be read or compared is named in `refused`, and the others go on.

    Args:
        references: Case -> what `lib.evaluation.case_loading.find_cases` found.
        predictions: Likewise.
        values: Spelling -> value of label volumes, on both sides; None to find out.
        organs: TG-263 names to look at; None for every organ of the references.
        workers: Organs at work at once.
        on_case: Called with each case's name when it is done.

    Raises:
        ConfigError: If no case is on both sides, or the meaning of label values is not clear.
    """
    common = sorted(references.keys() & predictions.keys())
    if not common:
        raise ConfigError(
            f"no case is on both sides: references are {_some(references)}, predictions {_some(predictions)}; "
            "a case has one name in both folders"
        )
    found = Evaluation(
        only_reference=sorted(references.keys() - predictions.keys()),
        only_prediction=sorted(predictions.keys() - references.keys()),
    )
    seen: dict[str, tuple[set[str], set[str]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for case in common:
            started = time.perf_counter()
            try:
                pair = read_pair(case, references[case], predictions[case], values, pool)
            except ConfigError:
                raise
            except OrganNetError as error:
                found.refused[case] = str(error)
                _log.warning("refused: %s", error)
            else:
                found.rows += _compare(*pair, organs, pool)
                found.cases.append(case)
                seen[case] = (set(pair[0].organs), set(pair[1].organs))
                _note(found, *pair)
            found.seconds[case] = time.perf_counter() - started
            on_case(case)
    contoured = set().union(*(reference for reference, _ in seen.values()))
    asked = set(ORGANS if organs is None else organs)
    found.unasked = sorted(contoured - asked)
    for case, (reference, prediction) in seen.items():
        unknown = sorted((contoured | prediction) & asked - reference)
        if unknown:
            found.unknown[case] = unknown
    return found


def read_pair(
    case: str,
    reference: Path,
    prediction: Path,
    values: Mapping[str, int] | None,
    pool: Executor,
) -> tuple[CaseContours, CaseContours]:
    """Return the contours of both sides of one case.

    Raises:
        ConfigError: If the meaning of label values is not clear.
        LabelError: If a file is no label.
        GeometryError: If they lie on different grids.
    """
    hint = card_values(prediction) if prediction.is_file() else None
    predicted = read_contours(case, prediction, values=values, pool=pool)
    drawn = read_contours(case, reference, values=values, hint=hint, pool=pool)
    same_grid(drawn, predicted)
    return drawn, predicted


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` to `path`, atomically; a number that is not known is an empty field."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(csv_cells(row))


def csv_cells(row: Row) -> list[str]:
    """Return a row's fields in the order of `COLUMNS`, as `metrics.csv` has them."""
    return [_cell(getattr(row, name)) for name in COLUMNS]


def read_csv(path: Path) -> list[Row]:
    """Return the rows that `write_csv` wrote to `path`; an empty field is NaN.

    Raises:
        ConfigError: If the file is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row_of(fields_) for fields_ in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a table of {', '.join(COLUMNS)} ({error})"
        ) from error


def _row_of(cells: Mapping[str, str]) -> Row:
    numbers = {name: float(cells[name] or "nan") for name in COLUMNS[2:]}
    return Row(case=cells["case"], organ=cells["organ"], **numbers)


def statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return n, mean, sample standard deviation, median, 5th and 95th percentile of the known values."""
    known = np.array([v for v in values if np.isfinite(v)])
    if known.size == 0:
        return {"n": 0, "mean": None, "sd": None, "median": None, "p5": None, "p95": None}
    low, median, high = (float(v) for v in np.percentile(known, [5, 50, 95]))
    return {
        "n": int(known.size),
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "median": median,
        "p5": low,
        "p95": high,
    }


def organ_statistics(rows: Sequence[Row]) -> dict[str, dict[str, float | int | None]]:
    """Return the statistics of each metric over `rows`."""
    return {metric: statistics([getattr(row, metric) for row in rows]) for metric in METRICS}


def overall(found: Evaluation) -> dict[str, Any]:
    """Return each metric's mean over the organs' means, and over all contours."""
    result: dict[str, Any] = {"n_contours": len(found.rows), "n_organs": len(found.organs)}
    for metric in ("dsc", "hd95_mm", "surface_dsc", "msd_mm"):
        of_organs = [
            statistics([getattr(row, metric) for row in found.of(organ)])["mean"]
            for organ in found.organs
        ]
        result[metric] = {
            "mean_of_organ_means": statistics([m for m in of_organs if m is not None])["mean"],
            "mean_of_contours": statistics([getattr(row, metric) for row in found.rows])["mean"],
        }
    return result


def summary(found: Evaluation) -> dict[str, Any]:
    """Return what `summary.json` holds: the statistics, and what was left out and why."""
    organs = {}
    for organ in found.organs:
        rows = found.of(organ)
        organs[organ] = {
            "n": len(rows),
            "missed": sum(row.is_missed for row in rows),
            "unknown": sum(organ in left_out for left_out in found.unknown.values()),
            "tolerance_mm": ORGANS[organ].tolerance_mm,
            "tolerance_source": ORGANS[organ].tolerance_source,
            **organ_statistics(rows),
        }
    return {
        "cases": found.cases,
        "overall": overall(found),
        "organs": organs,
        "missed": [{"case": r.case, "organ": r.organ} for r in found.rows if r.is_missed],
        "left_out": {
            "organs_without_reference": found.unknown,
            "organs_not_asked_for": found.unasked,
            "names_that_mean_no_organ": found.unmatched,
            "cases_refused": found.refused,
            "cases_without_prediction": found.only_reference,
            "cases_without_reference": found.only_prediction,
        },
        "label_values_from": found.values_from,
        "seconds": {case: round(s, 2) for case, s in found.seconds.items()},
    }


def _compare(
    reference: CaseContours,
    prediction: CaseContours,
    organs: Collection[str] | None,
    pool: Executor,
) -> list[Row]:
    names = [name for name in ORGANS if name in reference.organs]
    names = [name for name in names if organs is None or name in organs]
    return list(pool.map(lambda name: _row(reference, prediction, name), names))


def _row(reference: CaseContours, prediction: CaseContours, organ: str) -> Row:
    drawn, predicted = reference.organs[organ], prediction.organs.get(organ)
    tolerance_mm = ORGANS[organ].tolerance_mm
    box = union_box([drawn] if predicted is None else [drawn, predicted])
    first = drawn.within(box)
    second = np.zeros_like(first) if predicted is None else predicted.within(box)
    found = agreement(first, second, spacing_mm=_spacing_mm(reference), tolerance_mm=tolerance_mm)
    return Row(
        case=reference.case,
        organ=organ,
        dsc=found.dsc,
        hd95_mm=found.hd95_mm,
        surface_dsc=found.surface_dsc,
        tolerance_mm=tolerance_mm,
        msd_mm=found.msd_mm,
        volume_reference_ml=int(np.count_nonzero(first)) * reference.grid.voxel_ml,
        volume_prediction_ml=int(np.count_nonzero(second)) * reference.grid.voxel_ml,
    )


def union_box(pieces: Sequence[CroppedMask]) -> Box:
    """Return the smallest box that holds all of `pieces`, at least one."""
    x, y, z = (
        slice(min(p.box[a].start for p in pieces), max(p.box[a].stop for p in pieces))
        for a in range(3)
    )
    return (x, y, z)


def _spacing_mm(contours: CaseContours) -> SpacingMm:
    x, y, z = (round(s, SPACING_DECIMALS) for s in contours.grid.spacing_mm)
    return (x, y, z)


def _note(found: Evaluation, reference: CaseContours, prediction: CaseContours) -> None:
    for side, contours in (("reference", reference), ("prediction", prediction)):
        for name in contours.unmatched:
            found.unmatched.setdefault(side, {}).setdefault(name, []).append(contours.case)
        if contours.values_from:
            counts = found.values_from.setdefault(side, {})
            counts[contours.values_from] = counts.get(contours.values_from, 0) + 1


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if np.isfinite(value) else ""


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
