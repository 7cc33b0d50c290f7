"""Precision and recall along the ranking of a class, for figures; average precision is `metrics`'."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from ..matching import match


def precision_recall(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    iou_threshold: float,
    interpolation: str = "11point",
    classes: Sequence[str] | None = None,
    most_points: int = 200,
) -> pd.DataFrame:
    """The corners of each class's precision-recall curve: behind each true positive.

    Args:
        detections: as in `average_precision`.
        ground_truth: as in `average_precision`.
        iou_threshold: at which a box counts as found.
        interpolation: decides the matching, as there.
        classes: also listed, besides every label that occurs.
        most_points: of a class with more true positives, so many of them, evenly spaced in recall, first and last too.

    Returns:
        Frame label, recall, precision, score (from which on), in the order of the ranking. A class without ground truth
        or without a true positive has no row.

    Raises:
        ParameterError: as `average_precision`.
    """
    run = match(detections, ground_truth, (iou_threshold,), interpolation, classes=classes)
    # `match` sorts by class, then by score, the frame's order among equals
    scores = detections["score"].to_numpy(np.float64)
    place = pd.Index(run.classes).get_indexer(detections["label"])
    ranked = scores[np.lexsort((np.arange(len(scores)), -scores, place))]
    parts = []
    for label, (low, high), n_truth in zip(run.classes, pairwise(run.class_bounds), run.n_ground_truth, strict=True):
        places = np.flatnonzero(run.is_tp[0, low:high])
        if not n_truth or not len(places):
            continue
        found = np.arange(1, len(places) + 1)
        kept = np.unique(np.linspace(0, len(places) - 1, min(most_points, len(places))).round().astype(int))
        rows = {"recall": found / n_truth, "precision": found / (places + 1), "score": ranked[low + places]}
        parts.append(pd.DataFrame({name: values[kept] for name, values in rows.items()}).assign(label=label))
    columns = ["label", "recall", "precision", "score"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
