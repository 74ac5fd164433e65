"""Edit costs: how much annotators change of the model's contours, and how that develops over submissions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from scipy.stats import PermutationMethod, mannwhitneyu
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from lib.evaluation.edit_cost import EditCosts
from lib.labels.history import FINAL
from lib.models.model_history import ModelHistory
from lib.storage.database import Database
from lib.storage.tables import EditCost, LabelVersion

HUMAN_SOURCES = ("client", "folder")
"""Sources of labels that an annotator submitted; not `infer` (by a model) or `restore` (an earlier label)."""

WINDOW = 5
"""Number of submissions in each running median, and on each side of the comparison."""
ORGAN_WINDOW = 10
"""Number of latest submissions that the values per organ summarise."""
SIGNIFICANCE = 0.1
"""Significance level of the two-sided Mann-Whitney test between two windows.

Five values against five can reach p = 0.008. The test is repeated after every submission, so about one
result in ten is a false positive: the sentence informs annotators, and no decision depends on it.
"""
MEASURES = ("mean_dsc", "added_path_mm", "changed_voxels")

_JOINED = select(LabelVersion, EditCost).join(
    EditCost, EditCost.label_version_id == LabelVersion.id
)
_COLUMNS = tuple(EditCost.__table__.columns.keys())


@dataclass(frozen=True, slots=True)
class SubmissionCost:
    """A submitted label, and its edit cost."""

    label: LabelVersion
    cost: EditCost


class EditCostRecords:
    """The edit costs of a database: one row per submitted label, never changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        label: LabelVersion,
        costs: EditCosts | None,
        *,
        was_trained_on: bool,
        error: str | None = None,
    ) -> bool:
        """Store an edit cost; return False if the label has one already.

        Args:
            label: The submitted label, from `unmeasured`.
            costs: The measured cost; None if the measurement failed.
            was_trained_on: Whether the model had learned from this case before.
            error: Error message of a measurement that failed; it is not tried again.
        """
        row = {
            "label_version_id": label.id,
            "model_version": label.model_version,
            "was_trained_on": was_trained_on,
            "values": costs.as_dict() if costs else {},
            **{name: getattr(costs, name) if costs else None for name in MEASURES},
            "error": error,
        }
        with self._database.writing() as session:
            return _add(session, row)

    def unmeasured(self, limit: int) -> list[LabelVersion]:
        """Return at most `limit` submissions without an edit cost, the newest first.

        These are annotators' final labels that are not hidden and whose model is recorded. Each label version
        of an image counts, since each was compared with a prediction when it was submitted.
        """
        query = (
            select(LabelVersion)
            .outerjoin(EditCost, EditCost.label_version_id == LabelVersion.id)
            .where(
                EditCost.label_version_id.is_(None),
                LabelVersion.tag == FINAL,
                LabelVersion.source.in_(HUMAN_SOURCES),
                LabelVersion.hidden_at.is_(None),
                # Both mean that no model is recorded.
                LabelVersion.model_version.is_not(None),
                LabelVersion.model_version != "",
            )
            .order_by(LabelVersion.submitted_at.desc(), LabelVersion.id.desc())
            .limit(limit)
        )
        with self._database.reading() as session:
            return list(session.scalars(query))

    def curve(self) -> list[SubmissionCost]:
        """Return all edit costs in the order of submission, without hidden labels."""
        visible = _JOINED.where(LabelVersion.hidden_at.is_(None))
        in_order = visible.order_by(LabelVersion.submitted_at, LabelVersion.id)
        with self._database.reading() as session:
            return [SubmissionCost(label, cost) for label, cost in session.execute(in_order)]

    def merge(self, other: Database) -> int:
        """Add the edit costs of another database for labels that have none here; return how many were added.

        Labels are matched by image, tag, time and content, because their ids differ between databases.
        """
        with other.reading() as session:
            others = list(session.execute(_JOINED))
        added = 0
        with self._database.writing() as session:
            ids = {_identity(label): label.id for label in session.scalars(select(LabelVersion))}
            for label, cost in others:
                if _identity(label) in ids:
                    row = {column: getattr(cost, column) for column in _COLUMNS}
                    added += _add(session, {**row, "label_version_id": ids[_identity(label)]})
        return added


def _add(session: Session, row: Mapping[str, Any]) -> bool:
    """Add a row unless its label has one; return whether it was added."""
    add = insert(EditCost).values(**row).on_conflict_do_nothing()
    return session.execute(add.returning(EditCost.label_version_id)).first() is not None


def _identity(label: LabelVersion) -> tuple[str, str, datetime, str]:
    return label.image_id, label.tag, label.submitted_at, label.digest


def was_trained_on(
    label: LabelVersion, models: ModelHistory, *, unrecorded: Collection[str] = ()
) -> bool:
    """Return whether the model that was active had been trained on an earlier label of this image.

    Its parent models count, because its training started from their weights. A model's training labels are
    always older than the submissions made with it, so only the image ids are compared.

    Args:
        label: The submitted label.
        models: History of all models, the starter included.
        unrecorded: Image ids that models without a history were trained on, such as those of
            `lib.models.model_cards.trained_cases`; used if a parent has no history.
    """
    version, seen = label.model_version, set[str]()
    while version and version not in seen:
        seen.add(version)
        model = models.get(version)
        if model is None:
            return label.image_id in unrecorded
        if any(trained["image_id"] == label.image_id for trained in model.labels):
            return True
        version = model.parent
    return False


def summary(rows: Sequence[SubmissionCost]) -> dict[str, Any]:
    """Return the curve and its interpretation as JSON values.

    A submission counts if it was measured, contains an organ, and the model had not learned from the image
    before. If an annotator submits an image several times with the same active model, the last submission
    counts.

    Args:
        rows: In the order of submission (`EditCostRecords.curve`).

    Returns:
        `submissions`, oldest first, each with `counts` and the `running_median` of the last `WINDOW` that count
        (None for fewer); `organs`, medians of the last `ORGAN_WINDOW` that count, and
        `unchanged_share`, the share of their contours that were submitted as predicted (None without any);
        `counted`, `failed`; and `verdict`, a sentence.
    """
    indices = _counted(rows)
    counted = [rows[index] for index in indices]
    recent = counted[-ORGAN_WINDOW:]
    medians = {
        index: _medians(counted[number - WINDOW + 1 : number + 1])
        for number, index in enumerate(indices)
        if number >= WINDOW - 1
    }
    counting = set(indices)
    submissions = [
        {**_submission(row), "counts": index in counting, "running_median": medians.get(index)}
        for index, row in enumerate(rows)
    ]
    unchanged = [
        numbers["changed_voxels"] == 0 for row in recent for numbers in _submitted(row).values()
    ]
    return {
        "submissions": submissions,
        "organs": _organs(recent),
        "unchanged_share": sum(unchanged) / len(unchanged) if unchanged else None,
        "counted": len(counted),
        "failed": sum(row.cost.error is not None for row in rows),
        "verdict": verdict(counted),
    }


def verdict(counted: Sequence[SubmissionCost]) -> str:
    """Return a sentence for annotators: the edit cost of the last cases, and whether it has changed.

    Medians of the added path length per case are compared, or per organ if the cases have different numbers of
    organs.

    Args:
        counted: The submissions that count, oldest first.
    """
    count = len(counted)
    if count < WINDOW:
        return f"too few submissions to say: {count} of {2 * WINDOW}"
    compared = counted[-2 * WINDOW :]
    organ_counts = sorted({len(_submitted(row)) for row in compared})
    is_per_case = len(organ_counts) == 1
    path_mm = [(row.cost.added_path_mm or 0.0) / (1 if is_per_case else len(_submitted(row)))
               for row in compared]  # fmt: skip
    last, before = path_mm[-WINDOW:], path_mm[:-WINDOW]
    unit = "per case (median)" if is_per_case else (
        f"per organ (median; the cases have {organ_counts[0]} to {organ_counts[-1]} organs)"
    )  # fmt: skip
    sentence = f"the last {WINDOW} cases needed {median(last):.0f} mm of new contour {unit}"
    if len(before) < WINDOW:
        return f"{sentence}; too few submissions to compare: {count} of {2 * WINDOW}"
    return f"{sentence}, {_change(before, last)}"


def mann_whitney_p(before: Sequence[float], last: Sequence[float]) -> float:
    """Return the two-sided p of the exact Mann-Whitney test, ties included."""
    return float(mannwhitneyu(before, last, method=PermutationMethod()).pvalue)


def _change(before: Sequence[float], last: Sequence[float]) -> str:
    old_mm, new_mm = median(before), median(last)
    if mann_whitney_p(before, last) >= SIGNIFICANCE or old_mm == new_mm:
        return f"{old_mm:.0f} mm in the {WINDOW} before: no change beyond chance"
    direction = "less" if new_mm < old_mm else "more"
    if old_mm == 0:
        return f"{new_mm:.0f} mm {direction} than the {WINDOW} before"
    return f"{100 * abs(new_mm - old_mm) / old_mm:.0f} % {direction} than the {WINDOW} before"


def _counted(rows: Sequence[SubmissionCost]) -> list[int]:
    """Return the indices of the submissions that count, in order."""
    last: dict[tuple[str, str, str], int] = {}
    for index, row in enumerate(rows):
        if row.cost.mean_dsc is not None and not row.cost.was_trained_on:
            last[row.label.image_id, row.label.author, row.cost.model_version] = index
    return sorted(last.values())


def _submission(row: SubmissionCost) -> dict[str, Any]:
    label, cost = row.label, row.cost
    return {
        "time": label.submitted_at.isoformat(timespec="seconds"),
        "image": label.image_id,
        "author": label.author,
        "model_version": cost.model_version,
        "was_trained_on": cost.was_trained_on,
        "organs": len(_submitted(row)),
        "left_out": sorted(cost.values.keys() - _submitted(row).keys()),
        **{name: getattr(cost, name) for name in MEASURES},
        "trouble": cost.error,
    }


def _submitted(row: SubmissionCost) -> dict[str, Any]:
    """Return the measures of each organ in the submitted label."""
    return {name: cost for name, cost in row.cost.values.items() if not cost["is_left_out"]}


def _medians(rows: Sequence[SubmissionCost]) -> dict[str, float]:
    return {name: float(median(getattr(row.cost, name) for row in rows)) for name in MEASURES}


def _organs(rows: Sequence[SubmissionCost]) -> dict[str, dict[str, float | int]]:
    """Return the medians of each organ in the submitted labels, by name."""
    by_organ: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for name, numbers in _submitted(row).items():
            by_organ.setdefault(name, []).append(numbers)
    return {
        name: {
            "n": len(numbers),
            "unchanged": sum(row["changed_voxels"] == 0 for row in numbers),
            "missed": sum(row["is_missed"] for row in numbers),
            **{key: float(median(row[key] for row in numbers))
               for key in ("dsc", "added_path_mm", "changed_voxels", "changed_ml")},
        }
        for name, numbers in sorted(by_organ.items())
    }  # fmt: skip
