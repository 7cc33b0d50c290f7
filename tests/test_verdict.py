from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from surgerylib.engine.localization import localization_summary
from surgerylib.study.tables import plain
from surgerylib.study.verdict import CLASSIFICATION, LOCALISATION, NOT_DECIDED, outcome, verdict


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


def summary_of(oracle: np.ndarray, images: np.ndarray, guess: float = 0.1) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"oracle": oracle, "cam_peak": oracle * 0.5, "whole_image": guess, "centre_box": 0.0, "class_mean": guess / 2}
    )
    return localization_summary(frame, images)


def test_the_sentence_names_the_figures_behind_it():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(100), 4)
    oracle = np.where(rng.random(400) < 0.85, 0.8, 0.2)
    said = verdict(summary_of(oracle, images))
    assert said.outcome == CLASSIFICATION
    share = (oracle > 0.5).mean()
    assert said.share == pytest.approx(share)
    assert said.sentence.startswith("Classification is the problem: told its class,")
    for part in (f"{100 * share:.1f} %", f"{100 * said.low:.1f}, {100 * said.high:.1f}", "400 boxes on 100 images",
                 "above the 70 %", "whole image", "CAM's peak, for 0.0 %"):  # fmt: skip
        assert part in said.sentence
    assert "not told apart" not in said.sentence
    json.dumps(plain(asdict(said)), allow_nan=False)


def test_a_guess_that_does_as_well_is_named():
    images = np.arange(60)
    said = verdict(summary_of(np.full(60, 0.9), images, guess=0.8))
    assert said.outcome == CLASSIFICATION
    assert "The guess does better" not in said.sentence
    assert "The guess's interval overlaps the head's" in said.sentence
    rng = np.random.default_rng(0)
    said = verdict(summary_of(np.where(rng.random(200) < 0.35, 0.9, 0.1), np.arange(200), guess=0.8))
    assert "The guess does better than the head" in said.sentence


@pytest.mark.parametrize(("iou", "n_images"), [(0.9, 2), (0.9, 5), (0.1, 2), (0.1, 4)])
def test_a_few_boxes_that_all_agree_decide_nothing(iou, n_images):
    """Two boxes, both found, had the interval [1, 1] and made classification the problem."""
    said = verdict(summary_of(np.full(n_images, iou), np.arange(n_images), guess=0.0))
    assert said.outcome == NOT_DECIDED
    assert "crosses that line" in said.sentence


def test_one_image_decides_nothing():
    said = verdict(summary_of(np.full(4, 0.9), np.zeros(4)))
    assert said.outcome == NOT_DECIDED
    assert "interval not available" in said.sentence
    assert "1 image," in said.sentence
    assert plain(asdict(said))["low"] is None


def test_no_boxes():
    said = verdict(summary_of(np.empty(0), np.empty(0)))
    assert said.outcome == NOT_DECIDED
    assert "no image here holds a box" in said.sentence
