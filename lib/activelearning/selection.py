"""Which image next: pure functions over image ids."""

from collections.abc import Sequence

import numpy as np


def first(unlabelled: Sequence[str]) -> str | None:
    """Return the first id in alphabetical order, None where all are labelled."""
    return min(unlabelled, default=None)


def random_choice(unlabelled: Sequence[str], seed: int | None) -> str | None:
    """Return an id, each equally likely; the same for the same seed and ids, None where all are labelled."""
    if not unlabelled:
        return None
    ordered = sorted(unlabelled)
    return ordered[int(np.random.default_rng(seed).integers(len(ordered)))]
