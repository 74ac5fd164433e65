"""Training cases: found in a folder, split, and prepared once in a cache on disk.

A training run reads crops from the cache and never opens a whole file again.
"""

import hashlib
import logging
import resource
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lib.errors import DatastoreError, LabelError, OrganNetError, TrainingError
from lib.imaging.formats import LABEL_STEMS, SCAN_SUFFIXES
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import find_scans, read_ct, read_label, scan_name
from lib.inference.preprocessing import Pipeline
from lib.storage.atomic_files import replacing

logger = logging.getLogger(__name__)

OTHER_FILES = 512
"""What a process may have open besides its cases: libraries, sockets of a server, logs."""
POINTS_PER_ORGAN = 4096
"""Voxels of an organ that may become a crop's centre: enough to cover it, few enough to keep in memory.

Fewer than twice as many are kept: every `n`-th voxel of a larger organ.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A CT and its reference label, as files.

    Attributes:
        image_id: What errors and reports call it.
        image: A scan file, or the folder of a DICOM series.
        label: A label volume on the image's grid.
    """

    image_id: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case as the network sees it; the arrays are mapped from disk.

    Attributes:
        image_id: As in `Case`.
        digest: Of both files: another contour on the same scan is another case.
        hu: `(X, Y, Z)` int16.
        label: `(X, Y, Z)` uint8.
        points: Label value -> `(N, 3)` voxels of that organ; its keys are the organs contoured.
    """

    image_id: str
    digest: str
    hu: npt.NDArray[np.int16]
    label: LabelArray
    points: Mapping[int, npt.NDArray[np.int32]]


def prepare_cases(
    cases: Sequence[Case],
    pipeline: Pipeline,
    cache_dir: Path,
) -> list[PreparedCase]:
    """Return the cases that can be trained on, from the cache where they are there already.

    Volumes stay on disk, mapped; of each organ the voxels that may become a crop's centre are in memory. So a
    case takes at most 100 kB an organ, whatever its size.

    A case that is refused is named in the log and left out: one bad file does not stop a run.

    Raises:
        TrainingError: If no case is left.
    """
    _allow_open_files(len(cases))
    prepared, refused = [], []
    for case in cases:
        try:
            prepared.append(_prepare(case, pipeline, cache_dir))
        except OrganNetError as error:
            refused.append(str(error))
            logger.warning("left out of the training: %s", error)
    if not prepared:
        raise TrainingError(
            f"none of {len(cases)} cases can be trained on" + "".join(f"; {r}" for r in refused[:3])
        )
    return prepared


def _allow_open_files(cases: int) -> None:
    """Let the process keep two mapped files open for each case, where its limit is lower.

    Raises:
        TrainingError: If the machine does not allow so many.
    """
    needed = 2 * cases + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TrainingError(
            f"{cases} cases need {needed} open files, and this machine allows {hard} (ulimit -Hn); "
            "raise that, or train on fewer cases"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _prepare(case: Case, pipeline: Pipeline, cache_dir: Path) -> PreparedCase:
    digest = digest_of(case)
    folder = cache_dir / f"{digest}-{pipeline.recipe.preparation_digest()}"
    if not (folder / "label.npy").exists():
        ct = read_ct(case.image, image_id=case.image_id)
        label, _ = read_label(case.label, image_id=case.image_id, image_grid=ct.grid)
        allowed = {0, *pipeline.recipe.labels.values()}
        strange = sorted(set(np.unique(label).tolist()) - allowed)
        if strange:
            raise LabelError(
                f"{case.image_id}: the label holds the values {strange}, which are no organ of the set "
                f"{pipeline.recipe.organ_set!r}: {dict(pipeline.recipe.labels)}"
            )
        ready = pipeline.prepare(ct)
        _save(folder / "hu.npy", np.clip(np.round(ready.hu), -1024, 32767).astype(np.int16))
        _save(folder / "label.npy", pipeline.prepare_label(label, ready))
    label = np.load(folder / "label.npy", mmap_mode="r")
    points = _points(np.asarray(label))
    if not points:
        raise LabelError(f"{case.image_id}: no organ is contoured in its label")
    hu = np.load(folder / "hu.npy", mmap_mode="r")
    return PreparedCase(case.image_id, digest, hu, label, points)


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with replacing(path) as beside:
        np.save(beside, array)


def _points(label: LabelArray) -> dict[int, npt.NDArray[np.int32]]:
    points = {}
    for value in np.unique(label).tolist():
        if value:
            inside = np.argwhere(label == value).astype(np.int32)
            step = max(1, len(inside) // POINTS_PER_ORGAN)
            # A copy: a view would keep every voxel of the organ in memory.
            points[int(value)] = inside[::step].copy()
    return points


def digest_of(case: Case) -> str:
    """Return what names the case's files: another scan or another contour is another digest.

    Raises:
        OSError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in (case.image, case.label):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def find_labelled_cases(folder: Path) -> list[Case]:
    """Return every scan in `folder` that has a final label, sorted by its id.

    Two layouts are understood: the server's (`ID.nii.gz` or a DICOM folder `ID`, with
    `labels/final/ID.nii.gz`), and one folder per case (`ID/ct.nii.gz` with `ID/label.nii.gz`).

    Raises:
        DatastoreError: If there is no labelled case, or two have one name.
    """
    cases = []
    for scan in find_scans(folder):
        name = scan_name(scan)
        label = _label_of(folder, scan, name)
        if label is not None:
            cases.append(Case(name, scan, label))
    if not cases:
        raise DatastoreError(
            f"{folder}: no labelled case; expected ID.nii.gz with labels/final/ID.nii.gz, "
            "or ID/ct.nii.gz with ID/label.nii.gz"
        )
    names = [case.image_id for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatastoreError(
            f"{folder}: several scans are called {', '.join(twice)}; keep one of each"
        )
    return sorted(cases, key=lambda case: case.image_id)


def _label_of(folder: Path, scan: Path, name: str) -> Path | None:
    places = [folder / "labels" / "final" / name]
    if scan.is_file() and scan.parent != folder:
        places += [scan.parent / stem for stem in LABEL_STEMS]
    files = (place.with_name(place.name + suffix) for place in places for suffix in SCAN_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


HELD_OUT_OF = 5
"""About one case in this many is held out."""


def is_held_out(image_id: str) -> bool:
    """Return whether the case is for validation only; it follows from its id alone, for ever."""
    return hashlib.sha256(image_id.encode()).digest()[0] % HELD_OUT_OF == 0


def split(
    cases: Sequence[Case], *, evaluation_ids: Set[str] = frozenset()
) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those held out: `evaluation_ids` if there are any, else by the hash."""
    held_out = [
        case
        for case in cases
        if (case.image_id in evaluation_ids if evaluation_ids else is_held_out(case.image_id))
    ]
    return [case for case in cases if case not in held_out], held_out
