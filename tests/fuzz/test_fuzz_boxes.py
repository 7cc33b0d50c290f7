"""Boxes: overlaps of any two boxes, and what is cut out of any map."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from profiles import ANYTHING, fuzz
from refusals import refused
from voc_target import one_line

from surgerylib.boxes import box_giou, box_iou, extract_boxes, extract_many, nms
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import SCORE_NAMES, Setting

# small whole numbers, so that boxes touch, coincide and have no area; and anything whose area is a float64
PIXELS = st.one_of(st.integers(-4, 4).map(float), st.floats(-1e6, 1e6).map(lambda x: round(x, 6)))
COORDINATES = st.one_of(st.integers(-4, 4).map(float), st.floats(-1e6, 1e6), st.floats(-1e150, 1e150))


@st.composite
def boxes(draw, coordinates=COORDINATES) -> np.ndarray:
    x, y = (sorted(draw(st.tuples(coordinates, coordinates))) for _ in range(2))
    return np.array([x[0], y[0], x[1], y[1]])


@fuzz(240)
@given(boxes(), boxes())
def test_overlaps_of_any_two_boxes(a, b):
    iou, giou = box_iou(a, b), box_giou(a, b)
    assert 0 <= iou <= 1
    assert -1 - 1e-9 <= giou <= iou + 1e-9  # hull and union are rounded apart
    assert box_iou(b, a) == iou
    assert box_giou(b, a) == giou
    for name, value in ((box_iou, iou), (box_giou, giou)):
        assert name(torch.from_numpy(a), torch.from_numpy(b)).item() == value
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:  # apart
        assert iou == 0
    area = (a[2] - a[0]) * (a[3] - a[1])
    assert box_iou(a, a) == (1 if area >= np.finfo(np.float64).tiny else pytest.approx(box_iou(a, a)))


@fuzz(120)
@given(boxes(PIXELS), boxes(PIXELS), st.integers(-20, 20))
def test_overlaps_are_those_of_any_unit(a, b, power):
    scaled = [box * 2.0**power for box in (a, b)]  # which rounds nothing
    assert (box_iou(*scaled), box_giou(*scaled)) == (box_iou(a, b), box_giou(a, b))


@fuzz(90)
@given(hnp.arrays(np.uint8, (2, 4)))
def test_whole_numbers_without_sign_do_not_wrap_around(corners):
    corners = np.sort(corners.reshape(2, 2, 2), axis=1).reshape(2, 4)
    assert box_iou(*corners) == box_iou(*corners.astype(np.float64))


@fuzz(90)
@given(
    st.lists(st.tuples(boxes(st.floats(0, 100).map(lambda x: round(x, 6))), st.floats(-1, 1)), max_size=8),
    st.one_of(st.just(1.0), st.floats(0.01, 1)),
)
@example([(np.array(box, float), 0.0) for box in ((1, 1, 1, 1), (2, 2, 2, 5), (0, 0, 9, 9), (1, 1, 1, 1))], 0.5)
def test_suppression_is_greedy(scored, threshold):
    """What is kept is sorted and no two overlap; what is dropped overlaps with something kept that is as good."""
    table = np.array([[*box, score] for box, score in scored]).reshape(-1, 5)
    kept = nms(table, threshold)
    dropped = np.array([row for row in table if row.tolist() not in kept.tolist()]).reshape(-1, 5)
    assert {tuple(row) for row in kept} <= {tuple(row) for row in table}
    assert (np.diff(kept[:, 4]) <= 0).all()
    overlaps = box_iou(kept[:, None, :4], kept[None, :, :4])
    assert (overlaps[~np.eye(len(kept), dtype=bool)] <= threshold + 1e-6).all()
    overlaps = box_iou(dropped[:, None, :4], kept[None, :, :4]) * (dropped[:, None, 4] <= kept[None, :, 4])
    assert (overlaps.max(axis=1, initial=0) > threshold - 1e-6).all()
    assert nms(kept, threshold).tolist() == kept.tolist()
    for bad in (0, 1.5, "half"):
        refused(nms, ParameterError, "NMS threshold", table, bad)


# ------------------------------------------------------------------------------------------------ maps -> boxes

SETTINGS = st.builds(
    Setting,
    percentile=st.one_of(
        st.floats(0, 100, exclude_min=True, exclude_max=True),
        st.just("otsu"),
        st.lists(st.floats(1, 99), min_size=1, max_size=3, unique=True),
    ),
    working_size=st.one_of(st.just(64), st.integers(1, 96)),
    min_side=st.integers(0, 10),
    max_side=st.one_of(st.none(), st.integers(11, 96)),
    box_score=st.sampled_from(list(SCORE_NAMES)),
    nms_iou=st.one_of(st.none(), st.floats(0.01, 1)),
    floor=st.one_of(st.none(), st.floats(-2, 2), st.sampled_from([0.25, 3e38, -3e38, 1e-45])),
)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
# as a model could give them, with ties, and as large and small as float32 goes
MAPS = st.one_of(
    hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)),
    hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.25, 1.0])),
    hnp.arrays(np.float32, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([-1.7e38, 0.0, 1e-45, 1.7e38, 3.4e38]).map(np.float32)),
)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@fuzz(240)
@given(MAPS, SIZES, st.lists(SETTINGS, min_size=1, max_size=4))
@example(np.array([[-3.4e38, 3.4e38]], np.float32), (8, 8), [Setting(percentile="otsu", min_side=0)])
@example(np.array([[0, 1e-45]], np.float32), (8, 8), [Setting(percentile="otsu", min_side=0)])
def test_boxes_of_any_map_under_any_settings(heatmap, size_wh, asked):
    if float(heatmap.max()) - float(heatmap.min()) > float(np.finfo(np.float32).max):
        refused(extract_many, ParameterError, "too far apart", heatmap, size_wh, asked)
        return
    for setting, found in zip(asked, extract_many(heatmap, size_wh, asked), strict=True):
        assert found.boxes.shape[1:] == (5,)
        assert found.boxes.dtype == np.float64
        assert 0 <= found.activated <= 1
        x1, y1, x2, y2, scores = found.boxes.T
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:4] <= size_wh).all()
        sides = np.column_stack([x2 - x1, y2 - y1]) * setting.working_size / np.array(size_wh)
        assert (sides > setting.min_side + 1e-6).all()
        assert setting.max_side is None or (sides <= setting.max_side + 1e-6).all()
        assert np.isfinite(scores).all()
        assert (np.diff(scores) <= 0).all()
        if setting.box_score != "mean_sqrt_area":
            # means come from sums over the whole map
            rounding = 1e-6 * float(np.abs(heatmap.astype(np.float64)).max())
            assert (scores >= heatmap.min() - rounding).all()
            assert (scores <= heatmap.max() + rounding).all()
        assert len(found.boxes) == 0 or heatmap.min() < heatmap.max()
        (alone,) = extract_many(heatmap, size_wh, [setting])
        assert (found.boxes.tolist(), found.activated) == (alone.boxes.tolist(), alone.activated)
        if setting.nms_iou is not None:
            (all_boxes,) = extract_many(heatmap, size_wh, [replace(setting, nms_iou=None)])
            assert found.boxes.tolist() == nms(all_boxes.boxes, setting.nms_iou).tolist()


@fuzz(120)
@given(MAPS, st.sampled_from([math.nan, math.inf, -math.inf, 1e39, -1e300]), st.data())
def test_a_map_with_a_value_that_is_no_float32_is_refused(heatmap, bad, data):
    heatmap = heatmap.astype(np.float64)
    heatmap[data.draw(st.tuples(*(st.integers(0, side - 1) for side in heatmap.shape)))] = bad
    for values in (heatmap, torch.from_numpy(heatmap)):
        with np.errstate(over="ignore"):
            refused(extract_boxes, ParameterError, "NaN or infinite", values, (640, 480))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.bool_, np.complex64, "U3", object])
@pytest.mark.parametrize("shape", [(), (2,), (0, 2), (2, 0), (0, 0), (1, 2, 2), (1, 1, 2, 2)])
def test_what_is_no_map_is_refused(shape, dtype):
    refused(extract_boxes, ParameterError, "heatmap must", np.zeros(shape, dtype), (640, 480))
    if np.dtype(dtype).kind in "OUc":
        refused(extract_boxes, ParameterError, "must hold numbers, got an array", np.zeros((2, 2), dtype), (640, 480))


@pytest.mark.parametrize(
    "name", ["percentile", "working_size", "min_side", "max_side", "box_score", "nms_iou", "floor"]
)
@fuzz(90)
@given(value=ANYTHING)
def test_any_value_of_any_argument_of_the_extraction(name, value):
    try:
        setting = Setting(**{name: value})
    except ParameterError as error:
        one_line(error)
        return
    assert hash(setting) == hash(Setting(**{name: value}))
    if setting.working_size <= 1000:
        extract_many(np.eye(5, dtype=np.float32), (50, 40), [setting])
