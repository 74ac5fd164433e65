"""Assignment of each labelled case to training or evaluation, decided once and never changed."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import select

from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import CaseSet
from lib.training.cases import HELD_OUT_OF, is_held_out

CaseSetName = Literal["train", "referee"]
"""Names of the sets, as stored in the database."""
TRAIN: CaseSetName = "train"
EVALUATION: CaseSetName = "referee"

MIN_EVALUATION_CASES = 2
EXTRA_EVALUATION_CASES = 3
"""Number of evaluation cases beyond their share that are accepted before the hash of the id is overruled."""
DOUBTED, SEEN = "its first label has plausibility warnings", "a model was trained on it before"

ChooseSet = Callable[[str, Set[str], Mapping[str, str]], tuple[str, str]]
"""Image id, its organs, and the set of each case before it -> set and reason."""


@dataclass(frozen=True, slots=True)
class AssignedCase:
    """A case that is in a set."""

    set: CaseSetName
    """Its set."""
    organs: Set[str]
    """TG-263 names of its contoured organs."""


def choose_set(
    image_id: str,
    organs: Set[str],
    assigned: Mapping[str, AssignedCase],
    *,
    trained_on: Set[str] = frozenset(),
    is_doubted: bool = False,
) -> tuple[CaseSetName, str]:
    """Return the set of a case that has its first label, and the reason.

    The very first cases are evaluation cases, so that the first candidate model can be evaluated. After that
    the hash of the id decides, the same on every machine, unless an organ would have no evaluation case, or
    there are too many evaluation cases already.

    Args:
        image_id: The case.
        organs: TG-263 names of its contoured organs.
        assigned: The cases that are in a set.
        trained_on: Cases that a model of the registry was trained on; they never become evaluation cases.
        is_doubted: Whether its label has plausibility warnings; evaluation needs correct labels.
    """
    evaluation = [case for case in assigned.values() if case.set == EVALUATION]
    total = len(assigned) + 1
    if image_id in trained_on or is_doubted:
        return TRAIN, DOUBTED if is_doubted else SEEN
    if len(evaluation) < MIN_EVALUATION_CASES:
        return EVALUATION, f"the first {MIN_EVALUATION_CASES} cases are evaluation cases"
    missing = sorted(_without_evaluation_case(organs, assigned))
    if missing:
        return EVALUATION, f"no evaluation case contained {missing[0]}"
    if len(evaluation) + 1 > total / HELD_OUT_OF + EXTRA_EVALUATION_CASES:
        return TRAIN, "there are enough evaluation cases"
    return (EVALUATION if is_held_out(image_id) else TRAIN), "by the hash of its id"


def _without_evaluation_case(organs: Set[str], assigned: Mapping[str, AssignedCase]) -> set[str]:
    """Return the organs that no evaluation case contains, although enough training cases do."""
    evaluated = {o for case in assigned.values() if case.set == EVALUATION for o in case.organs}
    trained = [o for case in assigned.values() if case.set == TRAIN for o in case.organs]
    return {o for o in organs - evaluated if trained.count(o) >= MIN_EVALUATION_CASES}


def evaluation_cases_of(studies: Path) -> set[str]:
    """Return the evaluation cases of a studies folder, as its server assigned them; empty without a server."""
    path = state_folder(str(studies), studies) / FILE
    if not path.is_file():
        return set()
    database = Database(path)
    sets = CaseSets(database).all()
    database.close()
    return {image_id for image_id, name in sets.items() if name == EVALUATION}


class CaseSets:
    """The `CaseSet` rows of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, str]:
        """Return image id -> set."""
        with self._database.reading() as session:
            return {row.image_id: row.set for row in session.scalars(select(CaseSet))}

    def assign(self, cases: Sequence[tuple[str, Set[str]]], choose: ChooseSet) -> dict[str, str]:
        """Put each new case into a set, in the given order; return image id -> set of all cases.

        Two processes that do this at once agree: the second one reads the decisions of the first.

        Args:
            cases: Image id and its organs.
            choose: Chooses the set of a new case.
        """
        sets = self.all()
        if all(image_id in sets for image_id, _ in cases):
            return sets
        with self._database.writing() as session:
            sets = {row.image_id: row.set for row in session.scalars(select(CaseSet))}
            for image_id, organs in cases:
                if image_id not in sets:
                    sets[image_id], reason = choose(image_id, organs, sets)
                    session.add(CaseSet(image_id=image_id, set=sets[image_id], why=reason))
        return sets
