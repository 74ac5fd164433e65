"""Submissions and their edit costs, without a database or a scan."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from lib.activelearning.edit_costs import SubmissionCost
from lib.evaluation.edit_cost import EditCosts, OrganCost
from lib.storage.tables import EditCost, LabelVersion

START = datetime(2024, 5, 1, 8, 0, tzinfo=timezone.utc)


def organ(
    added_mm: float,
    *,
    dsc: float | None = 0.9,
    is_left_out: bool = False,
    is_missed: bool = False,
    changed_voxels: int | None = None,
) -> OrganCost:
    changed = round(added_mm) if changed_voxels is None else changed_voxels
    return OrganCost(
        dsc=None if is_left_out else dsc,
        added_path_mm=added_mm,
        changed_voxels=changed,
        changed_ml=changed / 100,
        is_left_out=is_left_out,
        is_missed=is_missed,
    )


def label_of(
    image_id: str = "a", *, hour: int = 0, author: str = "ada", model_version: str | None = "m"
) -> LabelVersion:
    return LabelVersion(
        image_id=image_id,
        tag="final",
        number=1,
        digest=f"{hour:064}",
        source="client",
        author=author,
        model_version=model_version,
        organs=[],
        info={},
        submitted_at=START + timedelta(hours=hour),
    )


def edited(
    added_mm: float | Mapping[str, OrganCost] | None,
    *,
    hour: int = 0,
    image_id: str | None = None,
    author: str = "ada",
    model_version: str = "m",
    was_trained_on: bool = False,
) -> SubmissionCost:
    """Return a submission with one organ; `added_mm` of its contour is new, None if the measurement failed."""
    if added_mm is None:
        costs = EditCosts({})
    elif isinstance(added_mm, Mapping):
        costs = EditCosts(added_mm)
    else:
        costs = EditCosts({"Brainstem": organ(added_mm)})
    cost = EditCost(
        model_version=model_version,
        was_trained_on=was_trained_on,
        values=costs.as_dict(),
        mean_dsc=costs.mean_dsc,
        added_path_mm=costs.added_path_mm,
        changed_voxels=costs.changed_voxels,
        error="the scan is gone" if added_mm is None else None,
    )
    image = image_id or f"case_{hour}"
    label = label_of(image, hour=hour, author=author, model_version=model_version)
    return SubmissionCost(label, cost)


def curve(*added_mm: float) -> list[SubmissionCost]:
    """Return a submission for each number, an hour apart, each of another case."""
    return [edited(value, hour=hour) for hour, value in enumerate(added_mm)]
