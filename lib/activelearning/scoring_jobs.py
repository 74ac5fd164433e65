"""Jobs of the scoring process: scores of images, in a fixed order, and edit costs of submitted labels."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.activelearning.edit_costs import EditCostRecords, was_trained_on
from lib.activelearning.image_scores import EDIT_COST
from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import NewScore, ScoreCache, ScoreRecords
from lib.evaluation.edit_cost import EditCosts
from lib.jobs.job_runner import Job, JobResult
from lib.models.model_history import ModelHistory
from lib.storage.tables import LabelVersion

UNSCORED_QUANTILE = 0.75
"""Quantile of the known entropies that an image without a score is assumed to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """One score to compute."""

    kind: ScoreKind
    """What is computed."""
    image_id: str
    """Of which image."""
    model_version: str = ""
    """By which model, or of which label (`ScoreKind.LABEL_SHAPES`: its SHA-256); empty where neither is needed.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringBacklog:
    """The images, and which scores exist."""

    unlabelled: Sequence[str]
    """Images without a final label."""
    labelled: Mapping[str, str]
    """Image id -> SHA-256 of its final label."""
    served: str | None
    """The active model; None before there is one."""
    done: Set[tuple[str, str, ScoreKind]]
    """What was computed, or failed: (image id, model version, kind)."""
    unreadable: Set[str] = frozenset()
    """Images whose prediction failed because they cannot be read: samples are not tried."""
    entropies: Mapping[str, float] = field(default_factory=dict)
    """Image id -> entropy under this or an earlier model; the highest are scored first."""


def next_task(backlog: ScoringBacklog) -> ScoringTask | None:
    """Return the score to compute next, or None if all exist.

    1. Shapes of the annotators' labels: they are few, and cheap.
    2. One prediction per image. Unlabelled images come first, those with the highest entropy under an earlier
       model at the top, so that the top of the ranking is up to date long before its end.
    3. Samples, which are expensive.

    Without a model, only shapes and appearance features are computed; appearance is not computed any more once
    there is a model.
    """
    for image_id, digest in sorted(backlog.labelled.items()):
        if (image_id, digest, ScoreKind.LABEL_SHAPES) not in backlog.done:
            return ScoringTask(kind=ScoreKind.LABEL_SHAPES, image_id=image_id, model_version=digest)
    if backlog.served is None:
        images = [*backlog.unlabelled, *backlog.labelled]
        return _first_missing(backlog, ScoreKind.APPEARANCE, images)
    ranked = _by_entropy(backlog)
    readable = [i for i in ranked if i not in backlog.unreadable]
    return _first_missing(
        backlog, ScoreKind.PREDICTION, [*ranked, *sorted(backlog.labelled)]
    ) or _first_missing(backlog, ScoreKind.SAMPLES, readable)


def _first_missing(
    backlog: ScoringBacklog, kind: ScoreKind, image_ids: Sequence[str]
) -> ScoringTask | None:
    version = "" if kind is ScoreKind.APPEARANCE else backlog.served or ""
    for image_id in image_ids:
        if (image_id, version, kind) not in backlog.done:
            return ScoringTask(kind=kind, image_id=image_id, model_version=version)
    return None


def _by_entropy(backlog: ScoringBacklog) -> list[str]:
    values = list(backlog.entropies.values())
    unscored = float(np.quantile(values, UNSCORED_QUANTILE)) if values else 0.0
    return sorted(backlog.unlabelled, key=lambda i: (-backlog.entropies.get(i, unscored), i))


@dataclass(frozen=True, slots=True, kw_only=True)
class Studies:
    """The images of a studies folder."""

    unlabelled: tuple[str, ...]
    """Images without a final label."""
    labelled: Mapping[str, str]
    """Image id -> SHA-256 of its final label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLocations:
    """Functions that return the path of a file; each raises an `OrganNetError` where there is none."""

    image: Callable[[str], Path]
    """Image id -> scan."""
    label: Callable[[str], Path]
    """SHA-256 -> label."""
    model: Callable[[str], Path]
    """Version -> weights."""


class ScoringJobs:
    """Jobs that score every image by the active model.

    Args:
        records: Where scores are stored.
        cache: Where scores are read.
        studies: Returns the images that can be read now.
        served: Returns the version of the active model.
        files: Paths of scans, labels and weights.
    """

    def __init__(
        self,
        records: ScoreRecords,
        cache: ScoreCache,
        *,
        studies: Callable[[], Studies],
        served: Callable[[], str | None],
        files: FileLocations,
    ) -> None:
        self._records = records
        self._cache = cache
        self._studies = studies
        self._served = served
        self._files = files

    def __call__(self) -> Job | None:
        """Return the next job."""
        self._cache.refresh()
        studies, served = self._studies(), self._served()
        task = next_task(
            ScoringBacklog(
                unlabelled=studies.unlabelled,
                labelled=studies.labelled,
                served=served,
                done=self._cache.done(),
                unreadable=frozenset(self._cache.unreadable()),
                entropies={i: t.score.entropy for i, t in self._cache.scores(served).items()},
            )
        )
        if task is None:
            return None
        return Job(
            description=f"{task.image_id}, {task.kind.value}",
            request=lambda: self._request(task),
            store=lambda result: self._store(task, result),
        )

    def _request(self, task: ScoringTask) -> dict[str, Any]:
        request = {
            "kind": task.kind.value,
            "image_id": task.image_id,
            "image": str(self._files.image(task.image_id)),
        }
        if task.kind is ScoreKind.LABEL_SHAPES:
            request["label"] = str(self._files.label(task.model_version))
        elif task.kind is not ScoreKind.APPEARANCE:
            request["model"] = str(self._files.model(task.model_version))
        return request

    def _store(self, task: ScoringTask, result: JobResult) -> None:
        self._records.add(
            NewScore(
                image_id=task.image_id,
                model_version=task.model_version,
                kind=task.kind,
                found=result.found,
                trouble=result.trouble,
                seconds=result.seconds,
            )
        )


class EditCostJobs:
    """Jobs that measure, for each submitted label, what its annotator changed of the model's contours.

    Args:
        records: Where edit costs are stored.
        models: Which model learned from which labels.
        unrecorded: Returns the cases that models learned from which are in no model history.
        files: Paths of scans, labels and weights.
    """

    def __init__(
        self,
        records: EditCostRecords,
        models: ModelHistory,
        *,
        unrecorded: Callable[[], set[str]],
        files: FileLocations,
    ) -> None:
        self._records = records
        self._models = models
        self._unrecorded = unrecorded
        self._files = files

    def __call__(self) -> Job | None:
        """Return the next job: the newest submission that was not measured."""
        unmeasured = self._records.unmeasured(1)
        if not unmeasured:
            return None
        label = unmeasured[0]
        return Job(
            description=f"{label.image_id}, {EDIT_COST}",
            request=lambda: {
                "kind": EDIT_COST,
                "image_id": label.image_id,
                "image": str(self._files.image(label.image_id)),
                "label": str(self._files.label(label.digest)),
                "model": str(self._files.model(label.model_version or "")),
            },
            store=lambda result: self._store(label, result),
        )

    def _store(self, label: LabelVersion, result: JobResult) -> None:
        self._records.add(
            label,
            None if result.trouble else EditCosts.from_dict(result.found),
            was_trained_on=was_trained_on(label, self._models, unrecorded=self._unrecorded()),
            trouble=result.trouble,
        )
