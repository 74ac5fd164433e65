"""Functions that all strategies use: rankable candidates, the best of them, and random draws."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lib.activelearning.pool import Choice, ImageScore, OrganScore, Pool
from lib.imaging.quantities import FloatArray

LEAD_ORGANS = 3
"""Largest number of organs that are named as the reason for a choice."""
NO_SCORES = "no scores yet: drawn at random"


def sorted_candidates(pool: Pool) -> list[str]:
    """Return the candidates, each once, sorted by name."""
    return sorted(set(pool.candidates))


def finite_scores(
    pool: Pool, value: Callable[[ImageScore], float | None]
) -> tuple[list[str], FloatArray]:
    """Return the candidates with a finite `value`, sorted by name, and these values `(N,)`.

    A value that is not finite comes from a broken model, and must not be ranked first for ever.
    """
    finite = []
    for image_id in sorted_candidates(pool):
        score = pool.scores.get(image_id)
        number = value(score) if score is not None else None
        if number is not None and math.isfinite(number):
            finite.append((image_id, number))
    return [image_id for image_id, _ in finite], np.array([number for _, number in finite], float)


def index_of_best(generator: np.random.Generator, *keys: FloatArray) -> int:
    """Return the index of the largest value in the first of `keys`, each `(N,)`.

    Ties are broken by the next key, and in the end at random.
    """
    left = np.arange(len(keys[0]))
    for key in keys:
        left = left[key[left] == key[left].max()]
    return int(generator.choice(left))


def rank_of(values: FloatArray, index: int) -> int:
    """Return the rank of the value at `index`: 1 for the largest."""
    return 1 + int((values > values[index]).sum())


def at_random(pool: Pool, why: str) -> Choice | None:
    """Return a uniformly random candidate; None if there is none."""
    candidates = sorted_candidates(pool)
    if not candidates:
        return None
    image_id = candidates[int(pool.generator().integers(len(candidates)))]
    return Choice(image_id=image_id, of=0, why=why)


def shuffled_organs(scores: Sequence[ImageScore], generator: np.random.Generator) -> list[str]:
    """Return every organ of these scores once, in random order."""
    organs = sorted(set[str]().union(*(score.organs for score in scores)))
    return [organs[k] for k in generator.permutation(len(organs))]


def leading_organs(
    organs: Mapping[str, OrganScore], value: Callable[[OrganScore], float | None]
) -> tuple[str, ...]:
    """Return the organs with the largest values, largest first; organs without a value are left out."""
    values = {name: value(organ) for name, organ in organs.items()}
    present = {name: number for name, number in values.items() if number is not None}
    return tuple(sorted(present, key=lambda name: (-present[name], name))[:LEAD_ORGANS])


def join_names(names: Sequence[str]) -> str:
    """Return names as in a sentence: `A, B and C`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
