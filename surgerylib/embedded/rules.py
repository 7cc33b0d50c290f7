"""How each class is set into a scene: one rule a class, and how often it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import ASPHALT, CONCRETE, LAWN, Color
from .objects import DRAWERS

CLASSES = tuple(DRAWERS)


@dataclass(frozen=True)
class Rule:
    """How a class is set into a scene.

    Attributes:
        length: of the object's long axis, in units (a bridge or dam is as long as its river is wide).
        aspect: height of the ground that it needs, as a share of its length.
        many: how many come together, least and most.
        where: the kind of place; `Composer` has a method for each.
        pads: colours of the prepared ground under a group.
        gap: pitch of a group, in lengths.
    """

    length: tuple[float, float]
    aspect: float = 0.6
    many: tuple[int, int] = (1, 1)
    where: str = "land"
    pads: tuple[Color, ...] = ()
    gap: float = 1.25


DIRT = (168, 146, 112)
RULES = {
    "airplane": Rule((66, 150), 1.0, (1, 5), pads=(CONCRETE, (140, 142, 146), CONCRETE, LAWN)),
    "airport": Rule((300, 420), 0.75),
    "baseballfield": Rule((110, 200), 1.0, (1, 2), pads=(LAWN, (108, 130, 76), DIRT)),
    "basketballcourt": Rule((84, 144), 0.62, (1, 4), pads=(CONCRETE, LAWN, (120, 122, 124))),
    "bridge": Rule((90, 200), where="river"),
    "chimney": Rule((92, 160), 0.4, (1, 3), pads=(CONCRETE, (132, 126, 120), DIRT), gap=1.9),
    "dam": Rule((110, 210), where="river"),
    "Expressway-Service-area": Rule((140, 220), 0.55, where="roadside"),
    "Expressway-toll-station": Rule((110, 180), where="road"),
    "golffield": Rule((220, 370), 0.75),
    "groundtrackfield": Rule((130, 240), 0.62, pads=(LAWN, CONCRETE, (150, 110, 92))),
    "harbor": Rule((130, 230), 0.8, where="shore"),
    "overpass": Rule((130, 220), where="crossing"),
    "ship": Rule((60, 170), 0.3, (2, 6), where="water"),
    "stadium": Rule((130, 240), 0.98, pads=(CONCRETE, (150, 148, 146), LAWN)),
    "storagetank": Rule((48, 96), 1.0, (2, 8), pads=(CONCRETE, DIRT, (126, 124, 120), LAWN), gap=1.35),
    "tenniscourt": Rule((80, 136), 0.58, (1, 5), pads=(CONCRETE, LAWN, (120, 122, 124)), gap=1.12),
    "trainstation": Rule((190, 320), 0.6, where="rail"),
    "vehicle": Rule((36, 56), 0.62, (3, 9), where="parking", pads=(ASPHALT, (118, 118, 120), CONCRETE)),
    "windmill": Rule((104, 180), 0.8, (1, 5), gap=1.3),
}
# what seldom finds room is wanted more often, so that every class is seen about as often as the next
SCARCE = {
    "airport": 1.3,
    "golffield": 1.5,
    "overpass": 3.0,
    "stadium": 1.3,
    "Expressway-Service-area": 1.3,
    "trainstation": 1.4,
}
COMMON = {"ship": 0.7, "harbor": 0.8, "dam": 0.8, "tenniscourt": 0.8, "vehicle": 0.7}
CHANCE = np.array([{**SCARCE, **COMMON}.get(name, 1.0) for name in CLASSES])
CHANCE /= CHANCE.sum()
WET = {"bridge": "river", "dam": "river", "harbor": "coast", "ship": "any"}
