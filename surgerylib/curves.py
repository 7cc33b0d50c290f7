"""Average precision of one class from its matched detections, with images that may count several times."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

INTERPOLATIONS = ("11point", "area", "coco101")


class ClassCurves(NamedTuple):
    """The precision-recall curves of one class, one per IoU threshold.

    Only the places of true positives are kept: from one to the next, precision can only fall.
    """

    images: np.ndarray  # [n] image codes of the class's detections, the best score first
    places: np.ndarray  # [F] where the true positives stand among them: threshold by threshold, best score first
    bounds: np.ndarray  # [T + 1]: threshold t has places[bounds[t]:bounds[t + 1]]


def class_curves(is_tp: np.ndarray, images: np.ndarray) -> ClassCurves:
    """Curves of one class from its detections, the best score first: `is_tp` [T, n], `images` [n]."""
    threshold_index, places = np.nonzero(is_tp)
    return ClassCurves(images, places, np.searchsorted(threshold_index, np.arange(len(is_tp) + 1)))


def weighted_average_precision(
    curves: ClassCurves, weights: np.ndarray, n_truth: np.ndarray, interpolation: str
) -> tuple[np.ndarray, np.ndarray]:
    """AP of one class when image i counts weights[r, i] times.

    A detection that counts m times is m detections in a row. While they are true positives precision rises, so one
    value, after the last of them, holds for all m; the sums of ones become sums of weights and nothing else changes.

    Args:
        curves: the class's detections, matched.
        weights: whole numbers [R, number of images].
        n_truth: [R] ground-truth boxes of the class, counted with the weights.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        AP, float64 [R, T], NaN where `n_truth` is 0; and what the level at recall 0 contributes to it under `11point`,
        [R, T]: 0 under the others, where it counts nothing or next to nothing.
    """
    n_resamples, n_places = len(weights), len(curves.places)
    weight = np.take(weights, curves.images, axis=1)
    # of all detections bytes and 32-bit sums are held, both exact: with ten thousand images the time goes into memory
    small = weights.dtype == np.uint8 and weight.shape[1] < 1 << 24
    running_weight = np.cumsum(weight, axis=1, dtype=np.uint32 if small else np.float64)
    # how many detections stand here or above; leading ones may all have weight 0
    rank = np.maximum(np.take(running_weight, curves.places, axis=1), 1, dtype=np.float64)
    tp_weight = np.take(weight, curves.places, axis=1).astype(np.float64)

    # the curves of all resamples lie end to end: curve (r, t) is [start, end) of one array, which a running sum
    # without resets leaves sorted, so that one search serves them all
    running = np.zeros(tp_weight.size + 1)
    np.cumsum(tp_weight, out=running[1:])
    offsets = np.arange(n_resamples)[:, None] * n_places + curves.bounds
    start, end = offsets[:, :-1], offsets[:, 1:]  # [R, T]
    base = running[start]
    precision = np.zeros(tp_weight.size + 1)  # the last, a zero, can be pointed at by an end
    np.subtract(running[1:], np.repeat(base, (end - start).ravel()), out=precision[:-1])
    precision[:-1] /= rank.ravel()

    at_zero = np.zeros((n_resamples, len(curves.bounds) - 1))
    if interpolation == "area":
        ap = _area(precision, tp_weight, curves.bounds, start, end) / np.maximum(n_truth, 1)[:, None]
    else:
        needed = _needed(n_truth, interpolation)[:, None, :]  # [R, 1, levels]
        reached = needed <= (running[end] - base)[:, :, None]  # [R, T, levels]
        found = np.searchsorted(running[1:], np.where(reached, needed, 0) + base[:, :, None])
        levels = _best_at_levels(precision, found, reached, end[:, :, None])
        ap = levels.mean(axis=2)
        if interpolation == "11point":
            at_zero = levels[:, :, -1] / levels.shape[2]
    return np.where(n_truth[:, None] > 0, ap, np.nan), at_zero


def halves_average_precision(
    curves: ClassCurves, first_half: np.ndarray, n_truth: np.ndarray, interpolation: str
) -> tuple[np.ndarray, np.ndarray]:
    """`weighted_average_precision` of one class on halves of the images and on the other halves: the same numbers.

    With weights of 0 and 1 only the true positives of a half need a precision, and where those of one half rank tells
    where those of the other do.

    Args:
        curves: the class's detections, matched.
        first_half: uint8 [P, number of images], 1 for the images of the first half; the others are the second.
        n_truth: [2, P] ground-truth boxes of the class in each half.
        interpolation: `11point` or `coco101`.

    Returns:
        As there, of the first halves and of the second: [2, P, T] and [2, P, T].
    """
    in_first = np.take(first_half, curves.images, axis=1)  # [P, n]
    ranks = np.cumsum(in_first, axis=1, dtype=np.uint32)  # how many detections of the first half stand here or above
    true, rank = np.take(in_first, curves.places, axis=1).view(bool), np.take(ranks, curves.places, axis=1)  # [P, F]
    other_rank = (curves.places + 1).astype(np.uint32) - rank
    first = _levels(true, rank, curves.bounds, _needed(n_truth[0], interpolation))
    levels = np.stack([first, _levels(~true, other_rank, curves.bounds, _needed(n_truth[1], interpolation))])
    ap = np.where(n_truth[..., None] > 0, levels.mean(axis=-1), np.nan)
    return ap, levels[..., -1] / levels.shape[-1] if interpolation == "11point" else np.zeros_like(ap)


def _levels(true: np.ndarray, rank: np.ndarray, bounds: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Best precision at each recall level or above, the highest level first: [P, T, levels].

    Args:
        true: bool [P, F], the true positives that count, threshold by threshold, best score first.
        rank: [P, F] their ranks.
        bounds: [T + 1] of the thresholds.
        needed: [P, levels] how many true positives reach each level.
    """
    places = np.flatnonzero(true)
    offsets = np.searchsorted(places, np.arange(len(true))[:, None] * true.shape[1] + bounds)  # [P, T + 1]
    start, end = offsets[:, :-1, None], offsets[:, 1:, None]
    # all curves end to end; the last, a zero, can be pointed at by an end
    precision = np.arange(1.0, len(places) + 2)
    precision[:-1] -= np.repeat(start.ravel().astype(np.float64), (end - start).ravel())
    precision[:-1] /= np.take(rank, places)
    precision[-1] = 0
    needed = needed[:, None, :]
    return _best_at_levels(precision, start + needed - 1, needed <= end - start, end)


def _best_at_levels(precision: np.ndarray, place: np.ndarray, reached: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Best precision from each recall level on, the highest level first; 0 at levels that are not reached.

    Args:
        precision: of curves that lie end to end, and a zero.
        place: [..., levels] where a curve reaches each level.
        reached: [..., levels] whether it does.
        end: [..., 1] where the next curve begins.
    """
    # best precision from each level up to the next, the last up to the curve's end; then from each level on
    between = np.concatenate([np.where(reached, place, end), end], axis=-1)
    best = np.maximum.reduceat(precision, between.ravel()).reshape(between.shape)[..., :-1]
    return np.maximum.accumulate(np.where(reached, best, 0.0)[..., ::-1], axis=-1)


def _area(
    precision: np.ndarray, tp_weight: np.ndarray, bounds: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Sum of the true positives' envelope precisions: [R, T]."""
    n_thresholds = len(bounds) - 1
    # the envelope is a running maximum from the end; a step of 2 a threshold keeps it from one curve to the next
    # (and costs the last bits: within 1e-14)
    step = np.repeat(2.0 * np.arange(n_thresholds)[::-1], np.diff(bounds))
    envelope = np.maximum.accumulate((precision[:-1].reshape(tp_weight.shape) + step)[:, ::-1], axis=1)[:, ::-1]
    shares = np.append(tp_weight * (envelope - step), 0.0)
    return np.where(end > start, np.add.reduceat(shares, start.ravel()).reshape(start.shape), 0.0)


def _needed(n_truth: np.ndarray, interpolation: str) -> np.ndarray:
    """How many true positives reach each recall level: [R, levels], at least 1."""
    n_truth = np.maximum(n_truth, 1).astype(np.int64)[:, None]
    if interpolation == "11point":
        needed = -(-np.arange(11) * n_truth // 10)
    else:
        # pycocotools compares in floating point, where 7 of 100 does not reach 0.07; so does this
        recall = np.linspace(0.0, 1.0, 101)
        needed = np.ceil(recall * n_truth).astype(np.int64)
        needed -= (needed - 1) / n_truth >= recall
        needed += needed / n_truth < recall
    return np.maximum(needed, 1)
