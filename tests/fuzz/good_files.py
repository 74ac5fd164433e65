"""Small valid files of each format, from a phantom."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import KINDS, write_object
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_ct, write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from tests.phantoms import make_ct
from tests.tiny import TINY

FORMATS = ("mha", "nrrd", "nifti", "dicom", "zip", "seg", "rtstruct")
OBJECTS = ("seg", "rtstruct")


@dataclass(frozen=True, slots=True)
class GoodFile:
    """A valid file.

    Attributes:
        format: One of `FORMATS`.
        name: File name with suffix.
        content: The file.
        is_label: Whether it is a label of the phantom, not a CT.
        others: The other slices of its series, for a slice; all of them, for an object drawn on them.
    """

    format: str
    name: str
    content: bytes
    is_label: bool = False
    others: Sequence[bytes] = ()


def small_ct(image_id: str = "case") -> CtVolume:
    """Return the phantom, 20 x 16 x 12 voxels."""
    return make_ct(image_id=image_id)


def small_label(ct: CtVolume) -> LabelVolume:
    """Return a label of the phantom with two organs."""
    array = np.zeros(ct.grid.shape_vox, np.uint8)
    array[5:9, 4:9, 2:8] = TINY.labels["Brainstem"]
    array[12:15, 4:9, 2:8] = TINY.labels["Parotid_L"]
    return LabelVolume(array, ct.grid, TINY.labels)


def good_files(folder: Path, *, series: Path | None = None) -> Mapping[str, list[GoodFile]]:
    """Return the valid files by format.

    Args:
        folder: An empty folder to write into.
        series: The DICOM series that SEG and RTSTRUCT are drawn on; by default one written here.
    """
    files: dict[str, list[GoodFile]] = {name: [] for name in FORMATS}
    ct = small_ct()
    for format_name, suffix in (
        ("mha", ".mha"),
        ("nrrd", ".nrrd"),
        ("nifti", ".nii.gz"),
        ("nifti", ".nii"),
    ):
        for is_label in (False, True):
            path = folder / f"{'label' if is_label else 'ct'}{suffix}"
            if is_label:
                write_label(path, small_label(ct))
            else:
                write_ct(path, ct)
            content = path.read_bytes()
            files[format_name].append(GoodFile(format_name, path.name, content, is_label))
            if suffix in (".mha", ".nrrd"):
                plain = uncompressed(content, suffix)
                files[format_name].append(GoodFile(format_name, path.name, plain, is_label))
    own_series = folder / "series"
    write_ct_series(ct, own_series, patient_id="fuzz")
    slices = [path.read_bytes() for path in sorted(own_series.iterdir())]
    for number in (0, 5):
        others = [*slices[:number], *slices[number + 1 :]]
        files["dicom"].append(GoodFile("dicom", f"{number}.dcm", slices[number], others=others))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        files["zip"].append(GoodFile("zip", "series.zip", zipped(slices, method)))
    headers, _ = read_headers(series or own_series, image_id="fuzz")
    label = small_label(read_ct(series or own_series))
    for kind in KINDS:
        path = folder / f"{kind}.dcm"
        write_object(kind, path, label, headers, ObjectProvenance(author="eve"), image_id="fuzz")
        content = path.read_bytes()
        files[kind].append(GoodFile(kind, path.name, content, is_label=True, others=slices))
    return files


def zipped(contents: Sequence[bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of DICOM files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"series/{number:03d}.dcm", content)
    return packed.getvalue()


def uncompressed(content: bytes, suffix: str) -> bytes:
    """Return a compressed MHA or NRRD file without its compression."""
    if suffix == ".nrrd":
        head, _, data = content.partition(b"\n\n")
        return head.replace(b"encoding: gzip", b"encoding: raw") + b"\n\n" + gzip.decompress(data)
    head, mark, data = content.partition(b"ElementDataFile = LOCAL\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"CompressedDataSize")]
    plain = b"\n".join(lines).replace(b"CompressedData = True", b"CompressedData = False")
    return plain + mark + zlib.decompress(data)
