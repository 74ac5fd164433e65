"""Active learning of one studies folder, as the server uses it: next case, scores, status."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning import scoring_process
from lib.activelearning.case_assigner import CaseAssigner
from lib.activelearning.edit_costs import EditCostRecords, summary
from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import ScoreCache, ScoreKey, ScoreRecords
from lib.activelearning.scoring_jobs import EditCostJobs, FileLocations, ScoringJobs, Studies
from lib.config import AppConfig
from lib.jobs.job_runner import JobRunner
from lib.labels.history import LabelHistory
from lib.models.model_cards import trained_cases
from lib.models.model_history import ModelHistory
from lib.models.registry import Registry
from lib.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The scans of a datastore."""

    unlabelled: Callable[[], Sequence[str]]
    """Returns the images without a final label, sorted; the same object as long as nothing changed."""
    path: Callable[[str], Path]
    """Image id -> scan; may take long for a scan that is not on this machine yet."""
    local: Callable[[], Collection[str] | None]
    """Returns the images whose scans are on this machine, None if all are; others are scored later."""


class ActiveLearningService:
    """Scores, choices and leases of one studies folder.

    Args:
        config: Configuration of the server.
        database: Workflow database.
        folder: Folder of the workflow database.
        registry: Model versions.
        labels: Label history.
        images: Scans of the datastore.
        served: Returns the version of the active model.
    """

    def __init__(
        self,
        config: AppConfig,
        database: Database,
        folder: Path,
        *,
        registry: Registry,
        labels: LabelHistory,
        images: Images,
        served: Callable[[], str | None],
    ) -> None:
        self._images = images
        self._labels = labels
        self._served = served
        self._studies = Studies(unlabelled=(), labelled={})
        self._local: tuple[Studies, Collection[str], Studies] | None = None
        self._counts: tuple[tuple[Studies, str | None, int], dict[str, int]] | None = None
        records = ScoreRecords(database)
        self.scores = ScoreCache(records)
        self.edit_costs = EditCostRecords(database)
        files = FileLocations(image=images.path, label=labels.path, model=registry.weights_path)
        edit_cost_jobs = EditCostJobs(
            self.edit_costs,
            ModelHistory(database),
            unrecorded=lambda: trained_cases(config.model_dir, config.starter_dir),
            files=files,
        )
        scoring_jobs = ScoringJobs(
            records, self.scores, studies=self._local_studies, served=served, files=files
        )
        self.job_runner = JobRunner(
            folder,
            [edit_cost_jobs, scoring_jobs],
            worker=scoring_process.__name__,
            flags=scoring_process.flags_for(
                config.recipe,
                state=folder,
                device=config.device,
                gpu_share=1.0 - config.retrain.retrain_gpu_share,
            ),
        )
        self.case_assigner = CaseAssigner(
            database,
            scores=self.scores,
            studies=self.studies,
            served=served,
            lease_s=60.0 * config.lease_minutes,
        )

    def studies(self) -> Studies:
        """Return all images, unlabelled and labelled."""
        last = self._studies
        unlabelled, labelled = self._images.unlabelled(), self._labels.current_digests()
        if unlabelled is not last.unlabelled or labelled is not last.labelled:
            last = self._studies = Studies(unlabelled=unlabelled, labelled=labelled)
        return last

    def _local_studies(self) -> Studies:
        """Return the images whose scans are on this machine."""
        studies, local = self.studies(), self._images.local()
        if local is None:
            return studies
        if self._local is None or self._local[:2] != (studies, local):
            found = Studies(
                unlabelled=tuple(i for i in studies.unlabelled if i in local),
                labelled={i: digest for i, digest in studies.labelled.items() if i in local},
            )
            self._local = (studies, local, found)
        return self._local[2]

    def status(self) -> dict[str, Any]:
        """Return how many images the active model has scored, and which images cannot be read."""
        self.scores.refresh()
        served = self._served()
        return {
            "model_version": served,
            **self._numbers(self.studies(), served),
            "unreadable": dict(self.scores.unreadable()),
            "edit_cost": summary(self.edit_costs.curve())["verdict"],
        }

    def _numbers(self, studies: Studies, served: str | None) -> dict[str, int]:
        """Return the numbers of unlabelled images by score; counted again when something changed."""
        state = (studies, served, self.scores.revision)
        if self._counts is None or self._counts[0] != state:
            scores, version = self.scores.scores(served), served or ""
            models = [scores[i].score.model_version for i in studies.unlabelled if i in scores]
            done = self.scores.done()
            keys = (ScoreKey(i, version, ScoreKind.SAMPLES) for i in studies.unlabelled)
            counts = {
                "unlabelled": len(studies.unlabelled),
                "scored": models.count(version),
                "scored_by_an_earlier_model": len(models) - models.count(version),
                "sampled": sum(key in done for key in keys),
            }
            self._counts = (state, counts)
        return self._counts[1]
