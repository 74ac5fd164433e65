"""When to kill: at random, or within milliseconds of a step that must not be interrupted halfway."""

import random
import time
from collections.abc import Callable
from enum import Enum

from tests.chaos.stage import Stage

LONGEST_WAIT_S = 90.0
"""A training's process takes half a minute to begin where others want the processor too."""
BEGUN_SHARE = 0.6
LONGEST_PAUSE_S = 6.0
_LOOK_S = 0.002


class Kill(Enum):
    """What is killed, and when."""

    SERVER = "the server"
    TRAINER = "the trainer"
    BOTH = "both"
    EVALUATING = "both, during the evaluation"
    CANDIDATE = "both, as the candidate is saved"
    DECIDED = "both, between decision and promotion"
    SERVED = "both, as served.json changes"
    TRAINER_JUDGING = "the trainer, during the evaluation"
    TRAINER_SERVED = "the trainer, as served.json changes"

    @property
    def spares_the_server(self) -> bool:
        """Whether the server keeps running."""
        return self in (Kill.TRAINER, Kill.TRAINER_JUDGING, Kill.TRAINER_SERVED)


WEIGHTS = {
    Kill.SERVER: 20, Kill.TRAINER: 20, Kill.BOTH: 12, Kill.EVALUATING: 9, Kill.CANDIDATE: 9,
    Kill.DECIDED: 9, Kill.SERVED: 9, Kill.TRAINER_JUDGING: 6, Kill.TRAINER_SERVED: 6,
}  # fmt: skip
"""Relative frequency of each kind; they add up to 100."""


def wait_for(kind: Kill, stage: Stage, chance: random.Random) -> bool:
    """Return at the moment to kill; False if it did not come within `LONGEST_WAIT_S`."""
    look: Callable[[], object]
    if kind in (Kill.SERVER, Kill.BOTH, Kill.TRAINER):
        return _at_random(kind, stage, chance)
    if kind in (Kill.EVALUATING, Kill.TRAINER_JUDGING):
        reach_s = 0.5
        has_come = _until_it_is(lambda: (stage.active_run() or {}).get("state") == "judging")
    elif kind is Kill.DECIDED:
        reach_s = 0.01
        query = "SELECT 1 FROM models WHERE pending IS NOT NULL"
        has_come = _until_it_is(lambda: bool(stage.rows(query)))
    else:
        reach_s = 0.02
        if kind is Kill.CANDIDATE:
            look = lambda: sorted(stage.models.glob("*.safetensors"))  # noqa: E731
        else:
            look = lambda: _stamp(stage)  # noqa: E731
        before = look()
        has_come = _until_it_is(lambda: look() != before)
    time.sleep(chance.uniform(0, reach_s))
    return has_come


def _at_random(kind: Kill, stage: Stage, chance: random.Random) -> bool:
    """Return at a random moment, more often than not one at which a training has begun."""
    has_come = True
    if chance.random() < BEGUN_SHARE:
        has_come = _until_it_is(lambda: (stage.active_run() or {}).get("state") == "running")
    elif kind is Kill.TRAINER:
        has_come = _until_it_is(lambda: bool(stage.trainers()), every_s=0.1)
    time.sleep(chance.uniform(0, LONGEST_PAUSE_S))
    return has_come


def _stamp(stage: Stage) -> int:
    path = stage.models / "served.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _until_it_is(holds: Callable[[], bool], *, every_s: float = _LOOK_S) -> bool:
    limit = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < limit:
        if holds():
            return True
        time.sleep(every_s)
    return False
