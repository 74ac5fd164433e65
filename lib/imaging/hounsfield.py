"""Check that the values of a CT are HU, by the shares of air, fat, soft tissue and bone.

A CT loses its scale when the rescale intercept is lost (every voxel 1024 HU too high), when signed pixels are
read as unsigned (air above 60,000 HU), or when it is normalised. One value tells nothing: scanners write
-2000, -1024, -1000 or 0 outside their field of view. The shares tell: in 203 head-and-neck CTs there are 1.5
to 9 times as many voxels at 400..800 HU as at 874..1174 HU, because dense bone is rare. Without the intercept
there are 2 to 100 times as many at 874..1174, because soft tissue is there.

Fat, muscle and organs lie at -150..150 HU, whatever else is in the field of view: in 51 of these CTs they are
77 % to 88 % of the voxels at -600..600 HU. If the intercept was subtracted twice or is wrong by 200 HU or more,
or if the slope is half of the right one, they are at most 47 %.

Fat is near -100 HU and muscle near 50 HU. If values are doubled (a slope applied twice), they are near -200 and
100. Voxels at -300..-170 HU are then 0.3 to 4 times as many as at -140..-50 HU (median 1.3), and at most 0.45
times if the values are right; fat and soft tissue together are compared likewise. 87 % of the doubled CTs are
recognised, and none of the 204 right ones, of 175 crops, or with noise of 60 HU is refused. Contrast medium
brightens soft tissue, but no fat.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.errors import ScanError
from lib.imaging.pixel_padding import LOWEST_TISSUE_HU, PADDING_HU

MAX_HU = 32_767
"""Largest value; metal is up to 30,000 HU on extended scales."""

METAL_HU = 3000
MAX_METAL = 0.05
"""Largest share of voxels above `METAL_HU`; dental fillings with their artefacts take 0.2 %."""

_AIR_FILL_HU = (PADDING_HU, -1000)
"""Values that are also written where nothing was measured."""

_AIR_HU = (PADDING_HU, -500)
_SOFT_TISSUE_HU = (-150, 150)
_FAT_HU = (-150, -30)
_BODY_HU = (-600, 600)
"""Lung, partial volumes, soft tissue, contrast medium and soft bone."""
_TRABECULAR_BONE_HU = (400, 800)
_SHIFTED_SOFT_TISSUE_HU = (874, 1174)

MIN_SOFT_TISSUE = 0.0001
"""Smallest share of soft tissue in a CT; a head in a large field of view has 0.01."""

MIN_SOFT_SHARE = 0.5
"""Smallest share of soft tissue among the voxels of `_BODY_HU`."""

MIN_FAT = 0.005
"""Smallest share of fat in a CT without air, such as a crop."""

MAX_SHIFTED = 1.5
MIN_SHIFTED = 0.002
"""Voxels at 874..1174 HU: largest ratio to those of bone, air and lung; smallest share that is judged."""

_SPREAD_FAT_HU, _USUAL_FAT_HU = (-300, -170), (-140, -50)
_SPREAD_SOFT_HU, _USUAL_SOFT_HU = (90, 150), (-20, 60)
MAX_SPREAD_FAT = 0.6
MAX_SPREAD = 0.3
"""Voxels twice as far from water as fat, and as fat and soft tissue: largest ratios to those in place."""
MIN_SPREAD_FAT = 0.03
"""Smallest number of voxels in place of fat, as a share of those of soft tissue, that is judged."""
MAX_NOISE_HU = 65.0
"""Noise up to which the spread is judged."""
_SMOOTHED_SIDE_VOX, _SMOOTHED_SLICES = 128, 64
_MOST_SMOOTHED_VOX = 16
"""Most voxels along a side of which a mean is taken; CTs have up to 2048 columns."""

MAX_LOWEST = 0.2
"""Largest share of the lowest value in a CT without air; a larger one was clipped."""

_SAMPLE_VOX = 4_000_000
_CHECKED_AT_ONCE_VOX = 2**21
"""Voxels that stay in the processor's cache."""
_LAST_COUNTED = 2**15
"""Largest absolute value in the histogram; a CT has no larger one."""
_COUNTED_AT_ONCE = 2**20
"""Values that are converted to eight bytes each at a time."""


Rescale = tuple[float, float]
"""RescaleSlope and RescaleIntercept."""

Array = np.ndarray[Any, np.dtype[Any]]


def require_equal_scale(
    slices_yx: tuple[Array, Array], rescales: tuple[Rescale, Rescale], where: str
) -> None:
    """Raise if two adjacent slices fit together with one rescale, but not with those of their headers.

    Args:
        slices_yx: The slices `(Y, X)`, in HU by their own headers.
        rescales: Slope and intercept of each.
        where: Start of the error message: the case, and the second slice.

    Raises:
        ScanError: If a header has lost its rescale, so that its slice lies far from its neighbour.
    """
    if rescales[0] == rescales[1]:
        return
    before_yx, hu_yx = (array.astype(np.float64) for array in slices_yx)
    is_measured = (before_yx != PADDING_HU) & (hu_yx != PADDING_HU)
    if not is_measured.any():
        return
    (slope, intercept), (own_slope, own_intercept) = rescales
    other_yx = (hu_yx - own_intercept) / own_slope * slope + intercept
    stated, with_one_scale = (
        float(np.abs(array - before_yx)[is_measured].mean()) for array in (hu_yx, other_yx)
    )
    if with_one_scale < stated / 2:
        raise ScanError(
            f"{where} has RescaleSlope {own_slope:g} and RescaleIntercept {own_intercept:g}, the slice before "
            f"it {slope:g} and {intercept:g}; only with one of them for both do they fit together: export the "
            "CT again from its origin"
        )


class HuCheck:
    """Check that the values of a CT can be HU, part by part while they arrive.

    Args:
        shape_vox: Shape `(X, Y, Z)` of the CT.
        image_id: For messages.
    """

    def __init__(self, shape_vox: tuple[int, ...], image_id: str) -> None:
        self._image_id = image_id
        self._low, self._high = math.inf, -math.inf
        self._slices = 0
        self._sample_step = max(1, round(math.sqrt(math.prod(shape_vox) / _SAMPLE_VOX)))
        self._smoothed_step = max(1, shape_vox[2] // _SMOOTHED_SLICES)
        self._values, self._means = _Values(), _Values()
        self._smoothed: list[Array] = []

    def add(self, array: Array) -> None:
        """Take the next slices into account.

        Args:
            array: `(X, Y, any number)`; finite; values below -1024 are padding.
        """
        self._low = min(self._low, float(array.min()))
        self._high = max(self._high, float(array.max()))
        first, step = -self._slices % self._sample_step, self._sample_step
        # Whole rows, which lie together in memory.
        self._values.add(array[:, ::step, first::step].ravel(order="K"))
        first = -self._slices % self._smoothed_step
        smoothed = _smoothed(array[:, :, first :: self._smoothed_step])
        means = smoothed.ravel(order="K")
        self._means.add(means[means != 0])
        self._smoothed.append(smoothed)
        self._slices += array.shape[2]

    def finish(self) -> float:
        """Return the lowest value of the CT, or raise unless its values can be HU.

        Raises:
            ScanError: If they cannot.
        """
        low, high = self._low, self._high
        if low == high:
            raise ScanError(f"{self._image_id}: every voxel is {low:g}; the image is empty")
        fault = (
            _fault_of_range(self._values, high)
            or _fault_of_scale(self._values)
            or _fault_of_spread(self._means, self._smoothed)
        )
        if fault:
            raise ScanError(
                f"{self._image_id}: values run from {low:g} to {high:g} and {fault}: not a CT in HU; the "
                "rescale slope and intercept may be missing: export the CT again from its origin"
            )
        return low


def require_hu(array: Array, image_id: str) -> float:
    """Return the lowest value of a volume, or raise unless its values can be HU; as `HuCheck`.

    Args:
        array: `(X, Y, Z)`; finite; values below -1024 are padding.
        image_id: For messages.

    Raises:
        ScanError: If they cannot.
    """
    check = HuCheck(array.shape, image_id)
    step = max(1, _CHECKED_AT_ONCE_VOX * array.shape[2] // array.size)
    for start in range(0, array.shape[2], step):
        check.add(array[:, :, start : start + step])
    return check.finish()


class _Values:
    """The values of a sample of voxels: integers as a histogram, other numbers one by one."""

    def __init__(self) -> None:
        self.lowest = math.inf
        self._size = 0
        self._counts = np.zeros(2 * _LAST_COUNTED + 1, np.int64)
        self._numbers: list[Array] = []

    def add(self, values: Array) -> None:
        """Add values `(N,)`; integers beyond `_LAST_COUNTED` are counted there."""
        if not values.size:
            return
        self._size += values.size
        self.lowest = min(self.lowest, float(values.min()))
        if values.dtype.kind not in "iu":
            self._numbers.append(values.copy())
            return
        for start in range(0, values.size, _COUNTED_AT_ONCE):
            part = values[start : start + _COUNTED_AT_ONCE]
            if part.dtype != np.int16:
                part = np.clip(part.astype(np.float64), -_LAST_COUNTED, _LAST_COUNTED)
            indices = part.astype(np.int64) + _LAST_COUNTED
            self._counts += np.bincount(indices, minlength=self._counts.size)

    def share(self, low: float, high: float) -> float:
        """Return the share of the values from `low` to `high`; 0 if there are no values."""
        first, last = (
            round(rounded(np.clip(limit, -_LAST_COUNTED, _LAST_COUNTED))) + _LAST_COUNTED
            for limit, rounded in ((low, np.ceil), (high, np.floor))
        )
        count = int(self._counts[first : last + 1].sum())
        count += sum(int(np.sum((low <= v) & (v <= high))) for v in self._numbers)
        return count / max(1, self._size)


def _fault_of_range(values: _Values, high: float) -> str:
    """Return what is too bright, or missing; empty if nothing."""
    if high > MAX_HU:
        return f"metal has at most {MAX_HU}: signed pixels may have been read as unsigned"
    metal = values.share(METAL_HU, high)
    if metal > MAX_METAL:
        return f"{metal:.0%} are above {METAL_HU}, where only metal is"
    soft_tissue = values.share(*_SOFT_TISSUE_HU)
    if soft_tissue < MIN_SOFT_TISSUE:
        return f"{soft_tissue:.2%} are those of soft tissue"
    return ""


def _fault_of_scale(values: _Values) -> str:
    """Return why zero is not water; empty if it is."""
    tissue = values.share(LOWEST_TISSUE_HU, np.inf)
    if values.share(PADDING_HU, np.inf) == tissue:
        is_clipped = values.share(values.lowest, values.lowest) > MAX_LOWEST
        if is_clipped or values.share(*_FAT_HU) < MIN_FAT:
            return f"none lies between {PADDING_HU} and {LOWEST_TISSUE_HU}, where air is"
    fill = sum(values.share(value, value) for value in _AIR_FILL_HU)
    measured = values.share(*_TRABECULAR_BONE_HU) + values.share(*_AIR_HU) - fill
    shifted = values.share(*_SHIFTED_SOFT_TISSUE_HU)
    if shifted > MAX_SHIFTED * measured and shifted > MIN_SHIFTED * tissue:
        return f"{shifted / tissue:.1%} of tissue lies near 1024, where soft tissue is without intercept"
    # Zero is written outside the patient, too.
    water = values.share(0, 0)
    body, soft_tissue = values.share(*_BODY_HU) - water, values.share(*_SOFT_TISSUE_HU) - water
    if soft_tissue < MIN_SOFT_SHARE * body:
        low, high = _SOFT_TISSUE_HU
        return (
            f"{soft_tissue / body:.0%} of those from {_BODY_HU[0]} to {_BODY_HU[1]} lie between {low} and "
            f"{high}, where most are in a patient"
        )
    return ""


def _fault_of_spread(means: _Values, smoothed: Sequence[Array]) -> str:
    """Return why fat and soft tissue are too far from each other; empty if they are not.

    Args:
        means: The values of a smoothed CT.
        smoothed: This CT, in parts along its last axis.
    """
    fat, usual_fat, soft, usual_soft = (
        means.share(*limits)
        for limits in (_SPREAD_FAT_HU, _USUAL_FAT_HU, _SPREAD_SOFT_HU, _USUAL_SOFT_HU)
    )
    is_spread = fat > MAX_SPREAD_FAT * usual_fat and (
        fat + soft > MAX_SPREAD * (usual_fat + usual_soft)
    )
    has_fat = fat > MIN_SPREAD_FAT * (soft + usual_soft)
    if not is_spread or not has_fat or _noise_hu(np.concatenate(smoothed, axis=2)) > MAX_NOISE_HU:
        return ""
    share = fat / (fat + usual_fat)
    return f"{share:.0%} of fat lies near -200, where it is if the rescale slope was applied twice"


def _smoothed(array: Array) -> Array:
    """Return means of neighbouring voxels in each slice: with less noise, at about 4 mm of a whole CT."""
    x, y = (min(max(1, side // _SMOOTHED_SIDE_VOX), _MOST_SMOOTHED_VOX) for side in array.shape[:2])
    columns, rows = (side // n for side, n in zip(array.shape[:2], (x, y), strict=True))
    voxels = array[: columns * x, : rows * y]
    # Sums of whole slices: numpy's mean over short axes takes four times as long.
    sums = voxels[:, ::y].astype(np.float32)
    for number in range(1, y):
        sums += voxels[:, number::y]
    means: Array = sums[::x].copy(order="K")
    for number in range(1, x):
        means += sums[number::x]
    means /= x * y
    return means


def _noise_hu(array: Array) -> float:
    """Return the standard deviation of noise, from the differences of neighbours in soft tissue."""
    one, other = array[1:], array[:-1]
    inside = (np.minimum(one, other) > _SPREAD_FAT_HU[0]) & (np.maximum(one, other) < 250)
    differences = np.abs(one - other)[inside]
    # The median of the absolute difference of two normal variables is 0.954 standard deviations.
    return float(np.median(differences)) / 0.954 if differences.size else 0.0
