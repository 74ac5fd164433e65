"""The training set and the options of the next training run."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.config import RetrainConfig
from lib.errors import TrainingError
from lib.models.registry import Model
from lib.recipes.schema import LossConfig, Recipe
from lib.retrain.case_sets import EVALUATION, TRAIN, AssignedCase, CaseSets, choose_set
from lib.retrain.runs import ACTIVE, Runs, RunState
from lib.retrain.trigger import MIN_TRAIN_CASES, TriggerState


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A case and its newest final label."""

    image_id: str
    """The case."""
    image: Path
    """Its scan."""
    label: Path
    """File of the label; never changed."""
    digest: str
    """SHA-256 of that file."""
    number: int
    """Label version, from 1."""
    organs: frozenset[str]
    """TG-263 names of the contoured organs."""
    doubts: tuple[str, ...] = ()
    """Plausibility warnings (`lib.organs.plausibility`); a label with warnings evaluates no model."""
    submitted_at: datetime
    """Time of submission."""

    @property
    def key(self) -> tuple[str, str]:
        """Image id and digest, which identify the label."""
        return self.image_id, self.digest


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A case and its set; `is_new` if no evaluated model has seen its label."""

    case: LabelledCase
    set: str
    is_new: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form that the database stores."""
        case = self.case
        return {
            "image_id": case.image_id,
            "image": str(case.image),
            "label": str(case.label),
            "digest": case.digest,
            "number": case.number,
            "organs": sorted(case.organs),
            "doubts": list(case.doubts),
            "set": self.set,
            "is_new": self.is_new,
        }


class TrainingSetPlanner:
    """Assigns labelled cases to training or evaluation, and summarises them for the trigger.

    Args:
        labelled: Returns every case with a final label.
        sets: Set of each case.
        runs: Earlier training runs.
        trained_on: Returns the cases that a model in the registry was trained on, on whatever machine.
        doubted_may_judge: Returns whether labels with plausibility warnings may evaluate models.
    """

    def __init__(
        self,
        labelled: Callable[[], Sequence[LabelledCase]],
        sets: CaseSets,
        runs: Runs,
        trained_on: Callable[[], set[str]],
        doubted_may_judge: Callable[[], bool],
    ) -> None:
        self._labelled = labelled
        self._sets = sets
        self._runs = runs
        self._trained_on = trained_on
        self._doubted_may_judge = doubted_may_judge

    def cases(self) -> list[PlannedCase]:
        """Return every labelled case, sorted by id; a new case is put into a set, for good."""
        labelled = self._labelled()
        if self._doubted_may_judge():
            labelled = [replace(case, doubts=()) for case in labelled]
        # Cases of one day in the order of their hash: neither name nor hour decides which cases evaluate.
        ordered = sorted(labelled, key=lambda c: (c.submitted_at.date(), _hash(c.image_id)))
        organs = {case.image_id: case.organs for case in ordered}
        doubted = {case.image_id for case in ordered if case.doubts}
        trained_on: set[str] | None = None

        def choose(image_id: str, contoured: Set[str], sets: Mapping[str, str]) -> tuple[str, str]:
            nonlocal trained_on
            if trained_on is None:
                trained_on = self._trained_on()
            assigned = {
                case: AssignedCase(
                    EVALUATION if name == EVALUATION else TRAIN, organs.get(case, frozenset())
                )
                for case, name in sets.items()
            }
            return choose_set(
                image_id, contoured, assigned, trained_on=trained_on, is_doubted=image_id in doubted
            )

        sets = self._sets.assign([(case.image_id, case.organs) for case in ordered], choose)
        evaluated = self._runs.evaluated_labels()
        return [
            PlannedCase(case, sets[case.image_id], case.key not in evaluated)
            for case in sorted(ordered, key=lambda c: c.image_id)
        ]

    def trigger_state(self, cases: Sequence[PlannedCase]) -> TriggerState:
        """Return the state that the decision to train is based on."""
        last = self._runs.last()
        is_over = last is not None and last.state not in ACTIVE
        waiting = [planned for planned in cases if planned.is_new]
        return TriggerState(
            waiting=[planned.case.submitted_at for planned in waiting],
            waiting_to_train=sum(planned.set == TRAIN for planned in waiting),
            train_cases=sum(planned.set == TRAIN for planned in cases),
            last_submission=max((planned.case.submitted_at for planned in cases), default=None),
            is_running=last is not None and not is_over,
            failures=self._runs.failures(),
            last_ended=last.ended_at if last is not None and is_over else None,
            was_stopped=last is not None and last.state == RunState.STOPPED,
        )


def require_enough(cases: Sequence[PlannedCase]) -> None:
    """Check that there are enough cases to train on.

    Raises:
        TrainingError: If there are fewer than `MIN_TRAIN_CASES`.
    """
    train = sum(planned.set == TRAIN for planned in cases)
    if train < MIN_TRAIN_CASES:
        raise TrainingError(
            f"{len(cases)} cases have a final label, {len(cases) - train} of them are evaluation cases, which "
            f"are never trained on; training needs {MIN_TRAIN_CASES} other cases: contour and submit more"
        )


def run_request(
    recipe: Recipe,
    initial: Model | None,
    config: RetrainConfig,
    options: Mapping[str, Any],
    *,
    device: str,
) -> dict[str, Any]:
    """Return the request of a run, which the training process reads, as JSON values.

    A run that starts from the active model fine-tunes it: fewer epochs, a lower learning rate, and no class
    weights if the recipe fades them out. A run from random weights follows the recipe.

    Args:
        recipe: The server's recipe.
        initial: The model that the run starts from; None for random weights.
        config: The present settings, which the run keeps to its end.
        options: Options of the client: `max_epochs`, `max_minutes`, `seed`.
        device: Device of the training.
    """
    schedule, loss = replace(recipe.schedule, patience=0), recipe.loss
    if initial is not None:
        rate = schedule.learning_rate * config.retrain_learning_rate
        schedule = replace(schedule, learning_rate=rate, epochs=config.retrain_epochs)
        if loss.fade_until:
            loss = LossConfig(
                focal_gamma=loss.focal_gamma, dice_weight=loss.dice_weight, background_weight=1.0
            )
    epochs = int(options.get("max_epochs") or schedule.epochs)
    recipe = replace(recipe, schedule=replace(schedule, epochs=epochs), loss=loss)
    return {
        "recipe": recipe.as_dict(),
        "seed": int(options.get("seed") or 0),
        "max_minutes": float(options.get("max_minutes") or config.retrain_minutes) or None,
        "device": device,
        "settings": asdict(config),
        "shrinks": 0,
    }


def _hash(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()
