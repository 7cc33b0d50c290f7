"""What boxes are like, apart from their ranking: how many, how well they fit, how often where nothing is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..datasets import Dataset
from ..matching import BOX_COLUMNS, overlapping_pairs
from .finding import Boxes

MEASURES = (
    "boxes_per_image", "mean_iou", "max_iou", "mean_best_iou", "activated_share", "false_box_rate",
    "boxes_per_absent_class",
)  # fmt: skip


def measure_boxes(table: Boxes, dataset: Dataset, asked: np.ndarray) -> dict[str, float]:
    """What boxes are like, apart from their ranking.

    Args:
        table: boxes of every image and class.
        dataset: with the ground truth.
        asked: bool [images, classes], the pairs asked for.

    Returns:
        - `boxes_per_image`.
        - `mean_iou`, `max_iou`: of the boxes, each with the box of its class in its image that it overlaps most (0
          where there is none).
        - `mean_best_iou`: of the ground truth boxes, each with the box of its class that overlaps it most.
        - `activated_share`: mean share of a map in the mask, after closing and opening.
        - `false_box_rate`, `boxes_per_absent_class`: of the (image, class) pairs asked for without ground truth, the
          share that gets a box, and how many on average. NaN where there is no such pair.
    """
    n_images, n_classes = len(dataset.images), len(dataset.classes)
    present = present_pairs(dataset)
    keep = asked[table.image, table.label]
    of_box, of_truth = best_overlaps(table, dataset, keep)
    group = table.image[keep].astype(np.int64) * n_classes + table.label[keep]
    absent_counts = np.bincount(group, minlength=n_images * n_classes).reshape(present.shape)[asked & ~present]
    return {
        "boxes_per_image": len(of_box) / n_images if n_images else np.nan,
        "mean_iou": _mean(of_box),
        "max_iou": of_box.max() if len(of_box) else np.nan,
        "mean_best_iou": _mean(of_truth),
        "activated_share": _mean(table.activated.reshape(asked.shape)[asked]),
        "false_box_rate": _mean(absent_counts > 0),
        "boxes_per_absent_class": _mean(absent_counts),
    }


def best_overlaps(table: Boxes, dataset: Dataset, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well boxes and ground truth fit each other, class by class and image by image.

    Args:
        table, dataset: as for `measure_boxes`.
        keep: bool [K], the boxes looked at.

    Returns:
        IoU of each box kept [K'] with the ground truth box that it overlaps most, and of each ground truth box [G] with
        the box that overlaps it most; 0 where there is none.
    """
    n_classes = len(dataset.classes)
    place, label = truth_codes(dataset)
    boxes, truth = table.boxes[keep, :4], dataset.boxes[BOX_COLUMNS].to_numpy(np.float64)
    group = table.image[keep].astype(np.int64) * n_classes + table.label[keep]
    of_box, of_truth = np.zeros(len(boxes)), np.zeros(len(truth))
    for box, target, iou in overlapping_pairs(boxes, group, truth, place * n_classes + label):
        np.maximum.at(of_box, box, iou)
        np.maximum.at(of_truth, target, iou)
    return of_box, of_truth


def present_pairs(dataset: Dataset) -> np.ndarray:
    """bool [images, classes]: the classes annotated in each image."""
    present = np.zeros((len(dataset.images), len(dataset.classes)), dtype=bool)
    present[truth_codes(dataset)] = True
    return present


def truth_codes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Place of the image and of the class of each ground truth box."""
    return (
        pd.Index(dataset.images["image_id"]).get_indexer(dataset.boxes["image_id"]),
        pd.Index(dataset.classes).get_indexer(dataset.boxes["label"]),
    )


def unit_boxes(dataset: Dataset) -> np.ndarray:
    """The ground truth boxes in [0, 1] of their images: float64 [G, 4] xyxy."""
    sides = dataset.images[["width", "height", "width", "height"]].to_numpy(np.float64)
    return dataset.boxes[BOX_COLUMNS].to_numpy(np.float64) / sides[truth_codes(dataset)[0]]


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else np.nan
