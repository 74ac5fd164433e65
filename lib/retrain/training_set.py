"""What a training would learn from now, and what it would be."""

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
from lib.retrain.case_set_records import REFEREE, TRAIN, CaseSets
from lib.retrain.case_split import CaseHistory, choose_set
from lib.retrain.run_records import ACTIVE, Runs, RunState
from lib.retrain.trigger import MIN_TRAIN_CASES, TriggerState


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A case and its newest final label.

    Attributes:
        image_id: The case.
        image: Its scan.
        label: The label's file; never changed.
        digest: SHA-256 of that file.
        number: Version of the label, from 1.
        organs: TG-263 names contoured.
        doubts: What looks wrong about the label (`lib.organs.plausibility`); such a label judges no model.
        submitted_at: When.
    """

    image_id: str
    image: Path
    label: Path
    digest: str
    number: int
    organs: frozenset[str]
    doubts: tuple[str, ...] = ()
    submitted_at: datetime

    @property
    def key(self) -> tuple[str, str]:
        """What tells this label from every other."""
        return self.image_id, self.digest


@dataclass(frozen=True, slots=True)
class Planned:
    """A case, the set it is in, and whether no model that was judged has seen its label."""

    case: LabelledCase
    set: str
    is_new: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as the database keeps it."""
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


class Planner:
    """Looks at the labels, and says what they are good for.

    Args:
        labelled: Returns every case with a final label.
        sets: What each case is for.
        runs: What was learned from before.
        trained_on: Returns the cases that a model here has learned from, wherever it was trained.
        doubted_may_judge: Returns whether labels that look wrong judge models all the same.
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

    def cases(self) -> list[Planned]:
        """Return every labelled case, sorted by id; one that is in no set yet is put into one, for ever."""
        # In the order of the hash where many come at once: no name and no hour decides who judges.
        labelled = self._labelled()
        if self._doubted_may_judge():
            labelled = [replace(case, doubts=()) for case in labelled]
        found = sorted(labelled, key=lambda c: (c.submitted_at.date(), _hash(c.image_id)))
        organs = {case.image_id: case.organs for case in found}
        doubted = {case.image_id for case in found if case.doubts}
        trained_on: set[str] | None = None

        def choose(image_id: str, named: Set[str], sets: Mapping[str, str]) -> tuple[str, str]:
            nonlocal trained_on
            if trained_on is None:
                trained_on = self._trained_on()
            known = {
                case: CaseHistory(
                    REFEREE if one == REFEREE else TRAIN, organs.get(case, frozenset())
                )
                for case, one in sets.items()
            }
            return choose_set(
                image_id, named, known, trained_on=trained_on, is_doubted=image_id in doubted
            )

        sets = self._sets.assign([(case.image_id, case.organs) for case in found], choose)
        judged = self._runs.judged_digests()
        return [
            Planned(case, sets[case.image_id], case.key not in judged)
            for case in sorted(found, key=lambda c: c.image_id)
        ]

    def situation(self, cases: Sequence[Planned]) -> TriggerState:
        """Return what the decision to train rests on."""
        last = self._runs.last()
        is_over = last is not None and last.state not in ACTIVE
        waiting = [one for one in cases if one.is_new]
        return TriggerState(
            waiting=[one.case.submitted_at for one in waiting],
            waiting_to_train=sum(one.set == TRAIN for one in waiting),
            train_cases=sum(one.set == TRAIN for one in cases),
            last_submission=max((one.case.submitted_at for one in cases), default=None),
            is_running=last is not None and not is_over,
            failures=self._runs.failures(),
            last_ended=last.ended_at if last is not None and is_over else None,
            was_stopped=last is not None and last.state == RunState.STOPPED,
        )


def require_enough(cases: Sequence[Planned]) -> None:
    """Do nothing where enough cases may be trained on.

    Raises:
        TrainingError: If they are too few.
    """
    train = sum(one.set == TRAIN for one in cases)
    if train < MIN_TRAIN_CASES:
        raise TrainingError(
            f"{len(cases)} cases have a final label, {len(cases) - train} of them judge the models and are "
            f"never trained on; training needs {MIN_TRAIN_CASES} more than those: contour and submit a few more"
        )


def request_for(
    recipe: Recipe,
    initial: Model | None,
    config: RetrainConfig,
    wishes: Mapping[str, Any],
    *,
    device: str,
) -> dict[str, Any]:
    """Return everything that the training's own process is told, as plain values.

    A run that goes on from the served model is short and gentle: fewer epochs, a lower rate, no class weights
    where the recipe lets them fade anyway. One from nothing is the recipe's.

    Args:
        recipe: The server's.
        initial: The model whose weights it begins with.
        config: The settings of this moment; the run keeps them to its end.
        wishes: What a client asked for: `max_epochs`, `max_minutes`, `seed`.
        device: Where it runs.
    """
    schedule, loss = replace(recipe.schedule, patience=0), recipe.loss
    if initial is not None:
        rate = schedule.learning_rate * config.retrain_learning_rate
        schedule = replace(schedule, learning_rate=rate, epochs=config.retrain_epochs)
        if loss.fade_until:
            loss = LossConfig(
                focal_gamma=loss.focal_gamma, dice_weight=loss.dice_weight, background_weight=1.0
            )
    epochs = int(wishes.get("max_epochs") or schedule.epochs)
    recipe = replace(recipe, schedule=replace(schedule, epochs=epochs), loss=loss)
    return {
        "recipe": recipe.as_dict(),
        "seed": int(wishes.get("seed") or 0),
        "max_minutes": float(wishes.get("max_minutes") or config.retrain_minutes) or None,
        "device": device,
        "settings": asdict(config),
        "shrinks": 0,
    }


def _hash(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()
