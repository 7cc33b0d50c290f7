"""How each of the twenty classes is drawn from above: vector shapes in a local frame, with cast shadows.

Each drawer draws along the frame's x axis, in units of half the object's length.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from .canvas import PAINTS, ROOFS, WHITE, Canvas, Color, Frame, blob, circle, dim, jitter, left_of, mirror, pick


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
    f.canvas.darken([f.world(s) + f.canvas.sun * 0.16 * f.unit for s in shapes])
    for shape, color in zip(shapes, (wing_color, wing_color, body), strict=True):
        f.poly(shape, color)
    if style == 0:
        for y in (-0.34, 0.34):
            f.rect(0.14, y, 0.2, 0.08, jitter(rng, (120, 124, 130), 4))
    f.poly(mirror([(-0.66, 0.02), (-1.0, 0.03)]), accent)
    f.rect(0.86, 0, 0.05, thick, (50, 56, 66))


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
    for end in quarter:
        f.line([home, home + 1.72 * np.array([math.cos(end), math.sin(end)])], 0.02, WHITE)
    for x, y in ((0.0, 0.0), (0.46, -0.38), (0.86, 0.0), (0.46, 0.38)):
        f.rect(home[0] + x, y, 0.06, 0.06, WHITE)


def _court(f: Frame, surround: Color, inner: Color, half_height: float) -> None:
    f.rect(0, 0, 2, 2 * half_height, surround)
    f.rect(0, 0, 1.64, 2 * half_height - 0.34, inner)


def basketballcourt(f: Frame, rng: np.random.Generator) -> None:
    """A court with painted keys, centre circle and three-point arcs."""
    floor = pick(rng, ((196, 112, 58), (202, 132, 74), (168, 70, 52), (150, 146, 140), (206, 160, 96)), 8)
    paint = pick(rng, ((52, 92, 168), (150, 40, 46), (56, 122, 84), (236, 190, 70)), 8)
    _court(f, paint if rng.random() < 0.5 else jitter(rng, np.multiply(floor, 0.8), 5), floor, 0.6)
    f.disc(0, 0, 0.16, paint)
    f.line(circle(0, 0, 0.17, n=16), 0.03, WHITE)
    f.line([(0, -0.42), (0, 0.42)], 0.03, WHITE)
    f.border(0, 0, 1.62, 0.84, 0.035, WHITE)
    for side in (-1, 1):
        f.rect(side * 0.64, 0, 0.34, 0.3, paint)
        f.border(side * 0.64, 0, 0.34, 0.3, 0.025, WHITE)
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
    _court(f, jitter(rng, surround, 8), jitter(rng, inner, 8), 0.54)
    f.border(0, 0, 1.6, 0.72, 0.045, WHITE)
    for y in (-0.26, 0.26):
        f.line([(-0.8, y), (0.8, y)], 0.035, WHITE)
    for x in (-0.42, 0.42):
        f.line([(x, -0.26), (x, 0.26)], 0.035, WHITE)
    f.line([(-0.42, 0), (0.42, 0)], 0.03, WHITE)
    f.rect(0, 0, 0.03, 0.86, (40, 44, 50), tall=0.06)


def chimney(f: Frame, rng: np.random.Generator) -> None:
    """A stack seen at a slant: base at -x, mouth at +x; red and white, brick or concrete."""
    # the shadow starts at the foot, along the sun
    foot, sun = f.point(-0.85, 0), f.canvas.sunward
    across = left_of(sun)
    far = foot + sun * f.unit * 2.3
    wide, narrow = across * 0.2 * f.unit, across * 0.11 * f.unit
    f.canvas.darken([np.array([foot + wide, far + narrow, far - narrow, foot - wide])], soft=0.8)
    style = rng.integers(3)
    light = ((226, 224, 220), (208, 204, 198), (190, 108, 80))[style]
    dark = ((196, 44, 40), (126, 122, 118), (122, 58, 44))[style]
    edges = np.linspace(-0.85, 0.85, 8)
    width = np.interp(edges, (-0.85, 0.85), (0.22, 0.14))
    f.disc(-0.85, 0, 0.22, jitter(rng, dark, 5))
    for i, ((a, at_a), (b, at_b)) in enumerate(pairwise(zip(edges, width, strict=True))):
        color = light if i % 2 else dark
        f.poly([(a, -at_a), (b, -at_b), (b, at_b), (a, at_a)], color)
        f.poly([(a, 0.3 * at_a), (b, 0.3 * at_b), (b, at_b), (a, at_a)], dim(color, 0.78))
    f.disc(0.85, 0, 0.15, jitter(rng, light, 4))
    f.disc(0.85, 0, 0.1, (34, 30, 30))
    if rng.random() < 0.45:
        wind = rng.uniform(0, 6.3)
        for k in range(9):
            reach, puff = 0.12 + 0.28 * k, 0.12 + 0.07 * k
            center = (0.85 + reach * math.cos(wind), reach * math.sin(wind) + 0.04 * rng.normal())
            f.canvas.tint([f.world(circle(*center, puff))], (236, 236, 238), 0.42 - 0.04 * k, soft=1.5)


def golffield(f: Frame, rng: np.random.Generator) -> None:
    """Fairways, greens, bunkers, ponds and trees in rough."""
    rough, fairway = jitter(rng, (78, 116, 58), 8), jitter(rng, (124, 170, 82), 8)
    ground = blob(rng, 0, 0, 0.95, rng.uniform(0.5, 0.72), rng.uniform(0.08, 0.25))
    f.extent.append(f.world(ground))
    f.canvas.tint([f.extent[-1]], rough, rng.uniform(0.55, 1.0), soft=rng.uniform(0.5, 6))
    for _ in range(int(rng.integers(4, 7))):
        cx, cy, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.38, 0.38), rng.uniform(0, 3.2)
        way = Frame(f.canvas, *f.point(cx, cy), f.angle + turn, f.unit * 0.34)
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
        tree(f.canvas, rng, *f.point(0.9 * r * math.cos(t), 0.64 * r * math.sin(t)), 3.2)


def groundtrackfield(f: Frame, rng: np.random.Generator) -> None:
    """A running track around a pitch."""
    track = pick(rng, ((186, 78, 60), (186, 78, 60), (170, 92, 78), (70, 104, 160), (128, 130, 132)), 8)
    straight, radius = 0.48, 0.52

    def oval(inset: float) -> np.ndarray:
        """Two straights and two half circles."""
        right = circle(straight, 0, radius - inset, n=16, arc=(-math.pi / 2, math.pi / 2))
        left = circle(-straight, 0, radius - inset, n=16, arc=(math.pi / 2, 1.5 * math.pi))
        return np.concatenate([right, left])

    f.poly(oval(0), track)
    for inset in (0.05, 0.1, 0.15):
        f.line(oval(inset), 0.008, jitter(rng, (226, 196, 186), 4), closed=True)
    grass = jitter(rng, (84, 140, 64), 10)
    f.poly(oval(0.19), jitter(rng, np.multiply(grass, 0.9), 4))
    f.rect(0, 0, 1.0, 0.56, grass)
    for x in np.arange(-0.4, 0.5, 0.2):
        f.rect(x, 0, 0.1, 0.56, jitter(rng, np.add(grass, 13), 2))
    f.border(0, 0, 0.98, 0.54, 0.014, WHITE)
    f.line([(0, -0.27), (0, 0.27)], 0.014, WHITE)
    f.line(circle(0, 0, 0.1, n=14), 0.014, WHITE)
    if rng.random() < 0.4:
        f.rect(0, radius + 0.1, 1.0, 0.12, pick(rng, ROOFS), tall=0.12, part=False)


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
    f.poly(circle(0, 0, 1, ratio, 40), roof, height=0.2)
    f.poly(circle(0, 0, 0.8, 0.8 * ratio, 40), seats)
    for a in np.linspace(0, 2 * math.pi, int(rng.integers(20, 34)), endpoint=False):
        p = np.array([math.cos(a), ratio * math.sin(a)])
        f.line([0.8 * p, p], 0.02, dim(roof, 0.72))
        f.line([0.56 * p, 0.78 * p], 0.012, dim(seats, 0.72))
    f.poly(circle(0, 0, 0.57, 0.57 * ratio, 40), jitter(rng, (104, 110, 96), 6))
    grass = jitter(rng, (80, 150, 60), 8)
    f.rect(0, 0, 0.86, 0.56 * ratio, grass)
    for x in np.arange(-0.36, 0.4, 0.18):
        f.rect(x, 0, 0.09, 0.56 * ratio, jitter(rng, np.add(grass, 14), 2))
    f.border(0, 0, 0.8, 0.5 * ratio, 0.015, WHITE)
    f.line([(0, -0.25 * ratio), (0, 0.25 * ratio)], 0.015, WHITE)


def storagetank(f: Frame, rng: np.random.Generator) -> None:
    """A round tank with a bright rim and a domed or floating roof."""
    roof = pick(rng, ((236, 236, 234), (226, 226, 220), (190, 194, 196), (178, 168, 150)), 8)
    f.disc(0, 0, 1, dim(roof, 0.75), tall=rng.uniform(0.5, 0.9))
    f.disc(0, 0, 0.93, roof)
    here, sun = np.array([f.x, f.y]), f.canvas.sunward
    if rng.random() < 0.45:  # a floating roof lies deeper, so the rim shades it
        f.disc(0, 0, 0.8, dim(roof, 0.6))
        f.canvas.fill(here + circle(*(sun * 0.1 * f.unit), 0.7 * f.unit), dim(roof, 0.86))
    else:
        f.canvas.fill(here + circle(*(-sun * 0.22 * f.unit), 0.6 * f.unit), jitter(rng, np.add(roof, 12), 2))
        f.disc(0, 0, 0.12, dim(roof, 0.6))
    f.line([(0.2, 0), (0.95, 0)], 0.07, (120, 122, 124))


def vehicle(f: Frame, rng: np.random.Generator) -> None:
    """A car or a lorry, front at +x."""
    paint = pick(rng, PAINTS, 10)
    if rng.random() < 0.72:
        width = rng.uniform(0.42, 0.48)
        body = mirror([(1, 0.6 * width), (0.9, 0.92 * width), (-0.9, width), (-1, 0.8 * width)])
        f.poly(body, paint, height=0.3)
        f.rect(-0.1, 0, 1.05, 1.5 * width, (44, 52, 62))
        f.rect(-0.14, 0, 0.62, 1.42 * width, jitter(rng, np.add(np.multiply(paint, 0.92), 12), 3))
    else:
        f.rect(-0.2, 0, 1.6, 0.56, paint, tall=0.4)
        f.rect(0.82, 0, 0.36, 0.52, pick(rng, PAINTS, 10), tall=0.3)
        f.rect(0.9, 0, 0.08, 0.46, (44, 52, 62))


def windmill(f: Frame, rng: np.random.Generator) -> None:
    """A wind turbine seen at a slant: foot at -x, hub towards +x, three blades, the whole shadow on the ground."""
    white = jitter(rng, (242, 242, 240), 4)
    hub, foot = np.array([0.25, 0.0]), np.array([-1.0, 0.0])
    phase, blades = rng.uniform(0, 2.1), []
    for k in range(3):
        a = phase + k * 2 * math.pi / 3
        d = np.array([math.cos(a), math.sin(a)])
        n = left_of(d)
        blades.append(np.array([hub, hub + 0.2 * d + 0.07 * n, hub + 0.78 * d, hub + 0.16 * d - 0.03 * n]))
    tower = np.add([foot, hub, hub, foot], [(0, 0.075), (0, 0.045), (0, -0.045), (0, -0.075)])
    sun, at_foot = f.canvas.sunward, f.point(*foot)

    def cast(points: np.ndarray) -> np.ndarray:
        """Lay the upright shape down along the sun, from the foot."""
        local = (np.asarray(points) - foot) * f.unit
        return at_foot + np.outer(local[:, 0], sun * 1.15) + np.outer(local[:, 1], left_of(sun))

    f.canvas.darken([cast(p) for p in [tower, *blades]], soft=0)
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
