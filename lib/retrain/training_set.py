"""Training set of the next run: cases for training and for evaluation, assigned once, and the run's options."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import select

from lib.config import RetrainConfig
from lib.errors import TrainingError
from lib.models.registry import Model
from lib.recipes.schema import LossConfig, Recipe
from lib.retrain.runs import ACTIVE, Runs, RunState
from lib.retrain.trigger import MIN_TRAIN_CASES, TriggerState
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import CaseSet
from lib.training.cases import HELD_OUT_OF, is_held_out

TRAIN, EVALUATION = "train", "referee"
"""Names of the sets, as stored in the database."""
MIN_EVALUATION_CASES = 2
EXTRA_EVALUATION_CASES = 3
"""Number of evaluation cases beyond their share that are accepted before the hash of the id is overruled."""
DOUBTED, SEEN = "its first label has plausibility warnings", "a model was trained on it before"


def choose_set(
    image_id: str,
    sets: Mapping[str, str],
    organs: Mapping[str, Set[str]],
    *,
    trained_on: Set[str] = frozenset(),
    is_doubted: bool = False,
) -> tuple[str, str]:
    """Return the set of a case that just got its first label, and the reason.

    The very first cases are evaluation cases, so that the first candidate model can be evaluated. After that
    the hash of the id decides, equally on every machine, unless an organ would have no evaluation case, or
    there are too many evaluation cases already.

    Args:
        image_id: The case.
        sets: Image id -> set, of the cases that are in a set.
        organs: TG-263 names of the contoured organs of each labelled case.
        trained_on: Cases that a model of the registry was trained on; they never become evaluation cases.
        is_doubted: Whether its label has plausibility warnings; evaluation needs correct labels.
    """
    evaluation = [case for case, name in sets.items() if name == EVALUATION]
    if image_id in trained_on or is_doubted:
        return TRAIN, DOUBTED if is_doubted else SEEN
    if len(evaluation) < MIN_EVALUATION_CASES:
        return EVALUATION, f"the first {MIN_EVALUATION_CASES} cases are evaluation cases"
    evaluated = {organ for case in evaluation for organ in organs.get(case, ())}
    trained = [o for case in sets.keys() - evaluation for o in organs.get(case, ())]
    missing = {o for o in organs[image_id] if trained.count(o) >= MIN_EVALUATION_CASES} - evaluated
    if missing:
        return EVALUATION, f"no evaluation case contained {min(missing)}"
    if len(evaluation) + 1 > (len(sets) + 1) / HELD_OUT_OF + EXTRA_EVALUATION_CASES:
        return TRAIN, "there are enough evaluation cases"
    return (EVALUATION if is_held_out(image_id) else TRAIN), "by the hash of its id"


def evaluation_cases_of(studies: Path) -> set[str]:
    """Return the evaluation cases of a studies folder, as its server assigned them; empty without a server."""
    path = state_folder(str(studies), studies) / FILE
    if not path.is_file():
        return set()
    with closing(Database(path)) as database:
        sets = CaseSets(database).all()
    return {image_id for image_id, name in sets.items() if name == EVALUATION}


_SETS = select(CaseSet.image_id, CaseSet.set)


class CaseSets:
    """The `CaseSet` rows of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, str]:
        """Return image id -> set."""
        with self._database.reading() as session:
            return {row.image_id: row.set for row in session.execute(_SETS)}

    def assign(
        self,
        image_ids: Sequence[str],
        choose: Callable[[str, Mapping[str, str]], tuple[str, str]],
    ) -> dict[str, str]:
        """Put each new case into a set, in the given order; return image id -> set of all cases.

        Two processes that do this at once agree, because the second reads the decisions of the first.

        Args:
            image_ids: The cases.
            choose: Returns the set of a new case and the reason, given its id and the sets of the others.
        """
        sets = self.all()
        if sets.keys() >= set(image_ids):
            return sets
        with self._database.writing() as session:
            sets = {row.image_id: row.set for row in session.execute(_SETS)}
            for image_id in image_ids:
                if image_id not in sets:
                    sets[image_id], reason = choose(image_id, sets)
                    session.add(CaseSet(image_id=image_id, set=sets[image_id], why=reason))
        return sets


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


@dataclass(frozen=True, slots=True)
class TrainingSetPlanner:
    """Assigns labelled cases to training or evaluation, and summarises them for the trigger."""

    labelled: Callable[[], Sequence[LabelledCase]]
    """Returns every case with a final label."""
    sets: CaseSets
    runs: Runs
    trained_on: Callable[[], set[str]]
    """Returns the cases that a model in the registry was trained on, on any machine."""
    doubted_may_judge: Callable[[], bool]
    """Returns whether labels with plausibility warnings may evaluate models."""
    _last: dict[tuple[bool, int], tuple[Sequence[LabelledCase], list[PlannedCase]]] = field(
        default_factory=dict, init=False
    )
    """The last result, by what it depends on besides the labels."""

    def cases(self) -> Sequence[PlannedCase]:
        """Return every labelled case, sorted by id; a new case is put into a set, which never changes."""
        labelled, may_judge = self.labelled(), self.doubted_may_judge()
        state = (may_judge, self.runs.evaluations())
        known, planned = self._last.get(state, ((), []))
        if known is not labelled:
            planned = self._planned(labelled, doubted_may_judge=may_judge)
            self._last.clear()
            self._last[state] = (labelled, planned)
        return planned

    def _planned(
        self, labelled: Sequence[LabelledCase], *, doubted_may_judge: bool
    ) -> list[PlannedCase]:
        if doubted_may_judge:
            labelled = [replace(case, doubts=()) for case in labelled]
        # Cases of one day are in the order of their hash, so that neither name nor hour decides on their set.
        by_hash = sorted(labelled, key=lambda c: hashlib.sha256(c.image_id.encode()).digest())
        ordered = sorted(by_hash, key=lambda c: c.submitted_at.date())
        organs = {case.image_id: case.organs for case in ordered}
        doubted = {case.image_id for case in ordered if case.doubts}
        # Read once, and only if there is a new case: it reads every model card.
        trained_on = cache(self.trained_on)

        def choose(image_id: str, sets: Mapping[str, str]) -> tuple[str, str]:
            is_doubted = image_id in doubted
            return choose_set(
                image_id, sets, organs, trained_on=trained_on(), is_doubted=is_doubted
            )

        sets = self.sets.assign([case.image_id for case in ordered], choose)
        evaluated = self.runs.evaluated_labels()
        return [
            PlannedCase(case, sets[case.image_id], case.key not in evaluated)
            for case in sorted(ordered, key=lambda c: c.image_id)
        ]

    def trigger_state(self, cases: Sequence[PlannedCase]) -> TriggerState:
        """Return the state that the decision to train is based on."""
        last = self.runs.last()
        is_over = last is not None and last.state not in ACTIVE
        waiting = [planned for planned in cases if planned.is_new]
        return TriggerState(
            waiting=[planned.case.submitted_at for planned in waiting],
            waiting_to_train=sum(planned.set == TRAIN for planned in waiting),
            train_cases=sum(planned.set == TRAIN for planned in cases),
            last_submission=max((planned.case.submitted_at for planned in cases), default=None),
            is_running=last is not None and not is_over,
            failures=self.runs.failures(),
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
    weights if the recipe fades them out. Its processor time is limited (`retrain_cpu_minutes`) unless the
    client gives a duration. A run from random weights follows the recipe.

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
    max_minutes = float(options.get("max_minutes") or config.retrain_minutes) or None
    is_short = initial is not None and max_minutes is None and not options.get("max_epochs")
    recipe = replace(recipe, schedule=replace(schedule, epochs=epochs), loss=loss)
    return {
        "recipe": recipe.as_dict(),
        "seed": int(options.get("seed") or 0),
        "max_minutes": max_minutes,
        "cpu_minutes": config.retrain_cpu_minutes or None if is_short else None,
        "device": device,
        "settings": asdict(config),
        "shrinks": 0,
    }
