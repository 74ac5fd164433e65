"""How tests wait: for a state, never for a time, and with a limit that only ends a hang."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 600.0 * float(os.environ.get("ORGANNET_TEST_PATIENCE", "1"))
"""Longest wait for anything, in seconds: a loaded machine takes minutes where an idle one takes seconds."""
LOOK_S = 0.05

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, *, context: Callable[[], object] = str) -> T:
    """Return the first true value of `condition`.

    Args:
        condition: Asked again and again.
        what: What is waited for, for the message.
        context: Called for what the message should hold besides, such as the end of a log.

    Raises:
        AssertionError: If it does not become true within `LIMIT_S`.
    """
    limit = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < limit, f"not within {LIMIT_S:g} s: {what}\n{context()}"
        time.sleep(LOOK_S)
    return value
