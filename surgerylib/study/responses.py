"""Which class's map responds most inside a box: CLIP's own classification of a place, without any threshold."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pandas as pd

from ..errors import ParameterError
from ..intervals import bootstrap_weights, share_interval
from .quality import pixel_spans

TOP = 3


def box_responses(
    maps: np.ndarray, boxes_xyxy: np.ndarray, image_size_wh: tuple[int, int], *, working_size: int = 224
) -> np.ndarray:
    """Mean of each class's map inside each box, at working size: the `inside_mean` of `quality`, of every class.

    Bilinear upsampling is linear and goes along rows and columns apart, so the mean over a box is a weighted sum of
    the patches: no map is upsampled.

    Args:
        maps: float32 [C, h, w], raw, of one image.
        boxes_xyxy: [G, 4] pixels of the original image.
        image_size_wh: width and height of the original image in pixels.
        working_size: side in pixels at which maps are judged.

    Returns:
        float64 [G, C].
    """
    if maps.ndim != 3:
        raise ParameterError(f"maps must be [classes, h, w], got {list(maps.shape)}; pass one image at a time")
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    spans = pixel_spans(boxes * working_size / np.tile(np.asarray(image_size_wh, dtype=np.float64), 2), working_size)
    rows = _mean_weights(maps.shape[1], working_size, spans[:, 1], spans[:, 3])  # [G, h]
    columns = _mean_weights(maps.shape[2], working_size, spans[:, 0], spans[:, 2])  # [G, w]
    return np.einsum("gh,chw,gw->gc", rows, maps, columns, optimize=True)


def response_ranks(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes respond more than a box's own: int64 [G], 0 where its own is first.

    Of equal responses the class listed first counts as the higher.

    Args:
        responses: [G, C].
        labels: [G] places of the boxes' classes.
    """
    own = np.take_along_axis(responses, labels[:, None], axis=1)
    before = np.arange(responses.shape[1]) < labels[:, None]
    return ((responses > own) | ((responses == own) & before)).sum(axis=1)


def accuracy_summary(
    ranks: np.ndarray, labels: np.ndarray, images: np.ndarray | pd.Series, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How often the right class responds most in a box, with 95 % intervals over images.

    Args:
        ranks: [G] of `response_ranks`.
        labels: [G] places of the boxes' classes.
        images: [G] which image each box is in.
        n_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        Frame figure, value, low, high: `top1` and `top3`, shares of the boxes, and `class_mean`, the mean over the
        classes with boxes of their own top1, in which a class of few boxes counts as much as one of thousands.
    """
    label, _ = pd.factorize(np.asarray(labels), sort=True)
    image, known = pd.factorize(np.asarray(images), sort=True)
    figures = ["top1", f"top{TOP}", "class_mean"]
    if not len(known):
        return pd.DataFrame({"figure": figures, "value": np.nan, "low": np.nan, "high": np.nan})
    n_classes = int(label.max()) + 1
    hits = np.zeros((2, len(known), n_classes))
    counts = np.zeros((len(known), n_classes))
    np.add.at(counts, (image, label), 1)
    for hit, top in zip(hits, (1, TOP), strict=True):
        np.add.at(hit, (image, label), ranks < top)
    # row 0 is the data set itself
    drawn = np.vstack([np.ones((1, len(known))), bootstrap_weights(len(known), n_resamples, seed)])
    first, among, boxes = (drawn @ part for part in (*hits, counts))  # each [1 + R, C]
    with np.errstate(invalid="ignore"):  # a resample may hold no box of a class
        shares = [first.sum(axis=1) / boxes.sum(axis=1), among.sum(axis=1) / boxes.sum(axis=1)]
        estimates = np.column_stack([*shares, np.nanmean(first / boxes, axis=1)])
    # a mean over classes is worth no more rows than its rare classes let it be
    rows = n_classes**2 / (1 / counts.sum(axis=0)).sum()
    low, high = share_interval(estimates[0], estimates[1:], np.array([len(label), len(label), rows]), len(known))
    return pd.DataFrame({"figure": figures, "value": estimates[0], "low": low, "high": high})


def confusion_matrix(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 [C, C]: boxes of class i in which class j responds most."""
    n_classes = responses.shape[1]
    named = responses.argmax(axis=1) if len(responses) else np.empty(0, np.int64)
    return np.bincount(labels * n_classes + named, minlength=n_classes**2).reshape(n_classes, n_classes)


@lru_cache(maxsize=16)
def _running_weights(n_patches: int, working_size: int) -> np.ndarray:
    """float64 [S + 1, n]: what the first so many pixels of a line take of each patch, under bilinear upsampling."""
    of_pixel = cv2.resize(
        np.eye(n_patches, dtype=np.float32), (n_patches, working_size), interpolation=cv2.INTER_LINEAR
    )
    return np.vstack([np.zeros(n_patches), np.cumsum(of_pixel, axis=0, dtype=np.float64)])


def _mean_weights(n_patches: int, working_size: int, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[G, n]: weights of the patches in the mean over pixels first to stop - 1 of a line."""
    running = _running_weights(n_patches, working_size)
    return (running[stop] - running[first]) / (stop - first)[:, None]
