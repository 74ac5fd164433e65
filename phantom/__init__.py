"""Synthetic head-and-neck CTs with their organs, for the demo and the tests; never patient data.

The anatomy consists of analytic shapes in one coordinate frame: mm towards the patient's left, front and head
from the brainstem's centre. A pose then scales, rotates and bends it onto the table. Sizes follow adult anatomy
and the organ volumes and positions of the OpenKBP challenge (Babier et al. 2021). The result resembles a CT; a
model trained on it cannot contour patients.
"""

from collections.abc import Mapping

import numpy as np

from lib.errors import LabelError
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.imaging.volumes import CtVolume, LabelVolume
from phantom.canvas import Canvas, Pose
from phantom.head import paint_brainstem, paint_jaws, paint_nose, paint_orbits, paint_skull
from phantom.neck import (
    paint_airway,
    paint_muscles,
    paint_shoulders,
    paint_spine,
    paint_vessels,
)
from phantom.patient import PhantomPatient, paint_body, paint_couch

SHAPE_VOX: ShapeVox = (128, 128, 96)
"""Default number of voxels."""
SPACING_MM: SpacingMm = (4.0, 4.0, 2.5)
"""Default voxel size in mm; with `SHAPE_VOX` 512 x 512 x 240 mm, from the forehead to the shoulders."""

_PARTS = (paint_muscles, paint_shoulders, paint_skull, paint_nose, paint_brainstem, paint_orbits,
          paint_spine, paint_vessels, paint_airway, paint_jaws)  # fmt: skip
"""Functions that paint the parts, in order: a later tissue covers an earlier one."""


def head_and_neck_phantom(
    seed: int,
    *,
    grid_shape: ShapeVox = SHAPE_VOX,
    spacing_mm: SpacingMm = SPACING_MM,
    labels: Mapping[str, int],
) -> tuple[CtVolume, LabelVolume]:
    """Return the CT of patient number `seed`, and its organs in `labels` (TG-263 name -> value).

    The seed defines the patient: another grid shows the same anatomy with different noise. The array's axes run
    to the patient's left, back and head; HU are int16 from -1024 to 3071.

    Raises:
        LabelError: If the phantom does not have one of the organs.
    """
    rng = np.random.default_rng(seed)
    pose = Pose.draw(rng)
    patient = PhantomPatient(rng)
    grid = pose.grid(grid_shape, spacing_mm)
    canvas = Canvas(pose, grid, seed)
    paint_couch(canvas, pose)
    paint_body(canvas, patient)
    for paint in _PARTS:
        paint(canvas, patient)
    unknown = sorted(set(labels) - set(canvas.names))
    if unknown:
        raise LabelError(
            f"the phantom has no {', '.join(unknown)}; it has {', '.join(sorted(canvas.names))}"
        )
    values = np.array([0, *(labels.get(name, 0) for name in canvas.names)], np.uint8)
    hu = canvas.finished(float(rng.uniform(13, 18)))
    return CtVolume(f"phantom_{seed}", hu, grid), LabelVolume(values[canvas.organs], grid, labels)
