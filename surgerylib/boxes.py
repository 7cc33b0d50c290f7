"""Boxes: overlap measures, heatmap -> boxes, non-maximum suppression.

Boxes are xyxy, width = xmax - xmin, without any +1. The overlap functions take NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from .errors import ParameterError

Array = TypeVar("Array", np.ndarray, Tensor)

_KERNEL = np.ones((3, 3), np.uint8)


def box_iou(boxes_a: Array, boxes_b: Array) -> Array:
    """Intersection over union, element by element under broadcasting; 0 where both boxes are empty.

    Args:
        boxes_a: [..., 4] xyxy. All pairs of [A, 4] and [B, 4]: `box_iou(a[:, None], b[None])`.
        boxes_b: [..., 4] xyxy.

    Returns:
        [...] in 0..1
    """
    intersection, union = _intersection_union(boxes_a, boxes_b)
    return intersection / union.clip(min=_tiny(union))


def box_giou(boxes_a: Array, boxes_b: Array) -> Array:
    """Generalised IoU (Rezatofighi et al. 2019, arXiv:1902.09630): IoU - (hull - union) / hull, in -1..1.

    A loss term. It is never reported as an IoU. Shapes as in `box_iou`.
    """
    xp = torch if isinstance(boxes_a, Tensor) else np
    boxes_a, boxes_b = _floating(boxes_a), _floating(boxes_b)
    intersection, union = _intersection_union(boxes_a, boxes_b)
    low = xp.minimum(boxes_a[..., :2], boxes_b[..., :2])
    high = xp.maximum(boxes_a[..., 2:], boxes_b[..., 2:])
    hull = _area(low, high)
    return intersection / union.clip(min=_tiny(union)) - (hull - union) / hull.clip(min=_tiny(hull))


def extract_boxes(
    heatmap: np.ndarray | Tensor,
    image_size_wh: tuple[int, int],
    *,
    percentile: float = 75.0,
    working_size: int = 224,
    min_side: int = 5,
) -> np.ndarray:
    """Boxes around the strongest responses of one heatmap, in five steps.

    (1) bilinear to `working_size`²; (2) threshold at the percentile of the raw values, without min-max; (3) mask
    >= threshold, closing then opening, 3x3; (4) external contours; (5) bounding rectangles, dropped when a side is
    <= `min_side`, scaled to the original image, scored with the mean of the raw values inside.

    Args:
        heatmap: [h, w] raw similarities of one class.
        image_size_wh: width and height of the original image in pixels.
        percentile: between 0 and 100, both excluded.
        working_size: side in pixels at which the boxes are found.
        min_side: in working pixels.

    Returns:
        float64 [K, 5]: xmin, ymin, xmax, ymax in original pixels, score; highest score first. A constant map gives
        [0, 5].

    Raises:
        ParameterError: a percentile outside (0, 100), a map that is not [h, w] or not finite.
    """
    check_percentile(percentile)
    resized = resize_map(heatmap, working_size)
    mask = threshold_mask(resized, percentile)
    if mask is None:
        return np.empty((0, 5))
    rects = mask_rectangles(mask, min_side)
    boxes = [(x, y, x + w, y + h, float(resized[y : y + h, x : x + w].mean(dtype=np.float64))) for x, y, w, h in rects]
    found = np.array(boxes, dtype=np.float64).reshape(-1, 5)
    width, height = image_size_wh
    found[:, [0, 2]] *= width / working_size
    found[:, [1, 3]] *= height / working_size
    return found[np.argsort(-found[:, 4], kind="stable")]


def resize_map(heatmap: np.ndarray | Tensor, working_size: int) -> np.ndarray:
    """Step 1: [h, w] -> float32 [working_size, working_size], bilinear, pixel centres aligned at half a pixel."""
    values = heatmap.detach().float().cpu().numpy() if isinstance(heatmap, Tensor) else np.asarray(heatmap, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ParameterError(f"a heatmap must be [h, w], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ParameterError("the heatmap holds NaN or infinite values")
    if values.min() == values.max():  # interpolation would add rounding noise, and the noise would make boxes
        return np.full((working_size, working_size), values.flat[0])
    return cv2.resize(values, (working_size, working_size), interpolation=cv2.INTER_LINEAR)


def threshold_mask(resized: np.ndarray, percentile: float) -> np.ndarray | None:
    """Steps 2 and 3: uint8 [S, S] of 0 and 1 after closing and opening; None for a constant map."""
    if resized.min() == resized.max():
        return None
    mask = (resized >= np.percentile(resized, percentile)).astype(np.uint8)
    return cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _KERNEL), cv2.MORPH_OPEN, _KERNEL)


def mask_rectangles(mask: np.ndarray, min_side: int) -> list[tuple[int, int, int, int]]:
    """Steps 4 and 5: (x, y, width, height) in working pixels of each external contour, sides > `min_side`."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rects = [tuple(cv2.boundingRect(contour)) for contour in contours]
    return [rect for rect in rects if rect[2] > min_side and rect[3] > min_side]


def check_percentile(percentile: float) -> None:
    """Raise a `ParameterError` unless 0 < percentile < 100."""
    if not 0 < percentile < 100:
        raise ParameterError(f"percentile must lie between 0 and 100 (both excluded), got {percentile!r}")


def nms(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression (OpenCV's) of the boxes of one image and one class.

    Args:
        boxes: [K, 5] xyxy + score.
        iou_threshold: a box is dropped when its IoU with a better kept one exceeds this.

    Returns:
        [K', 5], highest score first.
    """
    if not 0 < iou_threshold <= 1:
        raise ParameterError(f"the NMS threshold must lie in (0, 1], got {iou_threshold!r}")
    if len(boxes) == 0:
        return np.empty((0, 5))
    order = np.argsort(-boxes[:, 4], kind="stable")
    xywh = np.column_stack([boxes[order, :2], boxes[order, 2:4] - boxes[order, :2]])
    # ranks in place of scores: OpenCV drops scores below a threshold, ours may be negative, and ties stay stable
    ranks = np.arange(len(order), 0, -1, dtype=np.float32)
    keep = cv2.dnn.NMSBoxes(xywh.tolist(), ranks.tolist(), score_threshold=0.0, nms_threshold=float(iou_threshold))
    return boxes[order[np.sort(np.asarray(keep, dtype=np.int64).ravel())]]


def _intersection_union(boxes_a: Array, boxes_b: Array) -> tuple[Array, Array]:
    xp = torch if isinstance(boxes_a, Tensor) else np
    boxes_a, boxes_b = _floating(boxes_a), _floating(boxes_b)
    low = xp.maximum(boxes_a[..., :2], boxes_b[..., :2])
    high = xp.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    intersection = _area(low, high)
    union = _area(boxes_a[..., :2], boxes_a[..., 2:]) + _area(boxes_b[..., :2], boxes_b[..., 2:]) - intersection
    return intersection, union


def _area(low: Array, high: Array) -> Array:
    sides = (high - low).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _tiny(values: Array) -> float:
    """The smallest divisor that keeps 0 / 0 at 0 without touching any real area."""
    return torch.finfo(values.dtype).tiny if isinstance(values, Tensor) else np.finfo(values.dtype).tiny


def _floating(boxes: Array) -> Array:
    """Whole-number boxes as floats: unsigned differences would wrap around."""
    if isinstance(boxes, Tensor):
        return boxes if boxes.is_floating_point() else boxes.float()
    return boxes if np.issubdtype(boxes.dtype, np.floating) else boxes.astype(np.float64)
