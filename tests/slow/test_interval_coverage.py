"""How often 95 % intervals of average precision hold what other sets of as many images give.

Sets of images are drawn from one process, each is evaluated with its interval, and an interval holds where the mean of
the value over all sets lies inside. That mean is of sets of this size: average precision of very many images is lower.

The claim (`BootstrapResult`): 92 to 99 % are held; where 11-point mAP of 3 classes is low, at least 78 %. A share of
`N_SETS` draws is noisy itself: it fails when it is 2.6 of its standard errors below the claim, as one in 200 is by
chance. The seed is 0, not one that was chosen.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import bootstrap_map, paired_difference

N_SETS = 100
# by how much boxes outscore false ones for two detectors; false boxes per box; how hard boxes are to find
LEVELS = {"low": ((0.9, 0.5), 3.0, 0.5), "middle": ((2.2, 1.6), 1.0, 0.2), "high": ((4.5, 3.8), 0.3, -0.5)}
SHARES = {3: np.array([0.5, 0.3, 0.2]), 20: np.linspace(0.04, 0.2, 20)}  # of images that hold a class


def scenes(rng: np.random.Generator, n_images: int, share: np.ndarray, level: str) -> tuple[pd.DataFrame, ...]:
    """Ground truth of random images, and what two detectors find at IoU 1, 0.5 or not at all.

    Boxes and images are easy or hard for both detectors alike, so whether a box is found, how well and with what score
    goes together; all scores of an image are high or low together.
    """
    skills, false_boxes, hardness = LEVELS[level]
    n_boxes = (rng.random((n_images, len(share))) < share) * (1 + rng.poisson(0.6, (n_images, len(share))))
    image, label = (np.repeat(codes.ravel(), n_boxes.ravel()) for codes in np.indices(n_boxes.shape))
    truth = pd.DataFrame({"image_id": image, "label": label, "xmin": 20.0 * np.arange(len(image)), "ymin": 0.0})
    truth = truth.assign(xmax=truth["xmin"] + 10, ymax=10.0)
    image_hard, brightness = rng.normal(size=n_images), 0.6 * rng.normal(size=n_images)
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
    return truth, *found


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n_classes", SHARES)
@pytest.mark.parametrize("n_images", [50, 500])
def test_intervals_hold_what_other_sets_give(n_images, n_classes, level):
    rng = np.random.default_rng(0)
    # two detectors and their difference, IoUs, value and ends
    tables = np.empty((N_SETS, len(INTERPOLATIONS), 3, 2, 3))
    for seed, table in enumerate(tables):
        truth, *found = scenes(rng, n_images, SHARES[n_classes], level)
        for of_interpolation, interpolation in zip(table, INTERPOLATIONS, strict=True):
            options = {"iou_thresholds": (0.3, 0.6), "interpolation": interpolation, "n_resamples": 100, "seed": seed}
            a, b = (bootstrap_map(frame, truth, image_ids=range(n_images), **options) for frame in found)
            for figures, result in zip(of_interpolation, (a, b, paired_difference(a, b)), strict=True):
                figures[:] = result.summary().iloc[:, 1:4]
    value = tables[..., 0].mean(axis=0)
    held = ((tables[..., 1] <= value) & (value <= tables[..., 2])).mean(axis=0)  # [interpolation, 3, IoU]
    claim = np.full(held.shape, 0.92)
    if n_classes == 3 and level == "low":  # one level of eleven is decided by the first detections
        claim[INTERPOLATIONS.index("11point")] = 0.78
    assert (held >= claim - 2.6 * np.sqrt(claim * (1 - claim) / N_SETS)).all(), (value, held)
    assert held[:, :2].mean() <= 0.99  # of differences near 0 all may be held
