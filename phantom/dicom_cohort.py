"""The generated patients as a PACS holds them: a CT series each, and a SEG where they are contoured."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pydicom

from lib.dicom.about import ObjectProvenance
from lib.dicom.seg import write_seg
from lib.dicom.writer import write_ct_series
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import UNFINISHED

AUTHOR = "Demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomPatient:
    """One patient of the cohort.

    Attributes:
        name: As in the studies folder; the PatientID.
        study_uid: StudyInstanceUID (0020,000D).
        series_uid: SeriesInstanceUID (0020,000E) of the CT.
        files: All that a PACS holds of him.
        is_labelled: Whether a SEG is among them.
    """

    name: str
    study_uid: str
    series_uid: str
    files: tuple[Path, ...]
    is_labelled: bool


def write_dicom_cohort(studies: Path, folder: Path, *, recipe: Recipe) -> list[DicomPatient]:
    """Write the scans and final labels of a studies folder as DICOM, and return the patients, sorted by name.

    Patients that lie in `folder` already are left as they are, with their UIDs.

    Args:
        studies: What `write_cohort` wrote; patients that are DICOM there are copied.
        folder: Gets a folder for each patient.
        recipe: Whose organs the labels hold.
    """
    scans = {path.name.removesuffix(".nii.gz"): path for path in studies.glob("*.nii.gz")}
    scans |= {path.parent.name: path.parent for path in studies.glob("[!.]*/*.dcm")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, scan in sorted(scans.items()):
        if not (folder / name).is_dir():
            label = studies / "labels" / "final" / f"{name}.nii.gz"
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as scratch:
                draft = Path(scratch) / name
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
        array, found = read_label(label, image_id=name, image_grid=grid)
        about = ObjectProvenance(author=AUTHOR)
        drawn = LabelVolume(array, found, recipe.labels)
        write_seg(draft / "seg.dcm", drawn, headers, about, image_id=name)


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
