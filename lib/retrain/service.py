"""Everything that the server asks of retraining: begin, stop, how it goes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config import AppConfig
from lib.errors import CheckpointError
from lib.models.model_cards import trained_cases
from lib.models.model_history import PROMOTED, REJECTED, WAITING
from lib.models.promotion import Promoter
from lib.models.registry import Model, load_model, read_card
from lib.recipes.schema import Recipe
from lib.retrain.case_set_records import CaseSets
from lib.retrain.run_records import Runs, RunState
from lib.retrain.scheduler import Scheduler
from lib.retrain.setting_overrides import Settings
from lib.retrain.training_process import RunDirectory
from lib.retrain.training_set import LabelledCase, Planned, Planner, request_for, require_enough
from lib.storage.database import Database
from lib.storage.tables import ModelVersion, Run

logger = logging.getLogger(__name__)


class RetrainingService:
    """The trainings of one studies folder.

    Args:
        config: The server's.
        database: The workflow's.
        folder: Where it lies.
        promoter: Changes what serves.
        labelled: Returns every case with a final label.
    """

    def __init__(
        self,
        config: AppConfig,
        database: Database,
        folder: Path,
        promoter: Promoter,
        *,
        labelled: Callable[[], Sequence[LabelledCase]],
    ) -> None:
        self.recipe: Recipe = config.recipe
        self.device = config.device
        self._fits: tuple[Path, Model | None] | None = None
        self.promoter = promoter
        self.registry = promoter.registry
        self.models = promoter.models
        self.runs = Runs(database)
        self.settings = Settings(database, config.retrain)
        self.sets = CaseSets(database)
        self.planner = Planner(
            labelled,
            self.sets,
            self.runs,
            self._trained_cases,
            lambda: self.settings.get().doubted_may_judge,
        )
        self.place = RunDirectory(state=folder, models=config.model_dir, starter=config.starter_dir)
        self.scheduler = Scheduler(
            place=self.place,
            planner=self.planner,
            runs=self.runs,
            settings=self.settings.get,
            queue=self._queue_for,
            after_crash=self.promoter.reconcile,
            settle=self._settle,
        )

    def begin(self, wishes: Mapping[str, Any], *, by: str) -> Run:
        """Let a training begin within a second; one that was stopped goes on where nothing has changed since.

        Args:
            wishes: `max_epochs`, `max_minutes`, `seed`, `pretrained`.
            by: Who asks.

        Raises:
            TrainingError: If too few cases are labelled.
            StateError: If one is running.
        """
        run = self._queue(f"asked for by {by}" if by else "asked for", wishes)
        self.scheduler.wake()
        return run

    def halt(self, *, by: str) -> Run | None:
        """Stop the training that runs, or is about to; return it, or None."""
        active = self.runs.active()
        if active is None:
            return None
        stopped = self.runs.change(
            active.id, state=RunState.STOPPED, outcome=f"stopped by {by or 'a client'}"
        )
        self.scheduler.kill_child()
        self.scheduler.wake()
        return stopped

    def _queue_for(self, why: str) -> Run:
        return self._queue(why, {})

    def _queue(self, why: str, wishes: Mapping[str, Any]) -> Run:
        cases = self.planner.cases()
        require_enough(cases)
        initial = self._initial() if wishes.get("pretrained", True) else None
        request = request_for(self.recipe, initial, self.settings.get(), wishes, device=self.device)
        before = self.runs.last()
        if before is not None and _is_same(before, cases, request, initial):
            return self.runs.again(before.id)
        return self.runs.queue(
            why=why,
            request=request,
            cases=[planned.as_dict() for planned in cases],
            initial_version=initial.version if initial else None,
        )

    def _initial(self) -> Model | None:
        """Return the served model to go on from; None where it is of another shape, or there is none."""
        path = self.registry.served_path()
        if path is None:
            return None
        if self._fits is None or self._fits[0] != path:
            self._fits = (path, self._fitting(path))
        return self._fits[1]

    def _fitting(self, path: Path) -> Model | None:
        try:
            model = load_model(path)
        except CheckpointError as error:
            logger.warning("not starting from the served model: %s", error)
            return None
        ours, its = self.recipe, model.recipe
        same = (its.network, its.organ_set, len(its.hu_windows))
        return model if same == (ours.network, ours.organ_set, len(ours.hu_windows)) else None

    def _settle(self, run: Run) -> tuple[RunState, str] | None:
        """Return how a run that is given up ended after all, if its candidate was decided about.

        One that was not decided about is rejected: nobody will judge it any more.
        """
        for row in self.models.all():
            if not self._is_of(row, run):
                continue
            if row.decision == WAITING:
                reason = "its training failed before it was judged"
                self.models.decide(row.version, decision=REJECTED, reason=reason)
                return None
            is_promoted = row.decision == PROMOTED
            return (RunState.PROMOTED if is_promoted else RunState.REJECTED), row.reason
        return None

    def _is_of(self, row: ModelVersion, run: Run) -> bool:
        """Return whether a run made a model; killed before it recorded that, it left word on the card alone."""
        if row.run_id is not None or row.decision != WAITING:
            return row.run_id == run.id
        try:
            card = read_card(self.registry.weights_path(row.version))
        except CheckpointError:
            return False
        return card.get("run") == run.id and card.get("parent") == run.initial_version

    def _trained_cases(self) -> set[str]:
        return trained_cases(self.place.models, self.place.starter)

    def default_epochs(self) -> int:
        """Return how many epochs a training takes now, unless somebody wishes otherwise."""
        is_warm = self._initial() is not None
        return self.settings.get().retrain_epochs if is_warm else self.recipe.schedule.epochs


def _is_same(
    run: Run, cases: Sequence[Planned], request: Mapping[str, Any], initial: Model | None
) -> bool:
    """Return whether a stopped run is the one that is asked for."""
    if run.state != RunState.STOPPED or run.initial_version != (
        initial.version if initial else None
    ):
        return False
    before = sorted((case["image_id"], case["digest"], case["set"]) for case in run.cases)
    wanted = sorted((*planned.case.key, planned.set) for planned in cases)
    return before == wanted and {**run.request, "shrinks": 0} == {**request, "shrinks": 0}
