"""The twenty classes: how each is drawn and set into a scene, and how often it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import objects, structures
from .canvas import ASPHALT, CONCRETE, LAWN, Color, Frame


@dataclass(frozen=True)
class Rule:
    """How a class is drawn and set into a scene; lengths are units of its long axis."""

    draw: Callable[[Frame, np.random.Generator], None]  # along the frame's x axis
    length: tuple[float, float]  # least and most (a bridge or dam is as long as its river is wide)
    aspect: float = 0.6  # height of the ground that it needs, as a share of its length
    many: tuple[int, int] = (1, 1)  # how many come together, least and most
    where: str = "land"  # the kind of place; `Composer` has a method for each
    pads: tuple[Color, ...] = ()  # colours of the prepared ground under a group
    gap: float = 1.25  # pitch of a group, in lengths
    chance: float = 1.0  # of being wanted; more where room is scarce, so that every class is seen about as often


DIRT = (168, 146, 112)
RULES = {
    "airplane": Rule(objects.airplane, (66, 150), 1.0, (1, 5), pads=(CONCRETE, (140, 142, 146), CONCRETE, LAWN)),
    "airport": Rule(structures.airport, (300, 420), 0.75, chance=1.3),
    "baseballfield": Rule(objects.baseballfield, (110, 200), 1.0, (1, 2), pads=(LAWN, (108, 130, 76), DIRT)),
    "basketballcourt": Rule(objects.basketballcourt, (84, 144), 0.62, (1, 4), pads=(CONCRETE, LAWN, (120, 122, 124))),
    "bridge": Rule(structures.bridge, (90, 200), where="river"),
    "chimney": Rule(objects.chimney, (92, 160), 0.4, (1, 3), pads=(CONCRETE, (132, 126, 120), DIRT), gap=1.9),
    "dam": Rule(structures.dam, (110, 210), where="river", chance=0.8),
    "Expressway-Service-area": Rule(structures.service_area, (140, 220), 0.55, where="roadside", chance=1.3),
    "Expressway-toll-station": Rule(structures.toll_station, (110, 180), where="road"),
    "golffield": Rule(objects.golffield, (220, 370), 0.75, chance=1.5),
    "groundtrackfield": Rule(objects.groundtrackfield, (130, 240), 0.62, pads=(LAWN, CONCRETE, (150, 110, 92))),
    "harbor": Rule(structures.harbor, (130, 230), 0.8, where="shore", chance=0.8),
    "overpass": Rule(structures.overpass, (130, 220), where="crossing", chance=3.0),
    "ship": Rule(objects.ship, (60, 170), 0.3, (2, 6), where="water", chance=0.7),
    "stadium": Rule(objects.stadium, (130, 240), 0.98, pads=(CONCRETE, (150, 148, 146), LAWN), chance=1.3),
    "storagetank": Rule(
        objects.storagetank, (48, 96), 1.0, (2, 8), pads=(CONCRETE, DIRT, (126, 124, 120), LAWN), gap=1.35
    ),
    "tenniscourt": Rule(
        objects.tenniscourt, (80, 136), 0.58, (1, 5), pads=(CONCRETE, LAWN, (120, 122, 124)), gap=1.12, chance=0.8
    ),
    "trainstation": Rule(structures.trainstation, (190, 320), 0.6, where="rail", chance=1.4),
    "vehicle": Rule(
        objects.vehicle, (36, 56), 0.62, (3, 9), where="parking", pads=(ASPHALT, (118, 118, 120), CONCRETE), chance=0.7
    ),
    "windmill": Rule(objects.windmill, (104, 180), 0.8, (1, 5), gap=1.3),
}
CLASSES = tuple(RULES)
CHANCE = np.array([rule.chance for rule in RULES.values()])
CHANCE /= CHANCE.sum()
WET = {"bridge": "river", "dam": "reservoir", "harbor": "coast", "ship": "any"}
