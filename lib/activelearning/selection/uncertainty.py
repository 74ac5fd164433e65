"""By how unsure the model is: of the whole case, of one organ at a time, or over several samples."""

import math
from functools import partial

import numpy as np

from lib.activelearning.pool import Choice, ImageScore, OrganScore, Pool
from lib.activelearning.selection.ranking import (
    NO_SCORES,
    at_random,
    best,
    in_order,
    leading,
    listed,
    place,
    scored,
    shuffled_organs,
)
from lib.imaging.quantities import FloatArray

CLASS_SHARE = 0.66
"""So many of the queries are for one organ (Lueth, Traub et al. 2026)."""
FIRST_BETA, LAST_BETA = 1.0, 100.0
"""How little the noise counts, in the first round and in the last (the same)."""
LAST_BETA_AT = 50
"""Labelled cases from which on `LAST_BETA` holds. The paper spreads the range over its rounds, whose number it
knows; ours is open, and by 50 cases the learning curves of this task are flat."""
LEAST_ENTROPY = 1e-12
"""The logarithm of less would never be chosen, whatever the noise."""


def entropy(pool: Pool) -> Choice | None:
    """Return the candidate with the highest mean predictive entropy.

    Settles, *Active Learning* (2012), section 2.3, Eq. (2.3). There one prediction is one distribution; the
    entropy of a case is the mean over its voxels in the body's box.
    """
    names, values = scored(pool, lambda score: score.entropy)
    if not names:
        return at_random(pool, NO_SCORES)
    chosen = best(pool.generator(), values)
    organs = least_sure(pool.scores[names[chosen]])
    above_all = f", above all of {listed(organs)}" if organs else ""
    return Choice(
        image_id=names[chosen],
        rank=1,
        of=len(names),
        score=float(values[chosen]),
        organs=organs,
        why=f"the model is least sure of this case{above_all}",
    )


def claspe(pool: Pool) -> Choice | None:
    """Return a candidate that the model is unsure of, for one organ at a time, with noise that fades.

    ClaSP PE: Lueth, Traub et al., *Finally Outshining the Random Baseline*, TMLR 2026 (arXiv 2601.13677). 66 %
    of a round's queries are shared out evenly over the classes without the background, each ranked by the
    entropy where that class is predicted; the others are ranked by the plain predictive entropy. The power
    noise is that of Kirsch et al., *Stochastic Batch Acquisition*, 2021: the logarithm of the score plus Gumbel
    noise over `beta`, which grows exponentially from 1 to 100 over the rounds (the authors' code,
    `class_power_pe66_exp`).

    What differs for whole cases: one case is asked for at a time, so the class is drawn with these
    probabilities instead of shared out; `beta` follows from the number of labelled cases; the entropy of a
    class is its mean over the voxels predicted as it in the whole case, where the paper weighs a patch's
    entropy with the class's probability, which would prefer the cases with the largest organs; an organ that
    the model found in no candidate cannot be drawn.
    """
    generator = pool.generator()
    organ, names, values = _drawn_class(pool, generator)
    if not names:
        return at_random(pool, NO_SCORES)
    noise = generator.gumbel(size=len(names)) / beta(len(set(pool.taken)))
    chosen = best(generator, np.log(np.maximum(values, LEAST_ENTROPY)) + noise)
    rank = place(values, chosen)
    drawn_for = organ or "the case as a whole"
    return Choice(
        image_id=names[chosen],
        rank=rank,
        of=len(names),
        score=float(values[chosen]),
        organs=(organ,) if organ else least_sure(pool.scores[names[chosen]]),
        why=f"drawn for {drawn_for}: by how unsure the model is, it is number {rank} of {len(names)}",
    )


def beta(labelled: int) -> float:
    """Return how little the noise counts once so many cases are labelled: 1 is much, 100 hardly any."""
    return float(FIRST_BETA * (LAST_BETA / FIRST_BETA) ** min(labelled / LAST_BETA_AT, 1.0))


def _drawn_class(
    pool: Pool, generator: np.random.Generator
) -> tuple[str | None, list[str], FloatArray]:
    """Return whose turn it is, the candidates that can be ranked for it, and their entropies.

    It is that of an organ, each equally likely that was found in any candidate, or None: of the whole case.
    """
    scores = [pool.scores[name] for name in in_order(pool) if name in pool.scores]
    is_for_organ = generator.random() < CLASS_SHARE
    for organ in shuffled_organs(scores, generator) if is_for_organ else ():
        # The first in a random order that was found at all is any of those found, each equally likely.
        names, values = scored(pool, partial(_entropy, organ))
        if names:
            return organ, names, values
    return None, *scored(pool, lambda score: score.entropy)


def _entropy(organ: str, score: ImageScore) -> float | None:
    of_organ = score.organs.get(organ)
    return None if of_organ is None else of_organ.entropy


def structure_qc(pool: Pool) -> Choice | None:
    """Return the candidate whose samples agree least, organ by organ.

    Roy et al., *Bayesian QuickNAT*, NeuroImage 195 (2019), structure-wise uncertainty, two of its four
    measures: over several samples of the network, the mean Dice of each two and the coefficient of variation of
    the volume. Both follow the true Dice of a structure; how to sum a case up is left open. Here a case has the
    mean of one minus the Dice over its organs, so that a small organ counts as much as a large one; the mean
    variation decides between equal ones only, because it misses samples of one size in different places.
    Organs that no sample has are left out; a case without any organ cannot be ranked.
    """
    names, values = scored(pool, _disagreement)
    if not names:
        return at_random(pool, NO_SCORES)
    variations = np.array([_variation(pool.scores[name]) for name in names])
    chosen = best(pool.generator(), values, variations)
    organs = leading(pool.scores[names[chosen]].organs, _dice_gap)
    return Choice(
        image_id=names[chosen],
        rank=1,
        of=len(names),
        score=float(values[chosen]),
        organs=organs,
        why="contoured several times by the model, this case comes out most differently each time, "
        f"above all {listed(organs)}",
    )


def _dice_gap(organ: OrganScore) -> float | None:
    return None if organ.pairwise_dice is None else 1.0 - organ.pairwise_dice


def _disagreement(score: ImageScore) -> float | None:
    gaps = [gap for gap in map(_dice_gap, score.organs.values()) if gap is not None]
    return math.fsum(gaps) / len(gaps) if score.has_samples and gaps else None


def _variation(score: ImageScore) -> float:
    known = [o.volume_cv for o in score.organs.values() if o.volume_cv is not None]
    return math.fsum(known) / len(known) if known else 0.0


def least_sure(score: ImageScore) -> tuple[str, ...]:
    """Return the organs whose contours the model is least sure of, the least sure first."""
    return leading(score.organs, lambda organ: organ.entropy)
