"""Selection by how well an image represents others that are not contoured yet."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lib.activelearning.pool import (
    NO_SCORES,
    Choice,
    Pool,
    at_random,
    finite_scores,
    index_of_best,
    join_names,
    sorted_candidates,
)
from lib.activelearning.selection.uncertainty import least_sure
from lib.imaging.quantities import FloatArray, MaskArray

RESTARTS = 3
"""Number of k-means runs, of which the best is used: the result depends on the start."""
MOST_STEPS = 20
"""Largest number of k-means iterations."""
NEIGHBOURS = 20
"""Number of neighbours in the typicality (Hacohen et al. 2022, the authors' code)."""
Groups = npt.NDArray[np.intp]
"""`(N,)`: index of the cluster of each image."""


def feature_table(features: Mapping[str, FloatArray]) -> tuple[list[str], FloatArray]:
    """Return the images with comparable features, sorted by name, and these features `(N, C)`.

    Features that are not finite are left out, and so are features whose length differs from the most frequent
    one: another network computed them.
    """
    lengths = Counter(len(row) for row in features.values())
    length = max(lengths, key=lambda number: (lengths[number], number), default=0)
    names = sorted(name for name, row in features.items() if len(row) == length)
    rows = np.array([features[name] for name in names], float).reshape(len(names), length)
    is_finite = np.isfinite(rows).all(axis=1)
    return [name for name, good in zip(names, is_finite, strict=True) if good], rows[is_finite]


def standardised(rows: FloatArray) -> FloatArray:
    """Return `rows` `(N, C)` with mean 0 and standard deviation 1 in each column; 0 in constant columns."""
    spread = rows.std(axis=0)
    return np.asarray((rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def cluster(rows: FloatArray, number: int, generator: np.random.Generator) -> Groups:
    """Return the cluster of each of `rows` `(N, C)`, 0 to `number` - 1, by k-means; clusters may be empty.

    Lloyd's algorithm with k-means++ initialisation (Arthur and Vassilvitskii 2007).
    """
    runs = [_lloyd(rows, _start(rows, number, generator)) for _ in range(RESTARTS)]
    return min(runs, key=lambda run: run[1])[0]


def _start(rows: FloatArray, number: int, generator: np.random.Generator) -> FloatArray:
    """Return `number` of the rows as initial centres, each likely to be far from those before it."""
    squares = (rows**2).sum(axis=1)
    chosen = [int(generator.integers(len(rows)))]
    nearest = _apart(rows, squares, chosen[0])
    while len(chosen) < number:
        total = nearest.sum()
        probabilities = nearest / total if total > 0 else None
        chosen.append(int(generator.choice(len(rows), p=probabilities)))
        nearest = np.minimum(nearest, _apart(rows, squares, chosen[-1]))
    return rows[chosen]


def _apart(rows: FloatArray, squares: FloatArray, point: int) -> FloatArray:
    """Return the squared distance of each row to row `point`; `squares` are the squared lengths of the rows."""
    along = np.einsum("nc,c->n", rows, rows[point])
    return np.asarray(np.maximum(squares + squares[point] - 2.0 * along, 0.0))


def _lloyd(rows: FloatArray, centres: FloatArray) -> tuple[Groups, float]:
    """Return the clusters reached from these centres, and the sum of squared distances within them."""
    members = np.full(len(rows), -1, np.intp)
    for _ in range(MOST_STEPS):
        # |row|^2 is left out: it is the same for all centres.
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
    """Return the inverse of the mean distance of each of `rows` `(N, C)` to its nearest neighbours.

    Typicality of Hacohen et al. 2022 with `NEIGHBOURS` neighbours, or all others if there are fewer. 0 for a
    single point.
    """
    number = min(NEIGHBOURS, len(rows) - 1)
    if number < 1:
        return np.zeros(len(rows))
    squares = (rows**2).sum(axis=1)
    apart = squares[:, None] + squares - 2.0 * (rows @ rows.T)
    np.fill_diagonal(apart, np.inf)
    nearest = np.partition(apart, number - 1, axis=1)[:, :number]
    mean = np.sqrt(np.maximum(nearest, 0.0)).mean(axis=1)
    # Rounded, so that equal points tie exactly; otherwise floating-point errors would decide.
    return np.asarray(1.0 / np.maximum(np.round(mean, 5), 1e-5))


UNCERTAIN = 16
"""Number of most uncertain images that are compared (K in Yang et al. 2017)."""
MOST_GROUPS = 50
"""Largest number of clusters: with fewer images in each, no image is typical."""
MORE_GROUPS = (0, 1, 2, 4, 8)
"""Numbers of additional clusters, tried in this order if outliers take up clusters."""
SMALLEST_GROUP = 5
"""Smallest cluster that does not count as outliers (Hacohen et al. 2022, the authors' code)."""


def suggestive(pool: Pool) -> Choice | None:
    """Return the most representative of the most uncertain candidates.

    Yang et al., *Suggestive Annotation*, MICCAI 2017, representative annotation: a subset S of the K = 16 most
    uncertain images is grown to maximise F(S), the sum over all images of the largest cosine similarity
    between their features and those of an image in S. One choice here is one step of this greedy maximum
    cover. Differences: S begins with the contoured images (in the paper it begins empty each round), the
    uncertainty is the entropy of one model (in the paper the spread of several), and with fewer than 32
    candidates only half of them count as uncertain. Features of an older model are used unchanged.
    """
    images, rows = feature_table({name: score.features for name, score in pool.scores.items()})
    index = {name: number for number, name in enumerate(images)}
    names, entropies = finite_scores(pool, lambda score: score.entropy)
    has_features = np.array([name in index for name in names], bool)
    names, entropies = [name for name in names if name in index], entropies[has_features]
    if not names:
        return at_random(pool, NO_SCORES)
    generator = pool.generator()
    compared = _largest(entropies, max(1, min(UNCERTAIN, len(names) // 2)), generator)
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
    taken = [index[name] for name in sorted(set(pool.taken)) if name in index]
    gains = _gains(units, taken, [index[names[number]] for number in compared])
    chosen = index_of_best(generator, gains, entropies[compared])
    image_id = names[compared[chosen]]
    organs = least_sure(pool.scores[image_id])
    stands_for = (
        "the most that is unlike the cases contoured so far" if taken else "the most others"
    )
    return Choice(
        image_id=image_id,
        rank=1,
        ranked_candidates=len(names),
        score=float(gains[chosen]),
        organs=organs,
        why=f"of the {len(compared)} cases that the model is least sure of, this one stands for {stands_for}"
        + (f"; it is least sure of {join_names(organs)}" if organs else ""),
    )


def _largest(values: FloatArray, number: int, generator: np.random.Generator) -> Groups:
    """Return the indices of the `number` largest values; ties are broken at random."""
    order = generator.permutation(len(values))
    return np.asarray(order[np.argsort(-values[order], kind="stable")][:number])


def _gains(units: FloatArray, taken: list[int], compared: list[int]) -> FloatArray:
    """Return by how much each of `compared` raises the mean over all images of the largest similarity."""
    cover = (units @ units[taken].T).max(axis=1) if taken else np.full(len(units), -1.0)
    added = np.maximum(units @ units[compared].T - cover[:, None], 0.0).mean(axis=0)
    # Rounded, so that identical images have equal gains; otherwise floating-point errors would decide.
    return np.asarray(np.round(added, 9))


def coldstart(pool: Pool) -> Choice | None:
    """Return the most typical image of the largest cluster without contoured images.

    TypiClust: Hacohen et al., *Active Learning on a Budget*, ICML 2022: k-means with one cluster
    more than there are labelled images; in the largest cluster without labelled images, the image with the
    highest typicality (1 / the mean distance to its 20 nearest neighbours). Clusters of fewer than five
    images are skipped as outliers; if every cluster has labelled images, the one with the fewest is used.
    Differences: the features are standardised image statistics, while the paper learns features from very
    many images; one image is chosen at a time; there are at most 50 clusters; with few images a cluster may be
    half as large as the mean one; and if the clusters without labelled images are all too small, a few more
    clusters are made first.
    """
    taken = set(pool.taken)
    candidates = set(sorted_candidates(pool))
    features = {n: pool.appearance[n] for n in candidates | taken if n in pool.appearance}
    names, rows = feature_table(features)
    is_candidate = np.array([name in candidates for name in names], bool)
    if not is_candidate.any():
        return at_random(pool, NO_SCORES)
    rows = standardised(rows)
    is_taken = np.array([name in taken for name in names])
    generator = pool.generator()
    members = _cluster_to_label(rows, is_candidate, is_taken, generator)
    inside = np.flatnonzero(members)
    typical = typicality(rows[inside])
    chosen = index_of_best(generator, np.where(is_candidate[inside], typical, -np.inf))
    contoured = int(is_taken[inside].sum())
    return Choice(
        image_id=names[inside[chosen]],
        rank=1,
        ranked_candidates=int(is_candidate.sum()),
        score=float(typical[chosen]),
        why=f"typical of {len(inside)} scans that look alike; {contoured or 'none'} of them contoured so far",
    )


def _cluster_to_label(
    rows: FloatArray, is_candidate: MaskArray, is_taken: MaskArray, generator: np.random.Generator
) -> MaskArray:
    """Return the mask of the largest cluster with the fewest contoured images that has a candidate."""
    for more in MORE_GROUPS:
        number = min(int(is_taken.sum()) + 1 + more, MOST_GROUPS)
        group = cluster(rows, number, generator)
        sizes = np.bincount(group, minlength=number)
        smallest = min(SMALLEST_GROUP, -(-len(group) // (2 * number)))
        contoured = np.bincount(group, weights=is_taken, minlength=number)
        has_candidate = np.bincount(group, weights=is_candidate, minlength=number) > 0
        keys = (has_candidate, sizes >= smallest, -contoured, sizes)
        chosen = index_of_best(generator, *(np.asarray(key, float) for key in keys))
        if contoured[chosen] == 0 or number == MOST_GROUPS:
            break
    return np.asarray(group == chosen)
