"""Frames of a DICOM SEG, and the voxels of a CT that they mark.

The position of a frame is given by its PlanePositionSequence, PlaneOrientationSequence and
PixelMeasuresSequence (PS3.3 C.7.6.16.2). A frame without them has the position of its source slice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from lib.dicom.object_attributes import sequence_items
from lib.errors import GeometryError, LabelError, ScanError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray
from lib.isolation.reader_pool import readers

OFF_TOLERANCE_VOX = 0.1
"""Largest distance of a frame's corner from a voxel's centre along each axis, in voxels.

Rounding to 32-bit numbers or short decimal strings moves a corner by far less, another grid by more.
"""

_HALF = 0.5
_FrameArray = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class SegFrame:
    """One frame of one segment.

    Attributes:
        number: Number of the frame, from 1 as in the standard.
        segment: Its SegmentNumber.
        marked_yx: `(Y, X)`, the pixels that belong to the segment.
        to_lps: `(4, 3)`, maps (column, row, 1) to LPS mm: the position of the frame.
    """

    number: int
    segment: int
    marked_yx: MaskArray
    to_lps: FloatArray


def frames_of(
    dataset: Dataset, headers: Sequence[FileDataset], image_id: str
) -> Iterator[SegFrame]:
    """Yield the frames of a SEG; of a label map, one for each segment in a frame.

    Raises:
        LabelError: If there are fewer pixels than frames.
        GeometryError: If a frame has no position.
    """
    kind = str(dataset.get("SegmentationType", ""))
    sources = {str(h.SOPInstanceUID): h for h in headers}
    shared = (sequence_items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = sequence_items(dataset, "PerFrameFunctionalGroupsSequence")
    count = int(dataset.NumberOfFrames)
    if count != len(groups):
        raise LabelError(
            f"{image_id}: the SEG has {count} frames but describes {len(groups)} of them; export it again"
        )
    pixels = _pixels(dataset, count, image_id)
    for number, (group, pixels_yx) in enumerate(zip(groups, pixels, strict=True), start=1):
        if not pixels_yx.any():
            continue
        where = f"{image_id}: frame {number} of the SEG"
        to_lps = _position(group, shared, sources, where)
        if kind == "LABELMAP":
            for segment in np.unique(pixels_yx[pixels_yx != 0]).tolist():
                yield SegFrame(number, segment, pixels_yx == segment, to_lps)
            continue
        marked = pixels_yx != 0
        if kind == "FRACTIONAL":
            marked = pixels_yx >= _HALF * int(dataset.MaximumFractionalValue)
        identified = _group("SegmentIdentificationSequence", group, shared)
        yield SegFrame(number, int(identified.ReferencedSegmentNumber), marked, to_lps)


def mark_frame(mask: MaskArray, frame: SegFrame, grid: Grid, where: str) -> None:
    """Mark a frame's pixels in `mask` `(X, Y, Z)`; its axes may run along any of the grid's axes.

    Args:
        mask: The mask, which is changed.
        frame: The frame.
        grid: Grid of the mask.
        where: Start of error messages.

    Raises:
        GeometryError: If the frame does not lie on voxels of the grid.
    """
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras)) @ frame.to_lps
    rows, columns = frame.marked_yx.shape
    corners = np.array(
        [[0, 0, 1], [columns - 1, 0, 1], [0, rows - 1, 1], [columns - 1, rows - 1, 1]]
    )
    steps = np.rint(to_voxel[:3]).astype(int)
    offset = np.abs(corners @ to_voxel[:3].T - corners @ steps.T)
    along_x, along_y = np.flatnonzero(steps[:, 0]), np.flatnonzero(steps[:, 1])
    is_lattice = (
        len(along_x) == len(along_y) == 1
        and along_x[0] != along_y[0]
        and abs(steps[along_x[0], 0]) == abs(steps[along_y[0], 1]) == 1
    )
    if not is_lattice or offset.max() > OFF_TOLERANCE_VOX:
        extent = f"by up to {offset.max():.2f} voxels" if is_lattice else "in size or direction"
        raise GeometryError(
            f"{where} does not lie on the CT's voxels; it is off {extent}: export it on the CT's slices"
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
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _decoded(dataset, image_id)
        return
    if int(dataset.BitsAllocated) != 1:
        yield from np.asarray(dataset.pixel_array).reshape(count, rows, columns)
        return
    # Frame by frame: all frames unpacked would be eight times the file's size.
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = rows * columns
    if packed.size * 8 < size * count:
        raise LabelError(
            f"{image_id}: the SEG is truncated: {packed.size} bytes of pixels, {-(-size * count // 8)} "
            "expected; export it again"
        )
    for first in range(0, size * count, size):
        bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(rows, columns)


def _decoded(dataset: Dataset, image_id: str) -> _FrameArray:
    """Return the compressed pixels `(frame, Y, X)`, decoded in a process of its own (`lib.isolation`)."""
    path = Path(str(dataset.filename))
    try:
        _, array = readers().run(
            "lib.dicom.reader_tasks:pixels",
            {"path": str(path.absolute())},
            path=path,
            case=image_id,
        )
    except ScanError as error:
        raise LabelError(str(error)) from error
    if array is None or array.ndim != 3:
        raise LabelError(f"{image_id}: the SEG has no pixels; export it again")
    return array.T


def _position(
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
    """Return the first item of a functional group: the frame's own, the shared one, or an empty one."""
    groups = sequence_items(group, keyword) or sequence_items(shared, keyword)
    return groups[0] if groups else Dataset()


def _source(group: Dataset, sources: Mapping[str, FileDataset]) -> Dataset:
    """Return the source slice of a frame; an empty dataset if it names none or several."""
    uids = {
        str(source.ReferencedSOPInstanceUID)
        for derivation in sequence_items(group, "DerivationImageSequence")
        for source in sequence_items(derivation, "SourceImageSequence")
    }
    slices = [sources[uid] for uid in uids if uid in sources]
    return slices[0] if len(slices) == 1 else Dataset()
