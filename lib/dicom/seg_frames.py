"""The frames of a DICOM SEG, and the voxels of a CT that they mark.

A frame's place is its PlanePositionSequence, PlaneOrientationSequence and PixelMeasuresSequence (PS3.3
C.7.6.16.2); only a frame without them lies where the slice lies that it names as its source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from lib.dicom.references import items
from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray

OFF_TOLERANCE_VOX = 0.1
"""A frame lies on the CT's voxels where no corner is further from a voxel's centre, along any axis.

Writers that go through 32-bit numbers or short decimal strings miss by far less, another grid by more.
"""

_HALF = 0.5
_FrameArray = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class SegFrame:
    """One frame of one segment.

    Attributes:
        number: From 1, as the standard counts frames.
        segment: Its SegmentNumber.
        marked_yx: `(Y, X)`, the pixels that belong to the segment.
        to_lps: `(4, 3)` -> LPS mm of pixel column, pixel row and 1: the frame's place.
    """

    number: int
    segment: int
    marked_yx: MaskArray
    to_lps: FloatArray


def frames_of(
    dataset: Dataset, headers: Sequence[FileDataset], image_id: str
) -> Iterator[SegFrame]:
    """Yield the frames of a SEG, one after another; of a label map one for each segment in a frame.

    Raises:
        LabelError: If there are fewer pixels than frames.
        GeometryError: If a frame does not say where it lies.
    """
    kind = str(dataset.get("SegmentationType", ""))
    sources = {str(h.SOPInstanceUID): h for h in headers}
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = items(dataset, "PerFrameFunctionalGroupsSequence")
    count = int(dataset.NumberOfFrames)
    if count != len(groups):
        raise LabelError(
            f"{image_id}: the SEG has {count} frames and says of {len(groups)} what they are; export it again"
        )
    pixels = _pixels(dataset, count, image_id)
    for number, (group, pixels_yx) in enumerate(zip(groups, pixels, strict=True), start=1):
        if not pixels_yx.any():
            continue
        where = f"{image_id}: frame {number} of the SEG"
        to_lps = _place(group, shared, sources, where)
        if kind == "LABELMAP":
            for segment in np.unique(pixels_yx[pixels_yx != 0]).tolist():
                yield SegFrame(number, segment, pixels_yx == segment, to_lps)
            continue
        marked = pixels_yx != 0
        if kind == "FRACTIONAL":
            marked = pixels_yx >= _HALF * int(dataset.MaximumFractionalValue)
        identified = _group("SegmentIdentificationSequence", group, shared)
        yield SegFrame(number, int(identified.ReferencedSegmentNumber), marked, to_lps)


def mark(mask: MaskArray, frame: SegFrame, grid: Grid, where: str) -> None:
    """Add a frame's pixels to `mask` `(X, Y, Z)`, whichever of the grid's axes its own run along.

    Args:
        mask: Changed.
        frame: The frame.
        grid: Of the mask.
        where: Begins the message of an error.

    Raises:
        GeometryError: If the frame does not lie on voxels of the grid.
    """
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras)) @ frame.to_lps
    rows, columns = frame.marked_yx.shape
    corners = np.array(
        [[0, 0, 1], [columns - 1, 0, 1], [0, rows - 1, 1], [columns - 1, rows - 1, 1]]
    )
    steps = np.rint(to_voxel[:3]).astype(int)
    off = np.abs(corners @ to_voxel[:3].T - corners @ steps.T)
    along_x, along_y = np.flatnonzero(steps[:, 0]), np.flatnonzero(steps[:, 1])
    is_lattice = (
        len(along_x) == len(along_y) == 1
        and along_x[0] != along_y[0]
        and abs(steps[along_x[0], 0]) == abs(steps[along_y[0], 1]) == 1
    )
    if not is_lattice or off.max() > OFF_TOLERANCE_VOX:
        far = f"by up to {off.max():.2f} voxels" if is_lattice else "in size or direction"
        raise GeometryError(
            f"{where} does not lie on the CT's voxels; it is off {far}: export the SEG on the CT's own slices"
        )
    row, column = np.nonzero(frame.marked_yx)
    index = np.stack([column, row, np.ones_like(row)], axis=1) @ steps.T
    if (index < 0).any() or (index >= np.array(grid.shape_vox)).any():
        raise GeometryError(
            f"{where} marks voxels outside the CT, which has {grid}; export the SEG with the whole CT"
        )
    mask[tuple(index.T)] = True


def _pixels(dataset: Dataset, count: int, image_id: str) -> Iterator[_FrameArray]:
    """Yield the pixels `(Y, X)` of each frame."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.BitsAllocated) != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from np.asarray(dataset.pixel_array).reshape(count, rows, columns)
        return
    # Frame by frame: all of them unpacked are eight times the file.
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = rows * columns
    if packed.size * 8 < size * count:
        raise LabelError(
            f"{image_id}: the SEG is cut short: {packed.size} bytes of pixels, {-(-size * count // 8)} "
            "expected; export it again"
        )
    for first in range(0, size * count, size):
        bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(rows, columns)


def _place(
    group: Dataset, shared: Dataset, sources: Mapping[str, FileDataset], where: str
) -> FloatArray:
    source = _source(group, sources)
    plane = _group("PlanePositionSequence", group, shared) or source
    orientation = _group("PlaneOrientationSequence", group, shared) or source
    measures = _group("PixelMeasuresSequence", group, shared) or source
    numbers = {}
    for item, keyword, size in (
        (plane, "ImagePositionPatient", 3),
        (orientation, "ImageOrientationPatient", 6),
        (measures, "PixelSpacing", 2),
    ):
        value = np.array(item.get(keyword) or (), dtype=float)
        if value.size != size or not np.isfinite(value).all():
            raise GeometryError(f"{where} has no usable {keyword}; export it again")
        numbers[keyword] = value
    right, down = numbers["ImageOrientationPatient"].reshape(2, 3)
    down_mm, right_mm = numbers["PixelSpacing"]
    to_lps = np.zeros((4, 3))
    to_lps[:3] = np.stack(
        [right * right_mm, down * down_mm, numbers["ImagePositionPatient"]], axis=1
    )
    to_lps[3, 2] = 1
    return to_lps


def _group(keyword: str, group: Dataset, shared: Dataset) -> Dataset:
    """Return the first item of a functional group: the frame's own, or what all share, or an empty one."""
    found = items(group, keyword) or items(shared, keyword)
    return found[0] if found else Dataset()


def _source(group: Dataset, sources: Mapping[str, FileDataset]) -> Dataset:
    """Return the slice that a frame was made from, an empty dataset where it names none or several."""
    named = {
        str(source.ReferencedSOPInstanceUID)
        for derivation in items(group, "DerivationImageSequence")
        for source in items(derivation, "SourceImageSequence")
    }
    found = [sources[uid] for uid in named if uid in sources]
    return found[0] if len(found) == 1 else Dataset()
