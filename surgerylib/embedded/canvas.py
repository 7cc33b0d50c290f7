"""What scenes are drawn with: colours, shapes, a canvas under one sun, and local frames on it.

Units: a scene is 448 units wide whatever its size in pixels. A drawer works in a local frame whose x axis is the
object's long axis and whose unit is half the object's length, so that most shapes live in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np

Color = tuple[int, int, int]
UNITS = 448.0  # width of a scene in scene units
SHIFT = 4  # fixed-point bits that OpenCV gets, for edges between pixels

CONCRETE, ASPHALT, WHITE, LAWN = (176, 174, 168), (88, 89, 92), (236, 236, 232), (92, 136, 66)
ROOFS = ((206, 204, 200), (150, 152, 156), (170, 92, 72), (120, 110, 104), (196, 178, 148), (96, 122, 150))
PAINTS = ((232, 232, 230), (232, 232, 230), (40, 42, 46), (176, 34, 34), (40, 84, 168), (206, 180, 60), (150, 154, 160))


def jitter(rng: np.random.Generator, color: Sequence[int], amount: float = 10) -> Color:
    """The colour, a little lighter or darker and a little off in hue."""
    shifted = np.asarray(color) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    return tuple(np.clip(shifted, 0, 255).astype(int).tolist())


def pick(rng: np.random.Generator, palette: Sequence[Color], amount: float = 8) -> Color:
    """One colour of a palette, jittered."""
    return jitter(rng, palette[int(rng.integers(len(palette)))], amount)


def circle(x: float, y: float, rx: float, ry: float | None = None, n: int = 28, arc=(0.0, 2 * math.pi)) -> np.ndarray:
    """Points of an ellipse or of one of its arcs, [n, 2]."""
    t = np.linspace(*arc, n)
    return np.stack([x + rx * np.cos(t), y + (rx if ry is None else ry) * np.sin(t)], 1)


def left_of(direction: np.ndarray) -> np.ndarray:
    """The direction [2] turned by a right angle."""
    return np.array([-direction[1], direction[0]])


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Corners of a rectangle around its centre, [4, 2]."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2) + (x, y)


def blob(rng: np.random.Generator, x: float, y: float, rx: float, ry: float, rough: float = 0.18) -> np.ndarray:
    """A smooth closed blob around (x, y), [32, 2]."""
    t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    radius = 1 + sum(rough / k * rng.normal() * np.cos(k * t + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    return np.stack([x + rx * radius * np.cos(t), y + ry * radius * np.sin(t)], 1)


class Canvas:
    """An RGB image [size, size, 3] uint8 that is drawn on in scene units, under one sun."""

    def __init__(self, size: int, sun: tuple[float, float], shade: float) -> None:
        self.image = np.zeros((size, size, 3), np.uint8)
        self.size = size
        self.scale = size / UNITS
        self.sun = np.asarray(sun)  # shadow per unit of height
        self.sunward = self.sun / np.hypot(*self.sun)
        self.shade = shade  # brightness left in a shadow

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        # OpenCV puts (0, 0) on the centre of the first pixel, boxes put it on its corner
        return np.rint((np.asarray(points) * self.scale - 0.5) * (1 << SHIFT)).astype(np.int32)

    def fill(self, points: np.ndarray, color: Color) -> None:
        """Fill an antialiased polygon [n, 2]."""
        cv2.fillPoly(self.image, [self._fixed(points)], color, cv2.LINE_AA, SHIFT)

    def tint(self, polygons: list[np.ndarray], color: Color, alpha: float, soft: float = 0.0) -> None:
        """Blend a colour over the union of polygons; `soft` blurs the edge, in units."""
        corners = np.concatenate(polygons) * self.scale
        x0, y0 = np.maximum(np.floor(corners.min(0) - 3 * soft - 2), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(corners.max(0) + 3 * soft + 2), self.size).astype(int)
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        origin = np.array([x0, y0], np.int32) << SHIFT
        for polygon in polygons:
            cv2.fillPoly(mask, [self._fixed(polygon) - origin], 255, cv2.LINE_AA, SHIFT)
        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft * self.scale)
        part = self.image[y0:y1, x0:x1]
        weight = (mask.astype(np.float32) * (alpha / 255))[..., None]
        part[:] = np.rint(part + (np.float32(color) - part) * weight)

    def shadow(self, points: np.ndarray, height: float, base: float = 0.0, convex: bool = True) -> None:
        """Darken where a shape that stands from `base` to `height` (units) keeps the sun off the ground."""
        swept = [points + self.sun * h for h in ((base, height) if convex else np.linspace(base, height, 5))]
        if convex:
            swept = [cv2.convexHull(np.concatenate(swept).astype(np.float32))[:, 0]]
        self.darken(swept)

    def darken(self, polygons: list[np.ndarray], soft: float = 0.6) -> None:
        """Lay a shadow over the union of polygons."""
        self.tint(polygons, (16, 20, 34), 1 - self.shade, soft)


@dataclass
class Frame:
    """A local frame on a canvas; remembers how far the object reaches, which gives its box."""

    canvas: Canvas
    x: float
    y: float
    angle: float
    unit: float
    extent: list[np.ndarray] = field(default_factory=list)
    slots: list[tuple[str, float, float, float, float]] = field(default_factory=list)

    def world(self, points: np.ndarray) -> np.ndarray:
        """Local points -> scene units."""
        c, s = math.cos(self.angle) * self.unit, math.sin(self.angle) * self.unit
        return np.asarray(points, float) @ np.array([[c, s], [-s, c]]) + (self.x, self.y)

    def point(self, x: float, y: float) -> np.ndarray:
        """A local point in scene units."""
        return self.world(np.array([[x, y]]))[0]

    def area(self, width: float, height: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
        """Corners of a local rectangle around (x, y), in scene units."""
        return self.world(rectangle(x, y, width, height))

    def poly(self, points, color: Color, height=0.0, base=0.0, part=True, convex=True) -> None:
        """Fill a local polygon; `part=False` for ground that the object's box does not include."""
        points = self.world(points)
        if height:
            self.canvas.shadow(points, height * self.unit, base * self.unit, convex)
        self.canvas.fill(points, color)
        if part:
            self.extent.append(points)

    def rect(self, x, y, width, height, color: Color, tall=0.0, part=True, base=0.0) -> None:
        """Fill a local rectangle around (x, y), `tall` high."""
        self.poly(rectangle(x, y, width, height), color, tall, base, part)

    def disc(self, x, y, radius, color: Color, tall=0.0, part=True) -> None:
        """Fill a local disc."""
        self.poly(circle(x, y, radius), color, tall, 0.0, part)

    def line(self, points, width, color: Color, closed=False) -> None:
        """Draw a local polyline of at least 0.8 units width, so that markings survive."""
        pts = np.asarray([*points, points[0]] if closed else points, float)
        half = max(width, 0.8 / self.unit) / 2
        for a, b in pairwise(pts):
            d = b - a
            along = d / max(float(np.hypot(*d)), 1e-6)
            n = left_of(along) * half
            self.poly([a + n, b + n, b - n, a - n], color, part=False)

    def border(self, x, y, width, height, line_width, color: Color) -> None:
        """Draw the outline of a local rectangle around (x, y)."""
        self.line(rectangle(x, y, width, height), line_width, color, closed=True)

    def slot(self, name: str, x: float, y: float, angle: float, length: float) -> None:
        """Offer a place for a companion of another class: local place and angle, length in units."""
        wx, wy = self.point(x, y)
        self.slots.append((name, float(wx), float(wy), self.angle + angle, length))


def mirror(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """A half outline and its mirror image across the x axis: a closed polygon."""
    half = np.array(points, float)
    return np.concatenate([half, half[::-1] * (1, -1)])


def dim(color: Color, factor: float) -> Color:
    """The colour, `factor` times as bright."""
    return tuple(min(int(c * factor), 255) for c in color)
