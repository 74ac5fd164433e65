"""Scans that the server must refuse, as files on disk, each with a pattern of the refusal's message."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset
from pydicom.uid import MRImageStorage, generate_uid

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.geometry import to_sitk
from tests.server.running import small_ct


@dataclass(frozen=True, slots=True)
class BadScan:
    """An input that the server must refuse.

    Attributes:
        name: Short description.
        says: Regular expression that the refusal's message matches.
        write: Writes it below a folder and returns its file, or its DICOM folder.
    """

    name: str
    says: str
    write: Callable[[Path], Path]


def series(folder: Path, *, patient_id: str = "patient") -> list[Path]:
    """Write a valid series of 24 slices into `folder` and return its files in slice order."""
    write_ct_series(small_ct(), folder, patient_id=patient_id)
    return sorted(folder.iterdir())


def edited(path: Path, change: Callable[[FileDataset], None]) -> None:
    """Change a DICOM file in place."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def gantry_tilt(folder: Path) -> Path:
    for number, path in enumerate(series(folder / "tilted")):

        def shift(dataset: FileDataset, by_mm: float = 0.6 * number) -> None:
            dataset.ImagePositionPatient[1] += by_mm

        edited(path, shift)
    return folder / "tilted"


def uneven_spacing(folder: Path) -> Path:
    for number, path in enumerate(series(folder / "uneven")):

        def shift(dataset: FileDataset, by_mm: float = 2.0 * max(0, number - 11)) -> None:
            dataset.ImagePositionPatient[2] += by_mm

        edited(path, shift)
    return folder / "uneven"


def missing_slices(folder: Path) -> Path:
    series(folder / "gap")[10].unlink()
    return folder / "gap"


def two_series(folder: Path) -> Path:
    series(folder / "both")
    for path in series(folder / "aside"):
        path.rename(folder / "both" / f"second_{path.name}")
    (folder / "aside").rmdir()
    return folder / "both"


def not_ct(folder: Path) -> Path:
    def make_mr(dataset: FileDataset) -> None:
        dataset.Modality = "MR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage

    for path in series(folder / "mr"):
        edited(path, make_mr)
    return folder / "mr"


def colour_dicom(folder: Path) -> Path:
    def colour(dataset: FileDataset) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        dataset.PlanarConfiguration = 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelRepresentation = 0
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)

    for path in series(folder / "rgb"):
        edited(path, colour)
    return folder / "rgb"


def two_d_dicom(folder: Path) -> Path:
    for path in series(folder / "one")[1:]:
        path.unlink()
    return folder / "one"


def four_d_dicom(folder: Path) -> Path:
    """Return a series with two phases: two slices at each position."""
    for path in series(folder / "phases"):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(folder / "phases" / f"later_{path.name}")
    return folder / "phases"


def image_file(name: str, make: Callable[[], sitk.Image]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        sitk.WriteImage(make(), str(folder / name))
        return folder / name

    return write


def stacked(copies: int) -> sitk.Image:
    volume = to_sitk(small_ct().array_hu, small_ct().grid)
    return sitk.JoinSeries([volume] * copies)


def colours() -> sitk.Image:
    volume = sitk.Cast(to_sitk(small_ct().array_hu, small_ct().grid), sitk.sitkUInt8)
    return sitk.Compose(volume, volume, volume)


def without_orientation(folder: Path) -> Path:
    image: Any = nib.Nifti1Image(small_ct().array_hu, None)  # type: ignore[no-untyped-call]
    nib.save(image, folder / "nowhere.nii.gz")
    return folder / "nowhere.nii.gz"


def not_an_image(folder: Path) -> Path:
    (folder / "garbage.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 8)
    return folder / "garbage.nii.gz"


def empty_file(folder: Path) -> Path:
    (folder / "empty.nii.gz").touch()
    return folder / "empty.nii.gz"


def mr_values() -> sitk.Image:
    ct = small_ct()
    return to_sitk((ct.array_hu + 1000).astype(np.int16), ct.grid)


BAD_FOLDERS = [
    BadScan("gantry tilt", r"tilt", gantry_tilt),
    BadScan(
        "uneven slice spacing",
        r"uneven slices: 3.00 mm between .* elsewhere 5.00 mm",
        uneven_spacing,
    ),
    BadScan("missing slices", r"missing", missing_slices),
    BadScan("two series in one folder", r"2 series|two series", two_series),
    BadScan("not a CT", r"MR", not_ct),
    BadScan("colour slices", r"RGB|colour", colour_dicom),
    BadScan("a single slice", r"single slice|2D", two_d_dicom),
    BadScan("two phases", r"same place|twice|4D|position", four_d_dicom),
]

BAD_FILES = [
    BadScan("a 2D image", r"2 dimensions, 40 x 36", image_file("flat.nii.gz", lambda: stacked(1)[..., 0, 0])),
    BadScan("a 4D image", r"4 dimensions, 40 x 36 x 24 x 3", image_file("moving.nii.gz", lambda: stacked(3))),
    BadScan("a colour image", r"the voxels are colours", image_file("rgb.nrrd", colours)),
    BadScan("an image that is no CT in HU", r"not a CT in HU", image_file("mr.mha", mr_values)),
    BadScan("a file without orientation", r"no orientation", without_orientation),
    BadScan("a damaged file", r"damaged|no readable", not_an_image),
    BadScan("an empty file", r"empty \(0 bytes\)", empty_file),
]  # fmt: skip
