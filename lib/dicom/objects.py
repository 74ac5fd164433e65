"""Functions to write and read DICOM objects that contain organs: SEG and RTSTRUCT."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from pydicom.dataset import FileDataset

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.rtstruct import read_rtstruct, write_rtstruct
from lib.dicom.seg import read_seg, write_seg
from lib.dicom.structures import StructureFilter, StructureSet
from lib.errors import LabelError
from lib.imaging.dicom_files import PARSING_ERRORS, read_dicom
from lib.imaging.geometry import Grid
from lib.imaging.volumes import LabelVolume

Kind = Literal["seg", "rtstruct"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITIES = ("SEG", "RTSTRUCT")
"""Values of Modality (0008,0060) of objects that contain organs."""


class _Writer(Protocol):
    def __call__(
        self,
        path: Path,
        label: LabelVolume,
        headers: Sequence[FileDataset],
        about: ObjectProvenance,
        *,
        image_id: str = ...,
    ) -> tuple[str, ...]: ...


_WRITERS: Mapping[Kind, _Writer] = {"seg": write_seg, "rtstruct": write_rtstruct}


def write_object(
    kind: Kind,
    path: Path,
    label: LabelVolume,
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str,
) -> tuple[str, ...]:
    """Write the organs of `label` as a DICOM object on the CT of `headers`, and return notes.

    Args:
        kind: The type of the object.
        path: The file; replaced in one step.
        label: On the CT's voxels; its axes may have another order and direction.
        headers: The CT's slices, as `lib.imaging.dicom_series.read_headers` returns them.
        about: Provenance: the object's ids, author and time.
        image_id: For messages.

    Raises:
        LabelError: If no organ has a voxel, or a voxel's value has no name.
        GeometryError: If the label does not lie on the CT's voxels, or the CT names no frame of reference.
        StorageFullError: If the disk is full.
    """
    return _WRITERS[kind](path, label, headers, about, image_id=image_id)


def read_object(
    path: Path,
    headers: Sequence[FileDataset],
    grid: Grid,
    *,
    image_id: str,
    select: StructureFilter = tuple,
) -> StructureSet:
    """Return the structures of a SEG or an RTSTRUCT as masks on the CT's grid, all or a selection.

    Raises:
        LabelError: If the file is damaged or neither a SEG nor an RTSTRUCT.
        GeometryError: If it was drawn on another CT.
    """
    try:
        modality = str(read_dicom(path, keywords=["Modality"]).Modality)
    except PARSING_ERRORS as error:
        raise LabelError(
            f"{image_id}: the file cannot be read as DICOM ({error}); export it again"
        ) from error
    if modality == "SEG":
        return read_seg(path, headers, grid, image_id=image_id, select=select)
    if modality == "RTSTRUCT":
        return read_rtstruct(path, headers, grid, image_id=image_id, select=select)
    raise LabelError(f"{image_id}: the file's modality is {modality}; SEG or RTSTRUCT expected")
