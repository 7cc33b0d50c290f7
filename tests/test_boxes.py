from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgerylib.boxes import box_giou, box_iou, extract_boxes, nms, patch_coverage
from surgerylib.errors import ParameterError

A = np.array([0.0, 0.0, 10.0, 10.0])


@pytest.mark.parametrize(
    ("other", "iou", "giou"),
    [
        ([0, 0, 10, 10], 1.0, 1.0),
        ([5, 0, 15, 10], 50 / 150, 50 / 150),  # the hull is the union
        ([5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),
        ([10, 0, 20, 10], 0.0, 0.0),  # touching
        ([20, 0, 30, 10], 0.0, -100 / 300),
        ([2, 2, 2, 2], 0.0, 0.0),  # no area
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_overlap_golden_values(other, iou, giou, kind):
    """Known error 2: GIoU reported as IoU; of boxes that lie apart one is 0, the other below."""
    a, b = kind(A), kind(np.array(other, dtype=float))
    assert float(box_iou(a, b)) == pytest.approx(iou, abs=1e-12)
    assert float(box_giou(a, b)) == pytest.approx(giou, abs=1e-12)


def test_overlap_broadcasts_to_all_pairs_and_to_none():
    boxes = np.array([A, A + 5])
    assert box_iou(boxes[:, None], boxes[None]).shape == (2, 2)
    assert box_iou(boxes[:0, None], boxes[None]).shape == (0, 2)
    for empty in (np.zeros(4), np.zeros(4, np.float32), torch.zeros(4), torch.zeros(4, dtype=torch.float16)):
        assert box_iou(empty, empty) == 0
        assert box_giou(empty, empty) == 0


def rectangle_map(size: int, rows: slice, columns: slice, inside: float = 1.0, outside: float = 0.0) -> np.ndarray:
    heatmap = np.full((size, size), outside, dtype=np.float32)
    heatmap[rows, columns] = inside
    return heatmap


def test_one_rectangle_at_working_size_is_found_to_the_pixel():
    heatmap = rectangle_map(224, slice(40, 100), slice(20, 180))
    found = extract_boxes(heatmap, (448, 112), percentile=90)
    np.testing.assert_allclose(found, [[40, 20, 360, 50, 1.0]])


def test_scores_are_raw_means_and_sorted():
    heatmap = rectangle_map(224, slice(10, 50), slice(10, 50), inside=0.4, outside=-0.3)
    heatmap[150:190, 100:200] = 0.7
    found = extract_boxes(heatmap, (224, 224), percentile=90)
    np.testing.assert_allclose(found, [[100, 150, 200, 190, 0.7], [10, 10, 50, 50, 0.4]], rtol=1e-6)


def test_holes_small_blobs_and_specks():
    heatmap = rectangle_map(224, slice(50, 120), slice(50, 120))
    heatmap[80:90, 80:90] = 0  # a hole: external contours only
    heatmap[85, 85] = 1  # an island in the hole
    heatmap[200:205, 10:60] = 1  # five pixels high: dropped
    heatmap[10:16, 10:60] = 1  # six: kept
    found = extract_boxes(heatmap, (224, 224), percentile=90)
    assert sorted(found[:, :4].tolist()) == [[10, 10, 60, 16], [50, 50, 120, 120]]


def test_closing_comes_before_opening():
    heatmap = rectangle_map(224, slice(50, 90), slice(50, 90))
    heatmap[50:90, 91:130] = 1  # a gap of one column closes; opening first would not
    heatmap[150:160, 50] = 1  # a line of one pixel is opened away
    assert len(extract_boxes(heatmap, (224, 224), percentile=95)) == 1


def test_known_error_08_thresholds_after_per_map_min_max():
    coarse = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    plain = extract_boxes(coarse, (800, 800))
    scaled = extract_boxes(coarse * 4 + 2, (800, 800))
    np.testing.assert_array_equal(plain[:, :4], scaled[:, :4])
    np.testing.assert_allclose(plain[:, 4] * 4 + 2, scaled[:, 4], rtol=1e-5)
    assert plain[:, 4].max() != pytest.approx(1.0)


def slow_nms(boxes: np.ndarray, threshold: float) -> list[list[float]]:
    remaining = sorted(boxes.tolist(), key=lambda row: -row[4])
    kept = []
    while remaining:
        best = remaining.pop(0)
        kept.append(best)
        remaining = [row for row in remaining if box_iou(np.array(best[:4]), np.array(row[:4])) <= threshold]
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_nms_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (60, 2))
    boxes = np.column_stack([corner, corner + rng.uniform(5, 40, (60, 2)), rng.normal(size=60)])
    np.testing.assert_allclose(nms(boxes, 0.4), slow_nms(boxes, 0.4))


def test_nms_of_nothing_and_bad_threshold():
    assert nms(np.empty((0, 5)), 0.5).shape == (0, 5)
    with pytest.raises(ParameterError, match="NMS threshold"):
        nms(np.empty((0, 5)), 0.0)


# ------------------------------------------------------------------------------------------- coverage of patches


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], [[0, 0], [0, 0]]),
        ([[0, 0, 1, 1]], [[1, 1], [1, 1]]),
        ([[0, 0, 0.5, 0.5]], [[1, 0], [0, 0]]),  # a patch: its neighbours are not touched
        ([[0.5, 0, 1, 0.5]], [[0, 1], [0, 0]]),  # x first: the upper right patch
        ([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]], [[1, 0], [0, 0]]),  # twice the same
        ([[0, 0, 0.5, 0.25], [0, 0, 0.25, 0.5]], [[0.75, 0], [0, 0]]),  # overlapping
        ([[-3, -0.5, 2, 1.5]], [[1, 1], [1, 1]]),  # larger than the image
        ([[0.5, 0.5, 1.5, 0.75]], [[0, 0], [0, 0.5]]),
        ([[1.2, 0.1, 1.5, 0.4]], [[0, 0], [0, 0]]),  # beside it
        ([[0.3, 0.2, 0.3, 0.4]], [[0, 0], [0, 0]]),  # without area
    ],
)
def test_coverage_of_boxes_by_hand(boxes, expected):
    covered = patch_coverage(np.array(boxes), (2, 2))
    assert covered.dtype == np.float64
    np.testing.assert_allclose(covered, expected, rtol=0, atol=1e-12)
    assert ((covered == 0) == (np.array(expected) == 0)).all()  # not touched is exactly 0: the sparsity loss asks


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 10, 12, 14]),
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 10, 12, 14]),
    st.lists(st.tuples(*[st.integers(0, 420)] * 4), max_size=6),
)
def test_coverage_is_that_of_a_fine_raster(rows, columns, corners):
    """420 divides by every grid: with corners on the raster, counting its cells is exact."""
    raster = np.zeros((420, 420), dtype=bool)
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    for xmin, ymin, xmax, ymax in boxes:
        raster[ymin:ymax, xmin:xmax] = True
    counted = raster.reshape(rows, 420 // rows, columns, 420 // columns).mean(axis=(1, 3))
    covered = patch_coverage(np.array(boxes) / 420, (rows, columns))
    np.testing.assert_allclose(covered, counted, rtol=0, atol=1e-9)
    assert ((covered == 0) == (counted == 0)).all()
    assert covered.max() <= 1
    assert covered.mean() == pytest.approx(raster.mean(), abs=1e-9)  # share of a patch x area of a patch
