"""Baselines: first by name, uniform random, and random weighted by organ volume."""

import numpy as np

from lib.activelearning.pool import Choice, OrganScore, Pool
from lib.activelearning.selection.ranking import (
    NO_SCORES,
    at_random,
    in_order,
    scored,
    shuffled_organs,
)


def first(pool: Pool) -> Choice | None:
    """Return the first candidate in alphabetical order."""
    candidates = in_order(pool)
    if not candidates:
        return None
    return Choice(image_id=candidates[0], rank=1, of=len(candidates), why="the first by name")


def random(pool: Pool) -> Choice | None:
    """Return any candidate, each equally likely."""
    return at_random(pool, f"drawn at random from {len(set(pool.candidates))}")


FOREGROUND_SHARE = 2 / 3
"""So many of the draws look for an organ (nnActive's "Random 66% FG")."""


def random_foreground(pool: Pool) -> Choice | None:
    """Return a candidate by lot: two draws of three look for an organ, the others take any.

    Lueth et al., *nnActive*, TMLR 2025, foreground-aware random sampling: two thirds of the patches lie on or
    at the border of a class that is drawn first, each class equally likely, the others anywhere. There the
    classes are those of the reference, in a patch of a case whose turn it is. Here the unit is a whole case and
    no reference is known: an organ is drawn, each that the model found in any candidate equally likely, then a
    case in proportion to the volume that the model found of it. By the foreground as a whole every scan of the
    whole neck would be as likely as any other, whether or not it shows a chiasm of 0.5 mL; by organs, a case
    that shows a rare one is drawn more often.
    """
    names, _ = scored(pool, lambda score: score.foreground)
    if not names:
        return at_random(pool, NO_SCORES)
    scores = [pool.scores[name] for name in names]
    generator = pool.generator()
    looks_for_organ = generator.random() < FOREGROUND_SHARE
    for organ in shuffled_organs(scores, generator) if looks_for_organ else ():
        # The first in a random order that was found at all is any of those found, each equally likely.
        volumes_ml = np.array([_volume_ml(score.organs.get(organ)) for score in scores])
        if volumes_ml.any():
            chosen = int(generator.choice(len(names), p=volumes_ml / volumes_ml.sum()))
            return Choice(
                image_id=names[chosen],
                of=len(names),
                score=float(volumes_ml[chosen]),
                organs=(organ,),
                why=f"drawn at random from {int((volumes_ml > 0).sum())} that show {organ}",
            )
    image_id = names[int(generator.integers(len(names)))]
    return Choice(image_id=image_id, of=len(names), why=f"drawn at random from {len(names)}")


def _volume_ml(organ: OrganScore | None) -> float:
    """Return the volume that was found; 0 where none was, or no finite one."""
    if organ is None or organ.shape is None or not np.inf > organ.shape.volume_ml > 0:
        return 0.0
    return organ.shape.volume_ml
