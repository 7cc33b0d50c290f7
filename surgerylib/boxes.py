"""Boxes: overlap measures, heatmap -> boxes under one setting or many at once, non-maximum suppression.

Boxes are xyxy, width = xmax - xmin, without any +1. The overlap functions take NumPy arrays and torch tensors alike;
nothing here imports torch, so that a worker process starts in a moment.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import numpy as np

from .errors import ParameterError
from .heatmaps import OTSU, Setting, Threshold

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")
_KERNEL = np.ones((3, 3), np.uint8)
_LARGEST = float(np.finfo(np.float32).max)


class FoundBoxes(NamedTuple):
    """The boxes of one map under one setting."""

    boxes: np.ndarray  # float64 [K, 5]: xmin, ymin, xmax, ymax in original pixels, score; highest score first
    activated: float  # share of the map in the mask (of several thresholds: in the largest)


def box_iou(boxes_a: Array, boxes_b: Array) -> Array:
    """Intersection over union, element by element under broadcasting; 0 where both boxes are empty.

    Args:
        boxes_a: [..., 4] xyxy. All pairs of [A, 4] and [B, 4]: `box_iou(a[:, None], b[None])`.
        boxes_b: [..., 4] xyxy.

    Returns:
        [...] in 0..1
    """
    return _iou_and_union(_floating(boxes_a), _floating(boxes_b))[0]


def box_giou(boxes_a: Array, boxes_b: Array) -> Array:
    """Generalised IoU (Rezatofighi et al. 2019, arXiv:1902.09630): IoU - (hull - union) / hull, in -1..1.

    A loss term. It is never reported as an IoU. Shapes as in `box_iou`.
    """
    a, b = _floating(boxes_a), _floating(boxes_b)
    iou, union = _iou_and_union(a, b)
    hull = _area(_library(a).minimum(a[..., :2], b[..., :2]), _library(a).maximum(a[..., 2:], b[..., 2:]))
    return iou - (hull - union) / _not_zero(hull)


def patch_coverage(boxes_xyxy: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each patch that some box covers: exact, boxes that overlap count once.

    Args:
        boxes_xyxy: [G, 4] in [0, 1] of the image.
        grid: (rows h, columns w) of patches.

    Returns:
        float64 [h, w] in [0, 1].
    """
    # the edges of boxes and patches together cut the image into cells that are wholly inside or outside of each
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4).clip(0, 1)
    inside, shares = [], []
    for low, high, n_patches in ((1, 3, grid[0]), (0, 2, grid[1])):  # rows, then columns
        patches = np.arange(n_patches + 1)[:, None] / n_patches
        edges = np.unique(np.concatenate([boxes[:, low], boxes[:, high], patches[:, 0]]))
        middle = (edges[:-1] + edges[1:]) / 2
        inside.append((boxes[:, low, None] < middle) & (middle < boxes[:, high, None]))  # [G, cells]
        overlaps = np.minimum(patches[1:], edges[1:]) - np.maximum(patches[:-1], edges[:-1])  # [patches, cells]
        shares.append(overlaps.clip(min=0) * n_patches)
    covered = inside[0].T.astype(np.float64) @ inside[1] > 0  # [cells of rows, cells of columns]
    return (shares[0] @ covered @ shares[1].T).clip(0, 1)


def extract_boxes(
    heatmap: np.ndarray | Tensor,
    image_size_wh: tuple[int, int],
    *,
    percentile: Threshold = 75.0,
    working_size: int = 224,
    min_side: int = 5,
    **others: Any,
) -> np.ndarray:
    """Boxes around the strongest responses of one heatmap, in five steps.

    (1) bilinear to `working_size`²; (2) threshold at the percentile of the raw values, without min-max; (3) mask
    >= threshold, closing then opening, 3x3; (4) external contours; (5) bounding rectangles, dropped when a side is
    <= `min_side`, scaled to the original image, scored with the mean of the raw values inside.

    Args:
        heatmap: [h, w] raw similarities of one class.
        image_size_wh: width and height of the original image in pixels.
        percentile: between 0 and 100, both excluded; several of them; or `otsu`.
        working_size: side in pixels at which the boxes are found.
        min_side: in working pixels.
        **others: `max_side`, `box_score`, `nms_iou`, `floor` of a `Setting`, which add to these steps or change one.

    Returns:
        float64 [K, 5]: xmin, ymin, xmax, ymax in original pixels, score; highest score first. A constant map gives
        [0, 5], and so does one that the floor is above.

    Raises:
        ParameterError: an argument outside what it may be; a map that is not [h, w] or not finite.
    """
    setting = Setting(percentile=percentile, working_size=working_size, min_side=min_side, **others)
    return extract_many(heatmap, image_size_wh, [setting])[0].boxes


def extract_many(
    heatmap: np.ndarray | Tensor, image_size_wh: tuple[int, int], settings: Sequence[Setting]
) -> list[FoundBoxes]:
    """`extract_boxes` under several settings, in their order: the same boxes, from shared masks and contours."""
    found: dict[Setting, FoundBoxes] = {}
    for working_size in {setting.working_size for setting in settings}:
        own = [setting for setting in settings if setting.working_size == working_size]
        found |= zip(own, _cut(resize_map(heatmap, working_size), image_size_wh, own), strict=True)
    return [found[setting] for setting in settings]


def resize_map(heatmap: np.ndarray | Tensor, working_size: int) -> np.ndarray:
    """Step 1: [h, w] -> float32 [working_size, working_size], bilinear, pixel centres aligned at half a pixel."""
    if not isinstance(heatmap, np.ndarray) and hasattr(heatmap, "detach"):
        heatmap = heatmap.detach().float().cpu().numpy()
    values = np.asarray(heatmap)
    if values.dtype.kind not in "fiub":
        raise ParameterError(f"a heatmap must hold numbers, got an array of {values.dtype}")
    with np.errstate(over="ignore"):  # it comes out infinite
        values = values.astype(np.float32, copy=False)
    if values.ndim != 2 or values.size == 0:
        raise ParameterError(f"a heatmap must be [h, w], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ParameterError("the heatmap holds NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if high - low > _LARGEST:  # interpolation would give infinite values
        raise ParameterError(f"the heatmap's values lie too far apart for float32: {low:g} to {high:g}")
    if low == high:  # interpolation would add rounding noise, and the noise would make boxes
        return np.full((working_size, working_size), values.flat[0])
    return cv2.resize(values, (working_size, working_size), interpolation=cv2.INTER_LINEAR)


def threshold_levels(resized: np.ndarray, thresholds: Collection[float | str]) -> dict[float | str, float]:
    """Step 2: the raw value that a pixel must reach, for each percentile (or `otsu`).

    A percentile p of n sorted values stands at place (n - 1)·p/100 between two of them; the values at or above it are
    those at or above the next one up, which is the level given here.
    """
    last = resized.size - 1
    places = {threshold: math.ceil(last * threshold / 100) for threshold in thresholds if threshold != OTSU}
    ordered = np.partition(resized.ravel(), list(places.values())) if places else resized
    levels = {threshold: float(ordered[place]) for threshold, place in places.items()}
    return levels | {OTSU: _otsu_level(resized)} if OTSU in thresholds else levels


def floored_level(level: float, floor: float | None) -> float:
    """Step 2 with a floor: the raw value that a pixel must reach is the higher of the level and the floor."""
    return level if floor is None else max(level, floor)


def threshold_mask(resized: np.ndarray, level: float) -> np.ndarray:
    """Step 3: uint8 [S, S] of 0 and 1, values at or above the level, after closing and opening."""
    mask = (resized >= np.float32(level)).view(np.uint8)
    # closing is dilation and erosion, opening erosion and dilation: the two erosions go in one call
    return cv2.dilate(cv2.erode(cv2.dilate(mask, _KERNEL), _KERNEL, iterations=2), _KERNEL)


def mask_rectangles(mask: np.ndarray) -> np.ndarray:
    """Step 4: int64 [K, 4], xmin, ymin, xmax, ymax in working pixels of each external contour."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = np.array([cv2.boundingRect(contour) for contour in contours], dtype=np.int64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]  # OpenCV gives x, y, width, height
    return corners


def sides_fit(rectangles: np.ndarray, min_side: np.ndarray | int, max_side: np.ndarray | int | None) -> np.ndarray:
    """Step 5's choice: bool [K], which of [K, 4] have both sides above `min_side` and at most `max_side`, if any."""
    sides = rectangles[:, 2:] - rectangles[:, :2]
    return (sides.min(axis=1) > min_side) & (sides.max(axis=1) <= (np.inf if max_side is None else max_side))


def nms(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression (OpenCV's) of the boxes of one image and one class.

    Args:
        boxes: [K, 5] xyxy + score.
        iou_threshold: a box is dropped when its IoU with a better kept one exceeds this.

    Returns:
        [K', 5], highest score first.
    """
    if not isinstance(iou_threshold, int | float) or not 0 < iou_threshold <= 1:
        raise ParameterError(f"the NMS threshold must lie in (0, 1], got {iou_threshold!r}")
    if len(boxes) == 0:
        return np.empty((0, 5))
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    xywh = np.column_stack([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]])
    has_area = (xywh[:, 2:] > 0).all(axis=1)  # boxes without area overlap with none, but for OpenCV they are all alike
    # ranks in place of scores: OpenCV drops scores below a threshold, ours may be negative, and ties stay stable
    ranks = np.arange(len(boxes), 0, -1, dtype=np.float32)[has_area]
    keep = cv2.dnn.NMSBoxes(xywh[has_area].tolist(), ranks.tolist(), 0.0, float(iou_threshold))
    kept = ~has_area
    kept[np.flatnonzero(has_area)[np.asarray(keep, dtype=np.int64)]] = True
    return boxes[kept]


def _cut(resized: np.ndarray, image_size_wh: tuple[int, int], settings: Sequence[Setting]) -> list[FoundBoxes]:
    """Steps 2 to 5 under settings of one working size.

    The rectangles of all settings go through step 5 together: NumPy's calls would take longer than what they compute.
    """
    regions = _regions(resized, {(threshold, own.floor) for own in settings for threshold in own.thresholds})
    parts = [[regions[threshold, setting.floor] for threshold in setting.thresholds] for setting in settings]
    own = [_united([rectangles for rectangles, _ in of_setting]) for of_setting in parts]
    corners = np.concatenate(own)
    place = np.repeat(np.arange(len(settings)), [len(rectangles) for rectangles in own])  # which setting's
    least = np.array([setting.min_side for setting in settings])
    most = np.array([np.inf if setting.max_side is None else setting.max_side for setting in settings])
    kept = sides_fit(corners, least[place], most[place])
    corners, place = corners[kept], place[kept]
    boxes = np.empty((len(corners), 5))
    size = np.array((*image_size_wh, *image_size_wh))
    boxes[:, :4] = corners * size / len(resized)  # divided last: 224 gives the border
    boxes[:, 4] = _scores(resized, corners, np.array([setting.box_score for setting in settings])[place])
    boxes = boxes[np.lexsort((-boxes[:, 4], place))]  # stable: of equals the first found
    ends = np.searchsorted(place, np.arange(len(settings) + 1)).tolist()
    kept = [boxes[first:end] for first, end in pairwise(ends)]
    kept = [own if of.nms_iou is None else nms(own, of.nms_iou) for own, of in zip(kept, settings, strict=True)]
    return [FoundBoxes(own, max(share for _, share in of)) for own, of in zip(kept, parts, strict=True)]


def _regions(
    resized: np.ndarray, cuts: Collection[tuple[float | str, float | None]]
) -> Mapping[tuple[float | str, float | None], tuple[np.ndarray, float]]:
    """(threshold, floor) -> rectangles [K, 4] of its mask, of any size, and the mask's share of the map."""
    nothing = np.empty((0, 4), np.int64), 0.0
    low, high, _, _ = cv2.minMaxLoc(resized)
    if low == high:
        return dict.fromkeys(cuts, nothing)
    levels = threshold_levels(resized, {threshold for threshold, _ in cuts})
    masked: dict[float, tuple[np.ndarray, float]] = {}  # thresholds below one floor have one mask
    regions = {}
    for threshold, floor in cuts:
        level = floored_level(levels[threshold], floor)
        if level not in masked:
            masked[level] = nothing
            if np.float32(level) <= high:  # most maps of absent classes lie below a good floor: no mask to look at
                mask = threshold_mask(resized, level)
                masked[level] = mask_rectangles(mask), cv2.countNonZero(mask) / mask.size
        regions[threshold, floor] = masked[level]
    return regions


def _united(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rectangles [K, 4] of several thresholds, an exact duplicate once, where it came first."""
    if len(parts) == 1:
        return parts[0]
    rows = dict.fromkeys(map(tuple, np.concatenate(parts).tolist()))
    return np.array(list(rows), dtype=np.int64).reshape(-1, 4)


def _scores(resized: np.ndarray, corners: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 [K], of each rectangle its own one of `Setting.box_score`; the means from the integral image."""
    sums = cv2.integral(resized, sdepth=cv2.CV_64F)
    x1, y1, x2, y2 = corners.T
    area = (x2 - x1) * (y2 - y1)
    values = (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) / area
    of_area, highest = scores == "mean_sqrt_area", scores == "max"
    values[of_area] *= np.sqrt(area[of_area] / resized.size)
    values[highest] = [resized[b:d, a:c].max() for a, b, c, d in corners[highest].tolist()]
    return values


def _otsu_level(resized: np.ndarray) -> float:
    """The lowest raw value that Otsu's method counts as foreground, on 256 levels between minimum and maximum."""
    low, high = float(resized.min()), float(resized.max())
    if low == high:
        return low
    # where float32 can't hold the factor, no pixel would be foreground
    values = resized if high - low > 1e-30 else resized.astype(np.float64)
    levels = np.rint((values - low) * (255 / (high - low))).astype(np.uint8)
    background, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(resized[levels > background].min())


def _iou_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    intersection = _area(_library(a).maximum(a[..., :2], b[..., :2]), _library(a).minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - intersection
    return intersection / _not_zero(union), union


def _area(low: Array, high: Array) -> Array:
    sides = (high - low).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _not_zero(area: Array) -> Array:
    """A divisor that keeps 0 / 0 at 0 without touching any real area, for numbers of this type."""
    return area.clip(min=_library(area).finfo(area.dtype).tiny)


def _library(boxes: Array) -> Any:
    """NumPy, or torch, which whoever has a tensor has imported."""
    return np if isinstance(boxes, np.ndarray | np.generic) else sys.modules["torch"]


def _floating(boxes: Array) -> Array:
    """Whole-number boxes as floats: unsigned differences would wrap around."""
    return boxes if "float" in str(boxes.dtype) else boxes * 1.0
