"""What is wrong with detections: the type of each error, and the average precision that mending the type would gain.

After TIDE: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors" (arXiv:2008.08115).
Frames are those of `metrics`. A detection's own class is its label; IoUs are with boxes of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd

from ..errors import ParameterError
from ..matching import BOX_COLUMNS, checked_thresholds, match, overlapping_pairs
from ..metrics import average_precision
from ..words import ERROR_TYPES

FATES = ("found", "named otherwise", "badly located", "missed")
# what stands for a detection that `max_detections` leaves out: neither right nor wrong
LEFT_OUT = "left out"


@dataclass(frozen=True)
class ErrorTypes:
    """The error of every detection and the fate of every ground truth box at one foreground IoU, in the frames' order.

    Attributes:
        foreground_iou: from which a detection finds a box.
        background_iou: up to which it touches none.
        of_detection: str [N], "" for a true positive, else one of the first five `ERROR_TYPES`; `LEFT_OUT` for one
            that `max_detections` leaves out.
        truth_row: int64 [N], the ground truth box that a classification or localisation error means, else -1.
        found: bool [G], has a true positive.
        missed: bool [G], not found, and no classification or localisation error means it.
        fate: str [G], one of `FATES`, the first that holds: found; badly located: a localisation error means it; named
            otherwise: a classification error does; missed.
    """

    foreground_iou: float
    background_iou: float
    of_detection: np.ndarray
    truth_row: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    fate: np.ndarray


def detection_errors(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    foreground_iou: float = 0.5,
    background_iou: float | None = None,
    interpolation: str = "11point",
    max_detections: int | None = None,
) -> ErrorTypes:
    """The one type of each false positive, with foreground IoU f and background IoU b; the first that holds.

    1. localisation: b <= best IoU with a box of its class < f.
    2. classification: best IoU with a box of another class >= f.
    3. duplicate: best IoU with a box of its class >= f; a better-scored detection has that box.
    4. background: best IoU with any box <= b.
    5. both: all that is left, badly named and badly located.

    The best box of several with equal IoU is the first in the frame; taken or not, it is the one that an error means.

    Unlike the original, matching is that of `average_precision`: COCO's under `coco101`, as there, but VOC's under
    `11point` and `area`, where a detection whose best box is taken is a duplicate even if it could find another. An IoU
    of exactly f is no localisation error, one of 0 never is, whatever b; and detections count on every image, also
    where there is no ground truth.

    Args:
        detections: frame with image_id, label, xmin, ymin, xmax, ymax, score.
        ground_truth: frame with image_id, label, xmin, ymin, xmax, ymax.
        foreground_iou: f, in (0, 1].
        background_iou: b, in [0, f); None takes f / 5, the original's 0.1 at 0.5.
        interpolation: one of `matching.INTERPOLATIONS`; here it decides the matching.
        max_detections: as in `average_precision`.

    Raises:
        ParameterError: as `average_precision`; an IoU is out of range.
    """
    foreground, background = _checked_pair(foreground_iou, background_iou)
    run = match(detections, ground_truth, (foreground,), interpolation, max_detections)
    all_labels = pd.Index(run.classes).get_indexer(detections["label"])
    rows = _evaluated_rows(detections, all_labels, max_detections)
    is_tp, label, n_truth = run.is_tp[0], all_labels[rows], len(ground_truth)

    own_iou, other_iou = np.zeros((2, len(rows)))
    own_box, other_box = np.full((2, len(rows)), n_truth)
    rivals = []
    for detection, box, iou in overlapping_pairs(
        detections[BOX_COLUMNS].to_numpy(np.float64)[rows],
        run.image_of_detection,
        ground_truth[BOX_COLUMNS].to_numpy(np.float64),
        run.image_of_truth,
    ):
        is_own = label[detection] == run.class_of_truth[box]
        for of_kind, best_iou, best_box in ((is_own, own_iou, own_box), (~is_own, other_iou, other_box)):
            _keep_best(detection[of_kind], box[of_kind], iou[of_kind], best_iou, best_box)
        # a hair less than f, as COCO's matching has it at f = 1; a pair too many changes nothing
        listed = is_own & is_tp[detection] & (iou >= foreground - 1e-9)
        rivals.append((detection[listed], box[listed], iou[listed]))

    is_touched = (own_iou > 0) & (own_iou >= background)
    types = [
        ("", is_tp),
        ("localisation", is_touched & (own_iou < foreground)),
        ("classification", other_iou >= foreground),
        ("duplicate", own_iou >= foreground),
        ("background", np.maximum(own_iou, other_iou) <= background),
    ]
    of_ranked = _first_that_holds(types, "both")
    meant = np.select([of_ranked == "localisation", of_ranked == "classification"], [own_box, other_box], -1)

    if interpolation == "coco101":
        found = _taken_in_turn(rivals, n_truth)
    else:
        found = np.isin(np.arange(n_truth), own_box[is_tp])
    badly_located, named_otherwise = (
        np.isin(np.arange(n_truth), meant[of_ranked == error]) for error in ("localisation", "classification")
    )
    fates = [("found", found), ("badly located", badly_located), ("named otherwise", named_otherwise)]
    fate = _first_that_holds(fates, "missed")
    of_detection = np.full(len(detections), LEFT_OUT, dtype=object)
    truth_row = np.full(len(detections), -1, dtype=np.int64)
    of_detection[rows], truth_row[rows] = of_ranked, meant
    return ErrorTypes(foreground, background, of_detection, truth_row, found, fate == "missed", fate)


def error_decomposition(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    foreground_ious: Sequence[float] = (0.5,),
    interpolation: str = "11point",
    max_detections: int | None = None,
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

    Args:
        detections: as in `detection_errors`, and so are the arguments not named here; background IoU is f / 5.
        ground_truth: as in `detection_errors`.
        foreground_ious: each in (0, 1].
        max_detections: applied before the errors are sought, and not again to what is mended.
        classes: also listed, besides every label that occurs.

    Returns:
        Frame label, foreground_iou, error, count, ap, ap_fixed, gain (ap_fixed - ap), a row for each class, foreground
        IoU and error. A class without ground truth has NaN for the last three.

    Raises:
        ParameterError: as `detection_errors`.
    """
    ious = _checked_list(foreground_ious).tolist()
    options = {"interpolation": interpolation, "max_detections": max_detections}
    plain = average_precision(detections, ground_truth, iou_thresholds=ious, classes=classes, **options)
    names = pd.Index(plain["label"].unique())
    # as numbers, so that labels of any column type can be put into the other frame
    coded, coded_truth = (
        frame[["image_id", *columns]].assign(label=names.get_indexer(frame["label"]))
        for frame, columns in ((detections, [*BOX_COLUMNS, "score"]), (ground_truth, BOX_COLUMNS))
    )
    shape = (len(names), len(ious), len(ERROR_TYPES))
    count, ap_fixed = np.zeros(shape, dtype=np.int64), np.full(shape, np.nan)
    for place, foreground_iou in enumerate(ious):
        errors = detection_errors(coded, coded_truth, foreground_iou=foreground_iou, **options)
        for number, error in enumerate(ERROR_TYPES):
            wrong = coded_truth[errors.missed] if error == "missed" else coded[errors.of_detection == error]
            count[:, place, number] = np.bincount(wrong["label"], minlength=len(names))
            fixed = average_precision(
                *_mended(coded, coded_truth, errors, error),
                iou_thresholds=[foreground_iou],
                interpolation=interpolation,
                classes=range(len(names)),
            )
            ap_fixed[:, place, number] = fixed["ap"]
    frame = plain.loc[np.repeat(np.arange(len(plain)), len(ERROR_TYPES)), ["label", "iou_threshold", "ap"]]
    frame = frame.rename(columns={"iou_threshold": "foreground_iou"}).reset_index(drop=True)
    frame.insert(2, "error", np.tile(ERROR_TYPES, len(plain)))
    frame.insert(3, "count", count.ravel())
    frame["ap_fixed"] = np.where(np.isnan(ap_fixed.ravel()), frame["ap"], ap_fixed.ravel())
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


def fates_by_class(ground_truth: pd.DataFrame, errors: ErrorTypes, classes: Sequence[str]) -> pd.DataFrame:
    """What became of the boxes of each class: frame label, a column of counts for each of `FATES`, n_boxes.

    Args:
        ground_truth: the frame that `errors` was made of.
        errors: of `detection_errors`.
        classes: listed first, in this order, with zeros where they have no boxes; then every other label that occurs.

    Raises:
        ParameterError: the number of boxes is not that of `errors`.
    """
    if len(ground_truth) != len(errors.fate):
        raise ParameterError(
            f"ground_truth has {len(ground_truth)} boxes and errors {len(errors.fate)}; give the frame errors is of"
        )
    labels = ground_truth["label"]
    names = list(dict.fromkeys([*classes, *sorted(labels.unique())]))
    counts = np.zeros((len(names), len(FATES)), dtype=np.int64)
    np.add.at(counts, (pd.Index(names).get_indexer(labels), pd.Index(FATES).get_indexer(errors.fate)), 1)
    frame = pd.DataFrame(counts, columns=list(FATES)).assign(n_boxes=counts.sum(axis=1))
    frame.insert(0, "label", names)
    return frame


def _checked_pair(foreground_iou: float, background_iou: float | None) -> tuple[float, float]:
    if not _is_number(foreground_iou) or not 0 < foreground_iou <= 1:
        raise ParameterError(f"foreground_iou is {foreground_iou!r}; it must be a number above 0 and at most 1")
    if background_iou is None:
        background_iou = foreground_iou / 5
    if not _is_number(background_iou) or not 0 <= background_iou < foreground_iou:
        raise ParameterError(
            f"background_iou is {background_iou!r}; it must be a number of at least 0 and below foreground_iou, which "
            f"is {foreground_iou}"
        )
    return float(foreground_iou), float(background_iou)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _checked_list(foreground_ious: Sequence[float]) -> np.ndarray:
    try:
        return checked_thresholds(foreground_ious)
    except ParameterError as error:
        raise ParameterError(str(error).replace("iou_thresholds", "foreground_ious", 1)) from None


def _evaluated_rows(detections: pd.DataFrame, labels: np.ndarray, max_detections: int | None) -> np.ndarray:
    """Rows of the frame in the order of an `Evaluation`: by class, then by score, without those left out."""
    order = np.argsort(-detections["score"].to_numpy(np.float64), kind="stable")
    if max_detections is not None:
        groups = [detections["image_id"].iloc[order].reset_index(drop=True), labels[order]]
        order = order[pd.Series(order).groupby(groups, sort=False, observed=True).cumcount() < max_detections]
    return order[np.argsort(labels[order], kind="stable")]


def _keep_best(
    detection: np.ndarray, box: np.ndarray, iou: np.ndarray, best_iou: np.ndarray, best_box: np.ndarray
) -> None:
    """Writes each detection's highest IoU and its box, the lowest index among equals; each has all pairs here."""
    np.maximum.at(best_iou, detection, iou)
    is_best = iou == best_iou[detection]
    np.minimum.at(best_box, detection[is_best], box[is_best])


def _first_that_holds(conditions: Sequence[tuple[str, np.ndarray]], otherwise: str) -> np.ndarray:
    """str [N]: the name of the first condition [N] that is true there."""
    names, holds = zip(*conditions, strict=True)
    return np.array([*names, otherwise], dtype=object)[np.select(holds, range(len(names)), len(names))]


def _taken_in_turn(pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], n_boxes: int) -> np.ndarray:
    """Which boxes COCO's matching gives its true positives: bool [n_boxes].

    In order of rank, each takes its highest-IoU box still free, the last of equals. Whoever has no better-ranked rival
    for that box can take it at once; so all such do, round by round.

    Args:
        pairs: (rank of a true positive, box, IoU), each [P]; they hold every pair that it could be matched by.
        n_boxes: of the ground truth.
    """
    is_taken = np.zeros(n_boxes, dtype=bool)
    if not pairs:
        return is_taken
    rank, box, iou = (np.concatenate(column) for column in zip(*pairs, strict=True))
    preference = np.lexsort((-box, -iou, rank))
    rank, box = rank[preference], box[preference]
    while len(rank):
        is_first_choice = np.diff(rank, prepend=-1) > 0
        foremost = np.full(n_boxes, rank[-1])
        np.minimum.at(foremost, box, rank)
        is_settled = is_first_choice & (foremost[box] == rank)
        is_taken[box[is_settled]] = True
        is_left = ~is_taken[box] & ~np.isin(rank, rank[is_settled])
        rank, box = rank[is_left], box[is_left]
    return is_taken


def _mended(
    detections: pd.DataFrame, ground_truth: pd.DataFrame, errors: ErrorTypes, error: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both frames as they would be without one type of error; their labels are numbers."""
    if error == "missed":
        return detections[errors.of_detection != LEFT_OUT], ground_truth[~errors.missed]
    is_kept = (errors.of_detection != error) & (errors.of_detection != LEFT_OUT)
    if error not in ("classification", "localisation"):
        return detections[is_kept], ground_truth
    candidates = np.flatnonzero(errors.of_detection == error)
    candidates = candidates[~errors.found[errors.truth_row[candidates]]]
    score = detections["score"].to_numpy(np.float64)[candidates]
    candidates = candidates[np.lexsort((-score, errors.truth_row[candidates]))]
    best = candidates[np.diff(errors.truth_row[candidates], prepend=-1) > 0]
    is_kept[best] = True
    columns = ["label", *BOX_COLUMNS]
    values = detections[columns].to_numpy(np.float64)
    values[best] = ground_truth[columns].to_numpy(np.float64)[errors.truth_row[best]]
    return detections.assign(**dict(zip(columns, values.T, strict=True)))[is_kept], ground_truth
