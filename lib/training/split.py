"""Which cases are never trained on: decided once per case, by hash, the same on every machine."""

import hashlib
from collections.abc import Sequence, Set

from lib.training.cases import Case

HELD_OUT_OF = 5
"""About one case in this many is held out."""


def is_held_out(image_id: str) -> bool:
    """Return whether the case is for validation only; it follows from its id alone, for ever."""
    return hashlib.sha256(image_id.encode()).digest()[0] % HELD_OUT_OF == 0


def split(
    cases: Sequence[Case], *, judges: Set[str] = frozenset()
) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those held out: the judges, where there are some, or by the hash."""
    held_out = [
        case
        for case in cases
        if (case.image_id in judges if judges else is_held_out(case.image_id))
    ]
    return [case for case in cases if case not in held_out], held_out
