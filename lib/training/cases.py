"""Training cases: search in a folder, split, and preparation in a cache on disk.

A training run reads crops from the cache and never opens a whole file again.
"""

import hashlib
import logging
import os
import resource
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lib.errors import CASE_ERRORS, DatastoreError, LabelError, TrainingError, case_failure
from lib.imaging.formats import LABEL_STEMS, SCAN_SUFFIXES, label_stem_of, scan_files, suffix_of
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct
from lib.inference.preprocessing import Pipeline
from lib.labels.scan_search import find_scans
from lib.organs.label_files import read_organ_label
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import replacing
from lib.storage.storage_errors import is_disk_full

logger = logging.getLogger(__name__)

OTHER_FILES = 512
"""Number of open files to allow besides the cases: libraries, sockets of a server, logs."""
CACHE_FOLDER = "cache"
"""Folder of prepared cases in the state folder of a server."""
POINTS_PER_ORGAN = 4096
"""Number of voxels of an organ that can be the centre of a crop: few enough to keep in memory.

Of a larger organ every n-th voxel is kept, which leaves fewer than twice this number.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A CT and its reference label, as files.

    Attributes:
        image_id: Id of the image in messages and reports.
        image: A volume file, or the folder of a DICOM series.
        label: A label volume on the image's grid.
    """

    image_id: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case resampled and cropped for the network; the arrays are memory-mapped files.

    Attributes:
        image_id: As in `Case`.
        digest: Digest of both files: it changes with a new contour on the same scan.
        hu: `(X, Y, Z)` int16.
        label: `(X, Y, Z)` uint8.
        points: Label value -> `(N, 3)` voxels of that organ; the keys are the contoured organs.
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
    """Return the cases that can be trained on, prepared now or read from the cache.

    Volumes are memory-mapped; of each organ, the possible centres of crops are in memory. So a case takes at
    most 100 kB of memory per organ, independent of its size.

    A case that cannot be used is logged and left out: one bad file does not stop a run.

    Raises:
        TrainingError: If no case is left.
    """
    _allow_open_files(len(cases))
    prepared, refused = [], []
    for case in cases:
        try:
            prepared.append(_prepare(case, pipeline, cache_dir))
        except CASE_ERRORS as error:
            if is_disk_full(error):
                raise
            refused.append(case_failure(error, case.image_id))
            logger.warning("left out of the training: %s", refused[-1])
    if not prepared:
        raise TrainingError(
            f"none of {len(cases)} cases can be trained on" + "".join(f"; {r}" for r in refused[:3])
        )
    return prepared


def _allow_open_files(cases: int) -> None:
    """Raise the process's limit of open files to two memory-mapped files per case, if it is lower.

    Raises:
        TrainingError: If the machine does not allow so many open files.
    """
    needed = 2 * cases + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TrainingError(
            f"{cases} cases need {needed} open files, this machine allows {hard} (ulimit -Hn); "
            "raise the limit, or train on fewer cases"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _prepare(case: Case, pipeline: Pipeline, cache_dir: Path) -> PreparedCase:
    digest = digest_of(case)
    folder = cache_dir / cache_name(digest, pipeline.recipe)
    if (folder / "label.npy").exists():
        os.utime(
            folder
        )  # `lib.training.cache_limit` removes the entries that were used longest ago
    else:
        ct = read_ct(case.image, image_id=case.image_id)
        label = read_organ_label(
            case.label, image_id=case.image_id, image_grid=ct.grid, labels=pipeline.recipe.labels
        )
        allowed = {0, *pipeline.recipe.labels.values()}
        unknown = sorted(set(np.unique(label).tolist()) - allowed)
        if unknown:
            raise LabelError(
                f"{case.image_id}: the label holds the values {unknown}, which are not in the organ set "
                f"{pipeline.recipe.organ_set!r}: {dict(pipeline.recipe.labels)}"
            )
        prepared = pipeline.prepare(ct)
        _save(folder / "hu.npy", np.clip(np.round(prepared.hu), -1024, 32767).astype(np.int16))
        _save(folder / "label.npy", pipeline.prepare_label(label, prepared))
    label = np.load(folder / "label.npy", mmap_mode="r")
    points = _points(np.asarray(label))
    if not points:
        raise LabelError(f"{case.image_id}: its label contains no organ")
    hu = np.load(folder / "hu.npy", mmap_mode="r")
    return PreparedCase(case.image_id, digest, hu, label, points)


def cache_name(digest: str, recipe: Recipe) -> str:
    """Return the name of the folder of a prepared case in the cache."""
    return f"{digest}-{recipe.preparation_digest()}"


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with replacing(path) as temporary:
        np.save(temporary, array)


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
    """Return a digest of the case's files; it changes with the scan and with the label.

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
    """Return every scan in `folder` that has a final label, sorted by id.

    Two layouts are supported: the server's studies folder (`ID.nii.gz` or a DICOM folder `ID`, with
    `labels/final/ID.nii.gz`), and one folder per case (`ID/ct.nii.gz` with `ID/label.nii.gz`; other names are
    `CT_STEMS` and `LABEL_STEMS` of `lib.imaging.formats`). A name that cannot be an id has that of
    `image_id_of`.

    Raises:
        DatastoreError: If there is no labelled case, or two cases have one name.
    """
    cases = []
    final_labels = _labels_by_stem(folder / "labels" / "final")
    for scan in find_scans(folder).scans:
        name, path = scan.image_id, scan.path
        label = final_labels.get(name)
        if label is None and path.is_file() and path.parent != folder:
            files = {stem.lower(): p for stem, p in _labels_by_stem(path.parent).items()}
            label = next((files[stem] for stem in LABEL_STEMS if stem in files), None)
        if label is not None:
            cases.append(Case(name, path, label))
    if not cases:
        raise DatastoreError(
            f"{folder}: no labelled case; expected ID.nii.gz with labels/final/ID.nii.gz, "
            "or ID/ct.nii.gz with ID/label.nii.gz"
        )
    names = [case.image_id for case in cases]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DatastoreError(
            f"{folder}: several scans are called {', '.join(duplicates)}; keep one of each"
        )
    return sorted(cases, key=lambda case: case.image_id)


def _labels_by_stem(folder: Path) -> dict[str, Path]:
    """Return stem -> label file in `folder`; if two share a stem, the first by `SCAN_SUFFIXES`."""
    files = scan_files(folder) if folder.is_dir() else []
    files.sort(key=lambda path: SCAN_SUFFIXES.index(suffix_of(path) or ""), reverse=True)
    return {label_stem_of(path): path for path in files}


HELD_OUT_OF = 5
"""Number `n` such that one in `n` cases is held out, on average."""


def is_held_out(image_id: str) -> bool:
    """Return whether the case is for validation only; this depends on a hash of its id only."""
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
