"""Jobs of the scoring process: scores of images, in a fixed order, and edit costs of submitted labels."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
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

MOST_ADDED = 100
"""Largest number of new images and labels that are scored before all others, without a new order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studies:
    """The images of a studies folder at one moment; two moments are equal if they are one object."""

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


def scores_in_order(
    studies: Studies,
    served: str | None,
    *,
    unreadable: Collection[str] = (),
    entropies: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[ScoreKey]:
    """Yield the scores to compute, in order, also those that exist.

    1. Shapes of the annotators' labels: they are few, and cheap.
    2. One prediction per image. Unlabelled images come first, those with the highest entropy under an earlier
       model at the top, so that the top of the ranking is up to date long before its end.
    3. Samples, which are expensive.

    Without a model, only shapes and appearance features are computed; appearance is not computed any more once
    there is a model.

    Args:
        studies: The images.
        served: The active model; None before there is one.
        unreadable: Images whose prediction failed because they cannot be read: samples are not tried.
        entropies: Image id -> entropy under this or an earlier model; the highest are scored first.
    """
    labelled = sorted(studies.labelled)
    yield from (ScoreKey(i, studies.labelled[i], ScoreKind.LABEL_SHAPES) for i in labelled)
    if served is None:
        images = (*studies.unlabelled, *studies.labelled)
        yield from (ScoreKey(i, "", ScoreKind.APPEARANCE) for i in images)
        return
    assumed = np.quantile([*entropies.values()], UNSCORED_QUANTILE) if entropies else 0.0
    ranked = sorted(studies.unlabelled, key=lambda i: (-entropies.get(i, assumed), i))
    yield from (ScoreKey(i, served, ScoreKind.PREDICTION) for i in (*ranked, *labelled))
    yield from (ScoreKey(i, served, ScoreKind.SAMPLES) for i in ranked if i not in unreadable)


@dataclass(slots=True)
class ScoringJobs:
    """Jobs that score every image by the active model.

    The order is made anew when the active model changes; until then each call goes on where the last one ended,
    after new images and labels.
    """

    records: ScoreRecords
    cache: ScoreCache
    studies: Callable[[], Studies]
    """Returns the images that can be read now."""
    served: Callable[[], str | None]
    """Returns the version of the active model."""
    files: FileLocations
    _order: Iterator[ScoreKey] = field(default_factory=lambda: iter(()), init=False)
    _next: ScoreKey | None = field(default=None, init=False)
    _studies: Studies = field(
        default_factory=lambda: Studies(unlabelled=(), labelled={}), init=False
    )
    _served: str | None = field(default=None, init=False)

    def __call__(self) -> Job | None:
        """Return the next job."""
        self.cache.refresh()
        studies, served = self.studies(), self.served()
        if studies is not self._studies or served != self._served:
            self._order, self._next = self._new_order(studies, served), None
            self._studies, self._served = studies, served
        if self._next is None or self._is_done(self._next):
            self._next = next((key for key in self._order if not self._is_done(key)), None)
        key = self._next
        if key is None:
            return None
        return Job(
            description=f"{key.image_id}, {key.kind.value}",
            request=lambda: self._request(key),
            store=lambda result: self.records.add(
                key, result.values, error=result.error, seconds=result.seconds
            ),
        )

    def _new_order(self, studies: Studies, served: str | None) -> Iterator[ScoreKey]:
        """Return the order of the scores to compute after images, labels or the active model changed.

        A few new images and labels come first; the order of the others stays, as a new one takes a while.
        """
        last, unlabelled = self._studies, set(self._studies.unlabelled)
        added = Studies(
            unlabelled=[i for i in studies.unlabelled if i not in unlabelled],
            labelled=dict(studies.labelled.items() - last.labelled.items()),
        )
        if served == self._served and len(added.unlabelled) + len(added.labelled) <= MOST_ADDED:
            pending = [] if self._next is None else [self._next]
            return chain(scores_in_order(added, served), pending, self._order)
        return scores_in_order(
            studies,
            served,
            unreadable=self.cache.unreadable(),
            entropies={i: t.score.entropy for i, t in self.cache.scores(served).items()},
        )

    def _is_done(self, key: ScoreKey) -> bool:
        """Return whether a score exists, or is not needed any more."""
        labelled = self._studies.labelled
        if key.kind is ScoreKind.LABEL_SHAPES and labelled.get(key.image_id) != key.model_version:
            return True
        is_sampled = key.kind is ScoreKind.SAMPLES
        if is_sampled and (key.image_id in labelled or key.image_id in self.cache.unreadable()):
            return True
        return self.cache.is_done(key)

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
