"""What is wrong with detections: the type of each error, and the average precision that mending the type would gain.

After TIDE: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors" (arXiv:2008.08115).
Frames are those of `metrics`. A detection's own class is its label; IoUs are with boxes of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..matching import BOX_COLUMNS, Matches, checked_thresholds, match, overlapping_pairs
from ..metrics import average_precision
from ..words import ERROR_TYPES

FATES = ("found", "named otherwise", "badly located", "missed")


@dataclass(frozen=True)
class ErrorTypes:
    """The error of every detection and the fate of every ground truth box at one foreground IoU, in the frames' order.

    A box's fate is the first of `FATES` that holds: found, has a true positive; badly located: a localisation error
    means it; named otherwise: a classification error does; missed.
    """

    detections: pd.DataFrame
    ground_truth: pd.DataFrame
    of_detection: np.ndarray  # str [N], "" for a true positive, else one of the first five `ERROR_TYPES`
    truth_row: np.ndarray  # int64 [N], the ground truth box that a classification or localisation error means, else -1
    fate: np.ndarray  # str [G]


def detection_errors(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    foreground_iou: float = 0.5,
    interpolation: str = "11point",
) -> ErrorTypes:
    """The one type of each false positive, with foreground IoU f and background IoU b = f / 5; the first that holds.

    1. localisation: b <= best IoU with a box of its class < f.
    2. classification: best IoU with a box of another class >= f.
    3. duplicate: best IoU with a box of its class >= f; a better-scored detection has that box.
    4. background: best IoU with any box <= b.
    5. both: all that is left, badly named and badly located.

    The best box of several with equal IoU is the first in the frame; taken or not, it is the one that an error means.

    Unlike the original, matching is that of `average_precision`: COCO's under `coco101`, as there, but VOC's under
    `11point` and `area`, where a detection whose best box is taken is a duplicate even if it could find another. An IoU
    of exactly f is no localisation error; and detections count on every image, also where there is no ground truth.

    Raises:
        ParameterError: as `average_precision`, whose arguments these are; f is not in (0, 1].
    """
    (foreground,) = checked_thresholds([foreground_iou], "foreground_ious")
    background = foreground / 5
    run = match(detections, ground_truth, (foreground,), interpolation)
    is_tp = run.is_tp[0]
    labels = pd.Index(run.classes).get_indexer(detections["label"])
    rows = np.lexsort((-detections["score"].to_numpy(np.float64), labels))  # the order of `Matches`
    own, other, of_tps = _best_boxes(detections.iloc[rows], labels[rows], ground_truth, run)

    types = {
        "": is_tp,
        "localisation": (own.iou >= background) & (own.iou < foreground),
        "classification": other.iou >= foreground,
        "duplicate": own.iou >= foreground,
        "background": np.maximum(own.iou, other.iou) <= background,
    }
    of_ranked = np.select(list(types.values()), list(types), "both")
    meant = np.select([of_ranked == "localisation", of_ranked == "classification"], [own.box, other.box], -1)

    box = np.arange(len(ground_truth))
    if interpolation == "coco101":
        found = _taken_in_turn(*of_tps, len(ground_truth), foreground)
    else:
        found = np.isin(box, own.box[is_tp])
    fates = {
        "found": found,
        "badly located": np.isin(box, meant[of_ranked == "localisation"]),
        "named otherwise": np.isin(box, meant[of_ranked == "classification"]),
    }
    of_detection, truth_row = np.empty_like(of_ranked), np.empty_like(meant)
    of_detection[rows], truth_row[rows] = of_ranked, meant
    fate = np.select(list(fates.values()), list(fates), "missed")
    return ErrorTypes(detections, ground_truth, of_detection, truth_row, fate)


def error_decomposition(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    foreground_ious: Sequence[float] = (0.5,),
    interpolation: str = "11point",
    classes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """How often each type of error occurs in each class, and what AP would be without it, all else as it is.

    Each type is mended alone, and `average_precision` called again:

    - classification, localisation: the detection gets the class and the place of the box it means. Of several that
      mean one box the best-scored is kept (the first of equals); the others go, as do all that mean a found box.
    - both, duplicate, background: the detections go.
    - missed: the boxes go. A class without any box left keeps its AP (gain 0): nothing is left to judge by.

    A classification error moves to another class when mended, so it changes the AP of two. It is counted, as every
    error of a detection, under the detection's label; a missed box under its own. No gain is below 0, and those of a
    class do not add up to 1 - AP.

    Unlike the original, the best-scored of several detections that mean one box is sought among the errors of the
    mended type, not among those of both types; means are over classes with ground truth, before and after alike.
    Arguments and errors are those of `detection_errors`; `classes` are listed besides every label that occurs.

    Returns:
        Frame label, foreground_iou, error, count, ap, ap_fixed, gain (ap_fixed - ap), a row for each class, foreground
        IoU and error. A class without ground truth has NaN for the last three.
    """
    ious = checked_thresholds(foreground_ious, "foreground_ious").tolist()
    options = {"interpolation": interpolation}
    as_is = average_precision(detections, ground_truth, iou_thresholds=ious, classes=classes, **options)
    names = pd.Index(as_is["label"].unique())
    # as numbers, so that labels of any column type can be put into the other frame
    coded, coded_truth = (
        frame[["image_id", *columns]].assign(label=names.get_indexer(frame["label"]))
        for frame, columns in ((detections, [*BOX_COLUMNS, "score"]), (ground_truth, BOX_COLUMNS))
    )
    shape = (len(names), len(ious), len(ERROR_TYPES))
    count, ap_fixed = np.zeros(shape, dtype=np.int64), np.full(shape, np.nan)
    for place, iou in enumerate(ious):
        errors = detection_errors(coded, coded_truth, foreground_iou=iou, **options)
        for number, error in enumerate(ERROR_TYPES):
            wrong = coded_truth[errors.fate == error] if error == "missed" else coded[errors.of_detection == error]
            count[:, place, number] = np.bincount(wrong["label"], minlength=len(names))
            mended = _mended(errors, error)
            fixed = average_precision(*mended, iou_thresholds=[iou], classes=range(len(names)), **options)
            ap_fixed[:, place, number] = fixed["ap"]
    index = pd.MultiIndex.from_product([names, ious, ERROR_TYPES], names=["label", "foreground_iou", "error"])
    ap = np.repeat(as_is["ap"].to_numpy(), len(ERROR_TYPES))
    frame = index.to_frame(index=False).assign(count=count.ravel(), ap=ap, ap_fixed=ap_fixed.ravel())
    frame["ap_fixed"] = frame["ap_fixed"].fillna(frame["ap"])
    return frame.assign(gain=frame["ap_fixed"] - frame["ap"])


def mean_gains(decomposition: pd.DataFrame) -> pd.DataFrame:
    """An `error_decomposition` over its classes: frame foreground_iou, error, count, map, map_fixed, gain.

    `count` is the sum over all classes; the others are means over those with ground truth, NaN where there is none.
    """
    return (
        decomposition.groupby(["foreground_iou", "error"], sort=False)
        .agg(count=("count", "sum"), map=("ap", "mean"), map_fixed=("ap_fixed", "mean"), gain=("gain", "mean"))
        .reset_index()
    )


def fates_by_class(errors: ErrorTypes, classes: Sequence[str]) -> pd.DataFrame:
    """What became of the boxes of each class: counts, a column for each of `FATES`, indexed by class.

    `classes` are listed first, with zeros where they have no boxes; then every other label that occurs.
    """
    labels = errors.ground_truth["label"].to_numpy(object)
    names = list(dict.fromkeys([*classes, *sorted(set(labels))]))
    counts = pd.crosstab(labels, errors.fate).reindex(index=names, columns=list(FATES), fill_value=0)
    return counts.rename_axis(index="label", columns=None)


class _Best(NamedTuple):
    """Of each detection the highest IoU with some boxes, and the first box that has it."""

    iou: np.ndarray
    box: np.ndarray


def _best_boxes(
    detections: pd.DataFrame, labels: np.ndarray, ground_truth: pd.DataFrame, run: Matches
) -> tuple[_Best, _Best, tuple[np.ndarray, ...]]:
    """Each detection's best box of its own class, and of another; and (rank, box, IoU) of the true positives' own."""
    own, other = (_Best(np.zeros(len(labels)), np.full(len(labels), len(ground_truth))) for _ in range(2))
    of_tps = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    boxes, truth = (frame[BOX_COLUMNS].to_numpy(np.float64) for frame in (detections, ground_truth))
    for pairs in overlapping_pairs(boxes, run.image_of_detection, truth, run.image_of_truth):
        is_own = labels[pairs[0]] == run.class_of_truth[pairs[1]]
        for best, chosen in ((own, is_own), (other, ~is_own)):
            detection, box, iou = (column[chosen] for column in pairs)
            np.maximum.at(best.iou, detection, iou)
            first = iou == best.iou[detection]  # all pairs of a detection come at once
            np.minimum.at(best.box, detection[first], box[first])
        of_tps.append(tuple(column[is_own & run.is_tp[0][pairs[0]]] for column in pairs))
    return own, other, tuple(np.concatenate(column) for column in zip(*of_tps, strict=True))


def _taken_in_turn(rank: np.ndarray, box: np.ndarray, iou: np.ndarray, n_boxes: int, foreground: float) -> np.ndarray:
    """Which boxes COCO's matching gives its true positives, bool [n_boxes], from all pairs of a true positive.

    In order of rank, each takes its highest-IoU box still free, the last of equals.
    """
    is_taken = np.zeros(n_boxes, dtype=bool)
    # a hair less than f, as COCO's matching has it at f = 1
    order = np.lexsort((-box, -iou, rank))
    order = order[iou[order] >= foreground - 1e-9]
    served = -1
    for asking, wanted in zip(rank[order].tolist(), box[order].tolist(), strict=True):
        if asking != served and not is_taken[wanted]:
            is_taken[wanted], served = True, asking
    return is_taken


def _mended(errors: ErrorTypes, error: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both frames as they would be without one type of error; their labels are numbers."""
    detections, ground_truth = errors.detections, errors.ground_truth
    if error == "missed":
        return detections, ground_truth[errors.fate != "missed"]
    is_kept = errors.of_detection != error
    if error not in ("classification", "localisation"):
        return detections[is_kept], ground_truth
    candidates = np.flatnonzero(~is_kept)
    candidates = candidates[errors.fate[errors.truth_row[candidates]] != "found"]
    score = detections["score"].to_numpy(np.float64)[candidates]
    candidates = candidates[np.lexsort((-score, errors.truth_row[candidates]))]
    best = candidates[np.diff(errors.truth_row[candidates], prepend=-1) > 0]
    is_kept[best] = True
    columns = ["label", *BOX_COLUMNS]
    values = detections[columns].to_numpy(np.float64)
    values[best] = ground_truth[columns].to_numpy(np.float64)[errors.truth_row[best]]
    return detections.assign(**dict(zip(columns, values.T, strict=True)))[is_kept], ground_truth
