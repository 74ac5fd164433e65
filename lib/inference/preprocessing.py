"""The pipeline shared by training and inference: CT, network input, and label on the CT's grid."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from lib.imaging.quantities import FloatArray, LabelArray, MaskArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.resampling import Box, ModelGrid
from lib.recipes.schema import Recipe

BODY_HU = -350.0
"""Lower bound of the body in HU: between fat (-100 HU) and the foam of a table or mask (below -500 HU)."""

MARGIN_MM = 12.0
"""Margin around the body in mm, so that organs at its edge keep their context."""


def body_mask(array_hu: FloatArray) -> MaskArray:
    """Return the largest connected region denser than `BODY_HU`, `(X, Y, Z)`; empty if there is none.

    A morphological opening by one voxel first separates a head rest that touches the skin.
    """
    dense = sitk.GetImageFromArray((array_hu > BODY_HU).astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(dense, [1, 1, 1])
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    return np.asarray(sitk.GetArrayFromImage(pieces) == 1)


def body_box(array_hu: FloatArray, spacing_mm: FloatArray) -> tuple[slice, slice, slice]:
    """Return the bounding box of the body with its margin; the whole volume if there is no body."""
    mask = body_mask(array_hu)
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        size = array_hu.shape[axis]
        if inside.size == 0:
            return (
                slice(0, array_hu.shape[0]),
                slice(0, array_hu.shape[1]),
                slice(0, array_hu.shape[2]),
            )
        margin = round(MARGIN_MM / float(spacing_mm[axis]))
        slices.append(
            slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin))
        )
    return (slices[0], slices[1], slices[2])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A CT prepared for a network.

    Attributes:
        hu: `(X, Y, Z)` float32 at the network's voxel size, cropped to the body.
        frame: Relation between the CT's grid and the network's grid.
        box: Position of `hu` in the volume on the network's grid.
    """

    hu: FloatArray
    frame: ModelGrid
    box: Box


class Pipeline:
    """Preparation of CTs and labels for a network of `recipe`, and restoration of its output."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def prepare(self, ct: CtVolume) -> Prepared:
        """Return `ct` resampled and cropped to the body; `window` turns it into the network's input."""
        frame = ModelGrid.of(ct.grid, self.recipe)
        hu = frame.to_model(ct.array_hu)
        box = body_box(hu, np.array(frame.spacing_model_mm))
        return Prepared(np.ascontiguousarray(hu[box]), frame, box)

    def window(self, array_hu: FloatArray) -> FloatArray:
        """Return `(C, X, Y, Z)`: `array_hu` in each of the recipe's windows, -1..1, clipped."""
        channels = [
            np.clip((array_hu - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0)
            for low, high in self.recipe.hu_windows
        ]
        return np.stack(channels).astype(np.float32)

    def prepare_label(self, label: LabelArray, prepared: Prepared) -> LabelArray:
        """Return `label`, which lies on the CT's grid, as voxels of `prepared.hu`."""
        values = sorted(self.recipe.labels.values())
        model = prepared.frame.label_to_model(label, values)
        return np.ascontiguousarray(model[prepared.box]).astype(np.uint8)

    def restore(self, probabilities: Tensor, prepared: Prepared) -> LabelVolume:
        """Return the organs on the CT's own grid, one connected region each.

        Args:
            probabilities: `(K, X, Y, Z)` over `prepared.hu`, softmax output.
            prepared: Result of `prepare`.
        """
        frame = prepared.frame
        result = np.zeros(frame.shape_ras, np.uint8)
        likely_box = _foreground_box(probabilities)
        if likely_box is not None:
            model_box = _offset(likely_box, prepared.box)
            ras_box = frame.ras_box(model_box)
            x, y, z = likely_box
            part = probabilities[:, x, y, z].float().cpu().numpy()
            result[ras_box] = self._argmax_on_ct(part, frame, model_box, ras_box)
        for value in self.recipe.labels.values():
            keep_largest(result, value)
        array = np.ascontiguousarray(frame.turn_back(result), dtype=np.uint8)
        return LabelVolume(array, frame.grid, self.recipe.labels)

    def restore_map(self, values: FloatArray, prepared: Prepared) -> FloatArray:
        """Return `values` over `prepared.hu` on the CT's own grid: float32, linear interpolation.

        Voxels outside the body's box, where no network was applied, are 0.
        """
        frame = prepared.frame
        result = np.zeros(frame.shape_ras, np.float32)
        ras_box = frame.ras_box(prepared.box)
        result[ras_box] = frame.resample_back(values, prepared.box, ras_box)
        return np.ascontiguousarray(frame.turn_back(result), dtype=np.float32)

    def _argmax_on_ct(
        self, part: FloatArray, frame: ModelGrid, model_box: Box, ras_box: Box
    ) -> LabelArray:
        best = frame.resample_back(part[0], model_box, ras_box).copy()
        label = np.zeros(best.shape, np.uint8)
        for value in range(1, part.shape[0]):
            probability = frame.resample_back(part[value], model_box, ras_box)
            is_better = probability > best
            label[is_better] = value
            best[is_better] = probability[is_better]
        return label


def _offset(inner: Box, outer: Box) -> Box:
    x, y, z = (
        slice(o.start + i.start, o.start + i.stop) for i, o in zip(inner, outer, strict=True)
    )
    return (x, y, z)


def _foreground_box(probabilities: Tensor, margin: int = 2) -> Box | None:
    """Return the bounding box of voxels where an organ is likely, with a margin; None if there is none."""
    likely = probabilities[0] < 0.75
    if not bool(likely.any()):
        return None
    slices = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        inside = torch.nonzero(likely.amax(dim=others)).flatten()
        size = likely.shape[axis]
        start, stop = int(inside[0]) - margin, int(inside[-1]) + 1 + margin
        slices.append(slice(max(0, start), min(size, stop)))
    return (slices[0], slices[1], slices[2])


def keep_largest(label: LabelArray, value: int) -> None:
    """Erase all but the largest region of an organ, in place; a shared face, edge or corner connects."""
    mask = label == value
    inside = np.argwhere(mask)
    if len(inside) == 0:
        return
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    image = sitk.GetImageFromArray(mask[box].astype(np.uint8))
    connected = sitk.ConnectedComponentImageFilter()
    connected.FullyConnectedOn()
    pieces = connected.Execute(image)
    largest = sitk.GetArrayFromImage(sitk.RelabelComponent(pieces, sortByObjectSize=True)) == 1
    label[box][mask[box] & ~largest] = 0
