from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgerylib.boxes import box_giou, box_iou, extract_boxes, patch_coverage

A = np.array([0.0, 0.0, 10.0, 10.0])


@pytest.mark.parametrize(("other", "iou", "giou"), [
    ([0, 0, 10, 10], 1.0, 1.0),
    ([5, 0, 15, 10], 50 / 150, 50 / 150),  # the hull is the union
    ([5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),
    ([10, 0, 20, 10], 0.0, 0.0),  # touching
    ([20, 0, 30, 10], 0.0, -100 / 300),
    ([2, 2, 2, 2], 0.0, 0.0),  # no area
])  # fmt: skip
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


def test_known_error_08_thresholds_after_per_map_min_max():
    coarse = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    plain = extract_boxes(coarse, (800, 800))
    scaled = extract_boxes(coarse * 4 + 2, (800, 800))
    np.testing.assert_array_equal(plain[:, :4], scaled[:, :4])
    np.testing.assert_allclose(plain[:, 4] * 4 + 2, scaled[:, 4], rtol=1e-5)
    assert plain[:, 4].max() != pytest.approx(1.0)


DIVISORS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 10, 12, 14])


@settings(max_examples=60, deadline=None)
@given(DIVISORS, DIVISORS, st.lists(st.tuples(*[st.integers(-90, 510)] * 4), max_size=6))
def test_coverage_is_that_of_a_fine_raster(rows, columns, corners):
    """420 divides by every grid: with corners on the raster, counting its cells is exact. Boxes may leave the image."""
    raster = np.zeros((420, 420), dtype=bool)
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    for xmin, ymin, xmax, ymax in boxes.clip(0, 420):
        raster[ymin:ymax, xmin:xmax] = True
    counted = raster.reshape(rows, 420 // rows, columns, 420 // columns).mean(axis=(1, 3))
    covered = patch_coverage(boxes / 420, (rows, columns))
    assert covered.dtype == np.float64
    np.testing.assert_allclose(covered, counted, rtol=0, atol=1e-9)
    assert ((covered == 0) == (counted == 0)).all()  # not touched is exactly 0: the sparsity loss asks
    assert covered.max() <= 1
