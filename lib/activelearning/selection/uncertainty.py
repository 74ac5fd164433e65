"""Selection by uncertainty of the model: of the whole case, of one organ, or over several samples."""

from functools import partial

import numpy as np

from lib.activelearning.pool import (
    NO_SCORES,
    Choice,
    ImageScore,
    OrganScore,
    Pool,
    at_random,
    finite_scores,
    index_of_best,
    join_names,
    leading_organs,
    shuffled_organs,
    sorted_candidates,
)
from lib.imaging.quantities import FloatArray

CLASS_SHARE = 0.66
"""Share of the queries that are for one organ (Lueth, Traub et al. 2026)."""
FIRST_BETA, LAST_BETA = 1.0, 100.0
"""Inverse noise level in the first and in the last round (same source)."""
LAST_BETA_AT = 50
"""Number of labelled cases from which `LAST_BETA` holds.

The paper spreads the range over a fixed number of rounds. Here the number of rounds is open, and after 50 cases
the learning curves of this task are flat.
"""
LEAST_ENTROPY = 1e-12
"""Lower limit of entropies before the logarithm; smaller ones would never be chosen, whatever the noise."""


def entropy(pool: Pool) -> Choice | None:
    """Return the candidate with the highest mean predictive entropy.

    Settles, *Active Learning* (2012), section 2.3, Eq. (2.3). The entropy of a case is the mean over its
    voxels in the bounding box of the body.
    """
    names, values = finite_scores(pool, lambda score: score.entropy)
    if not names:
        return at_random(pool, NO_SCORES)
    chosen = index_of_best(pool.generator(), values)
    organs = least_sure(pool.scores[names[chosen]])
    above_all = f", above all of {join_names(organs)}" if organs else ""
    return Choice(
        image_id=names[chosen],
        rank=1,
        ranked_candidates=len(names),
        score=float(values[chosen]),
        organs=organs,
        why=f"the model is least sure of this case{above_all}",
    )


def claspe(pool: Pool) -> Choice | None:
    """Return a candidate with a high entropy of one organ, with noise that decreases.

    ClaSP PE: Lueth, Traub et al., *Finally Outshining the Random Baseline*, TMLR 2026 (arXiv 2601.13677). 66
    % of the queries of a round are divided evenly between the classes without the background, and ranked by
    the entropy where that class is predicted; the others are ranked by the plain predictive entropy. The
    power noise is that of Kirsch et al., *Stochastic Batch Acquisition*, 2021: the logarithm of the score
    plus Gumbel noise over `beta`, which grows exponentially from 1 to 100 over the rounds (the authors' code,
    `class_power_pe66_exp`).

    Differences for whole cases: one case is chosen at a time, so the class is drawn with these probabilities;
    `beta` depends on the number of labelled cases; the entropy of a class is the mean over the voxels of the
    case that are predicted as this class, where the paper weights the entropy of a patch by the probability
    of the class, which would prefer cases with large organs; an organ that the model found in no candidate
    cannot be drawn.
    """
    generator = pool.generator()
    organ, names, values = _drawn_class(pool, generator)
    if not names:
        return at_random(pool, NO_SCORES)
    noise = generator.gumbel(size=len(names)) / beta(len(set(pool.taken)))
    chosen = index_of_best(generator, np.log(np.maximum(values, LEAST_ENTROPY)) + noise)
    rank = 1 + int((values > values[chosen]).sum())
    target = organ or "the case as a whole"
    return Choice(
        image_id=names[chosen],
        rank=rank,
        ranked_candidates=len(names),
        score=float(values[chosen]),
        organs=(organ,) if organ else least_sure(pool.scores[names[chosen]]),
        why=f"drawn for {target}: by how unsure the model is, it is number {rank} of {len(names)}",
    )


def beta(labelled: int) -> float:
    """Return the inverse noise level after `labelled` cases: 1 is much noise, 100 hardly any."""
    return float(FIRST_BETA * (LAST_BETA / FIRST_BETA) ** min(labelled / LAST_BETA_AT, 1.0))


def _drawn_class(
    pool: Pool, generator: np.random.Generator
) -> tuple[str | None, list[str], FloatArray]:
    """Return a random organ, the candidates that can be ranked by it, and their entropies.

    Each organ that was predicted in any candidate is equally likely; None means the whole case.
    """
    scores = [pool.scores[name] for name in sorted_candidates(pool) if name in pool.scores]
    is_for_organ = generator.random() < CLASS_SHARE
    for organ in shuffled_organs(scores, generator) if is_for_organ else ():
        # The first predicted organ in a random order: every predicted organ is equally likely.
        names, values = finite_scores(pool, partial(_entropy, organ))
        if names:
            return organ, names, values
    return None, *finite_scores(pool, lambda score: score.entropy)


def _entropy(organ: str, score: ImageScore) -> float | None:
    organ_score = score.organs.get(organ)
    return None if organ_score is None else organ_score.entropy


def structure_qc(pool: Pool) -> Choice | None:
    """Return the candidate whose samples agree least, organ by organ.

    Roy et al., *Bayesian QuickNAT*, NeuroImage 195 (2019), structure-wise uncertainty, two of its four
    measures over several samples of the network: the mean pairwise Dice, and the coefficient of variation of
    the volume. Both correlate with the true Dice of a structure; the paper leaves open how to summarise a
    case. Here the score of a case is the mean of one minus the Dice over its organs, so that small organs
    count as much as large ones. The mean variation breaks ties only, because it misses samples of equal size
    at different positions. Organs that no sample contains are left out; a case without any organ cannot be
    ranked.
    """
    names, values = finite_scores(pool, lambda score: score.disagreement)
    if not names:
        return at_random(pool, NO_SCORES)
    variations = np.array([pool.scores[name].variation for name in names])
    chosen = index_of_best(pool.generator(), values, variations)
    organs = leading_organs(pool.scores[names[chosen]].organs, _dice_gap)
    return Choice(
        image_id=names[chosen],
        rank=1,
        ranked_candidates=len(names),
        score=float(values[chosen]),
        organs=organs,
        why="contoured several times by the model, this case comes out most differently each time, "
        f"above all {join_names(organs)}",
    )


def _dice_gap(organ: OrganScore) -> float | None:
    return None if organ.pairwise_dice is None else 1.0 - organ.pairwise_dice


def least_sure(score: ImageScore) -> tuple[str, ...]:
    """Return the organs with the highest entropies, highest first."""
    return leading_organs(score.organs, lambda organ: organ.entropy)
