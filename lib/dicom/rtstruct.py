"""Reading the contours of an RTSTRUCT onto the voxels of its CT (PS3.3 A.19, C.8.8.5, C.8.8.6).

`contour_masks` says which voxels a ROI's contours mark.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset

from lib.dicom.contour_masks import Roi, draw
from lib.dicom.references import items, require_same_scan
from lib.dicom.structures import StructureSet, Wanted
from lib.errors import LabelError, OrganNetError
from lib.imaging.dicom_series import PARSING_ERRORS
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray

_log = logging.getLogger(__name__)


def read_rtstruct(
    path: Path,
    headers: Sequence[FileDataset],
    grid: Grid,
    *,
    image_id: str,
    wanted: Wanted = tuple,
) -> StructureSet:
    """Return the ROIs of an RTSTRUCT as masks on `grid`.

    Args:
        path: The RTSTRUCT's file.
        headers: The slices that it was drawn on, and
        grid: their grid, as `lib.imaging.dicom_series.read_headers` returns them.
        image_id: For messages.
        wanted: Given the names of all ROIs, returns those to draw; the others are not looked at.

    Raises:
        LabelError: If the file is damaged or no RTSTRUCT, or a wanted ROI's name is there twice.
        GeometryError: If it was drawn on another series or in another frame of reference, or a wanted
            contour does not lie in a slice of the scan.
    """
    try:
        dataset = pydicom.dcmread(path)
        rois, chosen = _chosen_rois(dataset, wanted, image_id)
        contours = _contour_items(dataset, chosen, image_id)
        frames = {repr(roi.name): roi.frame for roi in chosen}
        notes = require_same_scan(dataset, frames, headers, image_id)
    except OrganNetError:
        raise
    except PARSING_ERRORS as error:
        raise LabelError(
            f"{image_id}: the RTSTRUCT is damaged ({error}); export it again"
        ) from error
    masks = {}
    for roi in chosen:
        mask = draw(contours.get(roi.number, ()), roi, grid, image_id)
        if mask.any():
            masks[roi.name] = mask
    notes += [f"{r.name}: {n} {what}" for r in chosen for what, n in sorted(r.notes.items())]
    for note in notes:
        _log.info("%s: %s", image_id, note)
    return StructureSet(tuple(roi.name for roi in rois), masks, tuple(notes))


def _chosen_rois(dataset: Dataset, wanted: Wanted, image_id: str) -> tuple[list[Roi], list[Roi]]:
    """Return all ROIs, and the wanted ones."""
    if dataset.get("Modality") != "RTSTRUCT":
        raise LabelError(
            f"{image_id}: the file's modality is {dataset.get('Modality', 'unknown')}; RTSTRUCT expected"
        )
    rois = [
        Roi(
            str(item.get("ROIName", "") or ""),
            int(item.ROINumber),
            str(item.get("ReferencedFrameOfReferenceUID", "") or ""),
        )
        for item in items(dataset, "StructureSetROISequence")
    ]
    names = [roi.name for roi in rois]
    chosen = set(wanted(names))
    twice = sorted(name for name in chosen if names.count(name) > 1)
    if twice:
        raise LabelError(f"{image_id}: two ROIs are called {twice[0]!r}; rename or join them")
    return rois, [roi for roi in rois if roi.name in chosen]


def _contour_items(
    dataset: Dataset, rois: Sequence[Roi], image_id: str
) -> dict[int, list[tuple[str, FloatArray]]]:
    """Return, for each ROI's number, the type and the points `(N, 3)`, LPS mm, of its contours."""
    by_number = {roi.number: roi for roi in rois}
    found: dict[int, list[tuple[str, FloatArray]]] = {}
    for entry in items(dataset, "ROIContourSequence"):
        roi = by_number.get(int(entry.ReferencedROINumber))
        if roi is not None:
            found.setdefault(roi.number, []).extend(
                (
                    str(item.get("ContourGeometricType", "") or "unknown"),
                    _points_lps(item, roi, image_id),
                )
                for item in items(entry, "ContourSequence")
            )
    return found


def _points_lps(item: Dataset, roi: Roi, image_id: str) -> FloatArray:
    """Return a contour's points `(N, 3)` in mm.

    The decimal strings are turned to numbers here: pydicom makes an object of each, which takes minutes.
    """
    value: Any = getattr(item.get_item("ContourData"), "value", None)
    try:
        if isinstance(value, bytes):
            text = value.strip(b" \0")
            value = text.split(b"\\") if text else ()
        numbers = np.array(list(value or ()), dtype=float)
    except (TypeError, ValueError) as error:
        raise LabelError(
            f"{image_id}: a contour of {roi.name!r} holds what is no number; export it again"
        ) from error
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise LabelError(
            f"{image_id}: a contour of {roi.name!r} holds {numbers.size} numbers; three finite ones a point "
            "expected: export it again"
        )
    return numbers.reshape(-1, 3)
