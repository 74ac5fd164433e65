"""The grid of a CT series: its slices sorted by position, with checks that they are evenly spaced.

The position of a slice is given by ImagePositionPatient and ImageOrientationPatient only; InstanceNumber,
PatientPosition, file names and SliceThickness are ignored. ITK reads a series with a tilted gantry or uneven
steps as a regular grid and only warns; here both are refused. DICOM's world axes are LPS (PS3.3 C.7.6.2).
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from pydicom.dataset import Dataset

from lib.errors import GeometryError
from lib.imaging.dicom_files import text_of
from lib.imaging.dicom_values import numbers
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles
from lib.imaging.quantities import FloatArray

TILT_TOLERANCE_DEG = 0.1
"""Largest angle in degrees between the slice normal and the line through the slices' first voxels."""

STEP_TOLERANCE_MM = 0.01
STEP_TOLERANCE = 0.01
"""Largest difference between steps: in mm, or as a share of the step, whichever is larger."""

LATTICE_TOLERANCE = 0.1
"""Largest distance of a slice from its position in the regular grid along the normal, as a share of a step."""

SIDEWAYS_TOLERANCE_MM = 0.1
"""Largest distance of a slice from the line through the first and the last slice, in mm."""

_ONE_VALUE = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}
"""Attributes that must be equal in all slices within 1e-4 -> number of values."""

_Header = TypeVar("_Header", bound=Dataset)


def sorted_slices(headers: Sequence[_Header], *, image_id: str) -> tuple[list[_Header], Grid]:
    """Return the slices of one series in the order of the grid's z axis, and the grid.

    Raises:
        ScanError: If a slice has no position.
        GeometryError: If they do not form a regular grid.
    """
    _require_one_grid(headers, image_id)
    if len(headers) == 1:
        raise GeometryError(
            f"{image_id}: the series has a single slice, so that the slice distance is unknown; "
            "export the whole series"
        )
    row, column = np.array(numbers(headers[0], "ImageOrientationPatient", 6, image_id)).reshape(
        2, 3
    )
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 1e-3:
        raise GeometryError(
            f"{image_id}: ImageOrientationPatient is {[*row, *column]}; two unit vectors at right angles "
            "expected; export the series again"
        )
    positions = np.array([numbers(h, "ImagePositionPatient", 3, image_id) for h in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step_mm = _regular_step_mm(positions, np.stack([row, column, normal]), image_id)

    affine = np.eye(4)
    y_mm, x_mm = numbers(headers[0], "PixelSpacing", 2, image_id)  # between rows, between columns
    affine[:3, :3] = np.stack([row * x_mm, column * y_mm, normal * step_mm], axis=1)
    affine[:3, 3] = positions[0]
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
    grid = Grid.from_affine(shape, ras_to_lps(affine))
    require_right_angles(image_id, grid)
    return [headers[i] for i in order], grid


def _require_one_grid(headers: Sequence[Dataset], image_id: str) -> None:
    """Raise unless all slices have equal size, spacing, direction and frame of reference."""
    by_keyword: dict[str, list[tuple[float | str, ...]]] = {
        keyword: [tuple(numbers(h, keyword, size, image_id)) for h in headers]
        for keyword, size in _ONE_VALUE.items()
    }
    differing = [
        k for k, values in by_keyword.items() if np.ptp(np.array(values), axis=0).max() > 1e-4
    ]
    by_keyword["FrameOfReferenceUID"] = [(text_of(h, "FrameOfReferenceUID"),) for h in headers]
    if len(set(by_keyword["FrameOfReferenceUID"])) > 1:
        differing.append("FrameOfReferenceUID")
    for keyword in differing:
        counts = Counter(by_keyword[keyword]).most_common(3)
        values = "; ".join(f"{', '.join(map(str, value))} in {n} slices" for value, n in counts)
        raise GeometryError(
            f"{image_id}: {keyword} differs between slices ({values}); one grid needs one value: "
            "export one reconstruction"
        )


def _regular_step_mm(positions: FloatArray, axes: FloatArray, image_id: str) -> float:
    """Return the mean step between `positions` `(n, 3)`, which are sorted along `axes[2]`."""
    n = len(positions)
    along = positions @ axes[2]
    _require_even_steps(along, image_id)
    span = (positions[-1] - positions[0]) @ axes.T
    sideways = float(np.hypot(span[0], span[1]))
    tilt_deg = float(np.degrees(np.arctan2(sideways, span[2])))
    if tilt_deg > TILT_TOLERANCE_DEG:
        axis = "rows (x)" if abs(span[0]) > abs(span[1]) else "columns (y)"
        raise GeometryError(
            f"{image_id}: the gantry was tilted by {tilt_deg:.1f} degrees: each slice is shifted by "
            f"{sideways / (n - 1):.2f} mm along its {axis}; resample the series onto an upright grid"
        )
    line = positions[0] + np.linspace(0, 1, n)[:, None] * (positions[-1] - positions[0])
    sideways_mm = np.linalg.norm((positions - line) @ axes[:2].T, axis=1)
    worst = int(sideways_mm.argmax())
    if sideways_mm[worst] > SIDEWAYS_TOLERANCE_MM:
        raise GeometryError(
            f"{image_id}: slice {worst + 1} of {n} is shifted sideways by {sideways_mm[worst]:.2f} mm; "
            "export one reconstruction"
        )
    return float((along[-1] - along[0]) / (n - 1))


def _require_even_steps(along: FloatArray, image_id: str) -> None:
    """Raise unless the positions `along` the normal, in mm and ascending, are evenly spaced."""
    n, steps = len(along), np.diff(along)
    duplicates = np.flatnonzero(steps < STEP_TOLERANCE_MM)
    if duplicates.size:
        i = int(duplicates[0])
        raise GeometryError(
            f"{image_id}: slices {i + 1} and {i + 2} of {n} lie at the same position, {along[i]:.2f} mm "
            f"along the normal ({duplicates.size} such pairs): duplicates, or several time points; keep one"
        )
    common = float(np.median(steps))
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * common)
    odd = np.flatnonzero(np.abs(steps - common) > tolerance)
    times = np.rint(steps / common).astype(int)
    gaps = [
        i for i in odd if times[i] > 1 and abs(steps[i] - times[i] * common) <= times[i] * tolerance
    ]
    if len(gaps) and len(gaps) == len(odd):
        missing = int(sum(times[i] - 1 for i in gaps))
        raise GeometryError(
            f"{image_id}: {missing} slice{'s' * (missing > 1)} missing after {along[gaps[0]]:.2f} mm along "
            f"the normal (slice {gaps[0] + 1} of {n}), steps are {common:.2f} mm; export the series again"
        )
    drift = np.abs(along - np.linspace(along[0], along[-1], n))
    if odd.size or drift.max() > LATTICE_TOLERANCE * common:
        i = int(odd[0]) if odd.size else min(int(drift.argmax()), n - 2)
        raise GeometryError(
            f"{image_id}: uneven slices: {steps[i]:.2f} mm between slice {i + 1} and {i + 2} of {n}, "
            f"elsewhere {common:.2f} mm; resample the series, or export it with one slice distance"
        )
