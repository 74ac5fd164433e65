"""Rounds made by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.activelearning.pool import Choice
from lib.experiments.label_cost import Cost
from lib.experiments.protocol import Protocol
from lib.experiments.round_records import START, Round, RoundKey
from lib.experiments.strategy_ranking import Curve
from lib.recipes.schema import OPENKBP

CASES = tuple(f"t{number}" for number in range(10))
BUDGETS = (2, 4, 8)


def make_round(
    place: RoundKey, per_case: Mapping[str, Mapping[str, float]], *, cases: int, voxels: int
) -> Round:
    picks = (Choice(image_id=f"p{cases}", of=5, rank=1, score=0.5, organs=("Larynx",), why="why"),)
    return Round(
        place=place,
        picks=picks,
        labelled=tuple(f"p{number}" for number in range(cases)),
        cost=Cost(cases=cases, slices=10 * cases, voxels=voxels),
        per_case=per_case,
        seconds={"score": 2.0, "choose": 0.5, "train": 60.0},
        model_version="m",
        initial_version=None,
        steps=100,
    )


def make_curve(
    strategy: str, seed: int, dsc: Sequence[float], *, gain: float = 0.0, voxels: int = 100
) -> Curve:
    """A curve whose case `i` has `dsc + 0.01 * i`, and `gain * (1 + 0.1 * i)` more after the start."""
    rounds = []
    for number, (budget, mean) in enumerate(zip(BUDGETS, dsc, strict=True)):
        per_case = {
            case: {"Larynx": mean + 0.01 * i + (gain * (1 + 0.1 * i) if number else 0.0)}
            for i, case in enumerate(CASES)
        }
        place = RoundKey(seed, number, strategy if number else START)
        spent = 200 + voxels * (budget - BUDGETS[0])
        rounds.append(make_round(place, per_case, cases=budget, voxels=spent))
    return Curve(strategy, seed, tuple(rounds))


def make_protocol(*strategies: str, seeds: int = 3) -> Protocol:
    return Protocol(
        strategies=strategies,
        seeds=seeds,
        budgets=BUDGETS,
        pool={f"p{number}": "0" for number in range(10)},
        test=dict.fromkeys(CASES, "1"),
        recipe=replace(OPENKBP, name="for a test"),
        start="scratch",
        device="cpu",
    )
