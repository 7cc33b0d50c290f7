"""Classification or localisation: what holds the detections back? The rule, and the sentence with its figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from ..engine import BASELINES
from ..words import METHOD_NAMES

CLASSIFICATION = "classification is the problem"
LOCALISATION = "localisation is the problem"
NOT_DECIDED = "not decided"
ABOVE, BELOW = 0.7, 0.5  # of the share of boxes found at IoU > 0.5
SHARE = "share>0.50"


@dataclass(frozen=True)
class Verdict:
    """What the share of boxes that the head finds, told their class, says.

    Attributes:
        outcome: one of `CLASSIFICATION`, `LOCALISATION` and `NOT_DECIDED`.
        sentence: the outcome with the figures behind it.
        share, low, high: of boxes with IoU > 0.5 in the best cell, and its 95 % interval (NaN: not available).
    """

    outcome: str
    sentence: str
    share: float
    low: float
    high: float


def outcome(share: float, low: float, high: float) -> str:
    """The rule: the whole interval above 0.7, the whole interval below 0.5, or not decided.

    Without an interval (fewer than two images) nothing is decided.
    """
    if share > ABOVE and low > ABOVE:
        return CLASSIFICATION
    if share < BELOW and high < BELOW:
        return LOCALISATION
    return NOT_DECIDED


def verdict(summary: pd.DataFrame) -> Verdict:
    """The verdict on boxes whose class was given.

    `summary` is of `localizer_training.summarise`, with the methods `oracle`, `cam_peak`, the baselines, and perhaps
    `untrained_oracle`.
    """
    of = summary[summary["figure"] == SHARE].set_index("method")
    share, low, high = oracle = tuple(float(of.loc["oracle", name]) for name in ("value", "low", "high"))
    if math.isnan(share):
        return Verdict(NOT_DECIDED, "Not decided: no image here holds a box of the classes asked for.", *oracle)
    decided = outcome(*oracle)
    n_boxes, n_images = (int(of[name].iloc[0]) for name in ("n_boxes", "n_images"))
    guesses, has_untrained = of.loc[list(BASELINES)], "untrained_oracle" in of.index
    best = guesses["value"].idxmax()
    untrained = f", the untrained head for {of.loc['untrained_oracle', 'value']:.1%}" if has_untrained else ""
    sentence = (
        f"{decided[0].upper()}{decided[1:]}: told its class, the head has a box with IoU > 0.5 in some cell for "
        f"{_percent(*oracle)} of {n_boxes:,} boxes on {n_images:,} image{'' if n_images == 1 else 's'}, "
        f"{_reason(*oracle)}; without that oracle, at the CAM's peak, for "
        f"{_percent(*of.loc['cam_peak', ['value', 'low', 'high']])}; the best guess that needs no learning "
        f"({METHOD_NAMES[best]}) for {of.loc[best, 'value']:.1%}{untrained}."
    )
    if guesses["low"].max() > high:
        sentence += " The guess does better than the head: the share says nothing of what the head knows."
    elif guesses["high"].max() >= low:
        sentence += " The guess's interval overlaps the head's: the share says little of what the head knows."
    if has_untrained and of.loc["untrained_oracle", "high"] >= low:
        sentence += " The untrained head's interval reaches the trained one's: choosing among many cells may do it all."
    return Verdict(decided, sentence.replace("%", " %"), *oracle)


def _reason(share: float, low: float, high: float) -> str:
    if math.isnan(low):
        return "and one image gives no interval to decide by"
    if low > ABOVE:
        return f"above the {ABOVE:.0%} from which the place counts as found"
    if high < BELOW:
        return f"below the {BELOW:.0%} under which the place counts as not found"
    if BELOW <= share <= ABOVE:
        return f"between {BELOW:.0%} and {ABOVE:.0%}"
    line = f"above {ABOVE:.0%}" if share > ABOVE else f"below {BELOW:.0%}"
    return f"{line}, but the interval crosses that line"


def _percent(share: float, low: float, high: float) -> str:
    interval = "interval not available" if math.isnan(low) else f"{100 * low:.1f}, {100 * high:.1f}"
    return f"{share:.1%} [{interval}]"
