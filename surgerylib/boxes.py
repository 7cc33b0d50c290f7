"""Boxes: overlap measures; heatmap -> boxes and non-maximum suppression are `extraction`'s, named here as well.

Boxes are xyxy, width = xmax - xmin, without any +1. The overlap functions take NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .extraction import extract_boxes, nms, resize_map

__all__ = ["box_giou", "box_iou", "extract_boxes", "nms", "patch_coverage", "resize_map"]

Array = TypeVar("Array", np.ndarray, Tensor)


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


def patch_coverage(boxes_xyxy: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each patch that some box covers: exact, boxes that overlap count once.

    The edges of boxes and patches together cut the image into cells that are wholly inside or outside of each.

    Args:
        boxes_xyxy: [G, 4] in [0, 1] of the image.
        grid: (rows h, columns w) of patches.

    Returns:
        float64 [h, w] in [0, 1].
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4).clip(0, 1)
    inside, shares = [], []
    for low, high, n_patches in ((1, 3, grid[0]), (0, 2, grid[1])):  # rows, then columns
        edges = np.unique(np.concatenate([boxes[:, low], boxes[:, high], np.arange(n_patches + 1) / n_patches]))
        middle = (edges[:-1] + edges[1:]) / 2
        inside.append((boxes[:, low, None] < middle) & (middle < boxes[:, high, None]))  # [G, cells]
        patch = np.minimum((middle * n_patches).astype(int), n_patches - 1)
        of_patch = np.zeros((n_patches, len(middle)))
        of_patch[patch, np.arange(len(middle))] = np.diff(edges) * n_patches
        shares.append(of_patch)
    covered = inside[0].T.astype(np.float64) @ inside[1] > 0  # [cells of rows, cells of columns]
    return (shares[0] @ covered @ shares[1].T).clip(0, 1)


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
