"""Active learning of one studies folder, as the server uses it: next case, scores, status."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning import scoring_process
from lib.activelearning.edit_costs import EditCostRecords, summary
from lib.activelearning.next_case import CaseAssigner
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

    unlabelled: Callable[[], list[str]]
    """Returns the images without a final label."""
    path: Callable[[str], Path]
    """Image id -> scan; may take long for a scan that is not on this machine yet."""
    is_local: Callable[[str], bool]
    """Whether the scan of an image is on this machine; a scan that must be fetched first is scored later."""


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
        return Studies(
            unlabelled=tuple(self._images.unlabelled()), labelled=self._labels.current_digests()
        )

    def _local_studies(self) -> Studies:
        """Return the images whose scans are on this machine."""
        studies, is_local = self.studies(), self._images.is_local
        return Studies(
            unlabelled=tuple(filter(is_local, studies.unlabelled)),
            labelled={i: digest for i, digest in studies.labelled.items() if is_local(i)},
        )

    def status(self) -> dict[str, Any]:
        """Return how many images the active model has scored, and which images cannot be read."""
        self.scores.refresh()
        served, studies = self._served(), self.studies()
        done = self.scores.done()
        scores = self.scores.scores(served)
        is_current = {i for i, timed in scores.items() if timed.score.model_version == served}
        return {
            "model_version": served,
            "unlabelled": len(studies.unlabelled),
            "scored": sum(i in is_current for i in studies.unlabelled),
            "scored_by_an_earlier_model": sum(
                i in scores and i not in is_current for i in studies.unlabelled
            ),
            "sampled": sum(
                ScoreKey(i, served or "", ScoreKind.SAMPLES) in done for i in studies.unlabelled
            ),
            "unreadable": self.scores.unreadable(),
            "edit_cost": summary(self.edit_costs.curve())["verdict"],
        }
