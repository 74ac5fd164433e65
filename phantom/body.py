"""What surrounds the anatomy: the couch, the mask, the skin, and the fat under it."""

import numpy as np

from phantom.canvas import Canvas, Pose
from phantom.patient import FAT_HU, PhantomPatient
from phantom.shapes import Ellipsoid

_MASK_SHARE = 0.6
"""Share of patients in a thermoplastic mask."""

_FAR_MM = 60.0


def paint_couch(canvas: Canvas, pose: Pose) -> None:
    """Paint a carbon plate filled with foam under the patient, and a headrest."""
    top_mm = pose.scale[1] * (-127 - 2.3 * pose.curve_mm) + pose.offset_mm[1]
    left, a, _ = canvas.table
    depth = np.abs(a - (top_mm - 22) - np.float32(2e-4) * left * left) - 22
    depth = np.maximum(depth, np.abs(left) - 230) + 0 * canvas.table[2]
    everywhere = (slice(None), slice(None), slice(None))
    depth = depth.astype(np.float32)
    canvas.blend(everywhere, depth, -250)
    canvas.blend(everywhere, depth + np.float32(2.5), -930)
    rest = Ellipsoid((0, -116, -45), (88, 12, 90), 8)
    canvas.paint(rest, -600, grow_mm=2)
    canvas.paint(rest, -950)


def paint_body(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint skin, fat and the loose tissue between organs; some patients wear a mask."""
    distance = np.full(canvas.hu.shape, _FAR_MM, np.float32)
    for part in patient.skin.parts:
        region = canvas.region(part.box, 8)
        here = distance[region]
        np.minimum(here, part.distance(canvas.points_in(region)), out=here)
    everywhere = (slice(None), slice(None), slice(None))
    if patient.rng.random() < _MASK_SHARE:
        shell = np.maximum(
            np.abs(distance - np.float32(3.5)) - np.float32(1.3), -30 - canvas.points[1]
        )
        canvas.blend(everywhere, np.maximum(shell, -175 - canvas.points[2]), -100)
    canvas.blend(everywhere, distance, 10)
    canvas.blend(everywhere, distance + np.float32(2), FAT_HU, texture=8)
    low = np.clip((-120 - canvas.points[2]) / 50, 0, 1)
    deep = distance + np.float32(patient.fat_mm) * (1 + low)
    canvas.blend(everywhere, deep, -70, texture=28)
