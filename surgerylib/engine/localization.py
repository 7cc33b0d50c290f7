"""The class being given, how well is each ground truth box found? The head's boxes, and boxes that need no learning.

Boxes are xyxy in [0, 1] of the image. One row is one ground truth box; intervals are taken over images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..boxes import box_iou
from ..errors import ParameterError
from ..intervals import basic_interval, resampled_means, share_interval
from ..losses import flat_targets

SHARES = (0.3, 0.5, 0.7)
BASELINES = ("whole_image", "centre_box", "class_mean")
_WHOLE, _CENTRE = (0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75)


@torch.no_grad()
def gt_class_localization(
    pred_boxes: Tensor | np.ndarray, boxes: Sequence[Tensor | np.ndarray], labels: Sequence[Tensor | np.ndarray]
) -> pd.DataFrame:
    """For each ground truth box the best IoU over the cells of its class's channel.

    An oracle: the cell is chosen by the ground truth. `peak_localization` chooses it without.

    Args:
        pred_boxes: [B, C, H, W, 4] xyxy in [0, 1].
        boxes: for each of B images [G_i, 4] xyxy in [0, 1] with area.
        labels: for each image [G_i], the class's place in C.

    Returns:
        Frame image_index, label, iou, row, column: a row a box, in the order given; of equal cells the first.

    Raises:
        ParameterError: shapes that do not fit, a label without a channel, a box that cannot be one.
    """
    return _at_cells(pred_boxes, boxes, labels)


@torch.no_grad()
def peak_localization(
    pred_boxes: Tensor | np.ndarray,
    cam: Tensor | np.ndarray,
    boxes: Sequence[Tensor | np.ndarray],
    labels: Sequence[Tensor | np.ndarray],
) -> pd.DataFrame:
    """For each ground truth box the IoU of the box in the cell where its class's CAM is highest: no oracle.

    All boxes of a class in an image are held against that one box.

    Args:
        pred_boxes: as in `gt_class_localization`.
        cam: [B, C, H, W], brought to the cells.
        boxes, labels: as in `gt_class_localization`.

    Returns:
        Frame as of `gt_class_localization`; of equal cells the first.

    Raises:
        ParameterError: as in `gt_class_localization`, or a `cam` of another grid.
    """
    return _at_cells(pred_boxes, boxes, labels, torch.as_tensor(cam).cpu())


def class_mean_boxes(boxes_xyxy: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """The mean box of each class: float64 [C, 4].

    A class without a box takes the mean of all boxes; without any box at all, the whole image.

    Args:
        boxes_xyxy: [G, 4] in [0, 1], of training images.
        labels: [G] places of the classes.
        n_classes: C.
    """
    boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.stack([np.bincount(labels, weights=side, minlength=n_classes) for side in boxes_xyxy.T], axis=1)
    overall = boxes_xyxy.mean(axis=0) if len(boxes_xyxy) else np.array(_WHOLE)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], overall)


def baseline_ious(boxes_xyxy: np.ndarray, labels: np.ndarray, class_means: np.ndarray) -> pd.DataFrame:
    """IoU of each ground truth box with three boxes that need no learning: a column each of `BASELINES`.

    `whole_image` is the image itself, `centre_box` the middle half of its width and height, `class_mean` the mean box
    of the class in the training images.

    Args:
        boxes_xyxy: [G, 4] in [0, 1].
        labels: [G] places of the classes.
        class_means: [C, 4], of `class_mean_boxes`.
    """
    boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    guesses = (np.array(_WHOLE), np.array(_CENTRE), class_means[labels])
    ious = [box_iou(np.broadcast_to(guess, boxes_xyxy.shape), boxes_xyxy) for guess in guesses]
    return pd.DataFrame(dict(zip(BASELINES, ious, strict=True)))


def localization_summary(
    ious: pd.DataFrame, images: np.ndarray | pd.Series, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean, median and standard deviation of IoU, shares of boxes above `SHARES`: 95 % intervals over images.

    The intervals of mean and sd are of the basic bootstrap, those of shares Wilson's with the bootstrap's spread
    (`intervals.share_interval`); the median's is Woodruff's (1952, Confidence intervals for medians and
    other position measures): the interval of the share of boxes at or below the median, read off the IoUs.

    Args:
        ious: [G rows] a column a method, IoU of each ground truth box.
        images: [G] which image each box is in; images are what is drawn.
        n_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        Frame method, figure ('mean', 'median', 'sd', 'share>0.50', ...), value, low, high, n_boxes, n_images. `sd` is
        that of these boxes (divided by their number). NaN without boxes; no interval with fewer than two images.
    """
    methods = list(ious.columns)
    per_box = ious.to_numpy(np.float64).reshape(-1, len(methods))  # [G, M]
    median = np.quantile(per_box, 0.5, axis=0) if len(ious) else np.full(len(methods), np.nan)
    averaged = [per_box, per_box**2, per_box <= median, *(per_box > share for share in SHARES)]
    point, samples, n_images = resampled_means(np.hstack(averaged), images, n_resamples, seed)
    (mean, square, below), above = np.split(point.reshape(-1, len(methods)), [3])  # each [.., M]
    drawn = np.moveaxis(samples.reshape(len(samples), -1, len(methods)), 1, 0)  # [3 + shares, R, M]
    sd, sd_samples = (
        np.sqrt(np.maximum(of_square - of_mean**2, 0)) for of_mean, of_square in ((mean, square), drawn[:2])
    )
    figures = {
        "mean": (mean, *basic_interval(mean, drawn[0], n_images)),
        "median": (median, *_median_interval(per_box, below, drawn[2], n_images)),
        "sd": (sd, *basic_interval(sd, sd_samples, n_images)),
    }
    for share, value, of_share in zip(SHARES, above, drawn[3:], strict=True):
        figures[_share_name(share)] = (value, *share_interval(value, of_share, len(ious), n_images))
    rows = [
        (method, figure, *(part[place] for part in parts))
        for place, method in enumerate(methods)
        for figure, parts in figures.items()
    ]
    frame = pd.DataFrame(rows, columns=["method", "figure", "value", "low", "high"])
    frame[["low", "high"]] = frame[["low", "high"]].clip(0, 1)
    frame.loc[frame["figure"] == "sd", "high"] = frame["high"].clip(upper=0.5)  # no IoUs spread further
    return frame.assign(n_boxes=len(ious), n_images=n_images)


def localization_difference(
    ious_a: pd.DataFrame, ious_b: pd.DataFrame, images: np.ndarray | pd.Series, *, seed: int = 0
) -> pd.DataFrame:
    """`ious_a` minus `ious_b` on the same boxes and resamples of the images, method by method.

    Returns:
        Frame method, figure, difference, low, high, excludes_zero (the interval does).

    Raises:
        ParameterError: the two do not hold the same methods for the same number of boxes.
    """
    if list(ious_a.columns) != list(ious_b.columns) or len(ious_a) != len(ious_b):
        raise ParameterError(
            f"not a paired comparison: {len(ious_a)} boxes by {list(ious_a.columns)} and {len(ious_b)} by "
            f"{list(ious_b.columns)}; measure both on the same boxes"
        )
    n_figures = len(ious_a.columns) * (1 + len(SHARES))
    of_a, of_b = (  # [G, figures], method by method
        np.stack([values, *(values > share for share in SHARES)], axis=2).reshape(len(values), n_figures)
        for values in (ious.to_numpy(np.float64) for ious in (ious_a, ious_b))
    )
    difference, samples, n_images = resampled_means(of_a - of_b, images, 1000, seed)
    low, high = basic_interval(difference, samples, n_images)
    names = [(method, figure) for method in ious_a for figure in ("mean", *map(_share_name, SHARES))]
    frame = pd.DataFrame(names, columns=["method", "figure"]).assign(difference=difference, low=low, high=high)
    return frame.assign(excludes_zero=(low > 0) | (high < 0))


def _at_cells(
    pred_boxes: Tensor | np.ndarray,
    boxes: Sequence[Tensor | np.ndarray],
    labels: Sequence[Tensor | np.ndarray],
    cam: Tensor | None = None,
) -> pd.DataFrame:
    """The frame of both: IoU in the cell of the class's channel where `cam`, or else the IoU itself, is highest."""
    pred_boxes = torch.as_tensor(pred_boxes).cpu()
    image, label, target = flat_targets(pred_boxes, boxes, labels)
    if cam is not None and cam.shape != pred_boxes.shape[:4]:
        raise ParameterError(f"cam must be {list(pred_boxes.shape[:4])}, as the cells are, got {list(cam.shape)}")
    iou = box_iou(pred_boxes[image, label].double(), target.double()[:, None, None])  # [G, H, W]
    cell = (iou if cam is None else cam[image, label]).flatten(1).argmax(dim=1)
    found, width = iou.flatten(1).gather(1, cell[:, None])[:, 0], pred_boxes.shape[3]
    columns = {"image_index": image, "label": label, "iou": found, "row": cell // width, "column": cell % width}
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def _median_interval(
    per_box: np.ndarray, share: np.ndarray, share_samples: np.ndarray, n_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """low, high [M] of the medians of per_box [G, M]; `share` [M] of the boxes lies at or below them."""
    low, high = basic_interval(share, share_samples, n_images)
    if not len(per_box) or np.isnan(low).any():
        return np.full(len(share), np.nan), np.full(len(share), np.nan)
    ends = np.clip([0.5 - (share - low), 0.5 + (high - share)], 0, 1)  # [2, M]
    read = [np.quantile(column, of_column) for column, of_column in zip(per_box.T, ends.T, strict=True)]
    return tuple(np.array(read).reshape(-1, 2).T)


def _share_name(share: float) -> str:
    return f"share>{share:.2f}"
