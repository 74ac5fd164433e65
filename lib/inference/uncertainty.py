"""Voxel-wise and organ-wise uncertainty of a model, as pure functions of the results of several passes.

The organ-wise numbers are those of Roy et al., *Bayesian QuickNAT*, NeuroImage 195 (2019), section on
structure-wise uncertainty: the coefficient of variation of the volume, the mean Dice of all pairs of samples,
and the mean of the voxel-wise uncertainty over the organ. The voxel-wise uncertainty here is the entropy of
the samples' mean divided by that of `K` equally likely classes, so that 1 means the same for any number of
samples and classes; Roy et al. take the entropy over the samples (docs/adr/0010).

None of these values needs a reference, and none measures an error: a model can be certain and wrong.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.imaging.quantities import FloatArray, LabelArray
from lib.inference.resampling import Box, ModelGrid

_SLAB = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganUncertainty:
    """Spread of the samples of one organ.

    Attributes:
        mean_entropy: Mean of the uncertainty map over the organ's contour, 0 (certain) to 1; None if the
            organ was not contoured.
        volume_cv: Standard deviation of the volume over its mean, 0 and up; samples without the organ count
            as volume 0. None if no sample has the organ, or there is only one sample.
        pairwise_dice: Mean Dice of all pairs of samples, 1 (all equal) to 0; a pair of which one lacks the
            organ counts as 0, a pair without the organ is left out. None as for `volume_cv`.
        samples: Number of samples.
        found_in: Number of samples that have the organ; 0 if it is missing in all.
    """

    mean_entropy: float | None
    volume_cv: float | None
    pairwise_dice: float | None
    samples: int
    found_in: int


def normalised_entropy(probabilities: Tensor) -> FloatArray:
    """Return the entropy of each voxel's class distribution divided by that of `K` equally likely classes.

    Settles, *Active Learning* (2012), Eq. (2.3), divided by ln K.

    Args:
        probabilities: `(K, X, Y, Z)`, K at least 2, softmax output: sums to 1 over the classes.

    Returns:
        `(X, Y, Z)`, float32, 0 to 1.
    """
    entropy = torch.zeros(probabilities.shape[1:])
    for probability in probabilities:
        # Class by class: a copy of all classes would double the memory of a large CT.
        entropy -= torch.xlogy(probability, probability).cpu()
    entropy /= math.log(len(probabilities))
    return np.asarray(entropy.clamp_(0.0, 1.0).numpy())


def most_likely(softmax: Tensor) -> LabelArray:
    """Return the most likely value of each voxel of a softmax `(K, X, Y, Z)`; of equal ones the lowest.

    Class by class within slabs that fit into the processor's cache: a tenth of the time of an argmax.
    """
    label = np.zeros(softmax.shape[1:], np.uint8)
    for x in range(0, softmax.shape[1], _SLAB):
        slab = softmax[:, x : x + _SLAB].float().cpu().numpy()
        best = slab[0].copy()
        for value in range(1, len(slab)):
            is_better = slab[value] > best
            np.maximum(best, slab[value], out=best)
            label[x : x + _SLAB][is_better] = value
    return label


@dataclass(frozen=True, slots=True)
class ModelUncertainty:
    """Uncertainty of a model on the network's grid.

    Attributes:
        entropy: `(X, Y, Z)`, see `normalised_entropy`.
        likely: `(X, Y, Z)`, see `most_likely`.
        frame: Relation between the CT's grid and the network's grid.
        box: Position of the arrays in the volume on the network's grid.
    """

    entropy: FloatArray
    likely: LabelArray
    frame: ModelGrid
    box: Box

    @classmethod
    def of(cls, probabilities: Tensor, frame: ModelGrid, box: Box) -> "ModelUncertainty":
        """Return the uncertainty of a softmax `(K, X, Y, Z)` over `box`."""
        return cls(normalised_entropy(probabilities), most_likely(probabilities), frame, box)

    def mean_of(self, value: int) -> float | None:
        """Return the mean entropy over the voxels whose most likely value is `value`; None if there are none.

        Roy et al. 2019 (see above), structure-wise uncertainty, for one sample.
        """
        inside = self.entropy[self.likely == value]
        return float(inside.mean(dtype=np.float64)) if inside.size else None


def volume_variation(volumes: Sequence[float]) -> float | None:
    """Return the coefficient of variation: the standard deviation of `volumes` over their mean.

    The standard deviation is that of these samples (divided by n). None for fewer than two samples, and
    if every volume is 0.
    """
    mean = float(np.mean(volumes)) if len(volumes) > 1 else 0.0
    return float(np.std(volumes)) / mean if mean > 0 else None


def pairwise_dice(samples: Sequence[LabelArray], classes: int) -> list[float | None]:
    """Return, for each label value, the mean Dice of all pairs of `samples`.

    A pair of which one lacks the value has Dice 0; a pair that lacks it in both is left out. None if no pair
    is left, and for the background.

    Args:
        samples: Label volumes of one shape.
        classes: Number of values, the background included.
    """
    counts = [_counts(sample, classes) for sample in samples]
    total, pairs = np.zeros(classes), np.zeros(classes)
    for first, second in itertools.combinations(range(len(samples)), 2):
        is_equal = (samples[first] == samples[second]) & (samples[first] > 0)
        both = np.bincount(samples[first][is_equal], minlength=classes)
        size = counts[first] + counts[second]
        is_present = size > 0
        total[is_present] += 2.0 * both[is_present] / size[is_present]
        pairs += is_present
    return [None if v == 0 or n == 0 else float(total[v] / n) for v, n in enumerate(pairs)]


def organ_uncertainty(
    samples: Sequence[LabelArray],
    *,
    contours: LabelArray,
    uncertainty: FloatArray,
    labels: Mapping[str, int],
) -> dict[str, OrganUncertainty]:
    """Return the uncertainty of each organ in `labels`, even if no sample has it.

    Args:
        samples: Label volumes of one shape, one per pass.
        contours: The final label volume; may lie on another grid.
        uncertainty: The uncertainty map, on the grid of `contours`.
        labels: TG-263 name -> value.
    """
    classes = max(labels.values()) + 1
    agreement = pairwise_dice(samples, classes)
    volumes = [_counts(sample, classes) for sample in samples]
    result = {}
    for name, value in labels.items():
        sizes = [int(volume[value]) for volume in volumes]
        inside = uncertainty[contours == value]
        result[name] = OrganUncertainty(
            mean_entropy=float(inside.mean(dtype=np.float64)) if inside.size else None,
            volume_cv=volume_variation(sizes),
            pairwise_dice=agreement[value],
            samples=len(samples),
            found_in=sum(size > 0 for size in sizes),
        )
    return result


def _counts(sample: LabelArray, classes: int) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Return the number of voxels of each value; 0 for the background, which would take most of the time."""
    return np.bincount(sample[sample > 0], minlength=classes)
