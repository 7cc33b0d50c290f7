"""Which detection finds which ground-truth box: vectorised over images, classes, boxes and IoU thresholds.

Boxes are float xyxy, width = xmax - xmin. A *group* is an (image, class) pair, given as an integer: boxes are only
ever compared within one. A detection's *rank* is its place when the best score comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

# pairs held at a time: eight columns of float64 stay within 8 MB
_PAIRS_PER_CHUNK = 1 << 17


def overlapping_pairs(
    boxes_xyxy: np.ndarray, groups: np.ndarray, truth_xyxy: np.ndarray, truth_groups: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs (detection, ground-truth box) of the same group that overlap, in chunks of bounded size.

    Args:
        boxes_xyxy: [N, 4] detections, `groups`: [N] int.
        truth_xyxy: [G, 4] ground truth, `truth_groups`: [G] int.

    Yields:
        (detection index, box index, IoU > 0), each [P]; all pairs of one detection are in the same chunk, next to each
        other.
    """
    if not len(boxes_xyxy) or not len(truth_xyxy):
        return
    order = np.lexsort((truth_xyxy[:, 0], truth_groups))
    tx1, ty1, tx2, ty2 = truth_xyxy[order].T.copy()
    truth_area = (tx2 - tx1) * (ty2 - ty1)
    x1, y1, x2, y2 = boxes_xyxy.T.copy()
    area = (x2 - x1) * (y2 - y1)
    first, stop = _candidate_range(x1, x2, groups, tx1, tx2, truth_groups[order])

    counts = stop - first
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_PAIRS_PER_CHUNK, ends[-1], _PAIRS_PER_CHUNK))
    bounds = np.unique(np.concatenate([[0], cuts, [len(counts)]]))
    for low, high in pairwise(bounds):
        n = counts[low:high]
        detection = np.repeat(np.arange(low, high), n)
        if not len(detection):
            continue
        # the k-th pair of a detection takes the k-th candidate of its range
        box = np.arange(len(detection)) + np.repeat(first[low:high] - (np.cumsum(n) - n), n)
        height = np.minimum(y2[detection], ty2[box]) - np.maximum(y1[detection], ty1[box])
        detection, box, height = (a[height > 0] for a in (detection, box, height))
        width = np.minimum(x2[detection], tx2[box]) - np.maximum(x1[detection], tx1[box])
        detection, box, height, width = (a[width > 0] for a in (detection, box, height, width))
        intersection = width * height
        iou = intersection / (area[detection] + truth_area[box] - intersection)
        yield detection, order[box], iou


def _candidate_range(
    x1: np.ndarray, x2: np.ndarray, groups: np.ndarray, tx1: np.ndarray, tx2: np.ndarray, truth_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, the slice of the boxes (sorted by group, then xmin) that can overlap it along x.

    In crowded groups (hundreds of ships in a harbour) this leaves a tenth of the pairs. A slice may hold too many
    boxes, never too few.
    """
    known, starts = np.unique(truth_groups, return_index=True)
    ends = np.append(starts[1:], len(truth_groups))
    widest = np.maximum.reduceat(tx2 - tx1, starts)
    place = np.minimum(np.searchsorted(known, groups), len(known) - 1)

    # one sorted key for group and xmin: groups lie further apart than any two coordinates
    origin = min(x1.min(), tx1.min())
    span = max(x2.max(), tx2.max()) - origin + 1.0
    truth_place = np.repeat(np.arange(len(known)), ends - starts)
    key = truth_place * span + (tx1 - origin)
    margin = 8 * np.spacing(len(known) * span)
    first = np.searchsorted(key, place * span + (x1 - origin - widest[place]) - margin)
    stop = np.searchsorted(key, place * span + (x2 - origin) + margin, side="right")
    first = np.clip(first, starts[place], ends[place])
    stop = np.clip(stop, first, ends[place])
    stop[known[place] != groups] = first[known[place] != groups]
    return first, stop


def match_voc(
    boxes_xyxy: np.ndarray,
    groups: np.ndarray,
    truth_xyxy: np.ndarray,
    truth_groups: np.ndarray,
    iou_thresholds: np.ndarray,
) -> np.ndarray:
    """PASCAL VOC's matching: each detection goes to its highest-IoU box (the first of equals), taken or not.

    It is a true positive when that IoU is at least the threshold and no better-scored detection has taken the box.
    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section 4.2 (`VOCevaldet.m`).

    Args:
        boxes_xyxy: [N, 4] detections by rank, the best score of each class first; `groups`: [N] int.
        truth_xyxy: [G, 4] ground truth, `truth_groups`: [G] int.
        iou_thresholds: [T], each in (0, 1].

    Returns:
        bool [T, N]: whether the detection is a true positive.
    """
    claims = [
        _best_of_each(*pairs)
        for pairs in overlapping_pairs(boxes_xyxy, groups, truth_xyxy, truth_groups)
        if len(pairs[0])
    ]
    is_tp = np.zeros((len(iou_thresholds), len(boxes_xyxy)), dtype=bool)
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


def match_coco(
    boxes_xyxy: np.ndarray,
    groups: np.ndarray,
    truth_xyxy: np.ndarray,
    truth_groups: np.ndarray,
    iou_thresholds: np.ndarray,
) -> np.ndarray:
    """COCO's matching: in order of rank, each detection takes its highest-IoU box still free (the last of equals).

    `COCOeval.evaluateImg` of pycocotools (Lin et al. 2014) does this one detection at a time. Here all of them act at
    once, by deferred acceptance (Gale and Shapley 1962): every detection asks its best box, every box keeps the
    best-ranked that asks, the refused go on to their next box. All boxes rank detections alike, so the stable matching
    is unique and is the one that taking turns gives.

    Args and Returns: as `match_voc`.
    """
    n_thresholds, n_detections, n_boxes = len(iou_thresholds), len(boxes_xyxy), len(truth_xyxy)
    is_tp = np.zeros((n_thresholds, n_detections), dtype=bool)
    # pycocotools lets an IoU of 1 that came out a hair below pass a threshold of 1
    floor = np.minimum(iou_thresholds, 1 - 1e-10)
    pairs = []
    for detection, box, iou in overlapping_pairs(boxes_xyxy, groups, truth_xyxy, truth_groups):
        keep = iou >= floor.min()
        pairs.append((detection[keep], box[keep], iou[keep]))
    if not pairs:
        return is_tp
    detection, box, iou = (np.concatenate(column) for column in zip(*pairs, strict=True))
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
