"""How traffic and water works are drawn from above: airport, bridge, dam, service area, toll station, harbour,
overpass, train station.

Each drawer draws along the frame's x axis, in units of half the object's length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .canvas import ASPHALT, CONCRETE, LAWN, PAINTS, ROOFS, WHITE, Frame, blob, circle, dim, jitter, mirror, pick


def airport(f: Frame, rng: np.random.Generator) -> None:
    """A runway with taxiway, apron and terminal; offers stands for airplanes."""
    paved, apron = jitter(rng, (104, 106, 110), 14), jitter(rng, CONCRETE, 10)
    f.rect(0, 0.22, 2, 0.92, jitter(rng, (118, 138, 86), 14))
    f.rect(0, -0.08, 1.96, 0.15, paved)
    f.rect(0, 0.22, 1.8, 0.06, paved)
    for x in (-0.86, -0.4, 0.1, 0.55, 0.86):
        f.poly([(x, -0.05), (x + 0.06, -0.05), (x + 0.1, 0.24), (x + 0.04, 0.24)], paved)
    f.rect(rng.uniform(-0.2, 0.2), 0.42, 1.2, 0.36, apron)
    for x in np.arange(-0.76, 0.78, 0.09):
        f.rect(x, -0.08, 0.045, 0.012, WHITE)
    for side in (-0.93, 0.93):
        for y in np.linspace(-0.135, -0.025, 5):
            f.rect(side, y, 0.07, 0.012, WHITE)
    f.line([(-0.9, 0.22), (0.9, 0.22)], 0.008, (216, 186, 60))
    roof = pick(rng, ROOFS[:2], 8)
    f.rect(0, 0.62, 0.8, 0.08, roof, tall=0.06)
    stands = np.linspace(-0.46, 0.46, 6)
    for x in stands[::2]:
        f.rect(x, 0.55, 0.03, 0.1, roof, tall=0.05)
    for x in stands[rng.random(6) < 0.7]:
        turn = math.pi / 2 + rng.normal(0, 0.1) + math.pi * (rng.random() < 0.5)
        f.slot("airplane", x + 0.05, 0.44, turn, 0.3 * f.unit)


def bridge(f: Frame, rng: np.random.Generator) -> None:
    """A road deck on piers from bank to bank; half width 0.1 to 0.16 of its half length."""
    half = max(9.0 / f.unit, rng.uniform(0.08, 0.14))
    f.rect(0, 0, 2, 2 * half, pick(rng, (CONCRETE, (150, 150, 152), ASPHALT), 8), tall=0.22, base=0.1)
    f.rect(0, 0, 2, 1.5 * half, jitter(rng, (104, 104, 108), 8))
    rail = jitter(rng, (214, 212, 206), 8)
    for y in (-half, half):
        f.rect(0, y * 0.9, 2, half * 0.2, rail)
    if rng.random() < 0.5:  # arches or pylons
        post = pick(rng, ((200, 60, 50), (230, 230, 226), (90, 110, 130)), 6)
        for x in np.linspace(-0.6, 0.6, int(rng.integers(2, 5))):
            f.rect(x, 0, 0.05, 2.5 * half, post, tall=0.12)
    else:
        for x in np.linspace(-0.85, 0.85, 9):
            f.rect(x, 0, 0.02, 2 * half, jitter(rng, (70, 72, 76), 4))
    f.line([(-1, 0), (1, 0)], 0.12 * half, (226, 206, 110))


def dam(f: Frame, rng: np.random.Generator) -> None:
    """A wall across the water (along x), upstream at -y, with spillway and white water at +y."""
    wall = jitter(rng, (196, 192, 182), 8)
    bow = rng.uniform(0.0, 0.3)
    x = np.linspace(-1, 1, 17)
    crest = -bow * (1 - x**2)
    thick = max(0.11, 8 / f.unit)
    outer = np.stack([x, crest - thick * 0.4], 1)
    inner = np.stack([x, crest + thick * 1.6], 1)
    f.poly(np.concatenate([outer, inner[::-1]]), dim(wall, 0.8), height=0.12, convex=False)
    f.poly(np.concatenate([outer, np.add(outer, (0, thick))[::-1]]), wall)
    f.line(np.add(outer, (0, 0.5 * thick)), 0.18 * thick, (110, 110, 112))
    gates = np.linspace(-0.34, 0.34, int(rng.integers(4, 7)))
    for g in gates:
        y = -bow * (1 - g**2)
        f.rect(g, y + 1.2 * thick, 0.08, 1.1 * thick, (240, 244, 246))
        f.rect(g + 0.06, y + 0.3 * thick, 0.035, 1.5 * thick, (90, 96, 104), tall=0.05)
    foam = [f.world(blob(rng, g, thick * 2.6 - bow * (1 - g**2), 0.07, thick)) for g in gates]
    f.canvas.tint(foam, (236, 242, 244), 0.6, soft=1.5)
    if rng.random() < 0.5:
        f.rect(0.7 * rng.choice((-1, 1)), thick * 1.6, 0.3, 0.16, pick(rng, ROOFS), tall=0.08)


def service_area(f: Frame, rng: np.random.Generator) -> None:
    """A plot beside an expressway: lorry and car bays, a fuel canopy, a building; offers bays to vehicles."""
    f.rect(0, 0, 2, 1.0, jitter(rng, (136, 136, 136), 8))
    f.rect(0, 0.36, 2, 0.14, jitter(rng, LAWN, 8))
    red = pick(rng, ((190, 50, 44), (46, 90, 160), (214, 120, 40), (60, 140, 90)), 6)
    side = float(rng.choice((-1, 1)))
    f.rect(side * 0.72, -0.12, 0.36, 0.36, WHITE, tall=0.1)
    f.border(side * 0.72, -0.12, 0.34, 0.34, 0.05, red)
    f.rect(-side * 0.02, 0.3, 0.66, 0.26, pick(rng, ROOFS), tall=0.12)
    f.rect(-side * 0.02, 0.3, 0.2, 0.26, red, tall=0.03)
    f.rect(-side * 0.78, 0.28, 0.3, 0.24, pick(rng, ROOFS), tall=0.1)
    for x in -np.linspace(-0.9, 0.4, 14) * side * 0.9 - 0.05 * side:
        f.line([(x, -0.08), (x, 0.12)], 0.012, WHITE)
    for x in np.linspace(-0.85, 0.3, 8):
        f.line([(-x * side, -0.42), (-x * side + 0.1, -0.2)], 0.012, WHITE)
        if rng.random() < 0.4:
            f.slot("vehicle", -x * side - 0.05, 0.02, math.pi / 2, 0.3 * f.unit)


def toll_station(f: Frame, rng: np.random.Generator) -> None:
    """A canopy across a widened expressway (which runs along x), booths and lane islands; offers vehicles."""
    roof = pick(rng, ((206, 60, 52), (226, 226, 224), (64, 104, 168), (196, 198, 200)), 6)
    lanes = np.linspace(-0.92, 0.92, 9)
    plaza = [(-1.9, -0.42), (-0.6, -1), (0.6, -1), (1.9, -0.42), (1.9, 0.42), (0.6, 1), (-0.6, 1), (-1.9, 0.42)]
    f.poly(plaza, jitter(rng, (146, 146, 146), 8), part=False)
    for y in lanes:
        f.rect(0, y, 0.84, 0.06, (226, 222, 206))
        f.rect(0.36, y, 0.1, 0.06, (206, 170, 40))
        for side in (-1, 1):
            f.line([(1.1 * side, y * 0.8), (0.4 * side, y)], 0.02, (226, 226, 220))
    f.rect(0, 0, 0.36, 2, roof, tall=0.16)
    f.rect(0, 0, 0.08, 2, dim(roof, 0.75))
    for y in (lanes[:-1] + lanes[1:]) / 2:
        if rng.random() < 0.25:
            f.slot("vehicle", rng.choice((-0.75, 0.75)), y, 0.0 if y > 0 else math.pi, 0.5 * f.unit)


def harbor(f: Frame, rng: np.random.Generator) -> None:
    """Jetties with finger piers and moored boats; the quay is at -x, the water at +x. Offers berths to ships."""
    wood = pick(rng, ((186, 178, 164), (150, 130, 108), (206, 204, 198)), 8)
    ys = np.linspace(-0.62, 0.62, int(rng.integers(2, 4)))
    f.rect(-0.9, 0, 0.2, 1.6, jitter(rng, CONCRETE, 8), tall=0.04)
    for y in ys:
        f.rect(0.05, y, 1.8, 0.07, wood, tall=0.03)
        for x in np.arange(-0.6, 0.94, 0.2):
            f.rect(x, y, 0.03, 0.34, wood)
            for side in (-1, 1):
                if rng.random() < 0.72:
                    _hull(f, rng, x + 0.1, y + side * 0.14, math.pi / 2, rng.uniform(0.09, 0.11), 0.035)
    if rng.random() < 0.5:
        f.rect(0.98, 0, 0.07, 1.5, wood, tall=0.04)
    elif rng.random() < 0.6:
        f.slot("ship", 1.45, rng.uniform(-0.4, 0.4), math.pi / 2, rng.uniform(60, 100))


def _hull(f: Frame, rng: np.random.Generator, x, y, turn, half, beam) -> None:
    """A small boat, drawn as a part of the frame's object."""
    boat = Frame(f.canvas, *f.point(x, y), f.angle + turn * rng.choice((-1, 1)), f.unit * half)
    b = beam / half
    boat.poly(mirror([(1, 0), (0.5, 0.8 * b), (-0.9, b), (-1, 0.8 * b)]), pick(rng, PAINTS[:4], 8))
    boat.rect(-0.2, 0, 0.6, b, jitter(rng, (120, 150, 170), 14))


def overpass(f: Frame, rng: np.random.Generator) -> None:
    """One road over another (which runs along y, drawn before); ramps at times. Its ends lie at x = -1 and 1."""
    half = 0.17
    gray = jitter(rng, (128, 128, 130), 8)
    if rng.random() < 0.6:
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            inward = math.atan2(-sy, -sx)
            ramp = circle(sx * 0.86, sy * 0.86, 0.72, n=9, arc=(inward - math.pi / 4, inward + math.pi / 4))
            f.line(ramp, 0.13, gray)
            f.extent.append(f.world(ramp))
    under = [(-0.1, -0.95), (0.1, -0.95), (0.2, -0.6), (0.2, 0.6), (0.1, 0.95), (-0.1, 0.95), (-0.2, 0.6), (-0.2, -0.6)]
    f.poly(under, jitter(rng, (108, 109, 112), 6))
    f.line([(0, -0.95), (0, 0.95)], 0.02, (232, 214, 120))
    f.rect(0, 0, 2, 2 * half, jitter(rng, CONCRETE, 6), tall=0.32, base=0.12)
    f.rect(0, 0, 2, 1.55 * half, jitter(rng, (112, 112, 116), 6))
    f.line([(-1, 0), (1, 0)], 0.03, (232, 214, 120))
    for y in (-0.5 * half, 0.5 * half):
        for x in np.arange(-0.9, 1, 0.2):
            f.rect(x, y, 0.09, 0.015, WHITE)


def trainstation(f: Frame, rng: np.random.Generator) -> None:
    """Platforms under long roofs between tracks (which run along x, drawn before), and a hall at one side."""
    f.rect(0, 0, 2, 0.62, jitter(rng, (128, 114, 100), 6))
    tracks(f, np.linspace(-0.26, 0.26, 7), 1.0)
    roof = pick(rng, ((206, 208, 210), (120, 150, 176), (178, 88, 70), (160, 164, 168)), 8)
    for y in (-0.175, 0.0, 0.175):
        f.rect(0, y, 1.9, 0.075, jitter(rng, (188, 184, 176), 5))
        f.rect(0, y, rng.uniform(1.1, 1.6), 0.07, roof, tall=0.05)
        f.line([(-0.7, y), (0.7, y)], 0.012, dim(roof, 0.8))
    side = float(rng.choice((-1, 1)))
    f.rect(0, side * 0.43, 0.9, 0.2, pick(rng, ROOFS), tall=0.1)
    f.rect(0, side * 0.43, 0.3, 0.22, dim(roof, 0.9), tall=0.05)
    f.rect(0.1, 0.0, 0.06, 0.62, jitter(rng, (150, 156, 164), 6), tall=0.08)
    for y in np.linspace(-0.26, 0.26, 7)[rng.random(7) < 0.3]:
        train(f, rng, rng.uniform(-0.3, 0.3), y, rng.uniform(0.5, 0.9), 0.05)


def tracks(f: Frame, ys: Sequence[float], half_length: float) -> None:
    """Pairs of rails with sleepers, no part of any box."""
    for y in ys:
        f.rect(0, y, 2 * half_length, 0.05, (96, 86, 78), part=False)
        for offset in (-0.016, 0.016):
            f.line([(-half_length, y + offset), (half_length, y + offset)], 0.006, (176, 172, 168))


def train(f: Frame, rng: np.random.Generator, x: float, y: float, length: float, width: float) -> None:
    """A row of coaches."""
    color = pick(rng, ((226, 226, 226), (48, 120, 90), (52, 84, 150), (180, 60, 50)), 6)
    n = max(2, int(length / 0.16))
    for i in range(n):
        f.rect(x + (i - (n - 1) / 2) * length / n, y, 0.92 * length / n, width, color, tall=0.03, part=False)
