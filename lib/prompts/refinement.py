"""Correction of a contour at clicks and scribbles, by a random walker over the model's probabilities.

Grady (IEEE TPAMI 28(11), 2006) spreads seeds through an image by the probability that a random walker reaches a
seed first; steps over an edge of the image are rare. Grady (CVPR 2005) adds prior probabilities, as a further
place where a walk can end. Here the contour and the model's probabilities are this prior, and a prompt is a
ball of seeds. Only the change of the prior is computed: it is linear in the seeds and falls with the distance
from them, so that nothing changes outside a box around the prompt.

The ball's radius follows from the prompt: a click 10 mm outside the contour says that the contour is at
least 10 mm wrong there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from lib.imaging.quantities import FloatArray, MaskArray, SpacingMm
from lib.inference.resampling import Box

MAX_RADIUS_MM = 10.0
"""Largest radius of the ball of seeds about a click; a larger error takes a further click."""
MISSING_RADIUS_MM = 5.0
"""Radius of the ball about a click where no contour is near: the size of a missing organ is unknown."""
REACH = 2.5
"""Distance from a prompt, in radii, within which voxels can change."""
REACH_MM = REACH * MAX_RADIUS_MM
BALL = 0.9
"""Radius of the ball of seeds, as a share of the prompt's distance from the contour."""
SCREENING = 0.3
"""Weight of the prior on the scale of the radius: larger values keep the change closer to the seeds."""
EDGE_HU = 60.0
"""Difference of two neighbouring voxels in HU over which a walker steps e times less often."""
MIN_CONDUCTANCE = 0.02
"""Share of walkers that step over any edge: noise must not stop a seed."""
CONFIDENCE = 0.9
"""Largest certainty of the prior, 0 to 1: the model is often certain where it is wrong."""
STEPS_PER_RADIUS = 4
"""The walk is computed on voxels of at least a fourth of the radius: its result is smooth on that scale."""
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Prompt:
    """A click or a scribble.

    Attributes:
        voxels: `(N, 3)`, indices of its voxels; a click has one.
        is_add: Whether these voxels belong to the organ, or do not.
    """

    voxels: npt.NDArray[np.intp]
    is_add: bool


def prompt_box(voxels: npt.NDArray[np.intp], shape: Sequence[int], spacing_mm: SpacingMm) -> Box:
    """Return the box around `voxels` `(N, 3)` outside which no prompt among them changes anything."""
    reach = np.ceil(REACH_MM / np.array(spacing_mm)).astype(int)
    low = np.maximum(voxels.min(axis=0) - reach, 0)
    high = np.minimum(voxels.max(axis=0) + reach + 1, shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (x, y, z)


def refine(
    mask: MaskArray,
    probability: FloatArray,
    array_hu: FloatArray,
    prompts: Sequence[Prompt],
    *,
    spacing_mm: SpacingMm,
) -> MaskArray:
    """Return `mask` corrected by `prompts`, one after the other; each prompt's voxels are as it says.

    If two prompts contradict each other at a voxel, the later one counts. Equal arguments give equal results.

    Args:
        mask: `(X, Y, Z)`, the organ's present contour.
        probability: `(X, Y, Z)`, probability of the organ, 0 to 1; where it contradicts `mask`, `mask` counts.
        array_hu: `(X, Y, Z)`, HU.
        prompts: The prompts; their voxels are indices of `mask`.
        spacing_mm: Voxel size.
    """
    field = _prior(mask, probability)
    fixed = np.zeros(mask.shape, bool)
    for number, prompt in enumerate(prompts, start=1):
        box = prompt_box(prompt.voxels, mask.shape, spacing_mm)
        offset = [side.start for side in box]
        inner = Prompt(prompt.voxels - offset, prompt.is_add)
        _apply(field[box], fixed[box], array_hu[box], inner, spacing_mm)
        fixed[tuple(prompt.voxels.T)] = True
        for earlier in prompts[:number]:
            field[tuple(earlier.voxels.T)] = 1.0 if earlier.is_add else -1.0
    return np.asarray(field > 0)


def _prior(mask: MaskArray, probability: FloatArray) -> FloatArray:
    """Return the certainty of the contour, `(X, Y, Z)`: above 0 in the organ, below 0 outside."""
    field = np.clip(2 * probability.astype(np.float32) - 1, -CONFIDENCE, CONFIDENCE)
    least = np.float32(0.1)
    return np.where(mask, np.maximum(field, least), np.minimum(field, -least))


def _apply(
    field: FloatArray,
    fixed: MaskArray,
    array_hu: FloatArray,
    prompt: Prompt,
    spacing_mm: SpacingMm,
) -> None:
    """Change `field` in place at and around the prompt's voxels that have the wrong sign."""
    wanted = np.float32(1.0 if prompt.is_add else -1.0)
    voxels = prompt.voxels[field[tuple(prompt.voxels.T)] * wanted <= 0]
    if len(voxels):
        radius_mm = _radius_mm(field > 0, voxels, is_add=prompt.is_add, spacing_mm=spacing_mm)
        distance_mm = _distance_mm(voxels, field.shape, spacing_mm)
        steps = [max(1, int(radius_mm / STEPS_PER_RADIUS / s)) for s in spacing_mm]
        coarse = tuple(
            slice(step // 2 if n > step else 0, None, step)
            for n, step in zip(field.shape, steps, strict=True)
        )
        smooth_hu = array_hu.astype(np.float32)
        if max(steps) > 1:
            smooth_hu = ndimage.uniform_filter(smooth_hu, steps, mode="nearest")
        is_seed = (distance_mm[coarse] <= BALL * radius_mm) & ~fixed[coarse]
        change = _walk(
            np.where(is_seed, wanted - field[coarse], 0),
            is_seed | fixed[coarse],
            smooth_hu[coarse],
            radius_mm,
            [s * step for s, step in zip(spacing_mm, steps, strict=True)],
        )
        field += _on_voxels(change, field.shape, steps) * (distance_mm <= REACH * radius_mm)
        ball = (distance_mm <= BALL * radius_mm) & ~fixed
        field[ball] = wanted


def _radius_mm(
    mask: MaskArray, voxels: npt.NDArray[np.intp], *, is_add: bool, spacing_mm: SpacingMm
) -> float:
    """Return the median distance of `voxels` from the contour, in mm, `MAX_RADIUS_MM` at most."""
    wrong = ~mask if is_add else mask
    if wrong.all():
        return MISSING_RADIUS_MM if is_add else MAX_RADIUS_MM
    distance_mm = ndimage.distance_transform_edt(wrong, sampling=spacing_mm)
    return float(min(np.median(distance_mm[tuple(voxels.T)]), MAX_RADIUS_MM))


def _distance_mm(
    voxels: npt.NDArray[np.intp], shape: Sequence[int], spacing_mm: SpacingMm
) -> FloatArray:
    """Return the distance of every voxel of a box from the nearest of `voxels`, in mm."""
    others = np.ones(shape, bool)
    others[tuple(voxels.T)] = False
    return np.asarray(ndimage.distance_transform_edt(others, sampling=spacing_mm), np.float32)


def _walk(
    seeds: FloatArray,
    is_fixed: MaskArray,
    array_hu: FloatArray,
    radius_mm: float,
    spacing_mm: Sequence[float],
) -> FloatArray:
    """Return the change at every voxel: that of `seeds` where fixed, and what reaches the others from there.

    The change minimises the sum of `w_ij (c_i - c_j)^2` over neighbours and of `SCREENING / radius^2 c_i^2`.
    `w_ij` is the conductance of Grady (2006), Eq. (1), over the squared distance of the voxels.
    """
    shape = seeds.shape
    size = seeds.size
    diagonal = np.full(shape, SCREENING / radius_mm**2)
    bands, offsets = [], []
    stride = size
    for axis in range(3):
        stride //= shape[axis]
        steps = np.diff(array_hu, axis=axis) / EDGE_HU
        weights = (MIN_CONDUCTANCE + (1 - MIN_CONDUCTANCE) * np.exp(-(steps**2))) / spacing_mm[
            axis
        ] ** 2
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        diagonal[tuple(first)] += weights
        diagonal[tuple(second)] += weights
        band = np.zeros(shape)
        band[tuple(first)] = -weights
        bands.append(band.ravel())
        offsets.append(stride)
    upper = sparse.diags_array(
        [band[: size - offset] for band, offset in zip(bands, offsets, strict=True)],
        offsets=offsets,
        shape=(size, size),
    )
    laplacian = (upper + upper.T + sparse.diags_array(diagonal.ravel())).tocsr()
    is_free = ~is_fixed.ravel()
    rows = laplacian[is_free]
    right = -rows[:, ~is_free] @ seeds.ravel()[~is_free].astype(np.float64)
    inner = rows[:, is_free]
    inverse = sparse.diags_array(1.0 / diagonal.ravel()[is_free])
    change = seeds.astype(np.float64).ravel()
    change[is_free], _ = cg(inner, right, rtol=_TOLERANCE, maxiter=200, M=inverse)
    return change.reshape(shape).astype(np.float32)


def _on_voxels(change: FloatArray, shape: Sequence[int], steps: Sequence[int]) -> FloatArray:
    """Return `change`, which has every `steps`-th voxel, at every voxel of `shape`, linear."""
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        n = change.shape[axis]
        start = step // 2 if shape[axis] > step else 0
        position = np.clip((np.arange(shape[axis]) - start) / step, 0, n - 1)
        low = np.minimum(position.astype(int), max(n - 2, 0))
        share = (position - low).astype(np.float32)
        share = share.reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, n - 1)
        change = change.take(low, axis) * (1 - share) + change.take(high, axis) * share
    return change
