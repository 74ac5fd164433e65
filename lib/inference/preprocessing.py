"""The pipeline shared by training and inference: CT, network input, and label on the CT's grid."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from torch import Tensor

from lib.errors import GeometryError
from lib.imaging.quantities import FloatArray, LabelArray, MaskArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.resampling import Box, ModelGrid, relative_box
from lib.recipes.schema import Recipe

BODY_HU = -350.0
"""Lower bound of the body in HU: between fat (-100 HU) and the foam of a table or mask (below -500 HU)."""

LIKELY = 0.99
"""Share of `1 / K` above which one of `K` classes may be the most likely one; below 1 for rounding errors."""

MARGIN_MM = 12.0
"""Margin around the body in mm, so that organs at its edge keep their context."""

MAX_MODEL_VOX = 2**29
"""Largest number of voxels that a CT is resampled to: 2 GiB in float32."""


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
        """Return `ct` resampled and cropped to the body; `window` turns it into the network's input.

        Raises:
            GeometryError: If resampling needs more than `MAX_MODEL_VOX` voxels.
        """
        frame = ModelGrid.of(ct.grid, self.recipe)
        if frame.is_resampled and frame.resampled_vox > MAX_MODEL_VOX:
            raise GeometryError(
                f"{ct.image_id}: {ct.grid} has {frame.resampled_vox} voxels of the network's size; at most "
                f"{MAX_MODEL_VOX} expected: is its voxel size right? Crop the CT to the head and neck otherwise"
            )
        hu = frame.to_model(ct.array_hu)
        box = body_box(hu, np.array(frame.spacing_model_mm))
        return Prepared(np.ascontiguousarray(hu[box]), frame, box)

    def window(self, array_hu: FloatArray) -> FloatArray:
        """Return `(C, X, Y, Z)`: `array_hu` in each of the recipe's windows, -1..1, clipped.

        Channels for clicks follow if the recipe has them, without a click (`lib.inference.click_channels`).
        """
        windows = self.recipe.hu_windows
        channels = np.full((self.recipe.in_channels, *array_hu.shape), -1.0, np.float32)
        for channel, (low, high) in zip(channels, windows, strict=False):
            np.subtract(array_hu, low, out=channel)
            channel *= 2.0 / (high - low)
            channel -= 1.0
            np.clip(channel, -1.0, 1.0, out=channel)
        return channels

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
        likely_box = _bounding_box(probabilities[0] < 0.75, margin=2)
        if likely_box is not None:
            model_box = _offset(likely_box, prepared.box)
            x, y, z = likely_box
            part = probabilities[:, x, y, z].float().cpu().numpy()
            self._label_on_ct(part, frame, model_box, result[frame.ras_box(model_box)])
        array = np.ascontiguousarray(frame.turn_back(result), dtype=np.uint8)
        return LabelVolume(array, frame.grid, self.recipe.labels)

    def _label_on_ct(
        self, part: FloatArray, frame: ModelGrid, model_box: Box, label: LabelArray
    ) -> None:
        """Write the most likely organ of each voxel into `label`, one connected region of each organ.

        Args:
            part: `(K, X, Y, Z)`, softmax over `model_box`.
            frame: Relation between the CT's grid and the network's.
            model_box: Position of `part` on the network's grid.
            label: The voxels of the CT in that box, zeros.
        """
        ras_box = frame.ras_box(model_box)
        best = frame.resample_back(part[0], model_box, ras_box).copy()
        inner_boxes = {}
        for value in range(1, part.shape[0]):
            # The probabilities of a voxel add up to 1: an organ below 1/K is not the most likely one.
            likely_box = _bounding_box(part[value] > LIKELY / part.shape[0], margin=2)
            if likely_box is None:
                continue
            organ_ras_box = frame.ras_box(_offset(likely_box, model_box))
            inner = relative_box(organ_ras_box, ras_box)
            probability = frame.resample_back(part[value], model_box, organ_ras_box)
            is_better = probability > best[inner]
            label[inner][is_better] = value
            best[inner][is_better] = probability[is_better]
            inner_boxes[value] = inner
        for value, inner in inner_boxes.items():
            keep_largest(label[inner], value)


def _offset(inner: Box, outer: Box) -> Box:
    x, y, z = (
        slice(o.start + i.start, o.start + i.stop) for i, o in zip(inner, outer, strict=True)
    )
    return (x, y, z)


def _bounding_box(mask: MaskArray | Tensor, margin: int) -> Box | None:
    """Return the bounding box of a mask, with a margin within the volume; None if the mask is empty."""
    mask = np.asarray(mask)
    slices = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not inside.size:
            return None
        start, stop = int(inside[0]) - margin, int(inside[-1]) + 1 + margin
        slices.append(slice(max(0, start), min(mask.shape[axis], stop)))
    return (slices[0], slices[1], slices[2])


def keep_largest(label: LabelArray, value: int) -> None:
    """Erase all but the largest region of an organ, in place; a shared face, edge or corner connects."""
    mask = label == value
    box = _bounding_box(mask, margin=0)
    if box is None:
        return
    image = sitk.GetImageFromArray(mask[box].astype(np.uint8))
    connected = sitk.ConnectedComponentImageFilter()
    connected.FullyConnectedOn()
    pieces = connected.Execute(image)
    largest = sitk.GetArrayFromImage(sitk.RelabelComponent(pieces, sortByObjectSize=True)) == 1
    label[box][mask[box] & ~largest] = 0
