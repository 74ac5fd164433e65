"""Frames of a DICOM SEG, and the voxels of a CT that they mark.

The position of a frame is given by its PlanePositionSequence, PlaneOrientationSequence and
PixelMeasuresSequence (PS3.3 C.7.6.16.2). A frame without them has the position of its source slice.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from lib.dicom.object_attributes import sequence_items
from lib.dicom.seg_pixels import FrameArray
from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray

OFF_TOLERANCE_VOX = 0.1
"""Largest distance of a frame's corner from a voxel's centre along each axis, in voxels.

Rounding to 32-bit numbers or short decimal strings moves a corner by far less, another grid by more.
"""

KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
"""Values of SegmentationType (0062,0001)."""


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


def drawn_segments(dataset: Dataset, pixels: Iterable[FrameArray], image_id: str) -> set[int]:
    """Return the numbers of the segments that mark a pixel in some frame.

    Raises:
        LabelError: As `frames_of`.
    """
    return {segment for _, segment, _, _ in _marked_pixels(dataset, pixels, image_id)}


def frames_of(
    dataset: Dataset,
    pixels: Iterable[FrameArray],
    headers: Sequence[FileDataset],
    image_id: str,
    *,
    segments: Container[int],
) -> Iterator[SegFrame]:
    """Yield the frames of some segments that mark a pixel; of a label map, one for each segment in a frame.

    Raises:
        LabelError: If the number of frames or of pixels is not as stated, or the type of the SEG is unknown.
        GeometryError: If a frame has no position.
    """
    sources = {str(h.SOPInstanceUID): h for h in headers}
    shared = _shared_group(dataset)
    for number, segment, marked_yx, group in _marked_pixels(dataset, pixels, image_id):
        if segment in segments:
            where = f"{image_id}: frame {number} of the SEG"
            yield SegFrame(number, segment, marked_yx, _position(group, shared, sources, where))


def _marked_pixels(
    dataset: Dataset, pixels: Iterable[FrameArray], image_id: str
) -> Iterator[tuple[int, int, MaskArray, Dataset]]:
    """Yield the numbers of a frame and of its segment, the marked pixels `(Y, X)`, and its functional group."""
    kind = str(dataset.get("SegmentationType", "") or "")
    if kind not in KINDS:
        raise LabelError(
            f"{image_id}: the SEG's SegmentationType is {kind or 'missing'}; {', '.join(KINDS)} expected: "
            "export it again"
        )
    lowest = _lowest_marked_value(dataset, image_id) if kind == "FRACTIONAL" else 1
    shared = _shared_group(dataset)
    groups = sequence_items(dataset, "PerFrameFunctionalGroupsSequence")
    count = int(dataset.NumberOfFrames)
    if count != len(groups):
        raise LabelError(
            f"{image_id}: the SEG has {count} frames but describes {len(groups)} of them; export it again"
        )
    background = {0, int(dataset.get("PixelPaddingValue", 0) or 0)} if kind == "LABELMAP" else {0}
    for number, (pixels_yx, group) in enumerate(zip(pixels, groups, strict=True), start=1):
        if not pixels_yx.any():
            continue
        if kind == "LABELMAP":
            for segment in set(np.unique(pixels_yx).tolist()) - background:
                yield number, segment, pixels_yx == segment, group
            continue
        marked_yx = pixels_yx >= lowest
        if marked_yx.any():
            identified = _group("SegmentIdentificationSequence", group, shared)
            segment = identified.get("ReferencedSegmentNumber")
            if segment is None:
                raise LabelError(
                    f"{image_id}: frame {number} of the SEG names no segment; export it again"
                )
            yield number, int(segment), marked_yx, group


def _lowest_marked_value(dataset: Dataset, image_id: str) -> float:
    """Return the lowest value of a fractional SEG that marks a pixel: one half."""
    largest = int(dataset.get("MaximumFractionalValue", 0) or 0)
    if largest < 1:
        raise LabelError(
            f"{image_id}: the SEG is fractional with the MaximumFractionalValue {largest}; 1 or more expected: "
            "export it again"
        )
    return largest / 2


def _shared_group(dataset: Dataset) -> Dataset:
    groups = sequence_items(dataset, "SharedFunctionalGroupsSequence")
    return groups[0] if groups else Dataset()


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
