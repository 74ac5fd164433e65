"""The neck and the shoulders: muscles, spine, cord, airway, larynx, esophagus, vessels, bones."""

import numpy as np

from phantom.canvas import Canvas
from phantom.head import AIR_HU, BONE_HU
from phantom.patient import MUSCLE_HU, SIDES, WATER_HU, PhantomPatient, cord_a_mm
from phantom.shapes import Column, Difference, Ellipsoid, Intersection, PointMm, Tube, Union

FLOOR_MM = -260.0
"""Coordinate s in mm of the lower end of long structures, below any field of view."""


def beside_cord(left: float, a: float, s: float) -> PointMm:
    """Return the point `a` mm in front of the spinal cord, at height `s`."""
    return left, a + float(cord_a_mm(np.array(s))), s


def paint_muscles(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the muscles of the neck and the shoulders."""
    for side in SIDES:
        k = patient.vary(1, 0.1)
        deep = Column(
            [(FLOOR_MM, 30, -44, 6), (-150, 26, -42, 2), (-90, 21 * k, -46 * k, -6),
             (-60, 24 * k, -50, -12), (-42, 24 * k, -54, -22)],
            cord_a_mm, 20.0 * side, 2.4,
        )  # fmt: skip
        canvas.paint(deep, MUSCLE_HU, texture=14)
        trapezius = [(14, -62, -60), (32, -62, -110), (70, -84, -158), (150, -70, -178)]
        line = [patient.jitter((left * side, a, s), 2) for left, a, s in trapezius]
        shape = Intersection(Tube(line, [5, 8, 12, 12]), patient.skin, patient.fat_mm)
        canvas.paint(shape, MUSCLE_HU, texture=8)
        scalene = [
            beside_cord(20 * side, 18, -70),
            beside_cord(30 * side, 16, -130),
            beside_cord(44 * side, 20, -185),
        ]
        canvas.paint(Tube(scalene, [6, 9, 11]), MUSCLE_HU, texture=8)
        line = [beside_cord(9 * side, 29, s) for s in (-45, -90, -150)]
        canvas.paint(Tube(line, [4.5], (1.6, 1, 1)), MUSCLE_HU)  # longus colli
        line = [
            patient.jitter(p, 2)
            for p in (
                (59.0 * side, -16.0, -40.0),
                (46.0 * side, 4.0, -95.0),
                (16.0 * side, 34.0, -172.0),
            )
        ]
        canvas.paint(Tube(line, [7, 8.5, 6.5], (0.9, 1.4, 1)), 58, texture=6)  # sternocleidomastoid
        for centre, radii in (((118, -52, -196), (56, 38, 26)), ((180, -40, -215), (44, 56, 50)),
                              ((80, 30, -215), (70, 18, 36)), ((60, -95, -205), (58, 22, 50))):  # fmt: skip
            centre_of_side = (centre[0] * side, float(centre[1]), float(centre[2]))
            canvas.paint(
                Intersection(patient.blob(centre_of_side, radii), patient.skin, patient.fat_mm),
                MUSCLE_HU,
                texture=12,
            )


def paint_spine(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the vertebrae with their discs and arches, the canal, and the cord."""
    k = patient.vary(1, 0.06)
    bodies = Column(
        [(FLOOR_MM, 17 * k, 8, 32), (-130, 14 * k, 8, 27.5), (-48, 11 * k, 8, 26)],
        cord_a_mm,
        0.0,
        2.6,
    )
    canvas.paint(bodies, 650, texture=60)
    canvas.paint(bodies, 280, grow_mm=-2.5, texture=60)
    canvas.paint(Tube([(0, 12, -36), (0, 10, -50)], [5, 7]), 800)  # dens
    s, number = -50.0, 0
    while s > -240:
        _paint_vertebra(canvas, patient, s)
        height = 17.0 + 0.6 * number
        if number:
            disc = beside_cord(0, 17.5, s + height / 2)
            canvas.paint(Ellipsoid(disc, (15 * k, 10.5, 2.4), 3, pitch_deg=8), 85)
        s, number = s - height, number + 1
    canal = Column([(FLOOR_MM, 10, -7.5, 8), (-60, 11.5, -8, 8.5), (-34, 13, -9, 9)], cord_a_mm)
    canvas.paint(canal, WATER_HU)
    thick = patient.vary(1, 0.06)
    cord = Column(
        [(FLOOR_MM, 7 * thick, -5.6 * thick, 5.6 * thick), (-110, 8 * thick, -6 * thick, 6 * thick),
         (-34, 7.2 * thick, -6 * thick, 6 * thick)],
        cord_a_mm,
    )  # fmt: skip
    canvas.paint(cord, 38, "SpinalCord")


def _paint_vertebra(canvas: Canvas, patient: PhantomPatient, s: float) -> None:
    tip = beside_cord(float(patient.rng.uniform(-2, 2)), -38, s - 11)
    parts = [Tube([beside_cord(0, -13, s - 3), tip], [4, 3.5], (0.9, 1, 1.3))]
    for side in SIDES:
        pillar = [beside_cord(16 * side, 0, s + 5), beside_cord(16 * side, -3, s - 5)]
        wing = [beside_cord(13 * side, 11, s), patient.jitter(beside_cord(27 * side, 7, s - 2), 1)]
        lamina = [beside_cord(15 * side, -4, s - 2), beside_cord(0, -13, s - 4)]
        parts += [Tube(pillar, [5]), Tube(wing, [3.5]), Tube(lamina, [3.6], (1, 1, 1.4))]
    canvas.paint(Union(parts), 600, texture=120)


def paint_airway(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the esophagus, the larynx and its cartilages, the thyroid, and the air from nose to lungs."""
    k, width = patient.vary(1, 0.06), patient.vary(1, 0.1)
    rows = [(-124, 12, 38, 60), (-118, 15, 35, 63), (-108, 18, 32, 66), (-98, 18, 33, 64),
            (-90, 15, 37, 60), (-87, 11, 40, 57)]  # fmt: skip
    larynx = Column([(s, hw * k, b, f) for s, hw, b, f in rows], cord_a_mm)
    canvas.paint(larynx, 58, "Larynx", texture=6)
    _paint_cartilages(canvas, patient, k)
    r = patient.vary(1, 0.08)
    off_l = float(patient.rng.uniform(0, 4))
    esophagus = Column(
        [(FLOOR_MM, 11 * r, 29, 42), (-140, 11 * r, 29, 42), (-126, 10 * r, 30, 41.5)],
        cord_a_mm,
        off_l,
    )
    canvas.paint(esophagus, 28, "Esophagus", texture=6)
    bubble = float(patient.rng.uniform(-185, -140))
    if patient.rng.random() < 0.5:
        canvas.paint(Ellipsoid(beside_cord(off_l, 36, bubble), (4, 2.5, 14)), -700)
    for side in SIDES:
        thyroid = patient.blob(beside_cord(17 * side, 46, -138), (7.5, 10, 19))
        canvas.paint(thyroid, 115, texture=8)
    airway = Column(
        [
            (FLOOR_MM, 9, 43, 60), (-126, 8.5 * width, 43, 59), (-118, 8 * width, 42, 57),
            (-112, 4.5, 43, 57), (-107, 2.5, 43, 58), (-101, 6, 41, 55), (-92, 8 * width, 37, 51),
            (-80, 11 * width, 33, 46), (-62, 11 * width, 32, 44), (-45, 11 * width, 31, 42),
            (-30, 12, 31, 44), (-12, 11, 36, 49),
        ],
        cord_a_mm,
    )  # fmt: skip
    canvas.paint(airway, 45, grow_mm=2.5)
    canvas.paint(airway, AIR_HU)
    canvas.paint(patient.blob((0, 33, -82), (8, 1.6, 9), pitch_deg=-15), 60)  # epiglottis


def _paint_cartilages(canvas: Canvas, patient: PhantomPatient, k: float) -> None:
    chalk_hu = float(patient.rng.uniform(120, 320))
    for side in SIDES:
        wing = [
            beside_cord(15 * side * k, 40, -106),
            beside_cord(12 * side * k, 54, -106),
            beside_cord(0, 64, -106),
        ]
        canvas.paint(Tube(wing, [1.7], (1, 1, 6)), chalk_hu, texture=80)  # thyroid cartilage
        hyoid = [
            patient.jitter(p, 1) for p in ((18.0 * side, 28.0, -85.0), (12.0 * side, 43.0, -88.0))
        ]
        canvas.paint(Tube([*hyoid, (0, 47, -89)], [2, 2.4, 2.8]), 500)
        canvas.paint(
            patient.blob(beside_cord(9 * side, 52, -102), (3, 6, 6)), -40
        )  # paraglottic fat
    ring = Column([(-123, 11.5 * k, 39, 60), (-115, 11.5 * k, 38, 60)], cord_a_mm)
    canvas.paint(ring, chalk_hu, texture=60)
    canvas.paint(ring, 55, grow_mm=-2.2)


def paint_vessels(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint the carotid arteries and the jugular veins, with or without contrast medium."""
    for side in SIDES:
        line = [beside_cord(20 * side, 40, FLOOR_MM), beside_cord(24 * side, 40, -150),
                beside_cord(27 * side, 36, -95), patient.jitter((34 * side, 20, -50))]  # fmt: skip
        canvas.paint(Tube(line, [4, 3.8, 4.2, 2.6]), patient.contrast_hu)
        wide = patient.vary(5.0, 0.3)
        line = [beside_cord(30 * side, 40, FLOOR_MM), beside_cord(35 * side, 37, -150),
                beside_cord(37 * side, 28, -95), patient.jitter((38 * side, 10, -46))]  # fmt: skip
        canvas.paint(Tube(line, [wide + 1, wide, wide, 3.5], (1, 0.9, 1)), patient.contrast_hu - 3)


def paint_shoulders(canvas: Canvas, patient: PhantomPatient) -> None:
    """Paint collarbones, shoulder blades, upper arms, first ribs and the tips of the lungs."""
    for side in SIDES:
        lung = patient.blob((46 * side, -36, -206), (32, 42, 33))
        canvas.paint(lung, -850, texture=40)
        rib = [(20, -62, -170), (52, -62, -176), (62, -22, -186), (36, 22, -196)]
        canvas.paint(Tube([(left * side, a, s) for left, a, s in rib], [3.6]), 550)
        collarbone = [(16, 32, -184), (60, 24, -176), (120, -22, -168), (160, -36, -172)]
        line = [patient.jitter((left * side, a, s), 2) for left, a, s in collarbone]
        canvas.paint(Tube(line, [6.5, 5.5, 5.5, 6]), BONE_HU)
        canvas.paint(Tube(line, [3.5, 2.6, 2.6, 3]), 350)
        blade = [(92, -88, -186), (140, -72, -176), (165, -52, -178)]
        canvas.paint(Tube([(left * side, a, s) for left, a, s in blade], [4], (1, 1, 2)), 650)
        arm = patient.blob((182 * side, -38, -204), (24, 24, 24))
        canvas.paint(arm, BONE_HU)
        canvas.paint(arm, 300, grow_mm=-3)
    canvas.paint(
        Difference(Ellipsoid((0, 40, -215), (30, 9, 24)), Ellipsoid((0, 60, -190), (10, 20, 8))),
        400,
    )
