"""Selection by how well an image represents others that are not contoured yet."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lib.activelearning.pool import Choice, Pool
from lib.activelearning.selection.ranking import (
    NO_SCORES,
    at_random,
    best,
    in_order,
    listed,
    scored,
)
from lib.activelearning.selection.uncertainty import least_sure
from lib.imaging.quantities import FloatArray, MaskArray

RESTARTS = 3
"""k-means ends in a minimum that depends on its start; the best of so many is kept."""
MOST_STEPS = 20
NEIGHBOURS = 20
"""That typicality looks at (Hacohen et al. 2022, the authors' code)."""
Groups = npt.NDArray[np.intp]
"""`(N,)`: the group of each point."""


def table(features: Mapping[str, FloatArray]) -> tuple[list[str], FloatArray]:
    """Return the images whose features can be compared, in a fixed order, and these features `(N, C)`.

    Left out are features that are not finite, and those of another length than most: another network's.
    """
    lengths = Counter(len(row) for row in features.values())
    length = max(lengths, key=lambda number: (lengths[number], number), default=0)
    names = sorted(name for name, row in features.items() if len(row) == length)
    rows = np.array([features[name] for name in names], float).reshape(len(names), length)
    is_finite = np.isfinite(rows).all(axis=1)
    return [name for name, good in zip(names, is_finite, strict=True) if good], rows[is_finite]


def standardised(rows: FloatArray) -> FloatArray:
    """Return `rows` `(N, C)` with mean 0 and deviation 1 in each column; 0 where all are alike."""
    spread = rows.std(axis=0)
    return np.asarray((rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def groups(rows: FloatArray, number: int, generator: np.random.Generator) -> Groups:
    """Return the group of each of `rows` `(N, C)`, 0 to `number` - 1, by k-means; some may have no members.

    Lloyd's steps from the start of k-means++ (Arthur and Vassilvitskii 2007).
    """
    runs = [_lloyd(rows, _start(rows, number, generator)) for _ in range(RESTARTS)]
    return min(runs, key=lambda run: run[1])[0]


def _start(rows: FloatArray, number: int, generator: np.random.Generator) -> FloatArray:
    """Return `number` of the rows, each new one likely to be far from those before it."""
    squares = (rows**2).sum(axis=1)
    chosen = [int(generator.integers(len(rows)))]
    nearest = _apart(rows, squares, chosen[0])
    while len(chosen) < number:
        total = nearest.sum()
        chances = nearest / total if total > 0 else None
        chosen.append(int(generator.choice(len(rows), p=chances)))
        nearest = np.minimum(nearest, _apart(rows, squares, chosen[-1]))
    return rows[chosen]


def _apart(rows: FloatArray, squares: FloatArray, point: int) -> FloatArray:
    """Return the squared distance of each row to one of them; `squares` are the rows' squared lengths."""
    along = np.einsum("nc,c->n", rows, rows[point])
    return np.asarray(np.maximum(squares + squares[point] - 2.0 * along, 0.0))


def _lloyd(rows: FloatArray, centres: FloatArray) -> tuple[Groups, float]:
    """Return the groups that these centres lead to, and the sum of squared distances within them."""
    members = np.full(len(rows), -1, np.intp)
    for _ in range(MOST_STEPS):
        # |row|^2 is the same for all centres: it decides nothing.
        distances = (centres**2).sum(axis=1) - 2.0 * rows @ centres.T
        before, members = members, distances.argmin(axis=1)
        if (members == before).all():
            break
        order = np.argsort(members, kind="stable")
        present, begins, sizes = np.unique(members[order], return_index=True, return_counts=True)
        centres = centres.copy()
        centres[present] = np.add.reduceat(rows[order], begins) / sizes[:, None]
    return members, float(((rows - centres[members]) ** 2).sum())


def typicality(rows: FloatArray) -> FloatArray:
    """Return one over the mean distance of each of `rows` `(N, C)` to its nearest neighbours.

    Hacohen et al. 2022, typicality, with `NEIGHBOURS` or all others where there are fewer. 0 for a lone point.
    """
    number = min(NEIGHBOURS, len(rows) - 1)
    if number < 1:
        return np.zeros(len(rows))
    squares = (rows**2).sum(axis=1)
    apart = squares[:, None] + squares - 2.0 * (rows @ rows.T)
    np.fill_diagonal(apart, np.inf)
    nearest = np.partition(apart, number - 1, axis=1)[:, :number]
    mean = np.sqrt(np.maximum(nearest, 0.0)).mean(axis=1)
    # Alike points must be alike in the last digit too, or the order of names would decide between them.
    return np.asarray(1.0 / np.maximum(np.round(mean, 5), 1e-5))


UNCERTAIN = 16
"""So many of the most uncertain are looked at more closely (K in Yang et al. 2017)."""
MOST_GROUPS = 50
"""More are not made: with fewer points in each, none is typical of anything."""
MORE_GROUPS = (0, 1, 2, 4, 8)
"""Tried one after another where outliers have taken the groups that were meant for others."""
SMALLEST_GROUP = 5
"""A smaller group is taken for outliers (Hacohen et al. 2022, the authors' code)."""


def suggestive(pool: Pool) -> Choice | None:
    """Return, of the most uncertain candidates, the one that adds most to what the contoured ones stand for.

    Yang et al., *Suggestive Annotation*, MICCAI 2017, representative annotation: of the K = 16 most uncertain
    images the subset S is grown that maximises F(S), the sum over all images of the largest cosine similarity
    between their features and those of an image in S. One step of this greedy maximum cover is one choice here.
    What differs: S begins with the images that are contoured already (the paper's begins empty each round), the
    uncertainty is the entropy of one model (the paper: the spread of several), and where there are fewer than
    32 candidates only half of them count as uncertain. Features of an older model are compared as they are.
    """
    known, rows = table({name: score.features for name, score in pool.scores.items()})
    index = {name: number for number, name in enumerate(known)}
    names, entropies = scored(pool, lambda score: score.entropy)
    has_features = np.array([name in index for name in names], bool)
    names, entropies = [name for name in names if name in index], entropies[has_features]
    if not names:
        return at_random(pool, NO_SCORES)
    generator = pool.generator()
    looked_at = _largest(entropies, max(1, min(UNCERTAIN, len(names) // 2)), generator)
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
    taken = [index[name] for name in sorted(set(pool.taken)) if name in index]
    gains = _gains(units, taken, [index[names[number]] for number in looked_at])
    chosen = best(generator, gains, entropies[looked_at])
    image_id = names[looked_at[chosen]]
    organs = least_sure(pool.scores[image_id])
    stands_for = (
        "the most that is unlike the cases contoured so far" if taken else "the most others"
    )
    return Choice(
        image_id=image_id,
        rank=1,
        of=len(names),
        score=float(gains[chosen]),
        organs=organs,
        why=f"of the {len(looked_at)} cases that the model is least sure of, this one stands for {stands_for}"
        + (f"; it is least sure of {listed(organs)}" if organs else ""),
    )


def _largest(values: FloatArray, number: int, generator: np.random.Generator) -> Groups:
    """Return the indices of the `number` largest values; `generator` decides between equal ones."""
    order = generator.permutation(len(values))
    return np.asarray(order[np.argsort(-values[order], kind="stable")][:number])


def _gains(units: FloatArray, taken: list[int], looked_at: list[int]) -> FloatArray:
    """Return by how much each of `looked_at` raises the mean over all images of the largest similarity."""
    cover = (units @ units[taken].T).max(axis=1) if taken else np.full(len(units), -1.0)
    added = np.maximum(units @ units[looked_at].T - cover[:, None], 0.0).mean(axis=0)
    # Alike images must be alike in the last digit too, or the order of names would decide between them.
    return np.asarray(np.round(added, 9))


def coldstart(pool: Pool) -> Choice | None:
    """Return the most typical image of the largest group that none of the contoured ones belongs to.

    TypiClust: Hacohen et al., *Active Learning on a Budget*, ICML 2022: k-means into as many groups as there
    will be labelled images, and in the largest one without any, the point with the highest typicality, one over
    the mean distance to its 20 nearest neighbours. Groups of fewer than five are passed over as outliers, and
    where every group has labelled images, the one with the fewest is taken. What differs: the features are
    numbers of the image, standardised, where the paper learns them from very many; one image is asked for at a
    time; there are at most 50 groups; with few images a group may be half as large as the mean one; and where
    the groups without labelled images are all too small, a few more groups are made first.
    """
    taken = set(pool.taken)
    candidates = set(in_order(pool))
    known = {name: pool.appearance[name] for name in candidates | taken if name in pool.appearance}
    names, rows = table(known)
    is_candidate = np.array([name in candidates for name in names], bool)
    if not is_candidate.any():
        return at_random(pool, NO_SCORES)
    rows = standardised(rows)
    is_taken = np.array([name in taken for name in names])
    generator = pool.generator()
    members = _open_group(rows, is_candidate, is_taken, generator)
    inside = np.flatnonzero(members)
    typical = typicality(rows[inside])
    chosen = best(generator, np.where(is_candidate[inside], typical, -np.inf))
    contoured = int(is_taken[inside].sum())
    return Choice(
        image_id=names[inside[chosen]],
        rank=1,
        of=int(is_candidate.sum()),
        score=float(typical[chosen]),
        why=f"typical of {len(inside)} scans that look alike; {contoured or 'none'} of them contoured so far",
    )


def _open_group(
    rows: FloatArray, is_candidate: MaskArray, is_taken: MaskArray, generator: np.random.Generator
) -> MaskArray:
    """Return who is in the largest group with the fewest contoured images, of those with a candidate."""
    for more in MORE_GROUPS:
        number = min(int(is_taken.sum()) + 1 + more, MOST_GROUPS)
        group = groups(rows, number, generator)
        sizes = np.bincount(group, minlength=number)
        smallest = min(SMALLEST_GROUP, -(-len(group) // (2 * number)))
        contoured = np.bincount(group, weights=is_taken, minlength=number)
        has_candidate = np.bincount(group, weights=is_candidate, minlength=number) > 0
        keys = (has_candidate, sizes >= smallest, -contoured, sizes)
        chosen = best(generator, *(np.asarray(key, float) for key in keys))
        if contoured[chosen] == 0 or number == MOST_GROUPS:
            break
    return np.asarray(group == chosen)
