"""When is the model good enough? What people change of its predictions, submission by submission."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import PermutationMethod, mannwhitneyu

from lib.activelearning.edit_cost_records import Edited
from lib.evaluation.edit_cost import EditCosts, edit_cost
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.inference.single_pass import contour
from lib.models.model_history import ModelHistory
from lib.models.registry import Model
from lib.storage.tables import LabelVersion

WINDOW = 5
"""Submissions in one median of the curve, and on each side of the comparison."""
ORGAN_WINDOW = 10
"""Submissions that the numbers of each organ are of."""
CHANCE = 0.1
"""Two fives differ where the Mann-Whitney test, two-sided, finds less than this.

Five against five can reach 0.008. The curve is looked at after every submission, so one look in ten sees a
change where there is none: the sentence is for annotators, and decides nothing.
"""
MEASURES = ("mean_dsc", "added_path_mm", "changed_voxels")


def measure(
    ct_path: Path,
    label_path: Path,
    model: Model,
    *,
    image_id: str,
    labels: Mapping[str, int],
    device: str = "cpu",
) -> EditCosts:
    """Return what was changed of the contours that `model` draws to get the submitted label.

    The contours are those of one plain pass on the CT's own grid: what a person began with may have come from
    a `deep` pass.

    Args:
        ct_path: The scan; a file or the folder of a DICOM series.
        label_path: What was submitted.
        model: That served then. Its organs may have other values than this server's, or be others.
        image_id: What errors call the case.
        labels: TG-263 name -> value in the submitted label.
        device: Where the network runs.

    Raises:
        ScanError: If the scan is not one readable CT.
        LabelError: If the file is no label.
        GeometryError: If it does not lie on the scan's grid.
    """
    ct = read_ct(ct_path, image_id=image_id)
    submitted, _ = read_label(label_path, image_id=image_id, image_grid=ct.grid)
    prediction = with_values(contour(ct, model, device=device).label, labels)
    return edit_cost(prediction, submitted, labels, grid=ct.grid)


def with_values(label: LabelVolume, labels: Mapping[str, int]) -> LabelArray:
    """Return the voxels of `label` with the values of `labels`; organs that these do not name become 0."""
    values = np.zeros(256, np.uint8)
    for name, value in label.labels.items():
        values[value] = labels.get(name, 0)
    return np.asarray(values[label.array])


def was_trained_on(
    label: LabelVersion, models: ModelHistory, *, unrecorded: Collection[str] = ()
) -> bool:
    """Return whether the model that served had learned from an earlier label of this image.

    Its parents count: their weights went into it. Whatever it learned from was there before it served, and so
    before this submission.

    Args:
        label: What was submitted.
        models: Every model there is, the starter too, with the cases on its card.
        unrecorded: Image ids that a model learned from which is not recorded, such as those of
            `lib.models.model_cards.trained_cases`; asked where the line of parents ends at such a model.
    """
    version, seen = label.model_version, set[str]()
    while version and version not in seen:
        seen.add(version)
        model = models.get(version)
        if model is None:
            return label.image_id in unrecorded
        if any(one["image_id"] == label.image_id for one in model.labels):
            return True
        version = model.parent
    return False


def summary(rows: Sequence[Edited]) -> dict[str, Any]:
    """Return the curve and what to think of it, as JSON can hold it.

    A submission counts if it was measured, holds an organ, and the model had not learned from the image
    before. If somebody submits an image again while the same model serves, the last one counts.

    Args:
        rows: In the order of submission (`EditCostRecords.curve`).

    Returns:
        `submissions`, oldest first, each with `counts` and the `running_median` of the last `WINDOW` that count
        (None before there are so many); `organs`, medians of the last `ORGAN_WINDOW` that count, and
        `unchanged_share`, how many of their contours were submitted as predicted (None without any);
        `counted`, `failed`; and `verdict`, a sentence.
    """
    places = _counted(rows)
    counted = [rows[place] for place in places]
    recent = counted[-ORGAN_WINDOW:]
    medians = {
        place: _medians(counted[number - WINDOW + 1 : number + 1])
        for number, place in enumerate(places)
        if number >= WINDOW - 1
    }
    known = set(places)
    submissions = [
        {**_submission(row), "counts": place in known, "running_median": medians.get(place)}
        for place, row in enumerate(rows)
    ]
    unchanged = [
        numbers["changed_voxels"] == 0 for row in recent for numbers in _submitted(row).values()
    ]
    return {
        "submissions": submissions,
        "organs": _organs(recent),
        "unchanged_share": sum(unchanged) / len(unchanged) if unchanged else None,
        "counted": len(counted),
        "failed": sum(row.cost.trouble is not None for row in rows),
        "verdict": verdict(counted),
    }


def verdict(counted: Sequence[Edited]) -> str:
    """Return a sentence for annotators: what the last cases needed, and whether that is less than before.

    Medians of the added path length are compared, per case; per organ where the cases have different numbers
    of organs.

    Args:
        counted: The submissions that count, oldest first.
    """
    count = len(counted)
    if count < WINDOW:
        return f"too few submissions to say: {count} of {2 * WINDOW}"
    compared = counted[-2 * WINDOW :]
    organs = sorted({len(_submitted(row)) for row in compared})
    is_alike = len(organs) == 1
    needed = [(row.cost.added_path_mm or 0.0) / (1 if is_alike else len(_submitted(row)))
              for row in compared]  # fmt: skip
    last, before = needed[-WINDOW:], needed[:-WINDOW]
    how = "per case (median)" if is_alike else (
        f"per organ (median; the cases have {organs[0]} to {organs[-1]} organs)"
    )  # fmt: skip
    said = f"the last {WINDOW} cases needed {median(last):.0f} mm of new contour {how}"
    if len(before) < WINDOW:
        return f"{said}; too few submissions to compare: {count} of {2 * WINDOW}"
    return f"{said}, {_change(before, last)}"


def chance(before: Sequence[float], last: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney test over all ways to divide the values, ties included."""
    return float(mannwhitneyu(before, last, method=PermutationMethod()).pvalue)


def _change(before: Sequence[float], last: Sequence[float]) -> str:
    was, is_now = median(before), median(last)
    if chance(before, last) >= CHANCE or was == is_now:
        return f"{was:.0f} mm in the {WINDOW} before: no change beyond chance"
    direction = "less" if is_now < was else "more"
    if was == 0:
        return f"{is_now:.0f} mm {direction} than the {WINDOW} before"
    return f"{100 * abs(is_now - was) / was:.0f} % {direction} than the {WINDOW} before"


def _counted(rows: Sequence[Edited]) -> list[int]:
    """Return the places of the submissions that count, in order."""
    last: dict[tuple[str, str, str], int] = {}
    for place, row in enumerate(rows):
        if row.cost.mean_dsc is not None and not row.cost.was_trained_on:
            last[row.label.image_id, row.label.author, row.cost.model_version] = place
    return sorted(last.values())


def _submission(row: Edited) -> dict[str, Any]:
    label, cost = row.label, row.cost
    return {
        "time": label.submitted_at.isoformat(timespec="seconds"),
        "image": label.image_id,
        "author": label.author,
        "model_version": cost.model_version,
        "was_trained_on": cost.was_trained_on,
        "organs": len(_submitted(row)),
        "left_out": sorted(cost.found.keys() - _submitted(row).keys()),
        **{name: getattr(cost, name) for name in MEASURES},
        "trouble": cost.trouble,
    }


def _submitted(row: Edited) -> dict[str, Any]:
    """Return the numbers of each organ that was submitted."""
    return {name: found for name, found in row.cost.found.items() if not found["is_left_out"]}


def _medians(rows: Sequence[Edited]) -> dict[str, float]:
    return {name: float(median(getattr(row.cost, name) for row in rows)) for name in MEASURES}


def _organs(rows: Sequence[Edited]) -> dict[str, dict[str, float | int]]:
    """Return the medians of each organ that was submitted in any of `rows`, by name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for name, numbers in _submitted(row).items():
            found.setdefault(name, []).append(numbers)
    return {
        name: {
            "n": len(numbers),
            "unchanged": sum(one["changed_voxels"] == 0 for one in numbers),
            "missed": sum(one["is_missed"] for one in numbers),
            **{key: float(median(one[key] for one in numbers))
               for key in ("dsc", "added_path_mm", "changed_voxels", "changed_ml")},
        }
        for name, numbers in sorted(found.items())
    }  # fmt: skip
