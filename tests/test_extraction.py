from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from refusals import refused

from surgerylib.boxes import extract_boxes, extract_many, resize_map, threshold_levels
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting

PERCENTILES = (0.1, 10.0, 33.3, 40.0, 60.0, 70.0, 75.0, 80.0, 90.0, 95.0, 99.0, 99.9)  # at 224, 60 is that of a place
GRIDS = ((7, 7), (14, 14), (28, 28), (5, 9), (1, 6))
SIZE_WH = (800, 613)


def random_map(seed: int, grid: tuple[int, int] = (14, 14), levels: int | None = None) -> np.ndarray:
    """A map of similarities; with `levels`, only so many different values, so that most of them tie."""
    heatmap = np.random.default_rng(seed).normal(0.2, 0.05, grid).astype(np.float32)
    if levels is None:
        return heatmap
    low, high = heatmap.min(), heatmap.max()
    return (np.rint((heatmap - low) / (high - low) * (levels - 1)) / levels).astype(np.float32)


def written_out(heatmap: np.ndarray, size_wh: tuple[int, int], setting: Setting) -> tuple[np.ndarray, float]:
    """The five steps with NumPy and OpenCV's own functions, one percentile: boxes [K, 5] from the left, activated."""
    side = setting.working_size
    up = cv2.resize(heatmap, (side, side), interpolation=cv2.INTER_LINEAR)
    level = np.percentile(up.astype(np.float64), setting.percentile)
    mask = (up >= (level if setting.floor is None else max(level, setting.floor))).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    rows = []
    for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        longest = np.inf if setting.max_side is None else setting.max_side
        if min(w, h) > setting.min_side and max(w, h) <= longest:
            inside = up[y : y + h, x : x + w].astype(np.float64)
            mean = inside.mean()
            scores = {"mean": mean, "max": inside.max(), "mean_sqrt_area": mean * np.sqrt(w * h / side**2)}
            corners = np.array([x, y, x + w, y + h]) * np.tile(size_wh, 2) / side
            rows.append([*corners, scores[setting.box_score]])
    return np.array(sorted(rows)).reshape(-1, 5), float(mask.mean())


PLAIN = [Setting(percentile=percentile) for percentile in PERCENTILES]


@pytest.mark.parametrize("grid", [(7, 7), (1, 1), (14, 3)])
def test_constant_maps_give_no_box_under_any_setting(grid):
    settings = [*PLAIN, Setting(percentile="otsu", floor=-9), Setting(percentile=(60, 90), min_side=0, working_size=96)]
    for value in (0.0, 0.3, -1.0, 3e-5, *np.random.default_rng(0).normal(size=8)):  # interpolating a constant rounds
        for found in extract_many(np.full(grid, value, np.float32), SIZE_WH, settings):
            assert (found.boxes.shape, found.activated) == ((0, 5), 0)


@pytest.mark.parametrize("grid", [*GRIDS, (40, 40)])
@pytest.mark.parametrize("change", [
    {}, {"min_side": 0}, {"min_side": 20, "max_side": 60}, {"max_side": 40}, {"box_score": "max"}, {"floor": 0.25},
    {"floor": -0.25}, {"box_score": "mean_sqrt_area"}, {"working_size": 97, "box_score": "mean_sqrt_area"},
    {"working_size": 40, "min_side": 0},
])  # fmt: skip
def test_against_the_steps_written_out(grid, change):
    asked = [replace(setting, **change) for setting in PLAIN]
    n_boxes = 0
    for seed, levels in enumerate((None, None, None, 2, 5)):
        heatmap = random_map(seed, grid, levels)
        for setting, found in zip(asked, extract_many(heatmap, SIZE_WH, asked), strict=True):
            boxes, activated = written_out(heatmap, SIZE_WH, setting)
            np.testing.assert_allclose(sorted(found.boxes.tolist()) or boxes, boxes, rtol=1e-9, err_msg=str(setting))
            assert (np.diff(found.boxes[:, 4]) <= 0).all()
            assert found.activated == pytest.approx(activated, abs=1e-12)
            assert len(found.boxes) == len(boxes)
            n_boxes += len(boxes)
    assert n_boxes > 0 or 1 in grid  # stripes from border to border are too long for `max_side`


# -------------------------------------------------------------------------------------------------- thresholds


def slow_otsu(resized: np.ndarray) -> float:
    """The lowest value of the foreground of the split of 256 levels with the largest between-class variance."""
    low, high = float(resized.min()), float(resized.max())
    levels = np.rint((resized - low) * (255 / (high - low))).astype(int)
    best, best_level = -1.0, None
    for t in range(255):
        below, above = levels[levels <= t], levels[levels > t]
        if len(below) and len(above):
            between = len(below) * len(above) * (below.mean() - above.mean()) ** 2 / levels.size**2
            if between > best * (1 + 1e-12):
                best, best_level = between, t
    return float(resized[levels > best_level].min())


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (28, 28)])
def test_otsu_against_its_definition(grid):
    for seed in range(5):
        for resized in (resize_map(random_map(seed, grid), 96), resize_map(random_map(seed, grid, 4) - 3, 96)):
            assert threshold_levels(resized, ["otsu"])["otsu"] == slow_otsu(resized)
    assert threshold_levels(np.full(grid, 0.3, np.float32), ["otsu"])["otsu"] == np.float32(0.3)  # as a figure asks it


# --------------------------------------------------------------------------------------------------------- a floor

# 224 x 224: 19 % of the map at 1, 3 % at 0.5, the rest 0
HIGH, LOW, WHOLE = [20, 40, 180, 100], [30, 150, 70, 190], [0, 0, 224, 224]
TWO_HEIGHTS = np.zeros((224, 224), np.float32)
TWO_HEIGHTS[40:100, 20:180], TWO_HEIGHTS[150:190, 30:70] = 1, 0.5


@pytest.mark.parametrize(("percentile", "floor", "expected"), [
    (75, None, [WHOLE]),  # more than three quarters are 0: the level is 0, and every pixel reaches it
    (75, 0, [WHOLE]),
    (75, 0.5, [HIGH, LOW]),  # reached is enough
    (75, 0.51, [HIGH]),
    (75, 1.01, []),
    (80, -3.5, [HIGH, LOW]),
    (95, 0.25, [HIGH]),  # the percentile's level is the higher one
    ((75, 80, 95), None, [HIGH, LOW, WHOLE]),
    ((75, 80, 95), 0.25, [HIGH, LOW]),  # each once
    ("otsu", None, [HIGH, LOW]),
    ("otsu", 0.75, [HIGH]),
    ("otsu", 2, []),
])  # fmt: skip
def test_a_pixel_must_reach_threshold_and_floor(percentile, floor, expected):
    (found,) = extract_many(TWO_HEIGHTS, (224, 224), [Setting(percentile=percentile, floor=floor)])
    assert found.boxes[:, :4].tolist() == expected
    areas = [(x2 - x1) * (y2 - y1) / 224**2 for x1, y1, x2, y2 in expected]
    assert found.activated == pytest.approx(1 if WHOLE in expected else sum(areas))


def test_a_floor_is_compared_in_float32_as_the_map_is():
    value = np.float32(0.7)
    assert float(value) < 0.7
    assert len(extract_boxes(TWO_HEIGHTS * value, (224, 224), floor=0.7)) == 1
    assert len(extract_boxes(TWO_HEIGHTS * value, (224, 224), floor=float(np.nextafter(value, np.float32(1))))) == 0


@pytest.mark.parametrize("width", [29, 225, 450])
def test_a_box_over_the_whole_image_ends_at_its_border(width):
    assert 224 * (width / 224) > width  # by rounding
    heatmap = np.array([[0, 1, 1], [1, 1, 1], [1, 1, 1]], np.float32)
    assert extract_boxes(heatmap, (width, width), percentile=10)[:, 2:4].tolist() == [[width, width]]


# -------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(("name", "values", "match"), [
    ("percentile", [[], np.array([])], "percentile is an empty list"),
    ("percentile", ["high", "75", np.True_, None, np.float32("nan")], "or be 'otsu', got {}$"),
    ("percentile", [0, 100, [75, float("nan")], [75, True], [75, "otsu"], [[75]], iter([75, 90])],
     "between 0 and 100"),
    ("percentile", [[75, 90, 75.0]], "twice"),
    ("min_side", [-1], "min_side must be greater than or equal to 0, got -1"),
    ("min_side", [True, 5.0], "min_side .*got {}"),
    ("max_side", [5], r"max_side must be above min_side \(5\), got 5"),
    ("working_size", [0], "working_size must be greater than or equal to 1, got 0"),
    ("working_size", ["224"], "working_size .*got '224'"),
    ("box_score", ["median"], "box_score must be 'mean', 'max' or 'mean_sqrt_area', got 'median'"),
    ("nms_iou", [0], "nms_iou must be greater than 0, got 0"),
    ("nms_iou", [1.5, True, float("nan")], "nms_iou .*got {}"),
    ("floor", ["0.25", [0.25], 10**400], "floor"),
    ("floor", [float("nan"), float("-inf"), 1e39], "floor must be a finite number .*float32, as the maps are.*got {}"),
])  # fmt: skip
def test_values_that_cannot_be(name, values, match):
    for value in values:
        shown = re.escape(repr(value.item() if isinstance(value, np.generic) else value))
        refused(extract_boxes, ParameterError, match.format(shown), random_map(0), SIZE_WH, **{name: value})


@pytest.mark.parametrize(("given", "kept"), [
    (np.float64(75), 75), (np.float32(75), 75), (np.int64(75), 75), ([75], 75), ("otsu", "otsu"),
    ([60, 75.5], (60, 75.5)), (np.array([60, 75.5]), (60, 75.5)), ([np.float32(60), np.int8(75)], (60, 75)),
    ((90, 60), (60, 90)),  # the order says nothing
])  # fmt: skip
def test_ways_to_write_a_percentile(given, kept):
    setting = Setting(percentile=given)
    assert setting == Setting(percentile=kept)
    assert hash(setting) == hash(Setting(percentile=kept))
    json.dumps(asdict(setting))  # Python's own numbers
    assert setting.thresholds == (kept if isinstance(kept, tuple) else (kept,))
