"""What stands where in a scene: one rule a class, and a composer that finds room for everything.

What already stands is kept in a coarse occupancy mask, so that nothing overlaps that could not.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .canvas import ASPHALT, LAWN, UNITS, WHITE, Canvas, Color, Frame, blob, jitter, left_of, pick
from .ground import WATERS, River, lay_ground, lay_water
from .objects import house, tree
from .rules import CHANCE, CLASSES, RULES, WET, Rule
from .structures import tracks, train

WATER, SITE, ROAD = 1, 2, 4  # bits of the occupancy mask
CELLS = 112  # its width
MIN_SIDE_PX = 3
MIN_VISIBLE = 0.5
# in lengths of what stands on a line: the site, the strip that runs through it, one across, the road (else rails)
LINES = {"road": (2, 1, 0.44, 0, 0.4), "crossing": (1, 1, 0.2, 0.22, 0.17), "rail": (1.05, 0.6, 0.3, 0, 0)}


class Composer:
    """One scene in the making."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        direction, slant = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.1)
        sun = (slant * math.cos(direction), slant * math.sin(direction))
        self.canvas = Canvas(size, sun, shade=rng.uniform(0.42, 0.66))
        self.occupied = np.zeros((CELLS, CELLS), np.uint8)  # bits of what stands where
        self.zoom = rng.uniform(0.85, 1.15)
        self.roads: list[tuple[np.ndarray, float]] = []
        self.boxes: list[tuple[float, float, float, float]] = []  # xyxy pixels, tight and clipped to the image
        self.labels: list[str] = []
        self.lean = rng.uniform(0, 2 * math.pi)  # where tall things lean in a slanted view
        self.ground = lay_ground(self.canvas, rng)
        self.river: River | None = None

    def _cells(self, polygon: np.ndarray) -> np.ndarray:
        mask = np.zeros((CELLS, CELLS), np.uint8)
        points = np.rint(np.asarray(polygon) * (CELLS / UNITS) - 0.5).astype(np.int32)
        cv2.fillPoly(mask, [points], 1)
        return mask.astype(bool)

    def _free(self, polygon: np.ndarray, water: bool = False) -> bool:
        under = self.occupied[self._cells(polygon)]
        return under.size > 0 and bool((under == WATER).all() if water else (under == 0).all())

    def _take(self, polygon: np.ndarray, bit: int = SITE) -> None:
        self.occupied[self._cells(polygon)] |= bit

    def _spot(self, width: float, height: float, water: bool = False, tries: int = 30) -> Frame | None:
        """A free rectangle of that size; its frame has unit 1."""
        rng = self.rng
        inset = min(0.3 * max(width, height), UNITS / 2 - 30)
        for _ in range(tries):
            urban = self.ground.kind == "urban"
            angle = self.ground.angle + math.pi / 2 * rng.integers(4) if urban else rng.uniform(0, 6.3)
            frame = Frame(self.canvas, *rng.uniform(inset, UNITS - inset, 2), angle, 1)
            if self._free(frame.area(width, height), water):
                return frame
        return None

    def _claim(self, width: float, height: float, taken: tuple[float, float] | None = None, **search) -> Frame | None:
        """A `_spot` that is from now on taken: all of it, or a rectangle `taken` (width, height) around its centre."""
        spot = self._spot(width, height, **search)
        if spot is not None:
            self._take(spot.area(*(taken or (width, height))))
        return spot

    def _draw(self, name: str, x: float, y: float, angle: float, length: float) -> None:
        """Draw an object, note its box, and draw some of the companions that it offers a place to."""
        frame = Frame(self.canvas, x, y, angle, length / 2)
        RULES[name].draw(frame, self.rng)
        points = np.concatenate(frame.extent) * self.canvas.scale
        low, high = np.floor(points.min(0)), np.ceil(points.max(0))
        x0, y0 = np.clip(low, 0, self.size)
        x1, y1 = np.clip(high, 0, self.size)
        seen = (x1 - x0) * (y1 - y0) / np.prod(high - low)
        if seen >= MIN_VISIBLE and min(x1 - x0, y1 - y0) >= MIN_SIDE_PX:
            self.boxes.append((x0, y0, x1, y1))
            self.labels.append(name)
        if self.rng.random() < 0.6:
            for slot in frame.slots:
                self._draw(*slot)

    def place(self, name: str) -> None:
        """Set one class into the scene, or leave it out where it does not fit."""
        rule = RULES[name]
        length = self.rng.uniform(*rule.length) * (self.zoom if rule.length[1] <= 200 else 1.0)
        before = len(self.labels)
        for shrink in (1.0, 0.85, 0.72):  # a little smaller where it would not fit
            getattr(self, f"_place_{rule.where}")(name, rule, max(length * shrink, rule.length[0]))
            if len(self.labels) > before:
                return

    def _place_land(self, name: str, rule: Rule, length: float) -> None:
        rng = self.rng
        n = int(rng.integers(rule.many[0], rule.many[1] + 1))
        columns = math.ceil(math.sqrt(n)) if rng.random() < 0.6 else n
        step = np.array([length, max(length * rule.aspect, 10)]) * rule.gap
        for columns_now in range(columns, 0, -1):
            rows = min(math.ceil(n / columns), max(1, 4 - columns_now // 2))
            width, height = step * (columns_now, rows) + 6
            frame = self._claim(width, height, tries=25)
            if frame is not None:
                break
        else:
            return
        if rule.pads and (self.ground.kind == "urban" or rng.random() < 0.65):
            frame.rect(0, 0, width, height, pick(rng, rule.pads, 10), part=False)
        turn = math.pi * rng.integers(2)
        alike = rng.random() < 0.7
        loose = 0.0 if "court" in name else 0.08
        for i in range(min(n, columns_now * rows)):
            row, column = divmod(i, columns_now)
            x = (column - (columns_now - 1) / 2 + rng.normal(0, loose)) * step[0]
            y = (row - (rows - 1) / 2 + rng.normal(0, loose)) * step[1]
            wx, wy = frame.point(x, y)
            angle = frame.angle + turn + (rng.normal(0, loose) if alike or "court" in name else rng.uniform(0, 6.3))
            if name in ("windmill", "chimney"):
                angle = self.lean + rng.normal(0, 0.04)
            self._draw(name, wx, wy, angle, length * (rng.uniform(0.85, 1.0) if loose else 1.0))
        if name == "chimney" and rng.random() < 0.7:
            self._houses(int(rng.integers(2, 5)), frame)

    def _place_water(self, name: str, rule: Rule, length: float) -> None:
        for _ in range(int(self.rng.integers(rule.many[0], rule.many[1] + 1))):
            own = length * self.rng.uniform(0.7, 1.2)
            spot = self._claim(own * 1.2, own * 0.55, taken=(own * 1.2, own * 0.5), water=True)
            if spot is not None:
                self._draw(name, spot.x, spot.y, spot.angle, own)

    def _place_river(self, name: str, rule: Rule, length: float) -> None:
        if self.river is None:
            return
        center, phi, half = self.river.center, self.river.angle, self.river.half_width
        if name == "dam":
            self._take(Frame(self.canvas, *center, phi, half + 10).area(2, 0.6, 0, 0.1))
            self._draw(name, *center, phi, 2 * (half + 10))
            return
        angle = phi + self.rng.normal(0, 0.12)
        along = np.array([math.cos(angle), math.sin(angle)])
        reach = 1.12 * half + 14
        width = self.rng.uniform(16, 26)
        for side in (-1, 1):
            self._road(np.stack([center + side * along * (reach - 6), center + side * along * 700]), width, check=False)
        self._take(Frame(self.canvas, *center, angle, reach).area(2.2, 0.5))
        self._draw(name, *center, angle, 2 * reach)

    def _place_shore(self, name: str, rule: Rule, length: float) -> None:
        inland = cv2.distanceTransform(((self.occupied & WATER) > 0).astype(np.uint8), cv2.DIST_L2, 3)
        dy, dx = np.gradient(cv2.GaussianBlur(inland, (0, 0), 4))
        rows, columns = np.nonzero((inland > 0) & (inland < 2))
        for _ in range(40 if len(rows) else 0):
            i = int(self.rng.integers(len(rows)))
            r, c = rows[i], columns[i]
            angle = math.atan2(dy[r, c], dx[r, c])
            start = np.array([c + 0.5, r + 0.5]) * (UNITS / CELLS)
            center = start + 0.42 * length * np.array([math.cos(angle), math.sin(angle)])
            frame = Frame(self.canvas, *center, angle, length / 2)
            inside = (center > 0.12 * UNITS).all() and (center < 0.88 * UNITS).all()
            if inside and self._free(frame.area(1.4, 1.3, 0.25, 0), water=True):
                self._take(frame.area(2.4, 1.6, 0.2, 0))
                self._draw(name, *center, angle, length)
                return

    def _line_site(self, width: float, height: float, strip: float, crossing: float = 0.0) -> Frame | None:
        """A free rectangle with a free strip through it across the whole scene (and one more at right angles)."""
        for _ in range(30):
            spot = self._spot(width, height, tries=6)
            if spot is None:
                return None
            lines = [spot.area(1400, strip), *([spot.area(crossing, 1400)] if crossing else [])]
            if all(self._free(line) for line in lines):
                self._take(spot.area(width, height))
                for line in lines:
                    self._take(line, ROAD)
                return spot
        return None

    def _place_line(self, name: str, rule: Rule, length: float) -> None:
        width, height, strip, crossing, road = (share * length for share in LINES[rule.where])
        spot = self._line_site(width, height, strip, crossing)
        if spot is None:
            return
        if crossing:
            self._road(spot.world(np.array([[0, -700], [0, 700]])), strip, check=False)
        if road:
            self._highway(spot, road)
        else:
            self._rails(spot, length / 2, 7)
        self._draw(name, spot.x, spot.y, spot.angle, length)

    _place_road = _place_crossing = _place_rail = _place_line

    def _place_roadside(self, name: str, rule: Rule, length: float) -> None:
        width = self.rng.uniform(30, 44)
        spot = self._line_site(length * 1.1, length * 0.55 + 2 * width, width)
        if spot is None:
            return
        self._highway(spot, width)
        side = 1 if self.rng.random() < 0.5 else -1
        wx, wy = spot.point(0, side * (0.25 * length + 0.5 * width + 2))
        ramp = [(-0.62, 0.1), (-0.42, 0.5), (0.42, 0.5), (0.62, 0.1)]
        points = spot.world(np.array(ramp) * (length, side * width * 2))
        self.canvas.fill(points, jitter(self.rng, (132, 132, 134), 6))
        self._draw(name, wx, wy, spot.angle if side > 0 else spot.angle + math.pi, length)

    def _rails(self, spot: Frame, unit: float, lines: int) -> None:
        frame = Frame(self.canvas, spot.x, spot.y, spot.angle, unit)
        width = 0.6 * lines / 7
        frame.rect(0, 0, 1400 / unit, width, jitter(self.rng, (132, 120, 106), 8), part=False)
        ys = np.linspace(-0.43 * width, 0.43 * width, lines)
        tracks(frame, ys, 700 / unit)
        for y in ys[self.rng.random(lines) < 0.2]:
            train(frame, self.rng, self.rng.uniform(-2, 2), y, self.rng.uniform(0.8, 2.0), 0.05)

    def _place_parking(self, name: str, rule: Rule, length: float) -> None:
        if self.roads and self.rng.random() < 0.6:
            self._traffic(int(self.rng.integers(4, 11)), length)
        elif self.rng.random() < 0.25:  # loose cars on open ground
            for _ in range(int(self.rng.integers(2, 6))):
                spot = self._claim(length * 1.4, length)
                if spot is not None:
                    self._draw(name, spot.x, spot.y, spot.angle, length)
        else:
            self._parking(length, int(self.rng.integers(*rule.many)), rule.pads)

    def _parking(self, length: float, cars: int, pads: tuple[Color, ...]) -> None:
        """A parking lot with two rows of bays; with no cars it is a distractor."""
        rng = self.rng
        bays, pitch = int(rng.integers(4, 8)), 0.66 * length
        width, height = bays * pitch + 8, 3.4 * length
        spot = self._claim(width, height)
        if spot is None:
            return
        spot.rect(0, 0, width, height, pick(rng, pads, 8), part=False)
        places = []
        for side in (-1, 1):
            for i in range(bays):
                x = (i - (bays - 1) / 2) * pitch
                spot.line([(x - pitch / 2, side * 0.6 * length), (x - pitch / 2, side * 1.65 * length)], 1, WHITE)
                places.append((x, side * 1.12 * length))
        for i in rng.permutation(len(places))[:cars]:
            x, y = spot.point(*places[i])
            self._draw("vehicle", x, y, spot.angle + math.pi / 2 * rng.choice((-1, 1)), length)

    def _traffic(self, cars: int, length: float) -> None:
        """Cars on the roads, each on its side."""
        rng = self.rng
        for _ in range(8 * cars if self.roads else 0):
            points, width = self.roads[int(rng.integers(len(self.roads)))]
            i = int(rng.integers(len(points) - 1))
            step = points[i + 1] - points[i]
            along = step / np.hypot(*step)
            side = rng.choice((-1, 1))
            at = points[i] + step * rng.random() + side * 0.24 * width * left_of(along)
            own = min(length, 1.8 * width)
            angle = math.atan2(along[1], along[0])
            outline = Frame(self.canvas, *at, angle, own).area(1.3, 0.7)
            under = self.occupied[self._cells(outline)]
            inside = (at > 0).all() and (at < UNITS).all()
            if inside and under.size and not (under & SITE).any():
                self._take(outline)
                self._draw("vehicle", *at, angle + (math.pi if side < 0 else 0), own)
                cars -= 1
                if cars == 0:
                    return

    def _road(self, points: np.ndarray, width: float, check: bool = True) -> None:
        """A road along a polyline [n, 2]; with `check` only where nothing stands."""
        d = np.gradient(points, axis=0)
        normal = np.stack([-d[:, 1], d[:, 0]], 1) / np.hypot(d[:, 0], d[:, 1])[:, None]

        def band(low: float, high: float) -> np.ndarray:
            return np.concatenate([points + normal * low * width, (points + normal * high * width)[::-1]])

        outline = band(-0.55, 0.55)
        if check and not self._free(outline):
            return
        rng = self.rng
        asphalt = pick(rng, (ASPHALT, (118, 118, 120), (140, 138, 134), (160, 146, 122)), 8)
        self._take(outline, ROAD)
        self.canvas.fill(band(-0.56, 0.56), jitter(rng, np.multiply(asphalt, 1.22).clip(0, 235), 4))
        self.canvas.fill(band(-0.5, 0.5), asphalt)
        if width > 24:
            self.canvas.fill(band(-0.035, 0.035), jitter(rng, LAWN, 6))
        elif width > 11 and asphalt[0] < 130:
            self.canvas.fill(band(-0.02, 0.02), (206, 196, 130))
        self.roads.append((points, width))

    def _highway(self, spot: Frame, width: float) -> None:
        """A straight road across the whole scene, along the spot's x axis."""
        self._road(spot.world(np.array([[-700, 0], [700, 0]])), width, check=False)

    def _some_roads(self, count: int) -> None:
        rng = self.rng
        for _ in range(count):
            start, angle = rng.uniform(30, UNITS - 30, 2), rng.uniform(0, 6.3)
            t = np.linspace(-600, 600, 25)
            bend = rng.normal(0, 1.2e-4) * t**2
            c, s = math.cos(angle), math.sin(angle)
            self._road(start + np.stack([c * t - s * bend, s * t + c * bend], 1), rng.uniform(13, 38))

    def _houses(self, count: int, near: Frame | None = None) -> None:
        rng = self.rng
        for _ in range(count):
            length, width = rng.uniform(24, 60), rng.uniform(0.45, 0.9)
            taken = (length * 1.2, length * width * 1.3)
            spot = self._claim(length * 1.15, length * width * 1.25, taken, tries=2)
            if spot is not None:
                angle = near.angle if near is not None else spot.angle
                house(Frame(self.canvas, spot.x, spot.y, angle, length / 2), rng, 2 * width)

    def _trees(self, count: int) -> None:
        rng = self.rng
        level = rng.uniform(-0.4, 0.6)
        for x, y in rng.uniform(0, UNITS, (count, 2)):
            cell = self.occupied[int(y * CELLS / UNITS), int(x * CELLS / UNITS)]
            pixel = int(y * self.canvas.scale), int(x * self.canvas.scale)
            if cell == 0 and self.ground.coarse[pixel] > level:
                tree(self.canvas, rng, x, y, rng.uniform(4, 9))

    def compose(self) -> None:
        rng = self.rng
        count = int(rng.choice((2, 3, 4, 5, 6, 7), p=(0.12, 0.2, 0.24, 0.2, 0.14, 0.1)))
        wanted = [str(name) for name in rng.choice(CLASSES, count, replace=False, p=CHANCE)]
        wet = [name for name in wanted if name in WET]
        kind = WET[wet[0]] if wet else "any"
        if kind == "any":
            kind = str(rng.choice(("coast", "lake", "river", "coast")))
        if wet or rng.random() < 0.16:
            depth, self.river = lay_water(self.canvas, rng, kind, self.ground.coarse)
            self.occupied[cv2.resize(depth, (CELLS, CELLS), interpolation=cv2.INTER_AREA) > 0] |= WATER
        unfit = ("bridge", "harbor") if kind == "reservoir" else ("dam",)
        wanted = [name for name in wanted if name not in unfit]
        wanted.sort(key=_rank)
        laid = False
        for name in wanted:
            if not laid and _rank(name)[0] == 3:
                self._some_roads(int(rng.integers(0, 4)))
                laid = True
            self.place(name)
        if not laid:
            self._some_roads(int(rng.integers(0, 3)))
        for _ in range(40):  # a scene of nothing is of little use
            if self.labels:
                break
            self.place(str(rng.choice([name for name in CLASSES if RULES[name].where in ("land", "water")])))
        if rng.random() < 0.12:
            spot = self._line_site(60, 30, 26)
            if spot is not None:
                self._rails(spot, 90, int(rng.integers(2, 4)))
        if rng.random() < 0.15:
            self._traffic(int(rng.integers(1, 4)), rng.uniform(*RULES["vehicle"].length))
        if rng.random() < 0.3:
            self._parking(rng.uniform(*RULES["vehicle"].length), 0, RULES["vehicle"].pads)
        if rng.random() < 0.2:
            spot = self._claim(60, 50)
            if spot is not None:
                spot.poly(blob(rng, 0, 0, 24, 18), pick(rng, [deep for _, deep in WATERS], 8), part=False)
        town = self.ground.kind in ("urban", "industrial")
        self._houses(int(rng.integers(14, 46)) if town else int(rng.integers(0, 9)))
        self._trees(int(rng.integers(0, 60 if town else 220)) * (2 if self.ground.kind == "forest" else 1))


def _rank(name: str) -> tuple[int, float]:
    """The order of placing: what the water decides, what needs most room, what a line must cross, then the rest."""
    rule = RULES[name]
    if rule.where in ("river", "shore"):
        return 0, float(rule.where == "shore")
    if rule.where == "land":
        return (1 if rule.length[0] > 180 else 3), -rule.length[1]
    return (3 if rule.where in ("parking", "water") else 2), -rule.length[1]
