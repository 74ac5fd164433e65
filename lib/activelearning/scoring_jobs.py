"""Jobs of the scoring process: scores of images, in a fixed order, and edit costs of submitted labels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lib.activelearning.edit_costs import EditCostRecords, was_trained_on
from lib.activelearning.image_scores import EDIT_COST
from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import ScoreCache, ScoreKey, ScoreRecords
from lib.evaluation.edit_cost import EditCosts
from lib.jobs.job_runner import Job, JobResult
from lib.models.model_history import ModelHistory
from lib.storage.tables import LabelVersion

UNSCORED_QUANTILE = 0.75
"""Quantile of the existing entropies that an image without a score is assumed to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Studies:
    """The images of a studies folder."""

    unlabelled: Sequence[str]
    """Images without a final label."""
    labelled: Mapping[str, str]
    """Image id -> SHA-256 of its final label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLocations:
    """Functions that return the path of a file; each raises an `OrganNetError` if there is no such file."""

    image: Callable[[str], Path]
    """Image id -> scan."""
    label: Callable[[str], Path]
    """SHA-256 -> label."""
    model: Callable[[str], Path]
    """Version -> weights."""


def next_score(
    studies: Studies,
    served: str | None,
    *,
    done: Collection[ScoreKey],
    unreadable: Collection[str] = (),
    entropies: Mapping[str, float] = MappingProxyType({}),
) -> ScoreKey | None:
    """Return the score to compute next, or None if all exist.

    1. Shapes of the annotators' labels: they are few, and cheap.
    2. One prediction per image. Unlabelled images come first, those with the highest entropy under an earlier
       model at the top, so that the top of the ranking is up to date long before its end.
    3. Samples, which are expensive.

    Without a model, only shapes and appearance features are computed; appearance is not computed any more once
    there is a model.

    Args:
        studies: The images.
        served: The active model; None before there is one.
        done: The scores that were computed, or failed.
        unreadable: Images whose prediction failed because they cannot be read: samples are not tried.
        entropies: Image id -> entropy under this or an earlier model; the highest are scored first.
    """
    labelled = sorted(studies.labelled)
    keys = [ScoreKey(i, studies.labelled[i], ScoreKind.LABEL_SHAPES) for i in labelled]
    if served is None:
        images = (*studies.unlabelled, *studies.labelled)
        keys += [ScoreKey(i, "", ScoreKind.APPEARANCE) for i in images]
    else:
        assumed = np.quantile([*entropies.values()], UNSCORED_QUANTILE) if entropies else 0.0
        ranked = sorted(studies.unlabelled, key=lambda i: (-entropies.get(i, assumed), i))
        keys += [ScoreKey(i, served, ScoreKind.PREDICTION) for i in (*ranked, *labelled)]
        keys += [ScoreKey(i, served, ScoreKind.SAMPLES) for i in ranked if i not in unreadable]
    return next((key for key in keys if key not in done), None)


@dataclass(frozen=True, slots=True)
class ScoringJobs:
    """Jobs that score every image by the active model."""

    records: ScoreRecords
    cache: ScoreCache
    studies: Callable[[], Studies]
    """Returns the images that can be read now."""
    served: Callable[[], str | None]
    """Returns the version of the active model."""
    files: FileLocations

    def __call__(self) -> Job | None:
        """Return the next job."""
        self.cache.refresh()
        served = self.served()
        key = next_score(
            self.studies(),
            served,
            done=self.cache.done(),
            unreadable=self.cache.unreadable(),
            entropies={i: t.score.entropy for i, t in self.cache.scores(served).items()},
        )
        if key is None:
            return None
        return Job(
            description=f"{key.image_id}, {key.kind.value}",
            request=lambda: self._request(key),
            store=lambda result: self.records.add(
                key, result.values, error=result.error, seconds=result.seconds
            ),
        )

    def _request(self, key: ScoreKey) -> dict[str, Any]:
        request = {
            "kind": key.kind.value,
            "image_id": key.image_id,
            "image": str(self.files.image(key.image_id)),
        }
        if key.kind is ScoreKind.LABEL_SHAPES:
            request["label"] = str(self.files.label(key.model_version))
        elif key.kind is not ScoreKind.APPEARANCE:
            request["model"] = str(self.files.model(key.model_version))
        return request


@dataclass(frozen=True, slots=True)
class EditCostJobs:
    """Jobs that measure, for each submitted label, how much its annotator changed the model's contours."""

    records: EditCostRecords
    models: ModelHistory
    unrecorded: Callable[[], set[str]]
    """Returns the training cases of models that have no model history."""
    files: FileLocations

    def __call__(self) -> Job | None:
        """Return the next job: the newest submission that was not measured."""
        unmeasured = self.records.unmeasured(1)
        if not unmeasured:
            return None
        label = unmeasured[0]
        return Job(
            description=f"{label.image_id}, {EDIT_COST}",
            request=lambda: {
                "kind": EDIT_COST,
                "image_id": label.image_id,
                "image": str(self.files.image(label.image_id)),
                "label": str(self.files.label(label.digest)),
                "model": str(self.files.model(label.model_version or "")),
            },
            store=lambda result: self._store(label, result),
        )

    def _store(self, label: LabelVersion, result: JobResult) -> None:
        self.records.add(
            label,
            None if result.error else EditCosts.from_dict(result.values),
            was_trained_on=was_trained_on(label, self.models, unrecorded=self.unrecorded()),
            error=result.error,
        )
