"""Everything that the server asks of active learning: the next case, the scores, how it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.editing import summary
from lib.activelearning.errands import EditErrands, Files, ScoreErrands, Studies
from lib.activelearning.handout import Handout
from lib.activelearning.known import Known
from lib.activelearning.runner import Runner
from lib.activelearning.worker import flags_for
from lib.config import AppConfig
from lib.registry import Registry
from lib.retrain.cards import trained_cases
from lib.state.database import Database
from lib.state.edit_costs import EditCostRecords
from lib.state.labels import LabelHistory
from lib.state.models import Models
from lib.state.scores import Kind, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The scans of a store.

    Attributes:
        unlabelled: Returns those without a final label.
        path: Image id -> scan; it may take long where the scan is not at hand.
        is_at_hand: Whether an image can be looked at now; one that has to be fetched first is left for later.
    """

    unlabelled: Callable[[], list[str]]
    path: Callable[[str], Path]
    is_at_hand: Callable[[str], bool]


class ActiveLearning:
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
        self.known = Known(Scores(database))
        self.edit_costs = EditCostRecords(database)
        files = Files(image=images.path, label=labels.path, model=registry.weights_path)
        self.runner = Runner(
            folder,
            [
                EditErrands(
                    self.edit_costs,
                    Models(database),
                    unrecorded=lambda: trained_cases(config.model_dir, config.starter_dir),
                    files=files,
                ),
                ScoreErrands(
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
        self.handout = Handout(
            database,
            known=self.known,
            studies=self.studies,
            served=served,
            lease_s=60.0 * config.lease_minutes,
        )

    def studies(self) -> Studies:
        """Return what there is to look at, and to ask for."""
        return Studies(unlabelled=tuple(self._images.unlabelled()), labelled=self._labels.digests())

    def _readable(self) -> Studies:
        """Return what can be looked at now."""
        every, is_at_hand = self.studies(), self._images.is_at_hand
        return Studies(
            unlabelled=tuple(filter(is_at_hand, every.unlabelled)),
            labelled={i: digest for i, digest in every.labelled.items() if is_at_hand(i)},
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
