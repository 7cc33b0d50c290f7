"""How each of the twenty classes is drawn from above: vector shapes in a local frame, with cast shadows.

Each drawer draws along the frame's x axis, in units of half the object's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .scene_canvas import (
    ASPHALT,
    CONCRETE,
    LAWN,
    PAINTS,
    ROOFS,
    WHITE,
    Canvas,
    Color,
    Frame,
    blob,
    capsule,
    circle,
    dim,
    jitter,
    mirror,
    pick,
    rectangle,
)


def airplane(f: Frame, rng: np.random.Generator) -> None:
    """An airliner, a fighter or a propeller plane, nose at +x."""
    body = pick(rng, (WHITE, WHITE, (214, 216, 220), (150, 156, 160)), 6)
    accent = pick(rng, ((190, 40, 40), (36, 70, 150), (60, 66, 74), (214, 160, 40), (30, 120, 110)))
    style = rng.choice(3, p=(0.65, 0.15, 0.2))
    wing_color = jitter(rng, np.multiply(body, 0.93), 3)
    if style == 0:
        sweep, span = rng.uniform(0.35, 0.5), rng.uniform(0.8, 0.98)
        wings = [(0.28, 0.0), (0.22, 0.1), (0.2 - sweep, span), (0.08 - sweep, span), (-0.14, 0.1)]
        tail = [(-0.7, 0.0), (-0.74, 0.08), (-0.95, 0.36), (-1.02, 0.36), (-0.94, 0.04)]
    elif style == 1:
        wings = [(0.35, 0.05), (-0.45, 0.62), (-0.62, 0.62), (-0.66, 0.08)]
        tail = [(-0.68, 0.06), (-0.88, 0.34), (-1.0, 0.34), (-0.98, 0.05)]
    else:
        wings = [(0.34, 0.0), (0.34, 0.9), (0.28, 0.96), (0.08, 0.96), (0.02, 0.0)]
        tail = [(-0.76, 0.0), (-0.76, 0.36), (-0.98, 0.36), (-0.98, 0.0)]
    thick = rng.uniform(0.075, 0.11)
    fuselage = [(1, 0), (0.95, 0.55 * thick), (0.8, thick), (-0.55, thick), (-1, 0.3 * thick)]
    shapes = [mirror(wings), mirror(tail), mirror(fuselage)]
    shadows = [f.world(s) + f.canvas.sun * 0.16 * f.unit for s in shapes]
    f.canvas.tint(shadows, (16, 20, 34), 1 - f.canvas.shade, soft=0.6)
    for shape, color in zip(shapes, (wing_color, wing_color, body), strict=True):
        f.poly(shape, color)
    if style == 0:
        for y in (-0.34, 0.34):
            f.rect(0.14, y, 0.2, 0.08, jitter(rng, (120, 124, 130), 4))
    f.poly(mirror([(-0.66, 0.02), (-1.0, 0.03)]), accent)
    f.rect(0.86, 0, 0.05, thick, (50, 56, 66))


def airport(f: Frame, rng: np.random.Generator) -> None:
    """A runway with taxiway, apron and terminal; offers stands for airplanes."""
    paved, apron = jitter(rng, (104, 106, 110), 14), jitter(rng, CONCRETE, 10)
    f.poly(rectangle(0, 0.22, 2, 0.92), jitter(rng, (118, 138, 86), 14))
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
        f.slot(
            "airplane", x + 0.05, 0.44, math.pi / 2 + rng.normal(0, 0.1) + math.pi * (rng.random() < 0.5), 0.3 * f.unit
        )


def baseballfield(f: Frame, rng: np.random.Generator) -> None:
    """A fan of grass with a dirt infield, home plate at -x."""
    dirt, grass = jitter(rng, (182, 128, 86), 10), jitter(rng, (86, 142, 62), 10)
    home, quarter = np.array([-0.9, 0.0]), (-math.pi / 4, math.pi / 4)

    def fan(radius: float, back: float = 0.0) -> np.ndarray:
        return np.concatenate([[home - (back, 0)], circle(home[0], 0, radius, n=18, arc=quarter)])

    f.poly(fan(1.9, 0.1), dirt)
    f.poly(fan(1.74), grass)
    if rng.random() < 0.6:
        stripe = jitter(rng, np.add(grass, 14), 2)
        for r in np.arange(1.05, 1.7, 0.22):
            outer = circle(home[0], 0, r + 0.1, n=14, arc=quarter)
            inner = circle(home[0], 0, r, n=14, arc=quarter[::-1])
            f.poly(np.concatenate([outer, inner]), stripe)
    f.poly(fan(0.98, 0.06), dirt)
    f.disc(home[0], 0, 0.16, dirt)
    f.poly(np.add(home, [(0.14, 0), (0.46, -0.32), (0.78, 0), (0.46, 0.32)]), grass)
    f.disc(home[0] + 0.46, 0, 0.07, dirt)
    for end in (quarter[0], quarter[1]):
        f.line([home, home + 1.72 * np.array([math.cos(end), math.sin(end)])], 0.02, WHITE)
    for base in ((0.0, 0.0), (0.46, -0.38), (0.86, 0.0), (0.46, 0.38)):
        f.rect(home[0] + base[0], base[1], 0.06, 0.06, WHITE)


def _court(f: Frame, rng: np.random.Generator, surround: Color, inner: Color, half_height: float) -> None:
    f.poly(rectangle(0, 0, 2, 2 * half_height), surround)
    f.poly(rectangle(0, 0, 1.64, 2 * half_height - 0.34), inner)


def basketballcourt(f: Frame, rng: np.random.Generator) -> None:
    """A court with painted keys, centre circle and three-point arcs."""
    floor = pick(rng, ((196, 112, 58), (202, 132, 74), (168, 70, 52), (150, 146, 140), (206, 160, 96)), 8)
    paint = pick(rng, ((52, 92, 168), (150, 40, 46), (56, 122, 84), (236, 190, 70)), 8)
    _court(f, rng, paint if rng.random() < 0.5 else jitter(rng, np.multiply(floor, 0.8), 5), floor, 0.6)
    f.disc(0, 0, 0.16, paint)
    f.line(circle(0, 0, 0.17, n=16), 0.03, WHITE)
    f.line([(0, -0.42), (0, 0.42)], 0.03, WHITE)
    f.line(rectangle(0, 0, 1.62, 0.84), 0.035, WHITE, closed=True)
    for side in (-1, 1):
        f.rect(side * 0.64, 0, 0.34, 0.3, paint)
        f.line(rectangle(side * 0.64, 0, 0.34, 0.3), 0.025, WHITE, closed=True)
        arc = (math.pi / 2, 1.5 * math.pi) if side > 0 else (-math.pi / 2, math.pi / 2)
        f.line(circle(side * 0.8, 0, 0.46, 0.36, n=12, arc=arc), 0.025, WHITE)


def tenniscourt(f: Frame, rng: np.random.Generator) -> None:
    """A court with a long net, tramlines and service boxes."""
    schemes = (
        ((62, 116, 78), (44, 84, 150)),
        ((120, 64, 56), (60, 120, 84)),
        ((66, 128, 88), (50, 104, 72)),
        ((54, 98, 160), (36, 70, 128)),
        ((70, 120, 84), (130, 66, 110)),
    )
    surround, inner = schemes[int(rng.integers(len(schemes)))]
    _court(f, rng, jitter(rng, surround, 8), jitter(rng, inner, 8), 0.54)
    f.line(rectangle(0, 0, 1.6, 0.72), 0.045, WHITE, closed=True)
    for y in (-0.26, 0.26):
        f.line([(-0.8, y), (0.8, y)], 0.035, WHITE)
    for x in (-0.42, 0.42):
        f.line([(x, -0.26), (x, 0.26)], 0.035, WHITE)
    f.line([(-0.42, 0), (0.42, 0)], 0.03, WHITE)
    f.poly(rectangle(0, 0, 0.03, 0.86), (40, 44, 50), height=0.06)


def bridge(f: Frame, rng: np.random.Generator) -> None:
    """A road deck on piers from bank to bank; half width 0.1 to 0.16 of its half length."""
    half = max(9.0 / f.unit, rng.uniform(0.08, 0.14))
    deck = pick(rng, (CONCRETE, (150, 150, 152), ASPHALT), 8)
    f.poly(rectangle(0, 0, 2, 2 * half), deck, height=0.22, base=0.1)
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


def chimney(f: Frame, rng: np.random.Generator) -> None:
    """A stack seen at a slant: base at -x, mouth at +x; red and white, brick or concrete."""
    # the shadow starts at the foot, along the sun
    foot = f.world(np.array([[-0.85, 0]]))[0]
    sun = f.canvas.sun / np.hypot(*f.canvas.sun)
    across = np.array([-sun[1], sun[0]])
    far = foot + sun * f.unit * 2.3
    strip = [foot + across * 0.2 * f.unit, far + across * 0.11 * f.unit, far - across * 0.11 * f.unit]
    strip.append(foot - across * 0.2 * f.unit)
    f.canvas.tint([np.array(strip)], (16, 20, 34), 1 - f.canvas.shade, soft=0.8)
    style = rng.integers(3)
    light = ((226, 224, 220), (208, 204, 198), (190, 108, 80))[style]
    dark = ((196, 44, 40), (126, 122, 118), (122, 58, 44))[style]
    edges = np.linspace(-0.85, 0.85, 8)
    width = np.interp(edges, (-0.85, 0.85), (0.22, 0.14))
    f.disc(-0.85, 0, 0.22, jitter(rng, dark, 5))
    for i in range(7):
        a, b = edges[i], edges[i + 1]
        color = light if i % 2 else dark
        f.poly([(a, -width[i]), (b, -width[i + 1]), (b, width[i + 1]), (a, width[i])], color)
        f.poly([(a, 0.3 * width[i]), (b, 0.3 * width[i + 1]), (b, width[i + 1]), (a, width[i])], dim(color, 0.78))
    f.disc(0.85, 0, 0.15, jitter(rng, light, 4))
    f.disc(0.85, 0, 0.1, (34, 30, 30))
    if rng.random() < 0.45:
        wind = rng.uniform(0, 6.3)
        for k in range(9):
            reach, puff = 0.12 + 0.28 * k, 0.12 + 0.07 * k
            center = (0.85 + reach * math.cos(wind), reach * math.sin(wind) + 0.04 * rng.normal())
            f.canvas.tint([f.world(circle(*center, puff))], (236, 236, 238), 0.42 - 0.04 * k, soft=1.5)


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
    f.poly(rectangle(0, 0, 2, 1.0), jitter(rng, (136, 136, 136), 8))
    f.poly(rectangle(0, 0.36, 2, 0.14), jitter(rng, LAWN, 8))
    red = pick(rng, ((190, 50, 44), (46, 90, 160), (214, 120, 40), (60, 140, 90)), 6)
    side = float(rng.choice((-1, 1)))
    f.rect(side * 0.72, -0.12, 0.36, 0.36, WHITE, tall=0.1)
    f.line(rectangle(side * 0.72, -0.12, 0.34, 0.34), 0.05, red, closed=True)
    f.rect(-side * 0.02, 0.3, 0.66, 0.26, pick(rng, ROOFS), tall=0.12)
    f.rect(-side * 0.02, 0.3, 0.2, 0.26, red, tall=0.03)
    f.rect(-side * 0.78, 0.28, 0.3, 0.24, pick(rng, ROOFS), tall=0.1)
    for x in np.linspace(-0.9, 0.4, 14) * side * -1 * -1:
        f.line([(-x * 0.9 - 0.05 * side, -0.08), (-x * 0.9 - 0.05 * side, 0.12)], 0.012, WHITE)
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
        f.poly(rectangle(0, y, 0.84, 0.06), (226, 222, 206))
        f.poly(rectangle(0.36, y, 0.1, 0.06), (206, 170, 40))
        f.line([(-1.1, y * 0.8), (-0.4, y)], 0.02, (226, 226, 220))
        f.line([(1.1, y * 0.8), (0.4, y)], 0.02, (226, 226, 220))
    f.rect(0, 0, 0.36, 2, roof, tall=0.16)
    f.rect(0, 0, 0.08, 2, dim(roof, 0.75))
    for y in (lanes[:-1] + lanes[1:]) / 2:
        if rng.random() < 0.25:
            f.slot("vehicle", rng.choice((-0.75, 0.75)), y, 0.0 if y > 0 else math.pi, 0.5 * f.unit)


def golffield(f: Frame, rng: np.random.Generator) -> None:
    """Fairways, greens, bunkers, ponds and trees in rough."""
    rough, fairway = jitter(rng, (78, 116, 58), 8), jitter(rng, (124, 170, 82), 8)
    ground = blob(rng, 0, 0, 0.95, rng.uniform(0.5, 0.72), rng.uniform(0.08, 0.25))
    f.extent.append(f.world(ground))
    f.canvas.tint([f.extent[-1]], rough, rng.uniform(0.55, 1.0), soft=rng.uniform(0.5, 6))
    for _ in range(int(rng.integers(4, 7))):
        cx, cy, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.38, 0.38), rng.uniform(0, 3.2)
        way = Frame(f.canvas, *f.world(np.array([[cx, cy]]))[0], f.angle + turn, f.unit * 0.34)
        way.poly(blob(rng, 0, 0, 0.95, 0.3, 0.2), fairway)
        way.poly(blob(rng, 0.7, 0, 0.24, 0.2, 0.1), jitter(rng, (150, 196, 104), 5))
        for _ in range(int(rng.integers(2, 5))):
            x, y = rng.uniform(-0.8, 1.0), rng.choice((-1, 1)) * rng.uniform(0.28, 0.4)
            way.poly(blob(rng, x, y, rng.uniform(0.09, 0.17), rng.uniform(0.07, 0.11), 0.3), (232, 218, 176))
        f.extent += way.extent
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3)
        f.poly(blob(rng, x, y, rng.uniform(0.08, 0.16), rng.uniform(0.06, 0.1), 0.25), jitter(rng, (56, 92, 112), 8))
    for _ in range(int(rng.integers(20, 45))):
        r, t = rng.uniform(0.2, 0.9), rng.uniform(0, 6.3)
        tree(f.canvas, rng, *f.world(np.array([[0.9 * r * math.cos(t), 0.64 * r * math.sin(t)]]))[0], 3.2)


def groundtrackfield(f: Frame, rng: np.random.Generator) -> None:
    """A running track around a pitch."""
    track = pick(rng, ((186, 78, 60), (186, 78, 60), (170, 92, 78), (70, 104, 160), (128, 130, 132)), 8)
    straight, radius = 0.48, 0.52
    f.poly(capsule(straight, radius), track)
    for inset in (0.05, 0.1, 0.15):
        f.line(capsule(straight, radius - inset), 0.008, jitter(rng, (226, 196, 186), 4), closed=True)
    grass = jitter(rng, (84, 140, 64), 10)
    f.poly(capsule(straight, radius - 0.19), jitter(rng, np.multiply(grass, 0.9), 4))
    f.rect(0, 0, 1.0, 0.56, grass)
    for x in np.arange(-0.4, 0.5, 0.2):
        f.rect(x, 0, 0.1, 0.56, jitter(rng, np.add(grass, 13), 2))
    f.line(rectangle(0, 0, 0.98, 0.54), 0.014, WHITE, closed=True)
    f.line([(0, -0.27), (0, 0.27)], 0.014, WHITE)
    f.line(circle(0, 0, 0.1, n=14), 0.014, WHITE)
    if rng.random() < 0.4:
        f.rect(0, radius + 0.1, 1.0, 0.12, pick(rng, ROOFS), tall=0.12, part=False)


def harbor(f: Frame, rng: np.random.Generator) -> None:
    """Jetties with finger piers and moored boats; the quay is at -x, the water at +x. Offers berths to ships."""
    wood = pick(rng, ((186, 178, 164), (150, 130, 108), (206, 204, 198)), 8)
    rows = int(rng.integers(2, 4))
    ys = np.linspace(-0.62, 0.62, rows)
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
    boat = Frame(f.canvas, *f.world(np.array([[x, y]]))[0], f.angle + turn * rng.choice((-1, 1)), f.unit * half)
    b = beam / half
    boat.poly(mirror([(1, 0), (0.5, 0.8 * b), (-0.9, b), (-1, 0.8 * b)]), pick(rng, PAINTS[:4], 8))
    boat.rect(-0.2, 0, 0.6, b, jitter(rng, (120, 150, 170), 14))


def overpass(f: Frame, rng: np.random.Generator) -> None:
    """One road over another (which runs along y, drawn before); ramps at times. Its ends lie at x = -1 and 1."""
    half = 0.17
    gray = jitter(rng, (128, 128, 130), 8)
    if rng.random() < 0.6:
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            ramp = circle(sx * 0.86, sy * 0.86, 0.72, n=9, arc=_arc_towards(sx, sy))
            f.line(ramp, 0.13, gray)
            f.extent.append(f.world(ramp))
    under = [(-0.1, -0.95), (0.1, -0.95), (0.2, -0.6), (0.2, 0.6), (0.1, 0.95), (-0.1, 0.95), (-0.2, 0.6), (-0.2, -0.6)]
    f.poly(under, jitter(rng, (108, 109, 112), 6))
    f.line([(0, -0.95), (0, 0.95)], 0.02, (232, 214, 120))
    f.poly(rectangle(0, 0, 2, 2 * half), jitter(rng, CONCRETE, 6), height=0.32, base=0.12)
    f.rect(0, 0, 2, 1.55 * half, jitter(rng, (112, 112, 116), 6))
    f.line([(-1, 0), (1, 0)], 0.03, (232, 214, 120))
    for y in (-0.5 * half, 0.5 * half):
        for x in np.arange(-0.9, 1, 0.2):
            f.rect(x, y, 0.09, 0.015, WHITE)


def _arc_towards(sx: int, sy: int) -> tuple[float, float]:
    middle = math.atan2(-sy, -sx)
    return middle - math.pi / 4, middle + math.pi / 4


def ship(f: Frame, rng: np.random.Generator) -> None:
    """A cargo ship, tanker, ferry or boat, bow at +x, with a wake when under way."""
    slender = rng.uniform(0.17, 0.26)
    hull = pick(rng, ((60, 62, 68), (150, 46, 40), (226, 226, 224), (44, 74, 120), (110, 112, 112), (44, 96, 80)), 8)
    if rng.random() < 0.5:
        for side in (-1, 1):
            f.canvas.tint([f.world([(0.7, 0), (-2.6, side * 0.75), (-2.4, side * 0.5)])], (232, 240, 244), 0.35, 1.0)
        f.canvas.tint([f.world([(-0.9, slender), (-3.0, 0.3), (-3.0, -0.3), (-0.9, -slender)])], WHITE, 0.35, 1.5)
    outline = mirror([(1, 0), (0.82, 0.55 * slender), (0.55, slender), (-0.9, slender), (-1, 0.75 * slender)])
    f.poly(outline, hull, height=0.12)
    f.poly(outline * (0.93, 0.76), jitter(rng, np.add(np.multiply(hull, 0.5), 80), 10))
    style = rng.integers(4)
    if style == 0:  # containers
        for x in np.arange(-0.5, 0.6, 0.17):
            for y in (-0.42, 0.0, 0.42):
                f.rect(x, y * slender * 1.1, 0.14, slender * 0.42, pick(rng, PAINTS, 12))
    elif style == 1:  # hatches
        for x in np.arange(-0.42, 0.6, 0.26):
            f.rect(x, 0, 0.18, slender * 0.95, jitter(rng, (188, 170, 130), 10), tall=0.03)
    elif style == 2:  # tanker
        f.rect(0.1, 0, 1.3, slender * 0.16, (214, 210, 200))
        f.rect(0.1, 0, 0.08, slender * 1.3, (214, 210, 200))
    else:  # ferry or yacht
        f.rect(0.05, 0, 1.2, slender * 1.1, (238, 238, 236), tall=0.06)
        f.rect(0.3, 0, 0.3, slender * 0.9, jitter(rng, (92, 128, 150), 8))
    f.rect(-0.74, 0, 0.22, slender * 1.4, (240, 240, 238), tall=0.16)
    f.rect(-0.82, 0, 0.08, slender * 0.5, pick(rng, PAINTS[3:5], 8))


def stadium(f: Frame, rng: np.random.Generator) -> None:
    """Oval stands, with or without a roof, around a pitch."""
    ratio = rng.uniform(0.72, 0.95)
    roof = pick(rng, ((226, 226, 228), (196, 198, 204), (178, 180, 186), (216, 206, 186)), 8)
    seats = pick(rng, ((60, 90, 160), (176, 60, 56), (150, 150, 152), (206, 140, 60)), 10)
    n = 40
    f.poly(circle(0, 0, 1, ratio, n), roof, height=0.2)
    f.poly(circle(0, 0, 0.8, 0.8 * ratio, n), seats)
    t = np.linspace(0, 2 * math.pi, int(rng.integers(20, 34)), endpoint=False)
    for a in t:
        p = np.array([math.cos(a), ratio * math.sin(a)])
        f.line([0.8 * p, p], 0.02, dim(roof, 0.72))
        f.line([0.56 * p, 0.78 * p], 0.012, dim(seats, 0.72))
    f.poly(circle(0, 0, 0.57, 0.57 * ratio, n), jitter(rng, (104, 110, 96), 6))
    grass = jitter(rng, (80, 150, 60), 8)
    f.rect(0, 0, 0.86, 0.56 * ratio, grass)
    for x in np.arange(-0.36, 0.4, 0.18):
        f.rect(x, 0, 0.09, 0.56 * ratio, jitter(rng, np.add(grass, 14), 2))
    f.line(rectangle(0, 0, 0.8, 0.5 * ratio), 0.015, WHITE, closed=True)
    f.line([(0, -0.25 * ratio), (0, 0.25 * ratio)], 0.015, WHITE)


def storagetank(f: Frame, rng: np.random.Generator) -> None:
    """A round tank with a bright rim and a domed or floating roof."""
    roof = pick(rng, ((236, 236, 234), (226, 226, 220), (190, 194, 196), (178, 168, 150)), 8)
    f.disc(0, 0, 1, dim(roof, 0.75), tall=rng.uniform(0.5, 0.9))
    f.disc(0, 0, 0.93, roof)
    sun = f.canvas.sun / np.hypot(*f.canvas.sun)
    here = np.array([f.x, f.y])
    if rng.random() < 0.45:  # a floating roof lies deeper, so the rim shades it
        f.disc(0, 0, 0.8, dim(roof, 0.6))
        f.canvas.fill(here + circle(*(sun * 0.1 * f.unit), 0.7 * f.unit), dim(roof, 0.86))
    else:
        f.canvas.fill(here + circle(*(-sun * 0.22 * f.unit), 0.6 * f.unit), jitter(rng, np.add(roof, 12), 2))
        f.disc(0, 0, 0.12, dim(roof, 0.6))
    f.line([(0.2, 0), (0.95, 0)], 0.07, (120, 122, 124))


def trainstation(f: Frame, rng: np.random.Generator) -> None:
    """Platforms under long roofs between tracks (which run along x, drawn before), and a hall at one side."""
    f.poly(rectangle(0, 0, 2, 0.62), jitter(rng, (128, 114, 100), 6))
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


def vehicle(f: Frame, rng: np.random.Generator) -> None:
    """A car or a lorry, front at +x."""
    paint = pick(rng, PAINTS, 10)
    if rng.random() < 0.72:
        width = rng.uniform(0.42, 0.48)
        body = mirror([(1, 0.6 * width), (0.9, 0.92 * width), (-0.9, width), (-1, 0.8 * width)])
        f.poly(body, paint, height=0.3)
        f.poly(rectangle(-0.1, 0, 1.05, 1.5 * width), (44, 52, 62))
        f.rect(-0.14, 0, 0.62, 1.42 * width, jitter(rng, np.add(np.multiply(paint, 0.92), 12), 3))
    else:
        f.rect(-0.2, 0, 1.6, 0.56, paint, tall=0.4)
        f.rect(0.82, 0, 0.36, 0.52, pick(rng, PAINTS, 10), tall=0.3)
        f.rect(0.9, 0, 0.08, 0.46, (44, 52, 62))


def windmill(f: Frame, rng: np.random.Generator) -> None:
    """A wind turbine seen at a slant: foot at -x, hub towards +x, three blades, the whole shadow on the ground."""
    white = jitter(rng, (242, 242, 240), 4)
    hub = np.array([0.25, 0.0])
    foot = np.array([-1.0, 0.0])
    phase = rng.uniform(0, 2.1)
    blades = []
    for k in range(3):
        a = phase + k * 2 * math.pi / 3
        d = np.array([math.cos(a), math.sin(a)])
        n = np.array([-d[1], d[0]])
        blades.append(np.array([hub, hub + 0.2 * d + 0.07 * n, hub + 0.78 * d, hub + 0.16 * d - 0.03 * n]))
    tower = np.add([foot, hub, hub, foot], [(0, 0.075), (0, 0.045), (0, -0.045), (0, -0.075)])
    sun = f.canvas.sun / np.hypot(*f.canvas.sun)
    across = np.array([-sun[1], sun[0]])
    at_foot = f.world(foot[None])[0]

    def cast(points: np.ndarray) -> np.ndarray:
        """Lay the upright shape down along the sun, from the foot."""
        local = (np.asarray(points) - foot) * f.unit
        return at_foot + np.outer(local[:, 0], sun * 1.15) + np.outer(local[:, 1], across)

    f.canvas.tint([cast(p) for p in [tower, *blades]], (16, 20, 34), 1 - f.canvas.shade)
    f.disc(*foot, 0.13, jitter(rng, (190, 184, 172), 6), part=False)
    f.poly(tower, jitter(rng, (226, 228, 230), 4))
    for blade in blades:
        f.poly(blade, white)
    f.disc(*hub, 0.07, (216, 218, 220))


def tree(canvas: Canvas, rng: np.random.Generator, x: float, y: float, radius: float) -> None:
    """One crown with its shadow: a distractor."""
    r = radius * rng.uniform(0.7, 1.3)
    dark = jitter(rng, (44, 74, 40), 8)
    canvas.fill(circle(*(np.array([x, y]) + canvas.sun * 0.8 * r), r, n=10), (34, 44, 34))
    canvas.fill(circle(x, y, r, n=10), dark)
    canvas.fill(circle(*(np.array([x, y]) - canvas.sun * 0.3 * r), 0.55 * r, n=8), jitter(rng, np.add(dark, 22), 6))


def house(f: Frame, rng: np.random.Generator, width: float) -> None:
    """A gabled or flat building of local length 2: a distractor."""
    roof = pick(rng, ROOFS, 10)
    f.rect(0, 0, 2, width, roof, tall=rng.uniform(0.3, 0.7))
    if rng.random() < 0.6:
        f.rect(0, width / 4, 2, width / 2, dim(roof, 0.8))
    else:
        f.rect(0, 0, 1.7, width * 0.8, dim(roof, 1.06))
        f.rect(rng.uniform(-0.5, 0.5), 0, 0.3, width * 0.3, (120, 122, 126), tall=0.1)


DRAWERS: dict[str, Callable[[Frame, np.random.Generator], None]] = {
    "airplane": airplane,
    "airport": airport,
    "baseballfield": baseballfield,
    "basketballcourt": basketballcourt,
    "bridge": bridge,
    "chimney": chimney,
    "dam": dam,
    "Expressway-Service-area": service_area,
    "Expressway-toll-station": toll_station,
    "golffield": golffield,
    "groundtrackfield": groundtrackfield,
    "harbor": harbor,
    "overpass": overpass,
    "ship": ship,
    "stadium": stadium,
    "storagetank": storagetank,
    "tenniscourt": tenniscourt,
    "trainstation": trainstation,
    "vehicle": vehicle,
    "windmill": windmill,
}
