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
        found = np.where(reached, found, end[:, :, None])
        # best precision from each level up to the next, the last up to the curve's end; then from each level on
        between = np.concatenate([found, end[:, :, None]], axis=2)
        best = np.maximum.reduceat(precision, between.ravel()).reshape(between.shape)[:, :, :-1]
        best = np.where(reached, best, 0.0)
        levels = np.maximum.accumulate(best[:, :, ::-1], axis=2)
        ap = levels.mean(axis=2)
        if interpolation == "11point":
            at_zero = levels[:, :, -1] / levels.shape[2]
    return np.where(n_truth[:, None] > 0, ap, np.nan), at_zero


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
