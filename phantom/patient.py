"""Random anatomy of one synthetic patient: the body outline, the spine's curve, skin and fat; the couch."""

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator

from lib.imaging.quantities import FloatArray
from phantom.canvas import Canvas, Pose
from phantom.shapes import Column, Ellipsoid, PointMm, Tube, Union

SIDES = (1, -1)
"""Sign of the left coordinate, for the left and the right side."""

_CORD_A_MM = {-250: -72, -190: -52, -160: -39, -125: -22, -100: -13, -80: -9, -45: -5, -20: -2}

FAT_HU = -100.0
MUSCLE_HU = 55.0
WATER_HU = 8.0


def cord_a_mm(s: FloatArray) -> FloatArray:
    """Return coordinate a of the spinal cord's centre: cervical lordosis, then thoracic kyphosis."""
    levels = sorted(_CORD_A_MM)
    return np.asarray(PchipInterpolator(levels, [_CORD_A_MM[p] for p in levels])(s))


@dataclass
class PhantomPatient:
    """Random anatomy parameters of one synthetic patient.

    Attributes:
        rng: Random numbers of this patient; they do not depend on the grid.
        skin: Outline of the body.
        fat_mm: Thickness of the fat under the skin, in head and neck.
        contrast_hu: HU of the vessels, with or without contrast medium.
    """

    rng: np.random.Generator
    fat_mm: float = 0.0
    contrast_hu: float = 0.0
    skin: Union = field(init=False)

    def __post_init__(self) -> None:
        self.fat_mm = float(self.rng.uniform(3.0, 6.5))
        self.contrast_hu = float(self.rng.choice([48.0, 150.0]))
        self.skin = self._outline()

    def jitter(self, point: PointMm, by_mm: float = 1.5) -> PointMm:
        """Return a random point within `by_mm` of `point` along each axis."""
        left, a, s = np.array(point) + self.rng.uniform(-by_mm, by_mm, 3)
        return float(left), float(a), float(s)

    def vary(self, value: float, share: float = 0.07) -> float:
        """Return `value`, randomly changed by up to `share` of it."""
        return float(value * self.rng.uniform(1 - share, 1 + share))

    def blob(
        self, centre: PointMm, radii: PointMm, *, power: float = 2.0, yaw_deg: float = 0.0,
        pitch_deg: float = 0.0,
    ) -> Ellipsoid:  # fmt: skip
        """Return a random ellipsoid close to the given one, so that left and right organs differ slightly."""
        left, a, s = (self.vary(radius) for radius in radii)
        turn = self.rng.uniform(-5, 5, 2)
        yaw, pitch = yaw_deg + float(turn[0]), pitch_deg + float(turn[1])
        return Ellipsoid(self.jitter(centre), (left, a, s), power, yaw, pitch)

    def _outline(self) -> Union:
        """Return head, face, neck, shoulders, nose and ears as one shape."""
        jaw, neck = self.vary(1, 0.04), self.vary(1, 0.07)
        head = Column(
            [
                (-58, 30, -70, -10), (-46, 52, -84, 20), (-30, 67, -94, 60), (-10, 76, -100, 88),
                (15, 80, -102, 97), (40, 80, -100, 99), (65, 75, -92, 94), (85, 61, -74, 78),
                (100, 38, -44, 50), (108, 8, -6, 14),
            ],
            power=2.3,
        )  # fmt: skip
        face = Column(
            [
                (-102, 26 * jaw, 20, 62), (-95, 42 * jaw, 0, 90), (-84, 55 * jaw, -20, 105),
                (-70, 65 * jaw, -34, 108), (-50, 71 * jaw, -40, 110), (-30, 73, -40, 106),
                (-12, 74, -40, 102), (12, 72, -40, 98), (30, 66, -40, 96),
            ],
            power=2.2,
        )  # fmt: skip
        trunk = Column(
            [
                (-260, 230, -126, 66), (-215, 222, -126, 62), (-190, 205, -125, 54),
                (-176, 178, -121, 46), (-165, 135, -115, 41), (-154, 92, -108, 40),
                (-140, 66 * neck, -95, 44), (-122, 58 * neck, -85, 53), (-104, 56 * neck, -78, 57),
                (-85, 58 * neck, -76, 62), (-60, 60 * neck, -80, 40), (-40, 58, -86, 30),
            ],
            power=2.4,
        )  # fmt: skip
        nose = Tube([(0, 98, 14), (0, 116, -17), (0, 104, -26)], [6, 10, 9])
        ears = [self.blob((78 * side, -8, -14), (8, 17, 29), yaw_deg=-22 * side) for side in SIDES]
        return Union([head, face, trunk, nose, *ears])


_MASK_SHARE = 0.6
"""Share of patients with a thermoplastic mask."""

_FAR_MM = 60.0
"""Distance in mm from the skin that replaces all larger distances."""


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
        current = distance[region]
        np.minimum(current, part.distance(canvas.points_in(region)), out=current)
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
