"""Records of finished rounds of a simulation: labels, annotation cost and DSC, one JSON file each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from lib.activelearning.pool import Choice
from lib.errors import StateError
from lib.experiments.protocol import Protocol
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.inference.resampling import closest_ras
from lib.storage.atomic_files import write_json
from lib.training.validate import Validation

FOLDER = "rounds"
START = "start"
"""Strategy name of the first round of a seed, which all strategies share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCost:
    """Annotation cost of a set of labels."""

    cases: int = 0
    slices: int = 0
    """Axial CT slices that contain at least one organ, summed over the labels."""
    voxels: int = 0
    """CT voxels that belong to an organ, summed over the labels."""

    def __add__(self, other: "LabelCost") -> "LabelCost":
        """Return the cost of both sets."""
        return LabelCost(
            cases=self.cases + other.cases,
            slices=self.slices + other.slices,
            voxels=self.voxels + other.voxels,
        )


def label_cost(label: LabelArray, grid: Grid) -> LabelCost:
    """Return the cost of one label volume; slices are counted along the axis closest to the patient's z."""
    axial = closest_ras(grid)[0][2]
    in_plane = tuple(axis for axis in range(3) if axis != axial)
    foreground = label > 0
    return LabelCost(
        cases=1,
        slices=int(np.count_nonzero(foreground.any(axis=in_plane))),
        voxels=int(np.count_nonzero(foreground)),
    )


@dataclass(frozen=True, slots=True, order=True)
class RoundKey:
    """Key of a round: seed, round number (0 is the shared start), strategy."""

    seed: int
    number: int
    strategy: str

    @property
    def name(self) -> str:
        """Return the stem of the round's file, which is also the name of its working folder."""
        return f"seed{self.seed}-round{self.number}-{self.strategy}"

    @property
    def previous(self) -> "RoundKey | None":
        """Return the round before this one; None for the start."""
        if self.number == 0:
            return None
        return RoundKey(self.seed, self.number - 1, self.strategy if self.number > 1 else START)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A finished round; the fields are the keys of its JSON file."""

    place: RoundKey
    picks: tuple[Choice, ...]
    """Labels selected in this round, in order, with the reasons."""
    labelled: tuple[str, ...]
    """All labels so far, in the order of selection."""
    cost: LabelCost
    """Annotation cost of all labels so far."""
    per_case: Mapping[str, Mapping[str, float]]
    """Test case -> organ -> DSC."""
    seconds: Mapping[str, float]
    """Stage (`score`, `choose`, `train`, `test`) -> time in seconds."""
    model_version: str
    """Version of the model trained on these labels."""
    initial_version: str | None
    """Version of the model whose weights the training started from; None from scratch."""
    steps: int

    @property
    def dsc(self) -> float:
        """Mean over organs of each organ's mean over the test cases."""
        mean = Validation(self.per_case).mean
        return float("nan") if mean is None else mean


_ROUND = TypeAdapter(Round)


def round_keys(protocol: Protocol) -> list[RoundKey]:
    """Return the keys of all rounds, ordered by seed: an interrupted simulation then holds complete seeds."""
    keys = []
    for seed in range(protocol.seeds):
        keys.append(RoundKey(seed, 0, START))
        for number in range(1, protocol.rounds + 1):
            keys += [RoundKey(seed, number, strategy) for strategy in protocol.strategies]
    return keys


def write_round(output: Path, finished: Round) -> None:
    """Write the round's file, atomically."""
    write_json(_path(output, finished.place), _ROUND.dump_python(finished, by_alias=True))


def read_round(output: Path, key: RoundKey) -> Round | None:
    """Return a finished round; None if it is not finished.

    Raises:
        StateError: If its file is damaged.
    """
    path = _path(output, key)
    if not path.exists():
        return None
    try:
        return _ROUND.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path}: the round cannot be read ({error}); remove the file, and the round is computed again"
        ) from error


def read_rounds(output: Path, keys: Iterable[RoundKey]) -> dict[RoundKey, Round]:
    """Return those of the rounds that are finished."""
    rounds = ((key, read_round(output, key)) for key in keys)
    return {key: finished for key, finished in rounds if finished is not None}


def _path(output: Path, key: RoundKey) -> Path:
    return output / FOLDER / f"{key.name}.json"
