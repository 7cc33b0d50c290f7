from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from refusals import refused

from surgerylib.boxes import box_iou, resize_map
from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, joint_names
from surgerylib.matching import BOX_COLUMNS
from surgerylib.study import quality as module
from surgerylib.study.quality import (
    ACCURACIES,
    BOX_ACC_IOUS,
    FIGURES,
    QUALITY_COLUMNS,
    image_quality,
    quality_difference,
    quality_frame,
    quality_summary,
)
from surgerylib.study.recommendation import quality_results

SIZE = (70, 70)  # an original pixel is a tenth of a working pixel: boxes below are given in original pixels


def block(rows: slice, columns: slice, inside: float = 1.0, outside: float = 0.0) -> np.ndarray:
    heatmap = np.full((7, 7), outside, dtype=np.float32)
    heatmap[rows, columns] = inside
    return heatmap


def judged(heatmap: np.ndarray, *boxes: tuple[float, ...], **options):
    """The one record of one map and its boxes, at 7 x 7."""
    options = {"working_size": 7, "cam_thresholds": 10, **options}
    (record,) = image_quality(heatmap[None], np.array(boxes, float), [0] * len(boxes), SIZE, **options)
    return record


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 400, size=(count, 2))
    return np.hstack([low, low + rng.uniform(50, 400, size=(count, 2))])


def accuracies_of(best_iou: pd.Series) -> np.ndarray:
    """[D, T] share of the pairs with a box of enough IoU at each threshold."""
    return np.array([(np.stack(best_iou) >= iou).mean(axis=0) for iou in BOX_ACC_IOUS])


def test_no_boxes_no_records_no_figures():
    assert image_quality(np.zeros((3, 7, 7)), np.empty((0, 4)), [], SIZE) == []
    frame = quality_frame(["a", "b"], [[], []], ["airport"])
    assert list(frame.columns) == list(QUALITY_COLUMNS)
    assert frame.empty
    summary = quality_summary(frame, n_resamples=10)
    assert list(summary["figure"]) == [*FIGURES, *ACCURACIES]
    assert (summary[["n_pairs", "n_left_out", "n_images"]] == 0).all(axis=None)
    assert summary[["value", "low", "high", "sd", "minimum", "maximum", "cam_threshold"]].isna().all(axis=None)
    assert quality_difference(frame, frame, n_resamples=10)["difference"].isna().all()


RAMP = np.arange(49, dtype=np.float32).reshape(7, 7)


def test_response_inside_and_outside():
    heatmap = block(slice(2, 4), slice(1, 4), inside=0.5, outside=-0.25)
    heatmap[2, 1] = 0.75
    record = judged(heatmap, (10, 20, 40, 40))
    assert record.n_boxes == 1
    assert (record.inside_mean, record.outside_mean) == (0.5 + 0.25 / 6, -0.25)
    assert (record.inside_max, record.map_min, record.map_max) == (0.75, -0.25, 0.75)
    assert (record.inverted, record.pointing, record.area) == (0, 1, 6 / 49)
    assert record.energy == 1  # all that rises above the minimum


def test_energy_has_no_offset_and_a_flat_map_scores_the_area():
    heatmap = np.full((7, 7), 0.5, np.float32)
    heatmap[6, 6] = 0  # flat but for one pixel
    for offset in (0, 8):
        record = judged(heatmap + offset, (0, 0, 70, 10))
        assert (record.energy, record.area) == (7 / 48, 7 / 49)


@pytest.mark.parametrize(
    ("box", "inside_mean", "area"),
    [
        # centres at 5, 15, 25 ...: an edge on a centre takes it at the low side and leaves it at the high side
        ((5, 5, 15, 15), 0, 1),
        ((5.1, 5, 15.1, 15), 1, 1),
        ((14, 14, 36, 26), np.mean([8, 9, 10, 15, 16, 17]), 6),
        ((-50, -50, 6, 6), 0, 1),  # past the border
        ((36, 21, 37, 22), 2 * 7 + 3, 1),  # smaller than a pixel: that of its middle
        ((70, 70, 70, 70), 48, 1),  # no area, on the corner
        ((10, 21, 40, 22), 2 * 7 + 2, 3),  # thin: holds centres along x, none along y
    ],
)
def test_inside_is_where_the_centre_lies(box, inside_mean, area):
    record = judged(RAMP, box)
    assert (record.inside_mean, record.area) == (inside_mean, area / 49)


def test_classes_are_judged_by_their_own_map_and_boxes():
    maps = np.stack([block(slice(0, 1), slice(0, 1)), np.zeros((7, 7)), block(slice(6, 7), slice(6, 7))])
    corner, opposite = [0, 0, 10, 10], [60, 60, 70, 70]
    records = image_quality(maps, [opposite, corner, opposite], [2, 0, 0], SIZE, working_size=7)
    assert [(r.class_index, r.n_boxes, r.inside_mean) for r in records] == [(0, 2, 0.5), (2, 1, 1.0)]


def test_box_over_the_whole_image_leaves_no_outside():
    record = judged(block(slice(0, 1), slice(0, 1)), (0, 0, 70, 70))
    assert np.isnan([record.outside_mean, record.inverted]).all()
    assert (record.pointing, record.energy, record.area) == (1, 1, 1)


def test_constant_map_has_no_peak_and_no_box():
    (record,) = image_quality(np.full((1, 7, 7), -0.3, np.float32), [[10, 20, 40, 40]], [0], SIZE)
    assert record.map_min == record.map_max == record.inside_mean == record.outside_mean == np.float32(-0.3)
    assert record.inverted == 0
    assert np.isnan([record.pointing, record.energy]).all()
    assert not record.best_iou.any()


def test_best_iou_at_each_threshold():
    heatmap = block(slice(1, 5), slice(1, 5), inside=0.5)
    heatmap[1:3, 1:3] = 1.0
    record = judged(heatmap, (10, 10, 30, 30))
    # threshold 0 takes the whole map, up to 0.5 the large block, above it the small one
    np.testing.assert_array_equal(record.best_iou, [4 / 49, *[4 / 16] * 5, *[1.0] * 4])
    np.testing.assert_array_equal(judged(heatmap * 4 - 9, (10, 10, 30, 30)).best_iou, record.best_iou)


def test_max_box_acc_against_the_definition_in_slow_loops():
    rng = np.random.default_rng(0)
    n_pairs, steps = 12, 20
    maps = rng.normal(size=(n_pairs, 7, 7)).astype(np.float32)
    boxes = random_boxes(rng, n_pairs)
    records = image_quality(maps, boxes, np.arange(n_pairs), (800, 600), working_size=56, cam_thresholds=steps)

    hits = np.zeros((len(BOX_ACC_IOUS), steps))
    for heatmap, box in zip(maps, boxes, strict=True):
        resized = resize_map(heatmap, 56).astype(np.float64)
        scaled = (resized - resized.min()) / (resized.max() - resized.min())
        for k in range(steps):
            mask = (scaled >= k / steps).astype(np.uint8)
            found = map(cv2.boundingRect, cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])
            corners = [np.array([x * 800, y * 600, (x + w) * 800, (y + h) * 600]) / 56 for x, y, w, h in found]
            best = max(box_iou(own, box) for own in corners)  # in original pixels
            hits[:, k] += best >= np.array(BOX_ACC_IOUS)
    accuracies = (hits / n_pairs).max(axis=1)
    of = quality_summary(quality_frame(["a"], [records], [str(k) for k in range(n_pairs)])).set_index("figure")["value"]
    np.testing.assert_array_equal(of[list(ACCURACIES[:-1])], accuracies)
    assert len(set(accuracies)) > 1
    assert of["max_box_acc_v2"] == pytest.approx(np.mean(accuracies))


def random_pairs(n_images: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    boxes_rng = np.random.default_rng(99)  # the same boxes under every seed
    qualities = []
    for _ in range(n_images):
        boxes = random_boxes(boxes_rng, 4)
        classes = boxes_rng.integers(3, size=4)
        maps = rng.normal(size=(3, 7, 7)).astype(np.float32)
        qualities.append(image_quality(maps, boxes, classes, (800, 800), working_size=28, cam_thresholds=10))
    return quality_frame([f"{i:05d}" for i in range(n_images)], qualities, ["ship", "dam", "airport"])


def test_summary_holds_the_means_over_pairs():
    pairs = random_pairs()
    summary = quality_summary(pairs, n_resamples=50).set_index("figure")
    names = list(FIGURES)
    expected = pairs[names].agg(["mean", "std", "min", "max"]).T
    np.testing.assert_allclose(summary.loc[names, ["value", "sd", "minimum", "maximum"]], expected)
    assert (summary.loc[names, ["n_pairs", "n_left_out", "n_images"]] == [len(pairs), 0, 12]).all(axis=None)
    single = pairs[pairs["n_boxes"] == 1]
    of_threshold = accuracies_of(single["best_iou"])
    best = of_threshold.max(axis=1)
    np.testing.assert_allclose(summary.loc[list(ACCURACIES), "value"], [*best, best.mean()])
    of_best = summary.loc[list(ACCURACIES[:-1]), "cam_threshold"]
    np.testing.assert_array_equal(of_best, of_threshold.argmax(axis=1) / of_threshold.shape[1])
    counts = summary.loc["max_box_acc_v2", ["n_pairs", "n_left_out", "n_images"]]
    assert counts.tolist() == [len(single), len(pairs) - len(single), single["image_id"].nunique()]
    assert (summary.loc["inside_mean", "low"], summary.loc["outside_mean", "low"]) < (0, 0)  # no share: not cut at 0


def test_pairs_left_out_are_counted():
    peak, flat = block(slice(0, 1), slice(0, 1)), np.zeros((7, 7), np.float32)
    whole, corner = [0, 0, 70, 70], [0, 0, 10, 10]
    maps, of_images = np.stack([peak, flat]), (([whole, corner], [0, 1]), ([corner, corner], [0, 0]))
    qualities = [image_quality(maps, *of, SIZE, working_size=7) for of in of_images]
    summary = quality_summary(quality_frame(["a", "b"], qualities, ["ship", "dam"])).set_index("figure")
    left_out = summary["n_left_out"].to_dict()
    names = ("inside_mean", "outside_mean", "inverted", "pointing", "energy")
    assert [left_out[name] for name in names] == [0, 1, 1, 1, 1]
    assert summary.loc["pointing", "value"] == 1
    assert summary.loc["inverted", "value"] == 0
    assert (left_out["max_box_acc_v2"], summary.loc["max_box_acc_v2", "n_images"]) == (1, 1)
    assert np.isnan(summary.loc["max_box_acc_v2", "low"])  # from one image there is nothing to resample


def test_intervals_follow_the_seed_and_not_the_order():
    pairs = random_pairs()
    first = quality_summary(pairs, n_resamples=100, seed=3)
    for again in (pairs, pairs.sample(frac=1, random_state=1)):
        pd.testing.assert_frame_equal(first, quality_summary(again, n_resamples=100, seed=3), check_exact=True)
    assert not first["low"].equals(quality_summary(pairs, n_resamples=100, seed=4)["low"])


def test_intervals_are_those_of_resampled_images():
    """Images drawn one by one and evaluated anew: the same quantiles as the weighted sums."""
    pairs = random_pairs(n_images=8)
    result = quality_summary(pairs, n_resamples=200, seed=5).set_index("figure")
    ids, rng, drawn = sorted(pairs["image_id"].unique()), np.random.default_rng(5), []
    for _ in range(200):
        sample = pd.concat([pairs[pairs["image_id"] == ids[i]] for i in rng.integers(8, size=8)])
        accuracy = accuracies_of(sample["best_iou"].dropna()).max(axis=1).mean()
        drawn.append([sample["inside_mean"].mean(), sample["pointing"].mean(), accuracy])
    names = ["inside_mean", "pointing", "max_box_acc_v2"]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    value = result.loc[names, "value"].to_numpy()
    n_images = result.loc[names, "n_images"].to_numpy()  # an image without a pair for a figure tells nothing of it
    # Student's t, and the spread that a bootstrap is short of
    wider = scipy.stats.t.ppf(0.975, n_images - 1) / 1.96 * np.sqrt(n_images / (n_images - 1))
    expected = np.array([value - wider * (high - value), value + wider * (value - low)])
    expected[:, 1:] = expected[:, 1:].clip(0, 1)
    np.testing.assert_allclose(result.loc[names, ["low", "high"]].T, expected, atol=1e-3)


def test_difference_of_kinds_is_paired():
    pairs, others = random_pairs(), random_pairs(seed=1)
    same = quality_difference(pairs, pairs.sample(frac=1, random_state=0), n_resamples=50)
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    shifted = quality_difference(pairs.assign(inside_mean=pairs["inside_mean"] + 1), pairs, n_resamples=50)
    np.testing.assert_allclose(shifted.loc[0, ["difference", "low", "high"]].astype(float), 1)
    values = [quality_summary(frame, n_resamples=5)["value"] for frame in (pairs, others)]
    np.testing.assert_allclose(quality_difference(pairs, others, n_resamples=5)["difference"], values[0] - values[1])


def test_quality_of_a_store_is_image_quality_of_its_maps(tiny, tmp_path):
    data = load_dataset(write_scenes(tmp_path / "scenes", num_train=0, num_val=0, num_test=5, size=96), "test")
    store = HeatmapStore(tiny, data, tmp_path / "cache").compute()
    settings = {kind: Setting(kind, "cosine", 2) for kind in ("standard", "vv_qk", "vv_mixed")}
    pairs = module.map_quality(store, settings, workers=2)
    assert pairs["standard"] is pairs["vv_qk"]
    assert list(module.joint_pairs(pairs)) == list(joint_names(settings)) == ["standard = vv_qk", "vv_mixed"]
    records = []
    for position, image in enumerate(data.images.itertuples()):
        own = data.boxes[data.boxes["image_id"] == image.image_id]
        maps, labels = store.maps(settings["vv_mixed"], position)[0], pd.Index(data.classes).get_indexer(own["label"])
        records.append(image_quality(maps, own[BOX_COLUMNS].to_numpy(), labels, (image.width, image.height)))
    pd.testing.assert_frame_equal(pairs["vv_mixed"], quality_frame(data.images["image_id"], records, data.classes))
    of_kinds = module.quality_by_kind(pairs, n_resamples=20)
    table = module.quality_table(of_kinds)
    assert list(table.columns) == ["standard = vv_qk", "vv_mixed"]
    difference = module.difference_column(pairs["standard"], pairs["vv_qk"])
    assert set(difference.index) <= set(table.index)
    assert set(difference) == {"+0.000 [+0.000, +0.000]"}
    by_percentile = pd.DataFrame({"mean_iou": [0.1, np.nan]}, index=["75", "90"])
    results = quality_results(of_kinds, by_percentile, Setting(), "val", {})
    assert json.loads(json.dumps(results, allow_nan=False))["kinds"]["vv_qk"]["pointing"]["n_images"] == 5


PAIRS = random_pairs(n_images=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judged(np.full((7, 7), np.nan), (0, 0, 1, 1)), "NaN"),
        (lambda: judged(np.eye(7), (0, 0, 1, 1), cam_thresholds=0), "cam_thresholds .* got 0"),
        (lambda: quality_summary(pd.concat([PAIRS, PAIRS])), "one kind at a time"),
        (lambda: quality_difference(PAIRS, PAIRS.iloc[1:]), "not a paired comparison"),
    ],
)
def test_what_cannot_be_judged(call, message):
    refused(call, ParameterError, message)
