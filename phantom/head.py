"""The head of the phantom: skull, brain, orbits and nose; jaws, teeth, mouth and salivary glands."""

from collections.abc import Sequence

import numpy as np

from phantom.canvas import Canvas
from phantom.patient import FAT_HU, MUSCLE_HU, SIDES, WATER_HU, PhantomPatient
from phantom.shapes import Column, Difference, Ellipsoid, Intersection, PointMm, Tube, Union

AIR_HU = -1000.0
BONE_HU = 950.0


def paint_skull(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the vault, the skull base, the temporal muscles, and the brain with its ventricles."""
    for side in SIDES:
        canvas.paint(patient.blob((63 * side, 32, 12), (11, 30, 32)), MUSCLE_HU, texture=8)
    wide, long, vault = patient.vary(1, 0.04), patient.vary(1, 0.04), patient.vary(6.0, 0.15)
    cavity = Column(
        [
            (-41, 17, -26, 8), (-36, 34 * wide, -56, 11), (-26, 48 * wide, -72 * long, 13),
            (-12, 56 * wide, -82 * long, 16), (-3, 63 * wide, -87 * long, 28),
            (6, 68 * wide, -89 * long, 42), (20, 70 * wide, -90 * long, 50),
            (28, 71 * wide, -90 * long, 72), (36, 71 * wide, -90 * long, 86),
            (50, 70 * wide, -87 * long, 87), (70, 63 * wide, -76, 78), (88, 44, -48, 54),
            (98, 8, -6, 16),
        ],
        power=2.3,
    )  # fmt: skip
    canvas.paint(cavity.grown(vault), BONE_HU, texture=60)
    canvas.paint(cavity.grown(vault * 0.7), 550, texture=60)  # diploe between two hard tables
    canvas.paint(cavity.grown(vault * 0.35), BONE_HU + 150)
    for side in SIDES:
        petrous = [
            (16.0 * side, 16.0, -12.0),
            (44.0 * side, -2.0, -13.0),
            (62.0 * side, -14.0, -20.0),
        ]
        canvas.paint(Tube(petrous, [7, 10, 13]), 900, texture=200)
        canvas.paint(
            patient.blob((62 * side, -18, -26), (8, 9, 13)), -300, texture=420
        )  # air cells
        canvas.paint(Tube([(88 * side, -4, -16), (52 * side, -3, -14)], [3.6]), AIR_HU)
        canvas.paint(patient.blob((18 * side, -10, -40), (7, 13, 5)), 850)  # occipital condyle
    clivus = Tube([(0, 13, -34), (0, 25, -8), (0, 32, 2)], [5, 7, 9], (1.7, 1, 1))
    canvas.paint(clivus, 700, texture=80)
    canvas.paint(cavity, 20, texture=6)
    canvas.paint(cavity, 36, grow_mm=-2.5, texture=6)
    canvas.paint(Ellipsoid((0, -10, 62), (0.9, 80, 36)), 60)  # falx
    _paint_ventricles(canvas, patient)


def _paint_ventricles(canvas: Canvas, patient: PhantomPatient) -> None:
    size = patient.vary(1, 0.25)
    for side in SIDES:
        canvas.paint(patient.blob((26 * side, -46, -14), (26, 28, 20)), 40, texture=6)  # cerebellum
        horns = [(9, 36, 40), (8, 12, 47), (14, -24, 46), (22, -38, 36), (17, -58, 34)]
        line = [patient.jitter((left * side, a, s)) for left, a, s in horns]
        canvas.paint(Tube(line, [3.5 * size, 5 * size, 6 * size, 6 * size, 2.5]), 5)
    canvas.paint(Ellipsoid((0, 6, 32), (2 * size, 12, 9)), 5)  # third ventricle
    canvas.paint(patient.blob((0, -20, -6), (8, 4.5, 9)), 5)  # fourth ventricle
    canvas.paint(patient.blob((0, -19, 19), (13, 5, 6)), 5)  # quadrigeminal cistern


def paint_brainstem(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the brainstem, between the cistern in front of it and the fourth ventricle."""
    canvas.paint(Column([(-36, 12, -2, 12), (-10, 16, 0, 16), (10, 16, 0, 17)]), WATER_HU)
    k = patient.vary(0.92, 0.05)
    stem = [
        (-33, 7.5 * k, -9 * k, 5 * k), (-24, 8.5 * k, -10 * k, 6.5 * k), (-13, 12 * k, -13 * k, 9 * k),
        (-8, 16 * k, -16 * k, 11.5 * k), (4, 17 * k, -16 * k, 12.5 * k), (12, 15 * k, -14 * k, 12 * k),
        (20, 14 * k, -13 * k, 9 * k), (26, 12.5 * k, -12 * k, 7 * k),
    ]  # fmt: skip
    canvas.paint(Column(stem, power=2.2), 30, "Brainstem", texture=2)


def paint_orbits(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint sphenoid, orbits, eyes, eye muscles, optic nerves and their chiasm."""
    canvas.paint(patient.blob((0, 43, 7), (17, 14, 14), power=3), 650, texture=80)
    canvas.paint(patient.blob((0, 44, 3), (12, 9, 8), power=3), AIR_HU)  # sphenoid sinus
    canvas.paint(Ellipsoid((0, 24, 25), (14, 12, 7)), WATER_HU)
    thick = patient.vary(2.35, 0.06)
    arms = [(5.4, 27.0, 23.6), (0.0, 23.0, 25.0), (5.4, 18.0, 27.2)]
    drop_mm = float(patient.rng.uniform(-1.5, 1.5))
    chiasm = Union([
        Tube([(left * side, a, s + drop_mm) for left, a, s in arms], [thick])
        for side in SIDES
    ])  # fmt: skip
    nerves = {}
    for side, name in zip(SIDES, ("OpticNrv_L", "OpticNrv_R"), strict=True):
        left, a, s = patient.jitter((31 * side, 78, 6), 2)
        cone = Tube(
            [(left, a + 4, s), (left * 0.8, a - 14, s + 1), (14 * side, 42, 14)], [18, 15, 5]
        )
        canvas.paint(cone, BONE_HU, grow_mm=2.5)
        canvas.paint(Union([cone, Ellipsoid((left, 96, s), (18, 14, 15))]), FAT_HU, texture=6)
        for l_off, s_off in ((11, 0), (-10, 0), (0, 11), (0, -11)):
            ends = [
                (left + l_off, a - 2, s + s_off),
                (left * 0.85 + l_off * 0.8, a - 14, s + s_off * 0.8),
            ]
            canvas.paint(Tube([*ends, (16 * side, 44, 14)], [1.6, 2.6, 1.5]), 50)
        bend = patient.jitter((25 * side, 56, 9.5), 1)
        nerve = [
            (left, a - 11, s + 0.5),
            bend,
            (16 * side, 40, 17 + drop_mm / 2),
            (6.5 * side, 28, 23.2 + drop_mm),
        ]
        nerves[name] = Difference(Tube(nerve, [thick]), chiasm)
        canvas.paint(Ellipsoid((left, a, s), (12, 12.2, 12)), 15)
        canvas.paint(Ellipsoid((left, a + 9, s), (4.5, 2.2, 4.5)), 110)  # lens
    for name, shape in nerves.items():
        canvas.paint(shape, 36, name)
    canvas.paint(chiasm, 38, "OpticChiasm")


def paint_nose(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the facial bones around the nasal cavity and the sinuses."""
    for side in SIDES:
        arch = [(34, 88, -14), (54, 74, -16), (65, 46, -12), (67, 14, -12)]
        line = [patient.jitter((left * side, a, s), 1) for left, a, s in arch]
        canvas.paint(Tube(line, [4, 6, 3.2, 3]), BONE_HU, texture=60)  # zygoma
        sinus = patient.blob((29 * side, 69, -18), (13, 16, 15), power=2.6)
        canvas.paint(sinus, 700, grow_mm=2.2)
        canvas.paint(sinus, AIR_HU)
        fluid = float(patient.rng.uniform(-14, 4))
        swollen = Difference(sinus, Ellipsoid((29 * side, 69 + 20, -18), (30, 20 - fluid, 30)))
        canvas.paint(swollen, 25)
        canvas.paint(patient.blob((11 * side, 88, 30), (9, 4, 7)), AIR_HU)  # frontal sinus
    nasal = patient.blob((0, 78, -13), (13, 31, 18), power=2.8)
    canvas.paint(nasal, 500, grow_mm=1.6)
    canvas.paint(
        patient.blob((0, 67, 9), (11, 20, 10), power=3), -450, texture=420
    )  # ethmoid cells
    canvas.paint(nasal, AIR_HU)
    bend_mm = float(patient.rng.uniform(-3, 3))
    canvas.paint(Tube([(0, 106, -14), (bend_mm, 80, -14), (0, 48, -14)], [1.1], (1, 1, 15)), 150)
    for side in SIDES:
        for s, thick in ((-21, 3.6), (-10, 2.6)):
            turbinate = [patient.jitter((8 * side, a, s), 1) for a in (98, 76, 54)]
            canvas.paint(Tube(turbinate, [2, thick, 2]), 45)
    canvas.paint(Tube([(0, 102, 12), (0, 112, -4)], [3.2, 2.2], (1.6, 1, 1)), 700)
    canvas.paint(Ellipsoid((0, 72, -36), (25, 30, 3)), 750)  # hard palate


_ARCH_MM = ((35.0, 54.0), (30.0, 66.0), (22.0, 80.0), (11.0, 90.0), (0.0, 93.0))
"""Coordinates (left, a) in mm along one half of the dental arch, from the last molar to the midline."""

_METAL_SHARE = 0.4
"""Share of patients with a filling or crown that causes streaks."""


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
    k, drop_mm = patient.vary(1, 0.05), float(patient.rng.uniform(-2, 2))
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
        parotid = Intersection(Difference(gland, mandible, 1.5), patient.skin, patient.fat_mm)
        canvas.paint(parotid, fatty_hu, f"Parotid_{name}", texture=12)
        bed = patient.blob((29 * side, 46, -86), (9, 15.5, 15), pitch_deg=15)
        canvas.paint(bed, FAT_HU, grow_mm=3)
        canvas.paint(mandible, 1050)
        canvas.paint(mandible, 620, grow_mm=-2.6)
        canvas.paint(Difference(bed, mandible, 1.0), firm_hu, f"Glnd_Submand_{name}", texture=5)


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
