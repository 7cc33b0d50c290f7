"""How often 95 % intervals of average precision hold what other sets of as many images give."""

from __future__ import annotations

import numpy as np
import pandas as pd

from surgerylib.metrics import bootstrap_map, paired_difference

IOU_THRESHOLDS = (0.3, 0.6)
# how much higher a box scores than a false one, in standard deviations of the noise, for two detectors; false boxes an
# image and class; boxes that no detection overlaps
LEVELS = {"low": ((0.9, 0.5), 3.0, 0.5), "middle": ((2.2, 1.6), 1.0, 0.2), "high": ((4.5, 3.8), 0.3, -0.5)}
SHARES = {3: np.array([0.5, 0.3, 0.2]), 20: np.linspace(0.04, 0.2, 20)}


def scenes(rng: np.random.Generator, n_images: int, share: np.ndarray, level: str):
    """Random images with one process behind them: ground truth, and the detections of two detectors.

    A class is in `share` of the images, with 1.6 boxes on average. Boxes and images are easy or hard for both detectors
    alike, so whether a box is found, how well and with what score goes together; an image's false boxes are scored
    alike too.
    """
    skills, false_boxes, difficulty = LEVELS[level]
    n_boxes = (rng.random((n_images, len(share))) < share) * (1 + rng.poisson(0.6, (n_images, len(share))))
    image, label = (np.repeat(codes.ravel(), n_boxes.ravel()) for codes in np.indices(n_boxes.shape))
    left = 20.0 * np.arange(len(image))  # every box in a place of its own
    truth = pd.DataFrame(
        {"image_id": image, "label": label, "xmin": left, "ymin": 0.0, "xmax": left + 10, "ymax": 10.0}
    )
    hard, brightness, box_hard = rng.normal(size=n_images), 0.6 * rng.normal(size=n_images), rng.normal(size=len(image))
    found = []
    for skill in skills:
        trouble = difficulty + 0.5 * hard[image] + 0.6 * box_hard + 0.62 * rng.normal(size=len(image))
        height = np.select([trouble < 0.0, trouble < 0.7], [10.0, 5.0], 0.0)  # IoU 1, 0.5 or none
        hits = truth.assign(ymax=height, score=skill + brightness[image] + rng.logistic(0, 0.55, len(image)))
        n_false = rng.poisson(false_boxes * np.exp(0.5 * hard)[:, None] * share * 4, n_boxes.shape)
        image_false, label_false = (np.repeat(codes.ravel(), n_false.ravel()) for codes in np.indices(n_false.shape))
        false = pd.DataFrame({"image_id": image_false, "label": label_false, "xmin": -20.0, "ymin": 0.0, "xmax": -10.0})
        score = brightness[image_false] + rng.logistic(0, 0.55, len(false))
        found.append(pd.concat([hits, false.assign(ymax=10.0, score=score)], ignore_index=True))
    return truth, *found


def coverage(n_images, n_classes, level, interpolation, n_sets, seed=0, R=200):
    rng = np.random.default_rng(seed)
    rows = []
    for draw in range(n_sets):
        truth, *found = scenes(rng, n_images, SHARES[n_classes], level)
        a, b = (
            bootstrap_map(
                frame,
                truth,
                image_ids=range(n_images),
                iou_thresholds=IOU_THRESHOLDS,
                interpolation=interpolation,
                n_resamples=R,
                seed=draw,
            )
            for frame in found
        )
        rows.append([r.summary().iloc[:, 1:4].to_numpy(float) for r in (a, b, paired_difference(a, b))])
    table = np.array(rows)  # [sets, 3, T, (value, low, high)]
    expected = np.nanmean(table[..., 0], axis=0)
    held = (table[..., 1] <= expected) & (expected <= table[..., 2])
    return expected, held.mean(axis=0)
