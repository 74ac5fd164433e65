"""Images as points: their features in one table, groups of them, and how typical each is of its group."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lib.imaging.quantities import FloatArray

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
