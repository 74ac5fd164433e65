"""Cases in a folder, and the organs contoured in each.

A case is a label volume (`<case>.nii.gz`), or a folder with one mask per organ (`<case>/Brainstem.nrrd`, or in
`<case>/segmentations` or `<case>/structures`), or a folder with one label volume (`<case>/label.nii.gz`).
Each organ is stored as its bounding box only, so that 21 organs of a large scan need little memory.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy import ndimage

from lib.errors import ConfigError, LabelError, ScanError
from lib.imaging.formats import (
    CT_STEMS,
    LABEL_STEMS,
    SCAN_SUFFIXES,
    label_stem_of,
    scan_files,
    stem_of,
    suffix_of,
)
from lib.imaging.geometry import Grid, require_same_grid
from lib.imaging.named_labels import NamedLabel, read_named_label
from lib.imaging.quantities import LabelArray, MaskArray, ShapeVox
from lib.imaging.scans import read_label
from lib.inference.resampling import Box
from lib.organs.naming import tg263_name
from lib.organs.table import ORGAN_SETS

MASK_FOLDERS = ("segmentations", "structures")
"""Subfolders of a case that may contain its masks."""


@dataclass(frozen=True, slots=True)
class CroppedMask:
    """Mask of one organ, cropped to its bounding box."""

    mask: MaskArray
    """`(X, Y, Z)`, cropped."""
    start_vox: ShapeVox
    """Index of the box's first voxel on the whole grid."""

    @property
    def box(self) -> Box:
        """Bounding box on the whole grid."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start_vox, self.mask.shape, strict=True))
        return (x, y, z)

    def within(self, box: Box) -> MaskArray:
        """Return the organ in `box` of the same grid, False outside the bounding box."""
        result = np.zeros([b.stop - b.start for b in box], bool)
        into, out = [], []
        for own, other in zip(self.box, box, strict=True):
            low, high = max(own.start, other.start), min(own.stop, other.stop)
            if high <= low:
                return result
            into.append(slice(low - other.start, high - other.start))
            out.append(slice(low - own.start, high - own.start))
        result[tuple(into)] = self.mask[tuple(out)]
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseContours:
    """Contours of one case by one side: reference or prediction."""

    case: str
    grid: Grid
    organs: Mapping[str, CroppedMask]
    """TG-263 name -> mask; empty organs are left out."""
    unmatched: Sequence[str] = ()
    """Names and values that are not a known organ."""
    values: Mapping[str, int] | None = None
    """Organ name -> label value; None for masks."""
    values_from: str = ""
    """Source of `values`, in words."""


def find_cases(folder: Path) -> dict[str, Path]:
    """Return the cases in `folder`, sorted by name: name -> label volume, or folder of masks.

    Raises:
        ConfigError: If the folder does not exist or contains no case, or two cases have the same name.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; expected a folder with one label or one folder per case"
        )
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not _is_case(path):
            continue
        name = path.name if path.is_dir() else label_stem_of(path)
        if name in cases:
            raise ConfigError(
                f"{folder}: {cases[name].name} and {path.name} are the same case, {name}; keep one of them"
            )
        cases[name] = path
    if not cases:
        raise ConfigError(
            f"{folder}: no cases; expected files such as CASE{SCAN_SUFFIXES[0]}, or folders CASE/ORGAN.nrrd"
        )
    return cases


def read_labels_file(path: Path) -> dict[str, int]:
    """Return the organ names and label values of an organ set, or of a YAML or JSON file.

    Raises:
        ConfigError: If the file is not a mapping of names to different integers from 1 to 255.
    """
    if str(path) in ORGAN_SETS:
        return dict(ORGAN_SETS[str(path)])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML or JSON: {error}") from error
    return _checked_values(content, path)


def card_values(label_file: Path) -> dict[str, int] | None:
    """Return the `labels` entry of the JSON card beside a label volume (`apps.infer` writes it), else None.

    Raises:
        ConfigError: If the card is damaged, or `labels` is not a mapping of names to values.
    """
    card = label_file.with_name(f"{stem_of(label_file)}.json")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{card}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content.get("labels"):
        return None
    return _checked_values(content["labels"], card)


def read_contours(
    case: str,
    path: Path,
    *,
    values: Mapping[str, int] | None = None,
    hint: Mapping[str, int] | None = None,
    pool: Executor,
) -> CaseContours:
    """Return the organs that are contoured in one case.

    Args:
        case: Name of the case in messages.
        path: A value of `find_cases`.
        values: Organ name -> value for a label volume; None to use the names in the file, or the card beside
            it, or else the only organ set that contains the values.
        hint: Names and values that the organ set must contain, such as those of the other side's card.
        pool: Executor that reads masks in parallel.

    Raises:
        ConfigError: If the meaning of a label volume's values is ambiguous.
        LabelError: If a file is not a label or mask, or two files are the same organ.
        GeometryError: If the masks lie on different grids.
    """
    if path.is_dir() and not _mask_files(path):
        path = _label_file(path) or path
    if path.is_dir():
        return _read_masks(case, path, pool)
    named = read_named_label(path, image_id=case, image_grid=None)
    if named is not None:
        return _by_names(case, named, values)
    array, grid = read_label(path, image_id=case, image_grid=None)
    boxes = label_boxes(array)
    values, values_from = _meaning_of_values(case, path, list(boxes), values, hint)
    unmatched = [f"value {v}" for v in boxes if v not in values.values()]
    organs: dict[str, CroppedMask] = {}
    for spelling, value in values.items():
        name = tg263_name(spelling)
        if name is None:
            unmatched.append(f"{spelling} (value {value})")
        elif value in boxes:
            _add(organs, name, _crop(array, boxes[value], value), case)
    return CaseContours(
        case=case,
        grid=grid,
        organs=organs,
        unmatched=unmatched,
        values=values,
        values_from=values_from,
    )


def _by_names(case: str, named: NamedLabel, given: Mapping[str, int] | None) -> CaseContours:
    """Return the organs of a label volume by the names in its file, which `given` must not contradict."""
    expected = {value: tg263_name(name) or name for name, value in (given or {}).items()}
    organs: dict[str, CroppedMask] = {}
    unmatched = []
    for (layer, value), name in named.present.items():
        organ = tg263_name(name)
        if expected.get(value, organ) != organ:
            raise LabelError(
                f"{case}: the file names its value {value} {name!r}, --labels {expected[value]!r}; leave out "
                "--labels, or correct it"
            )
        if organ is None:
            unmatched.append(f"{name} (value {value})")
            continue
        array = named.layers[layer]
        box = label_boxes((array == value).view(np.uint8))[1]
        _add(organs, organ, _crop(array, box, value), case)
    return CaseContours(case=case, grid=named.grid, organs=organs, unmatched=unmatched)


def _meaning_of_values(
    case: str,
    path: Path,
    present: Sequence[int],
    given: Mapping[str, int] | None,
    hint: Mapping[str, int] | None,
) -> tuple[Mapping[str, int], str]:
    """Return organ name -> value for a label volume, and the source of this mapping."""
    if given is not None:
        return given, "--labels"
    card = card_values(path)
    if card is not None and set(present) <= set(card.values()):
        return card, "the card beside it"
    expected = (card or {}) | dict(hint or {})
    fitting = {
        name: labels
        for name, labels in ORGAN_SETS.items()
        if set(present) <= set(labels.values())
        and all(labels.get(tg263_name(organ) or "") == value for organ, value in expected.items())
    }
    if len(fitting) != 1:
        what = f"fit the organ sets {', '.join(fitting)}" if fitting else "fit no organ set"
        raise ConfigError(
            f"{case}: the values {list(present)} of {path.name} {what} (known sets: {', '.join(ORGAN_SETS)}), "
            "so the organs are ambiguous; name them with --labels SET or --labels FILE"
        )
    name, labels = fitting.popitem()
    return labels, f"organ set {name}"


def _read_masks(case: str, folder: Path, pool: Executor) -> CaseContours:
    names = {path: tg263_name(stem_of(path)) for path in _mask_files(folder)}
    unmatched = [stem_of(path) for path, name in names.items() if name is None]
    masks = {path: name for path, name in names.items() if name is not None}
    if not masks:
        raise LabelError(
            f"{case}: none of {', '.join(unmatched)} is the name of a known organ; expected TG-263 names such "
            "as Parotid_L"
        )
    organs: dict[str, CroppedMask] = {}
    grid: Grid | None = None
    for (path, name), (mask, own_grid) in zip(
        masks.items(), pool.map(lambda p: _read_mask(case, p), masks), strict=True
    ):
        grid = grid or own_grid
        require_same_grid(f"{case}/{path.name}", label=own_grid, image=grid)
        if mask is not None:
            _add(organs, name, mask, case)
    if grid is None:
        raise LabelError(f"{case}: no mask could be read")
    return CaseContours(case=case, grid=grid, organs=organs, unmatched=unmatched)


def _read_mask(case: str, path: Path) -> tuple[CroppedMask | None, Grid]:
    array, grid = read_label(path, image_id=f"{case}/{path.name}", image_grid=None)
    value = int(array.max())
    if value == 0:
        return None, grid
    cropped = _crop(array, label_boxes((array != 0).view(np.uint8))[1], value)
    if np.count_nonzero(array) != np.count_nonzero(cropped.mask):
        raise LabelError(
            f"{case}: {path.name} contains several values up to {value}; expected 0 and one other in a mask"
        )
    return cropped, grid


def label_boxes(array: LabelArray) -> dict[int, Box]:
    """Return the bounding box of each value above 0 in `array`."""
    # Arrays from files are in Fortran order; searching them in memory order is eight times as fast.
    is_transposed = array.flags.f_contiguous
    boxes = ndimage.find_objects(array.T if is_transposed else array)
    return {
        value: box[::-1] if is_transposed else box
        for value, box in enumerate(boxes, start=1)
        if box is not None
    }


def union_box(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that contains all of `boxes`, at least one."""
    x, y, z = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
        for axis in range(3)
    )
    return (x, y, z)


def _crop(array: LabelArray, box: Box, value: int) -> CroppedMask:
    x, y, z = (int(b.start) for b in box)
    return CroppedMask(np.ascontiguousarray(array[box] == value), (x, y, z))


def _add(organs: dict[str, CroppedMask], name: str, mask: CroppedMask, case: str) -> None:
    if name in organs:
        raise LabelError(f"{case}: two contours are named {name}; keep one of them")
    organs[name] = mask


def _is_case(path: Path) -> bool:
    if path.is_dir():
        return bool(_mask_files(path)) or _label_file(path) is not None
    return suffix_of(path) is not None


def _mask_files(case_folder: Path) -> list[Path]:
    """Return the masks of a case: those in one of `MASK_FOLDERS`, else those in its own folder."""
    inner = [case_folder / name for name in MASK_FOLDERS if (case_folder / name).is_dir()]
    for folder in [*inner, case_folder]:
        files = [
            p
            for p in scan_files(folder)
            if label_stem_of(p).lower() not in (*CT_STEMS, *LABEL_STEMS)
        ]
        if files:
            return files
    return []


def _label_file(case_folder: Path) -> Path | None:
    files = [p for p in scan_files(case_folder) if label_stem_of(p).lower() in LABEL_STEMS]
    if len(files) > 1:
        raise ScanError(
            f"{case_folder.name}: found {' and '.join(p.name for p in files)}; one label volume expected"
        )
    return files[0] if files else None


def _checked_values(content: object, source: Path) -> dict[str, int]:
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{source}: expected a mapping of organ names to values, such as Brainstem: 1"
        )
    for name, value in content.items():
        if not isinstance(name, str) or type(value) is not int or not 1 <= value <= 255:
            raise ConfigError(
                f"{source}: {name!r}: {value!r} found; expected an organ name and an integer from 1 to 255"
            )
    if len(set(content.values())) != len(content):
        raise ConfigError(f"{source}: two names have the same value; each organ needs its own")
    return dict(content)
