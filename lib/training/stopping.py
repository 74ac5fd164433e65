"""When a run stops early, and which of its epochs was the best."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoppingState:
    """Where a run stands by its validations.

    Attributes:
        best: Index of the best validation so far; None before the first.
        waited: Validations since then, none of which was better.
    """

    best: int | None
    waited: int


def stopping_state(values: Sequence[float], *, min_delta: float = 0.0) -> StoppingState:
    """Return which validation was the best, and how many followed it.

    A validation is the best if it is above the best one before it, by `min_delta` at least: small steps count
    once they add up (Prechelt 1998, *Early stopping - but when?*, the criterion UP with a threshold).

    Args:
        values: Mean DSC of each validation, in order.
        min_delta: Least gain that counts.
    """
    best = None
    for index, value in enumerate(values):
        if best is None or (value > values[best] and value - values[best] >= min_delta):
            best = index
    return StoppingState(best, 0 if best is None else len(values) - 1 - best)


def should_stop(values: Sequence[float], *, patience: int, min_delta: float) -> bool:
    """Return whether the last `patience` validations brought no gain of `min_delta`; 0 never stops."""
    return 0 < patience <= stopping_state(values, min_delta=min_delta).waited
