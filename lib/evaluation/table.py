"""Evaluation of predictions against references: one row of metrics per organ and case, and their statistics."""

import csv
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import CASE_ERRORS, ConfigError, case_failure
from lib.evaluation.case_loading import CaseContours, card_values, read_contours, union_box
from lib.evaluation.metrics import agreement
from lib.imaging.geometry import require_same_grid
from lib.organs.table import ORGANS
from lib.reports.pages import write_csv_rows

_log = logging.getLogger(__name__)

WORKERS = 2
"""Number of organs that are measured in parallel."""
SPACING_DECIMALS = 4
"""Decimals of a spacing in mm: the 32-bit affine of a NIfTI file turns 2.5 mm into 2.4999999 mm."""

METRICS = ("dsc", "hd95_mm", "surface_dsc", "msd_mm", "volume_reference_ml", "volume_prediction_ml",
           "volume_difference_ml")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Metrics of one organ of the reference in one case; the fields are the columns of `metrics.csv`."""

    case: str
    organ: str
    """TG-263 name."""
    dsc: float
    """0 to 1; 0 if the organ was missed."""
    hd95_mm: float
    """NaN if the organ was missed: a distance to nothing is undefined, not zero."""
    surface_dsc: float
    """0 to 1, at `tolerance_mm`; 0 if the organ was missed."""
    tolerance_mm: float
    """Tolerance of the organ, from the organ table."""
    msd_mm: float
    """NaN if the organ was missed."""
    volume_reference_ml: float
    volume_prediction_ml: float
    """Volume of the prediction; 0 if the organ was missed."""

    @property
    def is_missed(self) -> bool:
        """Whether the prediction does not contain the organ."""
        return self.volume_prediction_ml == 0

    @property
    def volume_difference_ml(self) -> float:
        """Prediction minus reference."""
        return self.volume_prediction_ml - self.volume_reference_ml


COLUMNS = tuple(f.name for f in fields(Row))


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """Result of an evaluation."""

    rows: list[Row] = field(default_factory=list)
    """Metrics of each organ in each reference."""
    cases: list[str] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    """Case -> organs that its reference does not contain, but its prediction or another reference does. They
    are unknown rather than absent, and left out."""
    unmatched: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Side -> name or value that is not a known organ -> cases."""
    refused: dict[str, str] = field(default_factory=dict)
    """Case -> reason why it could not be compared."""
    only_reference: list[str] = field(default_factory=list)
    """Cases without a prediction."""
    only_prediction: list[str] = field(default_factory=list)
    """Cases without a reference."""
    not_requested: list[str] = field(default_factory=list)
    """Organs of some reference that were not requested."""
    values_from: dict[str, dict[str, int]] = field(default_factory=dict)
    """Side -> source of the names of label values -> number of cases."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Case -> computing time in seconds."""

    @property
    def organs(self) -> list[str]:
        """Organs with a row, best mean DSC first, both sides of a pair together."""
        means: dict[str, list[float]] = {}
        for row in self.rows:
            means.setdefault(stem(row.organ), []).append(row.dsc)
        return sorted(
            {row.organ for row in self.rows},
            key=lambda organ: (-float(np.mean(means[stem(organ)])), organ),
        )

    def rows_of(self, organ: str) -> list[Row]:
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
    """Return the metrics of every organ of every case that both sides contain.

    A case that cannot be read or compared is listed in `refused`, and the others continue.

    Args:
        references: Case -> path, as `lib.evaluation.case_loading.find_cases` returns them.
        predictions: Likewise.
        values: Organ name -> value of label volumes on both sides; None to detect it for each file.
        organs: TG-263 names to compare; None for every organ of the references.
        workers: Number of organs that are measured in parallel.
        on_case: Called with the name of each finished case.

    Raises:
        ConfigError: If no case is on both sides, or the meaning of label values is ambiguous.
    """
    common = sorted(references.keys() & predictions.keys())
    if not common:
        raise ConfigError(
            f"no case is on both sides: references are {_first(references)}, predictions "
            f"{_first(predictions)}; give a case the same name in both folders"
        )
    evaluation = Evaluation(
        only_reference=sorted(references.keys() - predictions.keys()),
        only_prediction=sorted(predictions.keys() - references.keys()),
    )
    requested = set(ORGANS if organs is None else organs)
    compared: dict[str, tuple[set[str], set[str]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for case in common:
            started = time.perf_counter()
            try:
                pair = read_pair(case, references[case], predictions[case], values, pool)
            except ConfigError:
                raise
            except CASE_ERRORS as error:
                evaluation.refused[case] = case_failure(error, case)
                _log.warning("refused: %s", evaluation.refused[case])
            else:
                names = [name for name in ORGANS if name in pair[0].organs and name in requested]
                evaluation.rows += pool.map(partial(_row, *pair), names)
                evaluation.cases.append(case)
                compared[case] = (set(pair[0].organs), set(pair[1].organs))
                _record_names(evaluation, *pair)
            evaluation.seconds[case] = time.perf_counter() - started
            on_case(case)
    contoured = set().union(*(reference for reference, _ in compared.values()))
    evaluation.not_requested = sorted(contoured - requested)
    for case, (reference, prediction) in compared.items():
        unknown = sorted((contoured | prediction) & requested - reference)
        if unknown:
            evaluation.unknown[case] = unknown
    return evaluation


def read_pair(
    case: str, reference: Path, prediction: Path, values: Mapping[str, int] | None, pool: Executor
) -> tuple[CaseContours, CaseContours]:
    """Return the contours of both sides of one case.

    Raises:
        ConfigError: If the meaning of label values is ambiguous.
        LabelError: If a file is not a label.
        GeometryError: If both sides lie on different grids.
    """
    hint = card_values(prediction) if prediction.is_file() else None
    predicted = read_contours(case, prediction, values=values, pool=pool)
    expected = read_contours(case, reference, values=values, hint=hint, pool=pool)
    require_same_grid(case, label=predicted.grid, image=expected.grid)
    return expected, predicted


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` to `path`, atomically; an undefined number is an empty field."""
    write_csv_rows(path, [COLUMNS, *(csv_cells(row) for row in rows)])


def csv_cells(row: Row) -> list[str]:
    """Return a row as text, in the order of `COLUMNS`."""
    return [_cell(getattr(row, name)) for name in COLUMNS]


def read_csv(path: Path) -> list[Row]:
    """Return the rows that `write_csv` wrote to `path`; an empty field is NaN.

    Raises:
        ConfigError: If the file is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Row(
                    case=cells["case"],
                    organ=cells["organ"],
                    **{name: float(cells[name] or "nan") for name in COLUMNS[2:]},
                )
                for cells in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a table of {', '.join(COLUMNS)} ({error})"
        ) from error


def statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return n, mean, sample SD, median, 5th and 95th percentile of the values that are not NaN."""
    defined = np.array([v for v in values if np.isfinite(v)])
    if defined.size == 0:
        return {"n": 0, "mean": None, "sd": None, "median": None, "p5": None, "p95": None}
    low, median, high = (float(v) for v in np.percentile(defined, [5, 50, 95]))
    return {
        "n": int(defined.size),
        "mean": float(defined.mean()),
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "median": median,
        "p5": low,
        "p95": high,
    }


def organ_statistics(rows: Sequence[Row]) -> dict[str, dict[str, float | int | None]]:
    """Return the statistics of each metric over `rows`."""
    return {metric: statistics([getattr(row, metric) for row in rows]) for metric in METRICS}


def overall(evaluation: Evaluation) -> dict[str, Any]:
    """Return each metric's mean over the organs' means, and over all contours."""
    by_organ = [organ_statistics(evaluation.rows_of(organ)) for organ in evaluation.organs]
    all_contours = organ_statistics(evaluation.rows)
    result: dict[str, Any] = {"n_contours": len(evaluation.rows), "n_organs": len(by_organ)}
    for metric in ("dsc", "hd95_mm", "surface_dsc", "msd_mm"):
        means = [m for s in by_organ if (m := s[metric]["mean"]) is not None]
        result[metric] = {
            "mean_of_organ_means": statistics(means)["mean"],
            "mean_of_contours": all_contours[metric]["mean"],
        }
    return result


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `summary.json`: statistics, and what was left out and why."""
    organs = {}
    for organ in evaluation.organs:
        rows = evaluation.rows_of(organ)
        organs[organ] = {
            "n": len(rows),
            "missed": sum(row.is_missed for row in rows),
            "unknown": sum(organ in left_out for left_out in evaluation.unknown.values()),
            "tolerance_mm": ORGANS[organ].tolerance_mm,
            "tolerance_source": ORGANS[organ].tolerance_source,
            **organ_statistics(rows),
        }
    return {
        "cases": evaluation.cases,
        "overall": overall(evaluation),
        "organs": organs,
        "missed": [{"case": r.case, "organ": r.organ} for r in evaluation.rows if r.is_missed],
        "left_out": {
            "organs_without_reference": evaluation.unknown,
            "organs_not_asked_for": evaluation.not_requested,
            "names_that_mean_no_organ": evaluation.unmatched,
            "cases_refused": evaluation.refused,
            "cases_without_prediction": evaluation.only_reference,
            "cases_without_reference": evaluation.only_prediction,
        },
        "label_values_from": evaluation.values_from,
        "seconds": {case: round(s, 2) for case, s in evaluation.seconds.items()},
    }


def _row(reference: CaseContours, prediction: CaseContours, organ: str) -> Row:
    expected, predicted = reference.organs[organ], prediction.organs.get(organ)
    tolerance_mm = ORGANS[organ].tolerance_mm
    box = expected.box if predicted is None else union_box([expected.box, predicted.box])
    first = expected.within(box)
    second = np.zeros_like(first) if predicted is None else predicted.within(box)
    x_mm, y_mm, z_mm = (round(s, SPACING_DECIMALS) for s in reference.grid.spacing_mm)
    spacing_mm = (x_mm, y_mm, z_mm)
    result = agreement(first, second, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    return Row(
        case=reference.case,
        organ=organ,
        **asdict(result),
        tolerance_mm=tolerance_mm,
        volume_reference_ml=int(np.count_nonzero(first)) * reference.grid.voxel_ml,
        volume_prediction_ml=int(np.count_nonzero(second)) * reference.grid.voxel_ml,
    )


def _record_names(
    evaluation: Evaluation, reference: CaseContours, prediction: CaseContours
) -> None:
    for side, contours in (("reference", reference), ("prediction", prediction)):
        for name in contours.unmatched:
            evaluation.unmatched.setdefault(side, {}).setdefault(name, []).append(contours.case)
        if contours.values_from:
            counts = evaluation.values_from.setdefault(side, {})
            counts[contours.values_from] = counts.get(contours.values_from, 0) + 1


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if np.isfinite(value) else ""


def _first(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
