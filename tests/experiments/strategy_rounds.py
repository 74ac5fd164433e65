"""Rounds and learning curves with chosen values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.activelearning.pool import Choice
from lib.experiments.protocol import Protocol
from lib.experiments.round_records import START, LabelCost, Round, RoundKey
from lib.experiments.strategy_ranking import Curve
from lib.recipes.schema import OPENKBP

CASES = tuple(f"t{number}" for number in range(10))
BUDGETS = (2, 4, 8)


def make_round(
    key: RoundKey, per_case: Mapping[str, Mapping[str, float]], *, cases: int, voxels: int
) -> Round:
    picks = (
        Choice(
            image_id=f"p{cases}",
            ranked_candidates=5,
            rank=1,
            score=0.5,
            organs=("Larynx",),
            why="why",
        ),
    )
    return Round(
        place=key,
        picks=picks,
        labelled=tuple(f"p{number}" for number in range(cases)),
        cost=LabelCost(cases=cases, slices=10 * cases, voxels=voxels),
        per_case=per_case,
        seconds={"score": 2.0, "choose": 0.5, "train": 60.0},
        model_version="m",
        initial_version=None,
        steps=100,
    )


def make_curve(
    strategy: str, seed: int, dsc: Sequence[float], *, gain: float = 0.0, voxels: int = 100
) -> Curve:
    """Return a curve in which case `i` has `dsc + 0.01 * i`, plus `gain * (1 + 0.1 * i)` after the start."""
    rounds = []
    for number, (budget, mean) in enumerate(zip(BUDGETS, dsc, strict=True)):
        per_case = {
            case: {"Larynx": mean + 0.01 * i + (gain * (1 + 0.1 * i) if number else 0.0)}
            for i, case in enumerate(CASES)
        }
        key = RoundKey(seed, number, strategy if number else START)
        total = 200 + voxels * (budget - BUDGETS[0])
        rounds.append(make_round(key, per_case, cases=budget, voxels=total))
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
