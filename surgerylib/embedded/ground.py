"""The ground of a scene, its water, and the finish that makes one photograph of it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from .canvas import UNITS, Canvas, Color, Frame, jitter, pick

GROUNDS: dict[str, tuple[Color, Color]] = {  # two colours that noise blends
    "grass": ((92, 124, 66), (124, 146, 84)),
    "meadow": ((112, 136, 76), (150, 158, 104)),
    "forest": ((48, 78, 44), (74, 104, 58)),
    "soil": ((146, 118, 88), (176, 148, 112)),
    "sand": ((200, 180, 142), (222, 206, 172)),
    "urban": ((146, 140, 132), (168, 164, 156)),
    "industrial": ((126, 124, 122), (156, 152, 146)),
    "steppe": ((116, 112, 88), (146, 138, 112)),
}
WATERS = (
    ((96, 140, 146), (36, 84, 112)),
    ((132, 134, 104), (92, 104, 82)),
    ((84, 150, 156), (24, 70, 110)),
    ((92, 112, 104), (44, 66, 72)),
)


class Ground(NamedTuple):
    """What was laid."""

    kind: str
    angle: float  # of fields or streets, radians
    coarse: np.ndarray  # noise [size, size]


class River(NamedTuple):
    """Where a bridge or dam can stand."""

    center: np.ndarray  # in mid-stream
    angle: float  # across the stream, radians
    half_width: float  # of the water there, in units


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = ((np.arange(size) + 0.5) * (UNITS / size)).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _noise(rng: np.random.Generator, size: int, first: int, octaves: int, falloff: float = 0.55) -> np.ndarray:
    """Smooth noise [size, size] with standard deviation near 1; `first` cells across in the coarsest octave."""
    total = np.zeros((size, size), np.float32)
    norm = 0.0
    for k in range(octaves):
        n = min(first << k, size)
        coarse = rng.standard_normal((n + 1, n + 1), np.float32)
        total += falloff**k * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        norm += falloff ** (2 * k)
    return total / np.float32(0.75 * math.sqrt(norm))


def lay_ground(canvas: Canvas, rng: np.random.Generator) -> Ground:
    """Cover the canvas with one or two kinds of ground."""
    size = canvas.size
    kind = str(rng.choice([*GROUNDS, "fields", "fields"]))
    angle = rng.uniform(0, math.pi)
    coarse, fine = _noise(rng, size, 3, 5), _noise(rng, size, 48, 3, 0.8)
    if kind == "fields":
        base = _fields(rng, size, angle)
    else:
        base = _blend(rng, GROUNDS[kind], coarse)
        if rng.random() < 0.4:  # a second kind of ground takes a part of the scene
            other = _blend(rng, GROUNDS[str(rng.choice(list(GROUNDS)))], coarse[::-1])
            part = np.clip((_noise(rng, size, 2, 4) - rng.uniform(-0.4, 0.9)) * 5, 0, 1)[..., None]
            base += (other - base) * part
    rough = 9.0 if kind in ("forest", "soil") else 5.0
    base += (rough * fine + 3 * coarse)[..., None]
    canvas.image[:] = np.clip(base, 0, 255).astype(np.uint8)
    if kind == "urban":
        color, town = jitter(rng, (112, 112, 114), 8), Frame(canvas, UNITS / 2, UNITS / 2, angle, 1)
        for k in np.arange(-4, 5) * rng.uniform(76, 130):
            town.rect(k, 0, 9, 700, color, part=False)
            town.rect(0, k, 700, 9, color, part=False)
    return Ground(kind, angle, coarse)


def _blend(rng: np.random.Generator, colors: tuple[Color, Color], noise: np.ndarray) -> np.ndarray:
    a, b = (np.float32(jitter(rng, c, 9)) for c in colors)
    return a + (b - a) * np.clip(0.5 + 0.4 * noise, 0, 1)[..., None]


def _fields(rng: np.random.Generator, size: int, angle: float) -> np.ndarray:
    """Parcels of crops with furrows."""
    x, y = _grid(size)
    c, s = math.cos(angle), math.sin(angle)
    u, v = c * x + s * y, c * y - s * x
    row = np.floor(v / rng.uniform(60, 120)).astype(np.int32) % 16
    shift, width = rng.uniform(0, 200, 16), rng.uniform(70, 190, 16)
    column = np.floor((u + shift[row]) / width[row]).astype(np.int32) % 16
    crops = ((104, 132, 66), (136, 152, 84), (178, 166, 110), (150, 122, 90), (84, 112, 60), (196, 184, 126))
    colors = np.array([pick(rng, crops, 9) for _ in range(256)], np.float32)
    parcel = row * 16 + column
    across = rng.random(256) < 0.4
    furrow = np.sin(np.where(across[parcel], u, v) * np.float32(2 * math.pi / rng.uniform(5, 9)))
    depth = rng.uniform(0, 7, 256).astype(np.float32)
    return colors[parcel] + (furrow.astype(np.float32) * depth[parcel])[..., None]


def lay_water(
    canvas: Canvas, rng: np.random.Generator, kind: str, coarse: np.ndarray
) -> tuple[np.ndarray, River | None]:
    """Pour a coast, lake, river or reservoir (a river that a dam widens).

    Returns how far inside the water each pixel lies, in units, negative on land; and the river.
    """
    size, river = canvas.size, None
    x, y = _grid(size)
    phi = rng.uniform(0, 2 * math.pi)
    nx, ny = math.cos(phi), math.sin(phi)
    px, py = rng.uniform(150, 298, 2)
    across, along = (x - px) * nx + (y - py) * ny, (y - py) * nx - (x - px) * ny
    shore = _noise(rng, size, 4, 4, 0.5)
    if kind in ("river", "reservoir"):
        half = rng.uniform(28, 62)
        across = across + rng.uniform(-45, 45) * np.sin(along / rng.uniform(70, 160))
        if kind == "reservoir":
            wide = rng.uniform(60, 95)
            half_here = half * 0.55 + (wide - half * 0.55) / (1 + np.exp((along - 10) / 7))
            half = wide
        else:
            half_here = half * (1 + 0.12 * np.sin(along / 50))
        depth = half_here - np.abs(across) + 4 * shore
        river = River(np.array([px, py]), phi, half)
    elif kind == "coast":
        depth = across + rng.uniform(-20, 130) + 16 * shore
    else:
        radius = rng.uniform(70, 150)
        depth = radius - np.hypot(across * rng.uniform(1, 1.7), along) + 22 * shore
    near, far = (np.float32(jitter(rng, c, 10)) for c in WATERS[int(rng.integers(len(WATERS)))])
    color = near + (far - near) * np.clip(depth / rng.uniform(25, 90), 0, 1)[..., None]
    color += (2.5 * _noise(rng, size, 64, 2, 0.8) + 3 * coarse)[..., None]
    image = canvas.image.astype(np.float32)
    if rng.random() < 0.7:
        beach = np.float32(pick(rng, ((206, 190, 154), (150, 140, 120), (180, 178, 172)), 8))
        image += (beach - image) * (np.clip((depth + rng.uniform(5, 12)) / 3, 0, 1) * 0.85)[..., None]
    image += (color - image) * np.clip(depth * 0.8 + 0.5, 0, 1)[..., None]
    canvas.image[:] = np.clip(image, 0, 255).astype(np.uint8)
    return depth, river


def finish(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Light, haze, optics and sensor: the same for the whole scene. Returns uint8 RGB [size, size, 3]."""
    size, image = canvas.size, canvas.image
    if rng.random() < 0.75:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8) * canvas.scale)
    grain = 2.5 * _noise(rng, size, 96, 2, 0.9) + rng.uniform(1.5, 5) * rng.standard_normal((size, size), np.float32)
    if rng.random() < 0.4:  # vignette
        x, y = _grid(size)
        grain -= np.hypot(x - UNITS / 2, y - UNITS / 2) ** 2 * np.float32(rng.uniform(5, 22) / 1e5)
    gain, gamma = rng.normal(1.0, 0.035, 3) * rng.uniform(0.88, 1.12), rng.uniform(0.82, 1.2)
    haze, veil = rng.uniform(0, 0.2) * (rng.random() < 0.6), rng.uniform(170, 225) * np.array([0.97, 1.0, 1.03])
    ramp = (np.arange(256) / 255)[:, None] ** gamma * 255 * gain
    table = np.clip(ramp * (1 - haze) + veil * haze, 0, 255)
    graded = cv2.LUT(image, table.astype(np.uint8)[None])
    return np.clip(graded + grain[..., None], 0, 255).astype(np.uint8)
