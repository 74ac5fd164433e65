"""Everything that the server asks of active learning: the next case, the scores, how it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.edit_cost_curve import summary
from lib.activelearning.edit_cost_records import EditCostRecords
from lib.activelearning.job_runner import JobRunner
from lib.activelearning.next_case import CaseAssigner
from lib.activelearning.score_cache import ScoreCache
from lib.activelearning.score_records import Kind, Scores
from lib.activelearning.scoring_jobs import EditCostJobs, JobFiles, ScoringJobs, Studies
from lib.activelearning.scoring_process import flags_for
from lib.config import AppConfig
from lib.labels.history import LabelHistory
from lib.models.model_cards import trained_cases
from lib.models.model_history import ModelHistory
from lib.models.registry import Registry
from lib.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The scans of a store.

    Attributes:
        unlabelled: Returns those without a final label.
        path: Image id -> scan; it may take long where the scan is not at hand.
        is_available: Whether an image can be looked at now; one that has to be fetched first is left for later.
    """

    unlabelled: Callable[[], list[str]]
    path: Callable[[str], Path]
    is_available: Callable[[str], bool]


class ActiveLearningService:
    """Scores, choices and leases of one studies folder.

    Args:
        config: The server's.
        database: The workflow's.
        folder: Where it lies.
        registry: The models.
        labels: The history of labels.
        images: The scans.
        served: Returns the version that serves.
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
        self.known = ScoreCache(Scores(database))
        self.edit_costs = EditCostRecords(database)
        files = JobFiles(image=images.path, label=labels.path, model=registry.weights_path)
        self.runner = JobRunner(
            folder,
            [
                EditCostJobs(
                    self.edit_costs,
                    ModelHistory(database),
                    unrecorded=lambda: trained_cases(config.model_dir, config.starter_dir),
                    files=files,
                ),
                ScoringJobs(
                    Scores(database), self.known, studies=self._readable, served=served, files=files
                ),
            ],
            flags=flags_for(
                config.recipe,
                turns=folder,
                device=config.device,
                gpu_share=1.0 - config.retrain.retrain_gpu_share,
            ),
        )
        self.case_assigner = CaseAssigner(
            database,
            known=self.known,
            studies=self.studies,
            served=served,
            lease_s=60.0 * config.lease_minutes,
        )

    def studies(self) -> Studies:
        """Return what there is to look at, and to ask for."""
        return Studies(
            unlabelled=tuple(self._images.unlabelled()), labelled=self._labels.current_digests()
        )

    def _readable(self) -> Studies:
        """Return what can be looked at now."""
        every, is_available = self.studies(), self._images.is_available
        return Studies(
            unlabelled=tuple(filter(is_available, every.unlabelled)),
            labelled={i: digest for i, digest in every.labelled.items() if is_available(i)},
        )

    def status(self) -> dict[str, Any]:
        """Return how many images the served model has looked at, and what cannot be read."""
        self.known.refresh()
        served, studies = self._served(), self.studies()
        done = self.known.done()
        dated = self.known.scores(served)
        is_current = {i for i, d in dated.items() if d.score.model_version == served}
        return {
            "model_version": served,
            "unlabelled": len(studies.unlabelled),
            "scored": sum(i in is_current for i in studies.unlabelled),
            "scored_by_an_earlier_model": sum(
                i in dated and i not in is_current for i in studies.unlabelled
            ),
            "sampled": sum((i, served or "", Kind.SAMPLES) in done for i in studies.unlabelled),
            "unreadable": self.known.unreadable(),
            "edit_cost": summary(self.edit_costs.curve())["verdict"],
        }
