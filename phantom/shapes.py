"""Analytic shapes with signed distance functions: ellipsoids, tubes, columns and their combinations.

Points are `(left, a, s)` in mm: towards the patient's left, anterior and superior. A distance is negative
inside, and accurate enough near the surface to mix the tissues of one voxel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.interpolate import PchipInterpolator

from lib.imaging.quantities import FloatArray

PointMm = tuple[float, float, float]
"""Coordinates left, a, s in mm."""

Curve = Callable[[FloatArray], FloatArray]
"""Coordinate in mm as a function of s."""

BoxMm = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Lowest and highest left, a and s, in mm."""

Points = tuple[FloatArray, FloatArray, FloatArray]
"""Arrays of left, a and s that broadcast to one shape."""

_TINY = np.float32(1e-6)


class Shape(Protocol):
    """Shape with a bounding box and a signed distance."""

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance of `points` in mm, negative inside."""


@dataclass(frozen=True)
class Ellipsoid:
    """A superellipsoid around `centre`.

    Attributes:
        centre: left, a, s.
        radii: Half the size along each of its axes.
        power: Exponent; 2 is an ellipsoid, larger values approach a box.
        yaw_deg: Rotation about the s axis, from left towards a.
        pitch_deg: Rotation about the left axis, from a towards s; applied before the yaw.
    """

    centre: PointMm
    radii: PointMm
    power: float = 2.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        is_turned = bool(self.yaw_deg or self.pitch_deg)
        reach = (max(self.radii),) * 3 if is_turned else self.radii
        low = [c - r for c, r in zip(self.centre, reach, strict=True)]
        high = [c + r for c, r in zip(self.centre, reach, strict=True)]
        return (low[0], high[0]), (low[1], high[1]), (low[2], high[2])

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance along the ray from the centre."""
        left, a, s = (p - np.float32(c) for p, c in zip(points, self.centre, strict=True))
        if self.yaw_deg:
            left, a = _turn(left, a, self.yaw_deg)
        if self.pitch_deg:
            a, s = _turn(a, s, self.pitch_deg)
        scaled = [p / np.float32(r) for p, r in zip((left, a, s), self.radii, strict=True)]
        return _along_ray(np.sqrt(left * left + a * a + s * s), _norm(scaled, self.power))


@dataclass(frozen=True)
class Tube:
    """A tube along a line through `points`.

    Attributes:
        points: Corners of the centreline, two or more.
        radii: Radius at each corner, in mm; a single value applies to all.
        stretch: Scale of the radius along left, a, s.
    """

    points: Sequence[PointMm]
    radii: Sequence[float]
    stretch: PointMm = (1.0, 1.0, 1.0)

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        corners = np.array(self.points)
        reach = max(self.radii) * np.array(self.stretch)
        low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
        return (
            (float(low[0]), float(high[0])),
            (float(low[1]), float(high[1])),
            (float(low[2]), float(high[2])),
        )

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance, in units of the tube's unstretched direction."""
        corners = (np.array(self.points) / self.stretch).astype(np.float32)
        radii = np.broadcast_to(np.array(self.radii, np.float32), (len(corners),))
        scaled = [p / np.float32(w) for p, w in zip(points, self.stretch, strict=True)]
        nearest: FloatArray = np.array(np.inf, np.float32)
        for start, stop, first, last in zip(
            corners[:-1], corners[1:], radii[:-1], radii[1:], strict=True
        ):
            direction = stop - start
            relative = [p - c for p, c in zip(scaled, start, strict=True)]
            share = sum(r * w for r, w in zip(relative, direction, strict=True)) / max(
                direction @ direction, _TINY
            )
            share = np.clip(share, 0, 1)
            off = sum((r - share * w) ** 2 for r, w in zip(relative, direction, strict=True))
            distance = np.sqrt(off) - (first + share * (last - first))
            nearest = np.minimum(nearest, distance)
        return nearest


@dataclass(frozen=True)
class Column:
    """A stack of superellipses along s.

    Attributes:
        sections: Rows of s, half width, back, front, by ascending s; back and front are values of a.
        shift_a: Function of s that is added to back and front, for a curved column.
        centre_l: Coordinate left of every section's centre.
        power: See `Ellipsoid`.
    """

    sections: Sequence[tuple[float, float, float, float]]
    shift_a: Curve | None = None
    centre_l: float = 0.0
    power: float = 2.0

    @cached_property
    def _table(self) -> FloatArray:
        """Rows s, half width, back, front, in steps of half a millimetre."""
        rows = np.array(self.sections)
        s = np.arange(rows[0, 0], rows[-1, 0] + 0.25, 0.5)
        table = np.vstack([s, PchipInterpolator(rows[:, 0], rows[:, 1:])(s).T])
        if self.shift_a is not None:
            table[2:] += self.shift_a(s)
        return table

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        s, width, back, front = self._table
        half = float(width.max())
        return (
            (self.centre_l - half, self.centre_l + half),
            (float(back.min()), float(front.max())),
            (float(s[0]), float(s[-1])),
        )

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance within the section, or to the nearer end."""
        left, a, s = points
        table = self._table
        width, back, front = (np.interp(s, table[0], row).astype(np.float32) for row in table[1:])
        half = np.maximum((front - back) / 2, _TINY)
        left, a = left - np.float32(self.centre_l), a - (front + back) / 2
        k = _norm([left / np.maximum(width, _TINY), a / half], self.power)
        inside = _along_ray(np.sqrt(left * left + a * a), k)
        low, high = table[0, [0, -1]].astype(np.float32)
        return np.asarray(np.maximum(inside, np.maximum(low - s, s - high)))

    def grown(self, by_mm: float) -> "Column":
        """Return this column grown by `by_mm`, also at its ends."""
        s, width, back, front = self._table
        step = float(s[1] - s[0])
        reach = int(by_mm / step)
        wide = np.arange(s[0] - reach * step, s[-1] + reach * step + step / 2, step)
        out = np.full((3, len(wide)), -np.inf)
        for offset in range(-reach, reach + 1):
            bulge = np.sqrt(max(by_mm**2 - (offset * step) ** 2, 0.0))
            part = out[:, reach + offset : reach + offset + len(s)]
            np.maximum(part, np.stack([width, -back, front]) + bulge, out=part)
        rows = np.stack([wide, out[0], -out[1], out[2]], axis=1)
        return Column([tuple(row) for row in rows.tolist()], None, self.centre_l, self.power)


@dataclass(frozen=True)
class Union:
    """Union of all parts."""

    parts: Sequence[Shape]

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        boxes = np.array([part.box for part in self.parts])
        low, high = boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)
        return (
            (float(low[0]), float(high[0])),
            (float(low[1]), float(high[1])),
            (float(low[2]), float(high[2])),
        )

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance to the nearest part."""
        return np.asarray(np.minimum.reduce([part.distance(points) for part in self.parts]))


@dataclass(frozen=True)
class Difference:
    """The part of `shape` at a distance of `gap_mm` or more outside `tool`."""

    shape: Shape
    tool: Shape
    gap_mm: float = 0.0

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        return self.shape.box

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance to the remaining shape."""
        rest = np.float32(self.gap_mm) - self.tool.distance(points)
        return np.asarray(np.maximum(self.shape.distance(points), rest))


@dataclass(frozen=True)
class Intersection:
    """Intersection of two shapes, the second one shrunk by `inset_mm`."""

    shape: Shape
    other: Shape
    inset_mm: float = 0.0

    @property
    def box(self) -> BoxMm:
        """Bounding box of the shape."""
        return self.shape.box

    def distance(self, points: Points) -> FloatArray:
        """Return the signed distance to the intersection."""
        inner = self.other.distance(points) + np.float32(self.inset_mm)
        return np.asarray(np.maximum(self.shape.distance(points), inner))


def _turn(u: FloatArray, v: FloatArray, angle_deg: float) -> tuple[FloatArray, FloatArray]:
    """Return the coordinates in axes rotated by `angle_deg` from u towards v."""
    c, s = np.float32(np.cos(np.deg2rad(angle_deg))), np.float32(np.sin(np.deg2rad(angle_deg)))
    return c * u + s * v, c * v - s * u


def _norm(parts: Sequence[FloatArray], power: float) -> FloatArray:
    if power == 2:
        return np.asarray(np.sqrt(sum(part * part for part in parts)))
    total = sum(np.abs(part) ** np.float32(power) for part in parts)
    return np.asarray(total ** np.float32(1 / power))


def _along_ray(radius: FloatArray, k: FloatArray) -> FloatArray:
    """Return the distance to the surface (`k` = 1) along the ray."""
    k = np.maximum(k, _TINY)
    return np.asarray(radius - radius / k)
