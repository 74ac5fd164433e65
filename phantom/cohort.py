"""Cohorts of synthetic patients: a studies folder, and the same patients as DICOM series with SEGs."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.seg import write_seg
from lib.errors import ConfigError, DatastoreError, LabelError, ScanError
from lib.imaging.dicom_series import read_headers
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.recipes.schema import Recipe
from lib.storage.leftovers import scratch_folder
from phantom import SHAPE_VOX, SPACING_MM, head_and_neck_phantom

FINE_FIELD_MM = 288.0
"""Width in mm of the field of view for small voxels: it contains head and neck, and cuts the shoulders."""

_COARSE_MM = 3.0
"""Voxel size in mm above which the whole field of view is used."""


def write_cohort(
    folder: Path, *, recipe: Recipe, cases: int, labelled: int, seed: int, dicom_cases: int = 1
) -> list[str]:
    """Write `cases` synthetic patients to the studies folder `folder`, and return their image ids.

    The first `labelled` cases have a final label of the recipe's organs; the last `dicom_cases` are DICOM
    folders. Existing complete files are kept, so that a second call writes nothing and submitted labels stay;
    unreadable files are written again.

    Raises:
        ConfigError: If the numbers of cases are inconsistent.
        DatastoreError: If the folder has another image with one of the ids.
    """
    if labelled < 0 or dicom_cases < 0 or labelled + dicom_cases > cases:
        raise ConfigError(
            f"a cohort of {cases} cases cannot hold {labelled} labelled and {dicom_cases} DICOM cases"
        )
    shape_vox, spacing_mm = voxel_grid(recipe)
    names = [f"demo_{number:03d}" for number in range(1, cases + 1)]
    for number, name in enumerate(names):
        scan, label = head_and_neck_phantom(
            seed * 10_000 + number,
            grid_shape=shape_vox,
            spacing_mm=spacing_mm,
            labels=recipe.labels,
        )
        ct = CtVolume(name, scan.array_hu, scan.grid)
        if number >= cases - dicom_cases:
            _write_dicom(folder / name, ct)
            continue
        _write_nifti(folder / f"{name}.nii.gz", ct)
        if number < labelled:
            _write_final(folder / "labels" / "final" / f"{name}.nii.gz", name, label)
    return names


def voxel_grid(recipe: Recipe) -> tuple[ShapeVox, SpacingMm]:
    """Return number and size of the voxels of a CT for `recipe`; large voxels in steps of 0.5 mm."""
    x, y, z = recipe.spacing_mm
    is_coarse = max(x, y, z) > _COARSE_MM
    if is_coarse:
        x, y, z = (max(0.5, round(2 * step) / 2) for step in (x, y, z))
    width_mm = SHAPE_VOX[0] * SPACING_MM[0] if is_coarse else FINE_FIELD_MM
    height_mm = SHAPE_VOX[2] * SPACING_MM[2]
    return (round(width_mm / x), round(width_mm / y), round(height_mm / z)), (x, y, z)


def _exists(path: Path, ct: CtVolume) -> bool:
    """Return whether `path` contains `ct`; False if it contains nothing readable.

    Raises:
        DatastoreError: If it contains another image.
    """
    if not path.exists():
        return False
    try:
        existing = read_ct(path, image_id=ct.image_id)
    except ScanError:
        return False
    if not existing.grid.is_same_as(ct.grid) or not np.array_equal(existing.array_hu, ct.array_hu):
        raise DatastoreError(
            f"{ct.image_id}: {path.parent} holds another image of this name; use another folder for the "
            "cohort, or the seed and recipe it was written with"
        )
    return True


def _write_nifti(path: Path, ct: CtVolume) -> None:
    if not _exists(path, ct):
        write_ct(path, ct)


def _write_final(path: Path, image_id: str, label: LabelVolume) -> None:
    if path.exists():
        try:
            read_label(path, image_id=image_id, image_grid=label.grid)
        except (LabelError, ScanError):
            pass
        else:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(path, label)


def _write_dicom(folder: Path, ct: CtVolume) -> None:
    """Write a DICOM folder beside `folder`, then rename it: an interrupted write leaves no partial series."""
    if _exists(folder, ct):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as scratch:
        series = Path(scratch) / "series"
        write_ct_series(ct, series, patient_id=ct.image_id, series_description="Phantom")
        if folder.exists():
            shutil.move(folder, Path(scratch) / "unreadable")
        series.replace(folder)


AUTHOR = "Demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomPatient:
    """One patient of a cohort in DICOM.

    Attributes:
        name: Image id in the studies folder, and PatientID.
        study_uid: StudyInstanceUID (0020,000D).
        series_uid: SeriesInstanceUID (0020,000E) of the CT.
        files: All DICOM files of the patient.
        is_labelled: Whether a SEG is among them.
    """

    name: str
    study_uid: str
    series_uid: str
    files: tuple[Path, ...]
    is_labelled: bool


def write_dicom_cohort(studies: Path, folder: Path, *, recipe: Recipe) -> list[DicomPatient]:
    """Write the scans and final labels of a studies folder as DICOM, and return the patients, sorted by name.

    Patients that exist in `folder` are kept, with their UIDs.

    Args:
        studies: Studies folder written by `write_cohort`; its DICOM patients are copied.
        folder: Output folder, with a folder for each patient.
        recipe: Recipe whose organ set the labels have.
    """
    scans = {path.name.removesuffix(".nii.gz"): path for path in studies.glob("*.nii.gz")}
    scans |= {path.parent.name: path.parent for path in studies.glob("[!.]*/*.dcm")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, scan in sorted(scans.items()):
        if not (folder / name).is_dir():
            label = studies / "labels" / "final" / f"{name}.nii.gz"
            with scratch_folder(folder) as scratch:
                draft = scratch / name
                _write(draft, name, scan, label if label.is_file() else None, recipe)
                draft.rename(folder / name)
    return [_patient(folder / name) for name in sorted(scans)]


def _write(draft: Path, name: str, scan: Path, label: Path | None, recipe: Recipe) -> None:
    if scan.is_dir():
        shutil.copytree(scan, draft)
        return
    write_ct_series(read_ct(scan, image_id=name), draft, patient_id=name)
    if label is not None:
        headers, grid = read_headers(draft, image_id=name)
        array, label_grid = read_label(label, image_id=name, image_grid=grid)
        volume = LabelVolume(array, label_grid, recipe.labels)
        provenance = ObjectProvenance(author=AUTHOR)
        write_seg(draft / "seg.dcm", volume, headers, provenance, image_id=name)


def _patient(folder: Path) -> DicomPatient:
    files = tuple(sorted(folder.glob("*.dcm")))
    slices = [path for path in files if path.name != "seg.dcm"]
    header = pydicom.dcmread(slices[0], stop_before_pixels=True)
    return DicomPatient(
        name=folder.name,
        study_uid=str(header.StudyInstanceUID),
        series_uid=str(header.SeriesInstanceUID),
        files=files,
        is_labelled=len(slices) < len(files),
    )
