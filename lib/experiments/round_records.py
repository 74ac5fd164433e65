"""What each round came to: one JSON file for each, written when the round is over."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.pool import Choice
from lib.errors import StateError
from lib.experiments.label_cost import Cost
from lib.experiments.protocol import Protocol
from lib.storage.atomic_files import write_json
from lib.training.validate import Validation

FOLDER = "rounds"
START = "start"
"""Stands for every strategy in a seed's first round."""


@dataclass(frozen=True, slots=True, order=True)
class RoundKey:
    """Which round: of which seed, the how manyth, of which strategy; number 0 is shared by all strategies."""

    seed: int
    number: int
    strategy: str

    @property
    def name(self) -> str:
        """Return what its file and its folder are called."""
        return f"seed{self.seed}-round{self.number}-{self.strategy}"

    def before(self) -> "RoundKey | None":
        """Return the round that this one follows; None for the start."""
        if self.number == 0:
            return None
        return RoundKey(self.seed, self.number - 1, self.strategy if self.number > 1 else START)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round that is over.

    Attributes:
        place: Which.
        picks: The labels that were asked for, in order, and why.
        labelled: All labels so far, in the order of their asking.
        cost: Of all of them.
        per_case: Test case -> organ -> DSC.
        seconds: Stage -> time it took: `score`, `choose`, `train`, `test`.
        model_version: Of the model that was trained on them.
        initial_version: Of the model that this training started from; None from scratch.
        steps: Of that training.
    """

    place: RoundKey
    picks: tuple[Choice, ...]
    labelled: tuple[str, ...]
    cost: Cost
    per_case: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    model_version: str
    initial_version: str | None
    steps: int

    @property
    def dsc(self) -> float:
        """Mean over organs of each organ's mean over the test cases."""
        mean = Validation(self.per_case).mean
        return float("nan") if mean is None else mean


def places(protocol: Protocol) -> list[RoundKey]:
    """Return every round; all of the first seed first, so that one that is cut short has compared something."""
    found = []
    for seed in range(protocol.seeds):
        found.append(RoundKey(seed, 0, START))
        for number in range(1, protocol.rounds + 1):
            found += [RoundKey(seed, number, strategy) for strategy in protocol.strategies]
    return found


def write_round(output: Path, found: Round) -> None:
    """Write the round's file, atomically."""
    write_json(_path(output, found.place), asdict(found))


def read_round(output: Path, place: RoundKey) -> Round | None:
    """Return a round that is over; None where it is not.

    Raises:
        StateError: If its file is damaged.
    """
    path = _path(output, place)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _round(values)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StateError(
            f"{path}: the round cannot be read ({error}); remove it, and it is computed again"
        ) from error


def read_rounds(output: Path, every: Iterable[RoundKey]) -> dict[RoundKey, Round]:
    """Return those rounds that are over."""
    found = ((place, read_round(output, place)) for place in every)
    return {place: one for place, one in found if one is not None}


def _path(output: Path, place: RoundKey) -> Path:
    return output / FOLDER / f"{place.name}.json"


def _round(values: Mapping[str, Any]) -> Round:
    picks = (Choice(**{**pick, "organs": tuple(pick["organs"])}) for pick in values["picks"])
    return Round(
        **{
            **values,
            "place": RoundKey(**values["place"]),
            "picks": tuple(picks),
            "labelled": tuple(values["labelled"]),
            "cost": Cost(**values["cost"]),
        }
    )
