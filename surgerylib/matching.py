"""From frames of boxes to matches: which detection finds which ground-truth box.

Boxes are float xyxy, width = xmax - xmin. A *group* is an (image, class) pair, given as an integer: boxes are only
ever compared within one. A detection's *rank* is its place when the best score comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd

from .errors import ParameterError, whole_number
from .words import check_classes

BOX_COLUMNS = ["xmin", "ymin", "xmax", "ymax"]
INTERPOLATIONS = ("11point", "area", "coco101")
# in chunks: detection index, box index and IoU > 0, each [P]
Pairs = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]
# pairs held at a time: eight columns of float64 stay within 8 MB
_PAIRS_PER_CHUNK = 1 << 17


class Matches(NamedTuple):
    """Which detections are true positives; detections are sorted by class, then by score."""

    classes: tuple[str, ...]
    iou_thresholds: np.ndarray  # [T]
    is_tp: np.ndarray  # bool [T, N]
    class_bounds: np.ndarray  # [C + 1]: class c holds detections bounds[c] to bounds[c + 1]
    images: pd.Index  # the ids behind the image codes
    image_of_detection: np.ndarray  # [N] codes
    image_of_truth: np.ndarray  # [G] codes
    class_of_truth: np.ndarray  # [G]
    n_ground_truth: np.ndarray  # [C]


def match(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    iou_thresholds: Sequence[float],
    interpolation: str,
    max_detections: int | None = None,
    classes: Sequence[str] | None = None,
) -> Matches:
    """Checks what `average_precision` is given, as said there, and matches: by COCO's rule (`coco101`) or VOC's."""
    thresholds = checked_thresholds(iou_thresholds)
    check_interpolation(interpolation)
    if max_detections is not None:
        whole_number("max_detections", max_detections)
    try:
        listed = dict.fromkeys(() if classes is None else classes)
    except TypeError:  # not a list, or one of lists
        listed = None
    if listed is None or isinstance(classes, str | bytes):
        raise ParameterError(f"classes is {classes!r}; give a list of class names, or None")
    boxes = _checked_numbers(detections, "detections", [*BOX_COLUMNS, "score"])
    truth = _checked_numbers(ground_truth, "ground_truth", BOX_COLUMNS)
    image, truth_image, images = _common_codes(detections, ground_truth, "image_id")
    label, truth_label, labels = _common_codes(detections, ground_truth, "label")

    names = tuple(dict.fromkeys([*listed, *sorted(labels)]))
    if not pd.api.types.is_numeric_dtype(labels):
        # two spellings of one class would match nowhere, and both would score 0 without a word
        check_classes(names)
    place = pd.Index(names).get_indexer(labels)
    label, truth_label = place[label], place[truth_label]

    order = np.argsort(-boxes[:, 4], kind="stable")
    if max_detections is not None:
        group = (image * len(names) + label)[order]
        order = order[pd.Series(order).groupby(group, sort=False).cumcount() < max_detections]
    order = order[np.argsort(label[order], kind="stable")]
    boxes, image, label = boxes[order, :4], image[order], label[order]

    n_classes = len(names)
    pairs = overlapping_pairs(boxes, image * n_classes + label, truth, truth_image * n_classes + truth_label)
    rule = _coco_matches if interpolation == "coco101" else _voc_matches
    return Matches(
        classes=names,
        iou_thresholds=thresholds,
        is_tp=rule(pairs, thresholds, len(boxes), len(truth)),
        class_bounds=np.searchsorted(label, np.arange(n_classes + 1)),
        images=images,
        image_of_detection=image,
        image_of_truth=truth_image,
        class_of_truth=truth_label,
        n_ground_truth=np.bincount(truth_label, minlength=n_classes),
    )


def check_interpolation(interpolation: str) -> None:
    """Raises a `ParameterError` that lists the interpolations unless this is one."""
    if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
        raise ParameterError(f"interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")


def checked_thresholds(iou_thresholds: Sequence[float], name: str = "iou_thresholds") -> np.ndarray:
    """IoU thresholds as float64 [T]; a `ParameterError` unless there are some, each in (0, 1] and named once."""
    try:
        thresholds = np.atleast_1d(np.array(iou_thresholds))
    except (TypeError, ValueError):
        thresholds = np.empty(0)
    # text would convert without a word, true would be 1, and a table one long list
    numeric = thresholds.dtype.kind in "iuf" and thresholds.ndim == 1 and len(thresholds) > 0
    if not numeric or not ((thresholds > 0) & (thresholds <= 1)).all():
        shown = list(iou_thresholds) if isinstance(iou_thresholds, tuple) else iou_thresholds
        raise ParameterError(f"{name} is {shown!r}; give one or more numbers above 0 and at most 1")
    if len(np.unique(thresholds)) < len(thresholds):
        raise ParameterError(f"{name} is {iou_thresholds!r}; name each threshold once")
    return thresholds.astype(np.float64)


def _checked_numbers(frame: pd.DataFrame, name: str, numbers: list[str]) -> np.ndarray:
    """The number columns as float64 [N, len(numbers)], after every check on the frame."""
    if not isinstance(frame, pd.DataFrame):
        raise ParameterError(f"{name} is a {type(frame).__name__}; it must be a pandas DataFrame")
    needed, held = ["image_id", "label", *numbers], list(frame.columns)
    if missing := [column for column in needed if column not in held]:
        raise ParameterError(f"{name} lacks the column {', '.join(missing)}; it has {', '.join(map(str, held))}")
    if repeated := [column for column in needed if held.count(column) > 1]:
        raise ParameterError(f"{name} has the column {repeated[0]} twice; leave one")
    for column in ("image_id", "label"):
        if len(rows := np.flatnonzero(frame[column].isna())):
            raise ParameterError(f"{name} has no {column} in row {rows[0]}; give every box one")
    try:
        # the type of an empty column says nothing
        if len(frame) and not all(_holds_numbers(frame[column]) for column in numbers):
            raise TypeError("text, times or complex numbers, which would convert without a word")
        values = frame[numbers].to_numpy(np.float64)
    except (TypeError, ValueError, OverflowError):
        kinds = ", ".join(f"{column} {frame[column].dtype}" for column in numbers)
        raise ParameterError(f"{name} has columns that are not numbers ({kinds}); convert them") from None
    for is_bad, shown, what in (
        (~np.isfinite(values).all(axis=1), numbers, "every number must be finite: drop or mend such rows"),
        ((values[:, 2:4] < values[:, :2]).any(axis=1), BOX_COLUMNS, "a box needs xmin <= xmax and ymin <= ymax"),
    ):
        if is_bad.any():
            row = int(is_bad.argmax())
            seen = dict(zip(shown, values[row].tolist(), strict=False))
            raise ParameterError(f"{name} row {row} is {seen}; {what}")
    return values


def _holds_numbers(column: pd.Series) -> bool:
    if pd.api.types.is_object_dtype(column):
        return all(isinstance(value, Real | Decimal) for value in column)
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)


def check_names(column: str, values: pd.Index) -> None:
    """Raises a `ParameterError` unless these are all text or all numbers, so that they can be told apart and sorted."""
    kind = pd.api.types.infer_dtype(values, skipna=False)
    if kind not in ("string", "integer", "floating", "mixed-integer-float", "boolean", "empty"):
        raise ParameterError(f"{column} holds {kind} values; make all of them text, or all of them numbers")


def _common_codes(
    detections: pd.DataFrame, ground_truth: pd.DataFrame, column: str
) -> tuple[np.ndarray, np.ndarray, pd.Index]:
    """Integer codes of a column of both frames, and the values behind them."""
    both = [frame[column] for frame in (detections, ground_truth)]
    both = [s.astype(s.cat.categories.dtype) if isinstance(s.dtype, pd.CategoricalDtype) else s for s in both]
    numeric = [pd.api.types.is_numeric_dtype(s) for s in both]
    if all(len(s) for s in both) and numeric[0] != numeric[1]:
        # 7 and '7' would match nowhere, and every figure would be 0 without a word
        kinds = f"{both[0].dtype} in detections and {both[1].dtype} in ground_truth"
        raise ParameterError(f"{column} is {kinds}; make both text or both numbers")
    together = pd.concat([s for s in both if len(s)] or both[:1], ignore_index=True)
    try:
        codes, values = pd.factorize(together)
    except TypeError:  # lists, sets
        raise ParameterError(f"{column} holds values that cannot be compared; make all of them text") from None
    check_names(column, pd.Index(values))
    return codes[: len(detections)], codes[len(detections) :], pd.Index(values)


def overlapping_pairs(
    boxes_xyxy: np.ndarray, groups: np.ndarray, truth_xyxy: np.ndarray, truth_groups: np.ndarray
) -> Pairs:
    """All pairs of a detection [N, 4] and a ground-truth box [G, 4] of the same group that overlap, in bounded chunks.

    All those of one detection are in the same chunk, next to each other.
    """
    if not len(boxes_xyxy):
        return
    (x1, y1, x2, y2), (tx1, ty1, tx2, ty2) = boxes_xyxy.T.copy(), truth_xyxy.T.copy()
    area, truth_area = (x2 - x1) * (y2 - y1), (tx2 - tx1) * (ty2 - ty1)
    # the boxes of a group lie side by side in this order: each detection has a slice of them
    order = np.argsort(truth_groups, kind="stable")
    first, stop = (np.searchsorted(truth_groups, groups, side, sorter=order) for side in ("left", "right"))
    counts = stop - first
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_PAIRS_PER_CHUNK, ends[-1], _PAIRS_PER_CHUNK))
    for low, high in pairwise(np.unique([0, *cuts, len(counts)])):
        n = counts[low:high]
        detection = np.repeat(np.arange(low, high), n)
        # the k-th pair of a detection takes the k-th box of its slice
        box = order[np.arange(len(detection)) + np.repeat(first[low:high] - (np.cumsum(n) - n), n)]
        height = np.minimum(y2[detection], ty2[box]) - np.maximum(y1[detection], ty1[box])
        detection, box, height = (a[height > 0] for a in (detection, box, height))
        width = np.minimum(x2[detection], tx2[box]) - np.maximum(x1[detection], tx1[box])
        detection, box, height, width = (a[width > 0] for a in (detection, box, height, width))
        intersection = width * height
        yield detection, box, intersection / (area[detection] + truth_area[box] - intersection)


def _voc_matches(pairs: Pairs, iou_thresholds: np.ndarray, n_detections: int, _: int) -> np.ndarray:
    """PASCAL VOC's matching: each detection goes to its highest-IoU box (the first of equals), taken or not.

    It is a true positive when that IoU is at least the threshold and no better-scored detection has taken the box.
    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section 4.2 (`VOCevaldet.m`).
    Gives bool [T, N], from pairs of detections by rank: the best score of each class first.
    """
    claims = [_best_of_each(*chunk) for chunk in pairs if len(chunk[0])]  # a chunk's pairs are not kept
    is_tp = np.zeros((len(iou_thresholds), n_detections), dtype=bool)
    if not claims:
        return is_tp
    detection, box, iou = (np.concatenate(column) for column in zip(*claims, strict=True))
    # chunks come in rank order, so a stable sort by box leaves the claimants of each box in rank order
    order = np.argsort(box, kind="stable")
    detection, box, iou = detection[order], box[order], iou[order]
    starts = np.flatnonzero(np.diff(box, prepend=-1))
    nobody = len(box)
    claimant = np.where(iou >= iou_thresholds[:, None], np.arange(nobody), nobody)  # [T, claims]
    winner = np.minimum.reduceat(claimant, starts, axis=1)  # [T, claimed boxes]
    threshold_index, _ = taken = np.nonzero(winner < nobody)
    is_tp[threshold_index, detection[winner[taken]]] = True
    return is_tp


def _best_of_each(detection: np.ndarray, box: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each detection's highest-IoU box, the lowest index among equals; pairs of a detection are adjacent."""
    starts = np.flatnonzero(np.diff(detection, prepend=-1))
    best = np.maximum.reduceat(iou, starts)
    is_best = iou == np.repeat(best, np.diff(starts, append=len(iou)))
    return detection[starts], np.minimum.reduceat(np.where(is_best, box, np.iinfo(box.dtype).max), starts), best


def _coco_matches(pairs: Pairs, iou_thresholds: np.ndarray, n_detections: int, n_boxes: int) -> np.ndarray:
    """COCO's matching: in order of rank, each detection takes its highest-IoU box still free (the last of equals).

    `COCOeval.evaluateImg` of pycocotools (Lin et al. 2014) does this one detection at a time. Here all of them act at
    once, by deferred acceptance (Gale and Shapley 1962): every detection asks its best box, every box keeps the
    best-ranked that asks, the refused go on to their next box. All boxes rank detections alike, so the stable matching
    is unique and is the one that taking turns gives. Arguments and result are as of `_voc_matches`.
    """
    n_thresholds = len(iou_thresholds)
    is_tp = np.zeros((n_thresholds, n_detections), dtype=bool)
    # pycocotools lets an IoU of 1 that came out a hair below pass a threshold of 1
    floor = np.minimum(iou_thresholds, 1 - 1e-10)
    chunks = [[column[chunk[2] >= floor.min()] for column in chunk] for chunk in pairs]
    if not chunks:
        return is_tp
    detection, box, iou = (np.concatenate(column) for column in zip(*chunks, strict=True))
    preference = np.lexsort((-box, -iou, detection))
    detection, box, iou = detection[preference], box[preference], iou[preference]
    asking, starts = np.unique(detection, return_index=True)

    # asker (t, d) is t * n_detections + d; it asks box (t, b) = t * n_boxes + b; thresholds never meet
    nobody = n_thresholds * n_detections
    whole = np.int32 if max(nobody, n_thresholds * n_boxes, len(detection)) < 1 << 31 else np.int64
    next_pair = np.zeros(nobody, dtype=whole)
    asker = (np.arange(n_thresholds)[:, None] * n_detections + asking).ravel().astype(whole)
    next_pair[asker] = np.tile(starts, n_thresholds)
    holder = np.full(n_thresholds * n_boxes, nobody, dtype=whole)
    while len(asker):
        pair = next_pair[asker]
        threshold_index, rank = np.divmod(asker, n_detections)
        # a list ends with the detection's last pair, or where the IoU falls below the threshold
        inside = pair < len(detection)
        pair = np.where(inside, pair, 0)
        asks = inside & (detection[pair] == rank) & (iou[pair] >= floor[threshold_index])
        asker, wanted = asker[asks], threshold_index[asks] * n_boxes + box[pair[asks]]
        next_pair[asker] += 1
        before = holder[wanted]
        np.minimum.at(holder, wanted, asker)
        after = holder[wanted]
        ousted = np.unique(before[(before != after) & (before != nobody)])
        asker = np.concatenate([asker[asker != after], ousted])
    is_tp.ravel()[holder[holder != nobody]] = True
    return is_tp
