from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from surgerylib.engine.localization import localization_summary
from surgerylib.study.tables import plain
from surgerylib.study.verdicts import CLASSIFICATION, LOCALISATION, NOT_DECIDED, Verdict, outcome, verdict


@pytest.mark.parametrize(
    ("share", "low", "high", "expected"),
    [
        (0.80, 0.75, 0.85, CLASSIFICATION),
        (0.80, 0.70, 0.85, NOT_DECIDED),  # on the line is not above it
        (0.72, 0.68, 0.76, NOT_DECIDED),
        (0.60, 0.55, 0.65, NOT_DECIDED),
        (0.48, 0.44, 0.52, NOT_DECIDED),
        (0.48, 0.44, 0.50, NOT_DECIDED),
        (0.40, 0.35, 0.45, LOCALISATION),
        (0.95, math.nan, math.nan, NOT_DECIDED),
        (0.05, math.nan, math.nan, NOT_DECIDED),
        (math.nan, math.nan, math.nan, NOT_DECIDED),
    ],
)
def test_the_rule(share, low, high, expected):
    assert outcome(share, low, high) == expected


def said_of(oracle: np.ndarray, images: np.ndarray | None = None, guess: float = 0.1) -> Verdict:
    """The verdict on a head of these IoUs, a box an image unless said."""
    frame = pd.DataFrame(
        {"oracle": oracle, "cam_peak": oracle * 0.5, "whole_image": guess, "centre_box": 0.0, "class_mean": guess / 2}
    )
    return verdict(localization_summary(frame, np.arange(len(oracle)) if images is None else images))


def drawn(share: float, n: int) -> np.ndarray:
    return np.where(np.random.default_rng(0).random(n) < share, 0.9, 0.1)


def test_the_sentence_names_the_figures_behind_it():
    oracle = drawn(0.85, 400)
    said = said_of(oracle, np.repeat(np.arange(100), 4))
    share = (oracle > 0.5).mean()
    assert (said.outcome, said.share) == (CLASSIFICATION, pytest.approx(share))
    assert said.sentence.startswith("Classification is the problem: told its class,")
    for part in (f"{100 * share:.1f} %", f"{100 * said.low:.1f}, {100 * said.high:.1f}", "400 boxes on 100 images",
                 "above the 70 %", "whole image", "CAM's peak, for 0.0 %"):  # fmt: skip
        assert part in said.sentence
    assert "not told apart" not in said.sentence
    json.dumps(plain(asdict(said)), allow_nan=False)


# two boxes, both found, had the interval [1, 1] and made classification the problem
@pytest.mark.parametrize(
    ("oracle", "images", "guess", "expected", "words"),
    [
        (np.full(60, 0.9), None, 0.8, CLASSIFICATION, "The guess's interval overlaps the head's"),
        (drawn(0.35, 200), None, 0.8, LOCALISATION, "The guess does better than the head"),
        (np.full(2, 0.9), None, 0.0, NOT_DECIDED, "above 70 %, but the interval crosses that line"),
        (np.full(5, 0.9), None, 0.0, NOT_DECIDED, "above 70 %, but the interval crosses that line"),
        (np.full(2, 0.1), None, 0.0, NOT_DECIDED, "below 50 %, but the interval crosses that line"),
        (np.full(4, 0.1), None, 0.0, NOT_DECIDED, "below 50 %, but the interval crosses that line"),
        (np.full(4, 0.9), np.zeros(4), 0.1, NOT_DECIDED, "[interval not available] of 4 boxes on 1 image,"),
        (np.empty(0), None, 0.1, NOT_DECIDED, "no image here holds a box"),
    ],
)  # fmt: skip
def test_what_a_guess_and_few_boxes_make_of_it(oracle, images, guess, expected, words):
    said = said_of(oracle, images, guess)
    assert said.outcome == expected
    assert words in said.sentence
    assert ("The guess does better" in said.sentence) == ("does better" in words)
    assert (plain(asdict(said))["low"] is None) == (images is not None or not len(oracle))
