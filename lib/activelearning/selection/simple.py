"""Without any score: by name, and by lot."""

from lib.activelearning.pool import Choice, Pool
from lib.activelearning.selection.ranking import at_random, in_order


def first(pool: Pool) -> Choice | None:
    """Return the first candidate in alphabetical order."""
    candidates = in_order(pool)
    if not candidates:
        return None
    return Choice(image_id=candidates[0], rank=1, of=len(candidates), why="the first by name")


def random(pool: Pool) -> Choice | None:
    """Return any candidate, each equally likely."""
    return at_random(pool, f"drawn at random from {len(set(pool.candidates))}")
