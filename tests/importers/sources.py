"""Source folders in the layout of each supported format, made of the phantom with three boxes as organs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.importers.cases import OrganNames
from tests.phantoms import make_ct
from tests.rtstruct_files import RoiSpec, box_corners, in_slice, write_rtstruct

OPENKBP = OrganNames(organ_set="openkbp")
PDDCA = OrganNames(organ_set="pddca")

BRAINSTEM = np.s_[8:12, 6:10, 4:9]
PAROTID_L = np.s_[13:16, 5:9, 2:6]
PAROTID_R = np.s_[4:7, 5:9, 2:6]
"""4 x 4 x 5 = 80, 3 x 4 x 4 = 48 and 48 voxels."""


def box_mask(grid: Grid, box: tuple[slice, slice, slice]) -> MaskArray:
    mask = np.zeros(grid.shape_vox, np.bool_)
    mask[box] = True
    return mask


def label_array(values: Mapping[int, tuple[slice, slice, slice]]) -> LabelArray:
    array = np.zeros(make_ct().grid.shape_vox, np.uint8)
    for value, box in values.items():
        array[box] = value
    return array


def put_label(path: Path, array: LabelArray, grid: Grid | None = None) -> None:
    write_label(path, LabelVolume(array, grid or make_ct().grid, {}))


def put_pddca(folder: Path, masks: Mapping[str, tuple[slice, slice, slice]] | None = None) -> None:
    """Write a PDDCA case; by default of the brainstem and both parotids."""
    ct = make_ct()
    write_ct(folder / "img.nrrd", ct)
    boxes = masks or {"BrainStem": BRAINSTEM, "Parotid_L": PAROTID_L, "Parotid_R": PAROTID_R}
    for name, box in boxes.items():
        put_label(folder / "structures" / f"{name}.nrrd", box_mask(ct.grid, box).astype(np.uint8))


def put_openkbp(folder: Path) -> None:
    """Write an OpenKBP case: brainstem 1, right parotid 3, left parotid 4."""
    write_ct(folder / "ct.nii.gz", make_ct())
    put_label(folder / "label.nii.gz", label_array({1: BRAINSTEM, 3: PAROTID_R, 4: PAROTID_L}))


def put_series(folder: Path, *, patient: str = "DOE^JANE") -> None:
    write_ct_series(make_ct(), folder, patient_id=patient)


def put_rtstruct(
    path: Path,
    slices: Path,
    rois: Mapping[str, Sequence[tuple[slice, slice, slice]]] | None = None,
    **changes: str,
) -> None:
    """Write box contours on the series in a folder; by default the brainstem and both parotids."""
    headers, grid = read_headers(slices, image_id="made")
    boxes = rois or {"Brain Stem": [BRAINSTEM], "Lt Parotid": [PAROTID_L], "PAROTID_R": [PAROTID_R]}
    specs = [
        RoiSpec(name, [c for box in several for c in _contours(grid, box)])
        for name, several in boxes.items()
    ]
    write_rtstruct(path, headers, specs, **changes)  # type: ignore[arg-type]


def _contours(grid: Grid, box: tuple[slice, slice, slice]) -> list[npt.ArrayLike]:
    x, y, z = box
    corners = box_corners(x.start - 0.5, y.start - 0.5, x.stop - 0.5, y.stop - 0.5)
    return [in_slice(grid, corners, float(k)) for k in range(z.start, z.stop)]
