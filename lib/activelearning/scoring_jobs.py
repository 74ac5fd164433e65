"""What is computed behind the server: scores of images, and what people changed of predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.edit_cost_curve import was_trained_on
from lib.activelearning.edit_cost_records import EditCostRecords
from lib.activelearning.job_runner import Job, JobResult
from lib.activelearning.score_cache import ScoreCache
from lib.activelearning.score_records import Computed, Kind, Scores
from lib.activelearning.scoring_queue import Backlog, ScoringWork, next_work
from lib.evaluation.edit_cost import EditCosts
from lib.models.model_history import ModelHistory
from lib.storage.tables import LabelVersion

EDIT_COST = "edit_cost"
"""The kind of an order that is no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Studies:
    """What there is to look at.

    Attributes:
        unlabelled: Images that may be asked for.
        labelled: Image id -> SHA-256 of its final label.
    """

    unlabelled: tuple[str, ...]
    labelled: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """Where things lie; each raises an `OrganNetError` where there is none.

    Attributes:
        image: Image id -> scan.
        label: SHA-256 -> label.
        model: Version -> weights.
    """

    image: Callable[[str], Path]
    label: Callable[[str], Path]
    model: Callable[[str], Path]


class ScoringJobs:
    """Scores of every image by the model that serves.

    Args:
        scores: Where they are kept.
        known: Where they are read from.
        studies: Returns what there is to look at.
        served: Returns the version that serves.
        files: Where things lie.
    """

    def __init__(
        self,
        scores: Scores,
        known: ScoreCache,
        *,
        studies: Callable[[], Studies],
        served: Callable[[], str | None],
        files: JobFiles,
    ) -> None:
        self._scores = scores
        self._known = known
        self._studies = studies
        self._served = served
        self._files = files

    def __call__(self) -> Job | None:
        """Return the next one."""
        self._known.refresh()
        studies, served = self._studies(), self._served()
        interest = {i: dated.score.entropy for i, dated in self._known.scores(served).items()}
        work = next_work(
            Backlog(
                unlabelled=studies.unlabelled,
                labelled=studies.labelled,
                served=served,
                known=self._known.done(),
                unreadable=frozenset(self._known.unreadable()),
                interest=interest,
            )
        )
        if work is None:
            return None
        return Job(
            about=f"{work.image_id}, {work.kind.value}",
            order=lambda: self._order(work),
            keep=lambda answer: self._keep(work, answer),
        )

    def _order(self, work: ScoringWork) -> dict[str, Any]:
        order = {
            "kind": work.kind.value,
            "image_id": work.image_id,
            "image": str(self._files.image(work.image_id)),
        }
        if work.kind is Kind.DRAWN:
            order["label"] = str(self._files.label(work.model_version))
        elif work.kind is not Kind.APPEARANCE:
            order["model"] = str(self._files.model(work.model_version))
        return order

    def _keep(self, work: ScoringWork, answer: JobResult) -> None:
        self._scores.keep(
            Computed(
                image_id=work.image_id,
                model_version=work.model_version,
                kind=work.kind,
                found=answer.found,
                trouble=answer.trouble,
                seconds=answer.seconds,
            )
        )


class EditCostJobs:
    """What people changed of the prediction that served, for each label that they submitted.

    Args:
        records: Where it is kept.
        models: Who learned from what.
        unrecorded: Returns the cases that models learned from which are in no history.
        files: Where things lie.
    """

    def __init__(
        self,
        records: EditCostRecords,
        models: ModelHistory,
        *,
        unrecorded: Callable[[], set[str]],
        files: JobFiles,
    ) -> None:
        self._records = records
        self._models = models
        self._unrecorded = unrecorded
        self._files = files

    def __call__(self) -> Job | None:
        """Return the next one: of the newest submission that was not measured."""
        due = self._records.due(1)
        if not due:
            return None
        label = due[0]
        return Job(
            about=f"{label.image_id}, {EDIT_COST}",
            order=lambda: {
                "kind": EDIT_COST,
                "image_id": label.image_id,
                "image": str(self._files.image(label.image_id)),
                "label": str(self._files.label(label.digest)),
                "model": str(self._files.model(label.model_version or "")),
            },
            keep=lambda answer: self._keep(label, answer),
        )

    def _keep(self, label: LabelVersion, answer: JobResult) -> None:
        self._records.keep(
            label,
            None if answer.trouble else EditCosts.from_dict(answer.found),
            was_trained_on=was_trained_on(label, self._models, unrecorded=self._unrecorded()),
            trouble=answer.trouble,
        )
