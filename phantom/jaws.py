"""The jaws, the salivary glands around them, the mouth, and what metal in a tooth does to a CT."""

from collections.abc import Sequence

import numpy as np

from phantom.canvas import Canvas
from phantom.head import AIR_HU
from phantom.patient import FAT_HU, MUSCLE_HU, SIDES, PhantomPatient
from phantom.shapes import Common, Cut, Ellipsoid, PointMm, Tube, Union

_ARCH_MM = ((35.0, 54.0), (30.0, 66.0), (22.0, 80.0), (11.0, 90.0), (0.0, 93.0))
"""left and a along one half of the row of teeth, from the last molar to the midline."""

_METAL_SHARE = 0.4
"""Share of patients with a filling or crown that streaks."""


def paint_jaws(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the muscles of the jaw, the mouth, the mandible, the glands and the teeth."""
    for side in SIDES:
        canvas.paint(patient.blob((58 * side, 40, -54), (8, 15, 25)), 60, texture=8)  # masseter
        canvas.paint(patient.blob((38 * side, 36, -46), (8, 15, 21)), 58, texture=8)  # pterygoids
        canvas.paint(patient.blob((44 * side, 64, -40), (9, 12, 12)), FAT_HU)  # cheek
    canvas.paint(patient.blob((0, 64, -80), (24, 26, 10)), MUSCLE_HU, texture=12)
    canvas.paint(patient.blob((0, 86, -48), (34, 17, 14), power=2.5), 45, texture=8)  # lips, gums
    canvas.paint(patient.blob((0, 68, -58), (24, 28, 17), power=2.4), 62, texture=10)  # tongue
    canvas.paint(patient.blob((0, 38, -42), (11, 6, 5)), 50)  # soft palate
    mouth = float(patient.rng.uniform(1.5, 4.0))
    canvas.paint(Ellipsoid((0, 80, -43), (19, 14, mouth)), AIR_HU)
    mandible = _mandible(patient)
    canvas.paint(mandible, 1050, "Bone_Mandible", texture=60)
    canvas.paint(mandible, 620, grow_mm=-2.6, texture=60)
    _paint_glands(canvas, patient, mandible)
    arch = [(side * left, a, -41.0) for side in SIDES for left, a in _ARCH_MM[::side]]
    canvas.paint(Tube(arch, [5.5]), 700, texture=60)  # maxilla
    _paint_teeth(canvas, patient)


def _mandible(patient: PhantomPatient) -> Union:
    k, drop_mm = patient.about(1, 0.05), float(patient.rng.uniform(-2, 2))
    halves = []
    for side in SIDES:
        body = [(48, 31, -69), (43, 46, -71), (34, 66, -73), (20, 86, -75), (0, 96, -76)]
        line = [(left * side, a, s + drop_mm) for left, a, s in body]
        lean = float(patient.rng.uniform(-1.5, 1.5))
        halves += [
            Tube(line, [6.3 * k], (1, 1, 2.1)),
            Tube([(48 * side, 34, -70), ((51 + lean) * side, 32, -38)], [4.6 * k], (1, 2.9, 1)),
            Tube([((51 + lean) * side, 26, -42), (54 * side, 16, -18)], [6 * k, 5 * k]),
            Tube([((50 + lean) * side, 42, -40), (48 * side, 48, -25)], [5 * k, 3 * k]),
        ]
    return Union(halves)


def _paint_glands(canvas: Canvas, patient: PhantomPatient, mandible: Union) -> None:
    fatty_hu, firm_hu = float(patient.rng.uniform(-15, 20)), float(patient.rng.uniform(42, 60))
    for side, name in zip(SIDES, ("L", "R"), strict=True):
        gland = Union([
            patient.blob((57 * side, 12, -45), (14, 21, 30), yaw_deg=-12 * side),
            patient.blob((50 * side, 7, -45), (11, 13, 22)),
        ])  # fmt: skip
        parotid = Common(Cut(gland, mandible, 1.5), patient.skin, patient.fat_mm)
        canvas.paint(parotid, fatty_hu, f"Parotid_{name}", texture=12)
        bed = patient.blob((29 * side, 46, -86), (9, 15.5, 15), pitch_deg=15)
        canvas.paint(bed, FAT_HU, grow_mm=3)
        canvas.paint(mandible, 1050)
        canvas.paint(mandible, 620, grow_mm=-2.6)
        canvas.paint(Cut(bed, mandible, 1.0), firm_hu, f"Glnd_Submand_{name}", texture=5)


def _paint_teeth(canvas: Canvas, patient: PhantomPatient) -> None:
    has_metal = patient.rng.random() < _METAL_SHARE
    metal: list[PointMm] = []
    steps = np.linspace(0, len(_ARCH_MM) - 1.15, 7)
    for side in SIDES:
        for s in (-46.5, -58.5):
            for step in steps:
                left, a = (
                    float(np.interp(step, range(len(_ARCH_MM)), row))
                    for row in zip(*_ARCH_MM, strict=True)
                )
                is_missing, is_filled = patient.rng.random(2) < (0.12, 0.12)
                hu = float(patient.rng.uniform(1500, 2300))
                if is_missing:
                    continue
                if has_metal and is_filled and step < 4:
                    metal.append((left * side, a, s))
                    hu = 3071
                canvas.paint(Ellipsoid((left * side, a, s), (3.8, 3.8, 7.0), 2.6), hu)
    if metal:
        _streak(canvas, patient, metal)


def _streak(canvas: Canvas, patient: PhantomPatient, metal: Sequence[PointMm]) -> None:
    """Add bright and dark rays in the slices of each filling."""
    for left, a, s in metal:
        region = canvas.region(((-140, 140), (-140, 140), (s - 6, s + 6)))
        points = canvas.points_in(region)
        dl, da, ds = (
            points[0] - np.float32(left),
            points[1] - np.float32(a),
            points[2] - np.float32(s),
        )
        radius, angle = np.hypot(dl, da), np.arctan2(da, dl)
        waves = sum(
            patient.rng.uniform(0.4, 1) * np.cos(int(n) * angle + patient.rng.uniform(0, 6.28))
            for n in patient.rng.choice(np.arange(3, 17), 5, replace=False)
        )
        strength = 220 * np.exp(-radius / 40) * np.exp(-((ds / 4) ** 2))
        inside = canvas.hu[region] > -300
        canvas.hu[region] += np.where(inside, strength * waves, strength * waves / 4).astype(
            np.float32
        )
