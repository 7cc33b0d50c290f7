"""How often 95 % intervals of average precision hold what other sets of as many images give.

Sets of images are drawn from one process, each is evaluated with its interval, and an interval holds where the mean of
the value over all sets lies inside. That mean is of sets of this size: average precision of very many images is lower.

The claim (`BootstrapResult`): 92 to 99 % are held; where 11-point mAP is low, at least 78 % of 3 classes, and 89 % of
paired differences of 20. A share of `N_SETS` draws is noisy itself: it fails when it is 2.6 of its standard errors
below the claim, as one in 200 is by chance. The seed is 0, not one that was chosen.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from surgerylib.intervals import degrees_of_freedom, jackknife_interval
from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import BootstrapResult, bootstrap_map, paired_difference

N_SETS, AT_ONCE = 1000, 50
# by how much boxes outscore false ones for two detectors; false boxes per box; how hard boxes are to find
LEVELS = {"low": ((0.9, 0.5), 3.0, 0.5), "middle": ((2.2, 1.6), 1.0, 0.2), "high": ((4.5, 3.8), 0.3, -0.5)}
SHARES = {3: np.array([0.5, 0.3, 0.2]), 20: np.linspace(0.04, 0.2, 20)}  # of images that hold a class


def scenes(rng: np.random.Generator, n_images: int, share: np.ndarray, level: str) -> tuple[pd.DataFrame, ...]:
    """Ground truth of `AT_ONCE` sets of random images, and what two detectors find at IoU 1, 0.5 or not at all.

    Boxes and images are easy or hard for both detectors alike, so whether a box is found, how well and with what score
    goes together; all scores of an image are high or low together. The sets are evaluated in one call: each has the
    same names of images, and classes of its own.
    """
    n_all = AT_ONCE * n_images
    skills, false_boxes, hardness = LEVELS[level]
    n_boxes = (rng.random((n_all, len(share))) < share) * (1 + rng.poisson(0.6, (n_all, len(share))))
    image, label = (np.repeat(codes.ravel(), n_boxes.ravel()) for codes in np.indices(n_boxes.shape))
    truth = pd.DataFrame({"image_id": image, "label": label, "xmin": 20.0 * np.arange(len(image)), "ymin": 0.0})
    truth = truth.assign(xmax=truth["xmin"] + 10, ymax=10.0)
    image_hard, brightness = rng.normal(size=n_all), 0.6 * rng.normal(size=n_all)
    box_hard = hardness + 0.5 * image_hard[image] + 0.6 * rng.normal(size=len(image))
    found = []
    for skill in skills:
        trouble = box_hard + 0.62 * rng.normal(size=len(image))
        height = np.select([trouble < 0.0, trouble < 0.7], [10.0, 5.0], 0.0)
        hits = truth.assign(ymax=height, score=skill + brightness[image] + rng.logistic(0, 0.55, len(image)))
        n_false = rng.poisson(4 * false_boxes * share * np.exp(0.5 * image_hard)[:, None])
        elsewhere, called = (np.repeat(codes.ravel(), n_false.ravel()) for codes in np.indices(n_false.shape))
        false = pd.DataFrame({"image_id": elsewhere, "label": called, "xmin": -20.0, "ymin": 0.0, "xmax": -10.0})
        score = brightness[elsewhere] + rng.logistic(0, 0.55, len(false))
        found.append(pd.concat([hits, false.assign(ymax=10.0, score=score)], ignore_index=True))
    for frame in (truth, *found):
        frame["label"] += len(share) * (frame["image_id"] // n_images)
        frame["image_id"] %= n_images
    return truth, *found


def of_sets(result: BootstrapResult) -> np.ndarray:
    """mAP of each set by itself, and its interval's ends: [3, AT_ONCE, IoUs]."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a half without boxes of any class
        value, samples = (np.nanmean(np.stack(np.split(ap, AT_ONCE, axis=-2), axis=-3), axis=-2)
                          for ap in (result.ap, result.ap_samples))  # fmt: skip
    degrees = [[degrees_of_freedom(images)] for images in np.split(result.class_images, AT_ONCE)]
    least = -1 if result.is_difference else 0
    return np.stack([value, *jackknife_interval(value, samples, np.array(degrees), least=least)])


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n_classes", SHARES)
@pytest.mark.parametrize("n_images", [50, 500])
def test_intervals_hold_what_other_sets_give(n_images, n_classes, level):
    rng = np.random.default_rng(0)
    tables = []
    for seed in range(N_SETS // AT_ONCE):
        truth, *found = scenes(rng, n_images, SHARES[n_classes], level)
        options = {"image_ids": range(n_images), "classes": range(AT_ONCE * n_classes), "iou_thresholds": (0.3, 0.6)}
        options |= {"n_resamples": 100, "seed": seed}
        both = [[bootstrap_map(f, truth, interpolation=i, **options) for f in found] for i in INTERPOLATIONS]
        tables.append([[of_sets(result) for result in (a, b, paired_difference(a, b))] for a, b in both])
    # interpolations; two detectors and their difference; value and ends; sets; IoUs
    point, low, high = np.moveaxis(np.concatenate(tables, axis=3), 2, 0)
    value = point.mean(axis=2)
    held = ((low <= value[:, :, None]) & (value[:, :, None] <= high)).mean(axis=2)
    claim = np.full(held.shape, 0.92)
    low_11point = claim[INTERPOLATIONS.index("11point")]  # one level of eleven is decided by the first detections
    if level == "low" and n_classes == 3:
        low_11point[:] = 0.78
    elif level == "low" and n_images == 500:
        low_11point[2] = 0.89  # of the difference
    assert (held >= claim - 2.6 * np.sqrt(claim * (1 - claim) / N_SETS)).all(), (value, held)
    assert held[:, :2].mean() <= 0.99  # of differences near 0 all may be held
