"""Train or referee: what was decided for each case, which nothing ever changes."""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Literal

from sqlalchemy import select

from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import CaseSet

CaseSetName = Literal["train", "referee"]
TRAIN: CaseSetName = "train"
REFEREE: CaseSetName = "referee"

Choose = Callable[[str, Set[str], Mapping[str, str]], tuple[str, str]]
"""Image id, its organs, and the set of each case before it -> set and reason."""


def judges_of(studies: Path) -> set[str]:
    """Return the cases of a studies folder that judge models, as its server decided; none where none did."""
    path = state_folder(str(studies), studies) / FILE
    if not path.is_file():
        return set()
    database = Database(path)
    sets = CaseSets(database).all()
    database.close()
    return {image_id for image_id, name in sets.items() if name == REFEREE}


class CaseSets:
    """The set that each labelled case is in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, str]:
        """Return image id -> set."""
        with self._database.reading() as session:
            return {row.image_id: row.set for row in session.scalars(select(CaseSet))}

    def assign(self, cases: Sequence[tuple[str, Set[str]]], choose: Choose) -> dict[str, str]:
        """Put each case that is in no set yet into one, in the order given; return the set of all cases.

        Two processes that do this at once agree: the later one finds what the earlier one decided.

        Args:
            cases: Image id and its organs.
            choose: Decides.
        """
        sets = self.all()
        if all(image_id in sets for image_id, _ in cases):
            return sets
        with self._database.writing() as session:
            sets = {row.image_id: row.set for row in session.scalars(select(CaseSet))}
            for image_id, organs in cases:
                if image_id not in sets:
                    sets[image_id], why = choose(image_id, organs, sets)
                    session.add(CaseSet(image_id=image_id, set=sets[image_id], why=why))
        return sets
