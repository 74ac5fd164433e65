"""Baselines: first by name, uniform random, and random weighted by organ volume."""

import numpy as np

from lib.activelearning.pool import (
    NO_SCORES,
    Choice,
    OrganScore,
    Pool,
    at_random,
    finite_scores,
    shuffled_organs,
    sorted_candidates,
)


def first(pool: Pool) -> Choice | None:
    """Return the first candidate in alphabetical order."""
    candidates = sorted_candidates(pool)
    if not candidates:
        return None
    return Choice(
        image_id=candidates[0], rank=1, ranked_candidates=len(candidates), why="the first by name"
    )


def random(pool: Pool) -> Choice | None:
    """Return a uniformly random candidate."""
    return at_random(pool, f"drawn at random from {len(set(pool.candidates))}")


FOREGROUND_SHARE = 2 / 3
"""Share of the draws that are weighted by an organ (nnActive's "Random 66% FG")."""


def random_foreground(pool: Pool) -> Choice | None:
    """Return a random candidate; two draws of three are weighted by the volume of an organ.

    Lueth et al., *nnActive*, TMLR 2025, foreground-aware random sampling: two thirds of the patches lie on or
    at the border of a class, which is drawn first with equal probabilities; the others lie anywhere. In the
    paper the classes are those of the reference, and the unit is a patch. Here the unit is a whole case and
    there is no reference. An organ is drawn with equal probabilities from those that the model found in any
    candidate, then a case in proportion to the predicted volume of that organ. Weighting by the whole
    foreground would make all scans of the whole neck equally likely, whether or not they show a chiasm of 0.5
    mL; weighting by organs prefers cases with rare organs.
    """
    names, _ = finite_scores(pool, lambda score: score.foreground)
    if not names:
        return at_random(pool, NO_SCORES)
    scores = [pool.scores[name] for name in names]
    generator = pool.generator()
    is_weighted = generator.random() < FOREGROUND_SHARE
    for organ in shuffled_organs(scores, generator) if is_weighted else ():
        # The first predicted organ in a random order: every predicted organ is equally likely.
        volumes_ml = np.array([_volume_ml(score.organs.get(organ)) for score in scores])
        if volumes_ml.any():
            chosen = int(generator.choice(len(names), p=volumes_ml / volumes_ml.sum()))
            return Choice(
                image_id=names[chosen],
                ranked_candidates=len(names),
                score=float(volumes_ml[chosen]),
                organs=(organ,),
                why=f"drawn at random from {int((volumes_ml > 0).sum())} that show {organ}",
            )
    image_id = names[int(generator.integers(len(names)))]
    return Choice(
        image_id=image_id, ranked_candidates=len(names), why=f"drawn at random from {len(names)}"
    )


def _volume_ml(organ: OrganScore | None) -> float:
    """Return the predicted volume; 0 if there is none, or it is not finite."""
    if organ is None or organ.shape is None or not np.inf > organ.shape.volume_ml > 0:
        return 0.0
    return organ.shape.volume_ml
