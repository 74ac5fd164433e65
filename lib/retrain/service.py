"""Retraining of one studies folder, as the server uses it: start, stop, settings."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.config import AppConfig
from lib.errors import CheckpointError
from lib.models.model_cards import trained_cases
from lib.models.model_history import PROMOTED, REJECTED, WAITING
from lib.models.promotion import Promoter
from lib.models.registry import Model, load_model, read_card
from lib.recipes.schema import Recipe
from lib.retrain.runs import Runs, RunState, TrainingFolders
from lib.retrain.scheduler import Scheduler
from lib.retrain.settings import Settings
from lib.retrain.training_set import (
    CaseSets,
    LabelledCase,
    PlannedCase,
    TrainingSetPlanner,
    require_enough,
    run_request,
)
from lib.storage.database import Database
from lib.storage.tables import ModelVersion, Run

logger = logging.getLogger(__name__)


class RetrainingService:
    """The trainings of one studies folder.

    Args:
        config: Configuration of the server.
        database: Workflow database.
        folder: Folder of that database.
        promoter: Changes the active model.
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
        self._initial = lru_cache(maxsize=1)(self._load_if_fitting)
        self.promoter = promoter
        self.registry = promoter.registry
        self.models = promoter.models
        self.runs = Runs(database)
        self.settings = Settings(database, config.retrain)
        self.planner = TrainingSetPlanner(
            labelled,
            CaseSets(database),
            self.runs,
            lambda: trained_cases(config.model_dir, config.starter_dir),
            lambda: self.settings.get().doubted_may_judge,
        )
        self.folders = TrainingFolders(
            state=folder, models=config.model_dir, starter=config.starter_dir
        )
        self.scheduler = Scheduler(
            folders=self.folders,
            planner=self.planner,
            settings=self.settings.get,
            queue=lambda why: self._queue(why, {}),
            after_crash=self.promoter.reconcile,
            resolve=self._resolve,
        )

    def start_training(self, options: Mapping[str, Any], *, by: str) -> Run:
        """Queue a training, which starts within a second; a stopped run is continued if nothing has changed.

        Args:
            options: `max_epochs`, `max_minutes`, `seed`, `pretrained`.
            by: Name of the user.

        Raises:
            TrainingError: If too few cases are labelled.
            StateError: If a training is active.
        """
        run = self._queue(f"asked for by {by}" if by else "asked for", options)
        self.scheduler.wake()
        return run

    def stop_training(self, *, by: str) -> Run | None:
        """Stop the active or queued training; return it, or None if there is none."""
        active = self.runs.active()
        if active is None:
            return None
        stopped = self.runs.update(
            active.id, state=RunState.STOPPED, outcome=f"stopped by {by or 'a client'}"
        )
        self.scheduler.kill_child()
        self.scheduler.wake()
        return stopped

    def default_epochs(self) -> int:
        """Return the number of epochs of a training whose request gives none."""
        is_fine_tuning = self._initial_model() is not None
        return self.settings.get().retrain_epochs if is_fine_tuning else self.recipe.schedule.epochs

    def _queue(self, why: str, options: Mapping[str, Any]) -> Run:
        cases = self.planner.cases()
        require_enough(cases)
        initial = self._initial_model() if options.get("pretrained", True) else None
        request = run_request(
            self.recipe, initial, self.settings.get(), options, device=self.device
        )
        last = self.runs.last()
        if last is not None and _can_continue(last, cases, request, initial):
            return self.runs.requeue(last.id)
        return self.runs.queue(
            why=why,
            request=request,
            cases=[planned.as_dict() for planned in cases],
            initial_version=initial.version if initial else None,
        )

    def _initial_model(self) -> Model | None:
        """Return the active model, to start a training from; None if there is none, or it does not fit."""
        path = self.registry.served_path()
        return None if path is None else self._initial(path)

    def _load_if_fitting(self, path: Path) -> Model | None:
        """Return a model with the recipe's network, organs and number of input channels, else None."""
        try:
            model = load_model(path)
        except CheckpointError as error:
            logger.warning("training will not start from the active model: %s", error)
            return None
        expected, actual = (
            (recipe.network, recipe.organ_set, len(recipe.hu_windows))
            for recipe in (self.recipe, model.recipe)
        )
        # Channels for clicks can be added to weights, not taken away.
        loses_clicks = model.recipe.has_clicks and not self.recipe.has_clicks
        return model if expected == actual and not loses_clicks else None

    def _resolve(self, run: Run) -> tuple[RunState, str] | None:
        """Return the final state of a run that is given up, if there is a decision about its model.

        A candidate model without a decision is rejected, because it will not be evaluated any more.
        """
        for row in self.models.all():
            if not self._is_made_by(row, run):
                continue
            if row.decision == WAITING:
                reason = "its training failed before it was evaluated"
                self.models.decide(row.version, decision=REJECTED, reason=reason)
                return None
            is_promoted = row.decision == PROMOTED
            return (RunState.PROMOTED if is_promoted else RunState.REJECTED), row.reason
        return None

    def _is_made_by(self, row: ModelVersion, run: Run) -> bool:
        """Return whether a run made a model; the card says so if the run was killed before it wrote the row."""
        if row.run_id is not None or row.decision != WAITING:
            return row.run_id == run.id
        try:
            card = read_card(self.registry.weights_path(row.version))
        except CheckpointError:
            return False
        return card.get("run") == run.id and card.get("parent") == run.initial_version


def _can_continue(
    run: Run, cases: Sequence[PlannedCase], request: Mapping[str, Any], initial: Model | None
) -> bool:
    """Return whether a stopped run has the same cases, initial model and request."""
    if run.state != RunState.STOPPED or run.initial_version != (
        initial.version if initial else None
    ):
        return False
    run_cases = sorted((case["image_id"], case["digest"], case["set"]) for case in run.cases)
    planned_cases = sorted((*planned.case.key, planned.set) for planned in cases)
    return run_cases == planned_cases and {**run.request, "shrinks": 0} == {**request, "shrinks": 0}
