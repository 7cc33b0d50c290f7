from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused
from torchmetrics.functional.detection import intersection_over_union

from surgerylib.engine.localization import (
    BASELINES,
    baseline_ious,
    class_mean_boxes,
    gt_class_localization,
    localization_difference,
    localization_summary,
    peak_localization,
)
from surgerylib.errors import ParameterError


def some_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    low = rng.uniform(0, 0.7, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.3, (*shape, 2))], axis=-1)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    pred = torch.from_numpy(some_boxes(rng, 3, 4, 5, 6))
    boxes = [torch.from_numpy(some_boxes(rng, n)) for n in (2, 0, 3)]
    return pred, boxes, [torch.tensor(part, dtype=torch.long) for part in ([1, 3], [], [0, 0, 2])]


@pytest.fixture(scope="module")
def ious() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(3)
    images = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    base = rng.uniform(0, 1, 40)[images] * 0.5
    frame = pd.DataFrame({"a": base + rng.uniform(0, 0.5, len(images)), "b": base})
    return frame, images


@pytest.fixture(scope="module")
def summary(ious) -> pd.DataFrame:
    return localization_summary(*ious).set_index(["method", "figure"])


def test_each_box_has_the_best_cell_of_its_own_class_and_image(case):
    pred, boxes, labels = case
    frame = gt_class_localization(pred, boxes, labels)
    assert list(frame.columns) == ["image_index", "label", "iou", "row", "column"]
    assert frame["image_index"].tolist() == [0, 0, 2, 2, 2]
    assert frame["label"].tolist() == [1, 3, 0, 0, 2]
    for row, target in zip(frame.itertuples(), torch.cat(boxes), strict=True):
        channel = pred[row.image_index, row.label].reshape(-1, 4)
        reference = intersection_over_union(channel.float(), target[None].float(), aggregate=False)[:, 0]
        assert row.iou == pytest.approx(float(reference.max()), abs=1e-6)
        assert row.row * 6 + row.column == int(reference.argmax())


def test_no_boxes_and_no_images(case):
    pred, _, _ = case
    nothing = [torch.empty(0, 4)] * 3, [torch.empty(0, dtype=torch.long)] * 3
    assert gt_class_localization(pred, *nothing).empty
    assert peak_localization(pred, torch.rand(3, 4, 5, 6), *nothing).empty
    assert gt_class_localization(pred[:0], [], []).empty
    means = class_mean_boxes(np.empty((0, 4)), np.empty(0, int), 2)
    assert means.tolist() == [[0, 0, 1, 1]] * 2
    assert baseline_ious(np.empty((0, 4)), np.empty(0, int), means).empty
    nothing = pd.DataFrame({"oracle": [], "cam_peak": []})
    summary = localization_summary(nothing, pd.Series([], dtype=str))
    assert summary[["value", "low"]].isna().all(axis=None)
    difference = localization_difference(nothing, nothing, pd.Series([], dtype=str))
    assert difference["method"].tolist() == ["oracle"] * 4 + ["cam_peak"] * 4
    assert difference["difference"].isna().all()


def test_what_does_not_go_together(case, ious):
    pred, boxes, labels = case
    frame, images = ious
    cam, message = torch.rand(3, 4, 7, 7), r"cam must be \[3, 4, 5, 6\]"
    refused(lambda: peak_localization(pred, cam, boxes, labels), ParameterError, message)
    refused(lambda: localization_difference(frame, frame[1:], images), ParameterError, "not a paired comparison")


def test_the_mean_box_of_a_class_and_of_one_without():
    boxes = np.array([[0, 0, 0.2, 0.2], [0.2, 0.2, 0.4, 0.6], [0.5, 0.5, 1, 1]])
    means = class_mean_boxes(boxes, np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(means, [[0.1, 0.1, 0.3, 0.4], boxes.mean(axis=0), [0.5, 0.5, 1, 1]])


def test_baselines_by_hand():
    target = np.array([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 0.5]])
    frame = baseline_ious(target, np.array([0, 1]), np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 0.5]]))
    assert list(frame.columns) == list(BASELINES)
    np.testing.assert_allclose(frame["whole_image"], [0.25, 0.5])
    np.testing.assert_allclose(frame["centre_box"], [1.0, 0.125 / 0.625])
    np.testing.assert_allclose(frame["class_mean"], [0.0625 / 0.4375, 1.0])


def test_the_summary_is_of_boxes_and_its_interval_of_images(ious, summary):
    frame, _ = ious
    assert summary.loc[("a", "mean"), "value"] == pytest.approx(frame["a"].mean())
    assert summary.loc[("b", "share>0.30"), "value"] == pytest.approx((frame["b"] > 0.3).mean())
    assert ((summary["low"] <= summary["value"]) & (summary["value"] <= summary["high"])).all()
    # boxes of an image go together: as if each were drawn alone, the interval would be narrower
    by_box = localization_summary(frame, np.arange(len(frame))).set_index(["method", "figure"])
    width, alone = (s.loc[("b", "mean"), "high"] - s.loc[("b", "mean"), "low"] for s in (summary, by_box))
    assert width > 1.3 * alone
    assert set(summary["n_images"]) == {40}


def test_a_paired_difference_is_narrower_than_two_intervals_apart(ious, summary):
    frame, images = ious
    a, b = (frame[[name]].set_axis(["iou"], axis=1) for name in ("a", "b"))
    difference = localization_difference(a, b, images).set_index("figure")
    assert difference.loc["mean", "difference"] == pytest.approx((frame["a"] - frame["b"]).mean())
    assert difference.loc["mean", "excludes_zero"]
    width = difference.loc["mean", "high"] - difference.loc["mean", "low"]
    assert width < summary.loc[("a", "mean"), "high"] - summary.loc[("a", "mean"), "low"]
    nothing = localization_difference(a, a, images)
    assert not nothing["excludes_zero"].any()
    assert (nothing[["difference", "low", "high"]] == 0).all(axis=None)


def test_median_and_spread(ious, summary):
    frame, _ = ious
    assert list(summary.loc["a"].index) == ["mean", "median", "sd", "share>0.30", "share>0.50", "share>0.70"]
    for figure, expected in (("median", frame.median()), ("sd", frame.std(ddof=0))):
        rows = summary.xs(figure, level="figure")
        np.testing.assert_allclose(rows["value"], expected)
        assert ((rows["low"] < rows["value"]) & (rows["value"] < rows["high"])).all()
    constant = localization_summary(pd.DataFrame({"c": np.full(6, 0.4)}), np.arange(6)).set_index("figure")
    assert constant.loc["median", ["value", "low", "high"]].tolist() == [0.4] * 3
    assert constant.loc["sd", "value"] == pytest.approx(0, abs=1e-8)


def test_the_interval_of_the_median_holds_it():
    """Boxes of an image are alike: 200 draws of 60 images of a population with the median 0.6."""
    images = np.repeat(np.arange(60), 5)
    rngs = map(np.random.default_rng, range(200))
    draws = {k: 0.6 + rng.normal(0, 0.1, 300) + rng.normal(0, 0.1, 60)[images] for k, rng in enumerate(rngs)}
    rows = localization_summary(pd.DataFrame(draws), images, n_resamples=200).query("figure == 'median'")
    held = ((rows["low"] <= 0.6) & (rows["high"] >= 0.6)).sum()
    assert 0.88 <= held / 200 <= 0.99
