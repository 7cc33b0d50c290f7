"""Average precision and its intervals, judged by a slow and obvious VOC implementation and by pycocotools."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgerylib.errors import ParameterError
from surgerylib.intervals import half_samples
from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import IOU_THRESHOLDS, average_precision, bootstrap_map, paired_difference

BOX = ["xmin", "ymin", "xmax", "ymax"]
WITH_EACH = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def truth_frame(*rows, columns=("image_id", "label", *BOX)) -> pd.DataFrame:
    """Rows of image_id, label, xmin, ymin, xmax, ymax."""
    types = {name: "str" if name in ("image_id", "label") else float for name in columns}
    return pd.DataFrame(rows, columns=list(columns)).astype(types)


def detection_frame(*rows) -> pd.DataFrame:
    """Rows of image_id, label, xmin, ymin, xmax, ymax, score."""
    return truth_frame(*rows, columns=("image_id", "label", *BOX, "score"))


def random_frames(seed: int, n_images=6, n_truth=40, n_detections=150, labels="abc", score_steps=12):
    """Crowded images: whole-pixel boxes that overlap a lot, and scores of which many are equal."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(0, 12, (n, 2))
        frame = pd.DataFrame(np.hstack([corner, corner + rng.integers(1, 9, (n, 2))]), columns=BOX).astype(float)
        # image 0 has no ground truth and image 1 no detections often enough
        frame.insert(0, "image_id", pd.Series([f"im{i}" for i in rng.integers(0, n_images, n)], dtype="str"))
        frame.insert(1, "label", pd.Series([labels[i] for i in rng.integers(0, len(labels), n)], dtype="str"))
        return frame.sort_values("image_id", kind="stable", ignore_index=True)

    truth, detections = boxes(n_truth), boxes(n_detections)
    near = np.flatnonzero(rng.random(n_detections) < 0.5)[: 4 * n_truth]  # these look for a box, the others are noise
    found = truth.iloc[rng.integers(0, max(n_truth, 1), len(near))].reset_index(drop=True)
    found[["xmax", "ymax"]] += rng.integers(0, 4, (len(near), 2))
    detections = pd.concat([detections.drop(index=near), found]).sort_values("image_id", kind="stable")
    detections["score"] = rng.integers(0, score_steps, n_detections) / score_steps
    kept = detections[detections["image_id"] != "im1"], truth[truth["image_id"] != "im0"]
    return tuple(frame.reset_index(drop=True) for frame in kept)


# the judges


def slow_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def slow_voc(detections, truth, label, threshold, interpolation) -> float:
    """VOC average precision of one class, one detection at a time, in exact fractions."""
    boxes = [row for row in truth.itertuples(index=False) if row.label == label]
    if not boxes:
        return float("nan")
    ranked = sorted((row for row in detections.itertuples(index=False) if row.label == label), key=lambda r: -r.score)
    taken, hits, points = set(), 0, []
    for rank, detection in enumerate(ranked, start=1):
        best, best_iou = None, 0.0
        for i, box in enumerate(boxes):
            if box.image_id == detection.image_id:
                iou = slow_iou(detection[2:6], box[2:6])
                if iou > best_iou:
                    best, best_iou = i, iou
        if best is not None and best_iou >= threshold and best not in taken:
            taken.add(best)
            hits += 1
        points.append((Fraction(hits, len(boxes)), Fraction(hits, rank)))
    if interpolation == "11point":
        levels = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
        return float(sum(levels) / 11)
    area, reached = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(points):
        area += (recall - reached) * max(p for _, p in points[i:])
        reached = recall
    return float(area)


def coco(detections, truth, thresholds) -> dict[tuple[str, float], float]:
    """pycocotools' AP for area `all`, its cap of detections lifted."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = sorted(set(truth["image_id"]) | set(detections["image_id"]))
    labels = sorted(set(truth["label"]) | set(detections["label"]))

    def entries(frame):
        for i, row in enumerate(frame.itertuples(index=False), start=1):
            width, height = row.xmax - row.xmin, row.ymax - row.ymin
            yield {
                "id": i, "image_id": images.index(row.image_id), "category_id": labels.index(row.label), "iscrowd": 0,
                "bbox": [row.xmin, row.ymin, width, height], "area": width * height, "score": getattr(row, "score", 1),
            }  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        reference, result = COCO(), COCO()
        for index, frame in ((reference, truth), (result, detections)):
            index.dataset = {
                "images": [{"id": i} for i in range(len(images))],
                "categories": [{"id": i} for i in range(len(labels))],
                "annotations": list(entries(frame)),
            }
            index.createIndex()
        evaluation = COCOeval(reference, result, "bbox")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array(thresholds), [100_000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # [T, levels, C]
    return {
        (label, threshold): precision[t, :, c].mean() if precision[t, 0, c] > -1 else float("nan")
        for c, label in enumerate(labels)
        for t, threshold in enumerate(thresholds)
    }


def assert_equals_coco(detections, truth, thresholds=(*IOU_THRESHOLDS, 0.75, 1.0)):
    ours = average_precision(detections, truth, iou_thresholds=thresholds, interpolation="coco101")
    theirs = coco(detections, truth, thresholds)
    expected = [theirs[key] for key in zip(ours["label"], ours["iou_threshold"], strict=True)]
    np.testing.assert_allclose(ours["ap"], expected, rtol=0, atol=1e-12)


def assert_equals_slow_voc(detections, truth):
    for interpolation in ("11point", "area"):
        ours = average_precision(detections, truth, interpolation=interpolation)
        keys = zip(ours["label"], ours["iou_threshold"], strict=True)
        expected = [slow_voc(detections, truth, *key, interpolation) for key in keys]
        np.testing.assert_allclose(ours["ap"], expected, rtol=0, atol=1e-13)


def row_of_ships(n: int) -> list[tuple]:
    """Boxes that touch no other."""
    return [("1", "ship", 20 * i, 0, 20 * i + 10, 10) for i in range(n)]


# empty input first


@WITH_EACH
def test_empty_input(interpolation):
    box, hit = ("1", "ship", 0, 0, 10, 10), ("1", "ship", 0, 0, 10, 10, 0.5)
    nothing = average_precision(detection_frame(), truth_frame(), interpolation=interpolation)
    assert nothing.empty
    assert list(nothing.columns) == ["label", "iou_threshold", "ap", "n_ground_truth", "n_detections"]
    no_detections = average_precision(detection_frame(), truth_frame(box), interpolation=interpolation)
    assert no_detections["ap"].tolist() == [0.0] * 6
    assert no_detections["n_ground_truth"].tolist() == [1] * 6
    no_truth = average_precision(detection_frame(hit), truth_frame(), interpolation=interpolation)
    assert no_truth["ap"].isna().all()
    assert no_truth["n_detections"].tolist() == [1] * 6
    listed = average_precision(detection_frame(), truth_frame(), classes=["dam", "ship"], interpolation=interpolation)
    assert listed["label"].unique().tolist() == ["dam", "ship"]
    assert listed["ap"].isna().all()
    numbers = [frame.assign(label=3) for frame in (detection_frame(hit), truth_frame(box))]
    assert (average_precision(*numbers, interpolation=interpolation)["label"] == 3).all()


# worked by hand


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("11point", (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11),
        ("area", (1 + 2 / 3 + 3 / 5) / 4),
        ("coco101", (26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101),
    ],
)
def test_golden_values(interpolation, expected):
    ships, nowhere = row_of_ships(4), ("1", "ship", 0, 50, 10, 60)
    # hit, miss, hit, miss, hit: recall 1/4, 2/4, 3/4 at precision 1, 2/3, 3/5
    detections = detection_frame((*ships[0], 0.9), (*nowhere, 0.8), (*ships[1], 0.7), (*nowhere, 0.6), (*ships[2], 0.5))
    ap = average_precision(detections, truth_frame(*ships), interpolation=interpolation)["ap"]
    np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-14)


@WITH_EACH
def test_a_match_needs_iou_of_at_least_the_threshold(interpolation):
    half, truth = detection_frame(("1", "ship", 0, 0, 10, 5, 0.5)), truth_frame(("1", "ship", 0, 0, 10, 10))
    result = average_precision(half, truth, iou_thresholds=(0.5, 0.51), interpolation=interpolation)
    assert result["ap"].tolist() == [1.0, 0.0]


def test_recall_levels_are_compared_exactly():
    # recall 3/10 is below 0.3 + 4e-17, the third step of np.arange(0, 1.1, 0.1)
    ships = row_of_ships(10)
    detections = detection_frame(*[(*ship, 1 - i / 10) for i, ship in enumerate(ships[:3])])
    assert average_precision(detections, truth_frame(*ships))["ap"].tolist() == pytest.approx([4 / 11] * 6)


def test_voc_and_coco_matching_differ_where_the_best_box_is_taken():
    # the second detection's best box is taken; another one of IoU 1/3 is free
    truth = truth_frame(("1", "ship", 0, 0, 10, 10), ("1", "ship", 5, 0, 15, 10))
    detections = detection_frame(("1", "ship", 0, 0, 10, 10, 0.9), ("1", "ship", 0, 0, 10, 10, 0.8))
    for interpolation, expected in (("area", [0.5, 0.5]), ("coco101", [1.0, 51 / 101])):
        found = average_precision(detections, truth, iou_thresholds=(0.3, 0.5), interpolation=interpolation)
        assert found["ap"].tolist() == pytest.approx(expected)


def test_boxes_without_area_match_nothing():
    truth = truth_frame(("1", "ship", 5, 5, 5, 5), ("1", "ship", 0, 0, 10, 10))
    detections = detection_frame(("1", "ship", 5, 5, 5, 5, 0.9), ("1", "ship", 0, 0, 10, 10, 0.8))
    for interpolation in ("area", "coco101"):
        ap = average_precision(detections, truth, interpolation=interpolation)["ap"]
        assert (ap < 0.26).all()


# against the judges


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_images=st.integers(1, 5),
    n_truth=st.integers(0, 25),
    n_detections=st.integers(0, 60),
    score_steps=st.sampled_from([1, 3, 1000]),
)
@example(seed=0, n_images=2, n_truth=40, n_detections=150, score_steps=5)
@example(seed=1, n_images=9, n_truth=40, n_detections=150, score_steps=1000)
def test_equals_the_judges_on_any_frame(seed, n_images, n_truth, n_detections, score_steps):
    detections, truth = random_frames(seed, n_images, n_truth, n_detections, "abc", score_steps)
    assert_equals_coco(detections, truth)
    assert_equals_slow_voc(detections, truth)
    shuffled = [frame.sample(frac=1, random_state=seed) for frame in (detections, truth)]
    for frame in shuffled:  # far from zero, and fractional
        frame[BOX] = frame[BOX] * 1000.25 - 7e5
    assert_equals_slow_voc(*shuffled)


def test_long_chains_of_refused_detections_end_as_in_pycocotools():
    # a row of boxes, each overlapping the next: every detection taken over pushes the one after it one box on
    truth = truth_frame(*[("1", "ship", 4 * i, 0, 4 * i + 10, 10) for i in range(40)])
    rows = [("1", "ship", 4 * i - 1, 0, 4 * i + 9, 10, 1 - i / 100) for i in range(40)] * 2
    assert_equals_coco(detection_frame(*rows), truth)


def test_many_pairs_are_worked_on_in_several_chunks(monkeypatch):
    detections, truth = random_frames(3, n_images=3, n_truth=60, n_detections=400)
    whole = [average_precision(detections, truth, interpolation=i) for i in ("area", "coco101")]
    monkeypatch.setattr("surgerylib.matching._PAIRS_PER_CHUNK", 16)
    for interpolation, expected in zip(("area", "coco101"), whole, strict=True):
        pd.testing.assert_frame_equal(average_precision(detections, truth, interpolation=interpolation), expected)


# what must not come back


def test_known_error_01_boxes_of_one_image_matched_with_another():
    truth = truth_frame(("1", "ship", 0, 0, 10, 10), ("2", "ship", 50, 50, 60, 60))
    swapped = detection_frame(("2", "ship", 0, 0, 10, 10, 0.9), ("1", "ship", 50, 50, 60, 60, 0.8))
    other_class = detection_frame(("1", "dam", 0, 0, 10, 10, 0.9))
    for interpolation in INTERPOLATIONS:
        assert average_precision(swapped, truth, interpolation=interpolation)["ap"].tolist() == [0.0] * 6
        assert average_precision(other_class, truth, interpolation=interpolation)["ap"].fillna(0).tolist() == [0.0] * 12


def test_known_error_02_giou_reported_as_iou():
    # IoU 1/3; GIoU, the same here, would also be so, but IoU 0.04 has a GIoU below zero and touches no threshold
    truth = truth_frame(("1", "ship", 0, 0, 10, 10))
    third = detection_frame(("1", "ship", 5, 0, 15, 10, 0.5))
    result = average_precision(third, truth, iou_thresholds=(0.33, 0.34))
    assert result["ap"].tolist() == [1.0, 0.0]
    corner = detection_frame(("1", "ship", 7, 7, 17, 17, 0.5))  # IoU 9/191 = 0.047, GIoU -0.29
    assert average_precision(corner, truth, iou_thresholds=(0.04, 0.05))["ap"].tolist() == [1.0, 0.0]


def test_known_error_08_scores_are_ranked_across_images_as_given():
    # image 2's only detection is wrong and weak; stretched to [0, 1] within its image it would come first
    truth = truth_frame(("1", "ship", 0, 0, 10, 10), ("1", "ship", 20, 0, 30, 10))
    detections = detection_frame(
        ("1", "ship", 0, 0, 10, 10, 0.30), ("1", "ship", 20, 0, 30, 10, 0.28), ("2", "ship", 0, 0, 10, 10, 0.1)
    )
    assert average_precision(detections, truth, interpolation="area")["ap"].tolist() == [1.0] * 6
    stretched = detections.assign(score=[1.0, 0.0, 1.0])
    assert (average_precision(stretched, truth, interpolation="area")["ap"] < 1).all()


def test_known_error_12_ids_of_another_type_are_an_error_not_a_zero():
    truth = truth_frame(("7", "ship", 0, 0, 10, 10))
    detections = detection_frame(("7", "ship", 0, 0, 10, 10, 0.9)).astype({"image_id": "int64"})
    with pytest.raises(ParameterError, match="image_id is int64 in detections"):
        average_precision(detections, truth)


@pytest.mark.parametrize("written", ["Golf-Field", "golf course"])
def test_known_error_12_two_spellings_of_a_class_are_an_error_not_a_zero(written):
    truth, detections = truth_frame(("7", "golffield", 0, 0, 9, 9)), detection_frame(("7", written, 0, 0, 9, 9, 0.9))
    with pytest.raises(ParameterError, match="are the same; keep one spelling"):
        average_precision(detections, truth)
    with pytest.raises(ParameterError, match="are the same; keep one spelling"):
        average_precision(detection_frame(), truth, classes=[written])


def test_known_error_13_cap_of_100_detections():
    ships = row_of_ships(250)
    truth, detections = truth_frame(*ships), detection_frame(*[(*ship, 1 - i / 1000) for i, ship in enumerate(ships)])
    for interpolation in INTERPOLATIONS:
        result = average_precision(detections, truth, interpolation=interpolation)
        np.testing.assert_allclose(result["ap"], 1.0, rtol=0, atol=1e-15)
        assert result["n_detections"].tolist() == [250] * 6
    capped = average_precision(detections, truth, interpolation="area", max_detections=100)
    assert capped["ap"].tolist() == pytest.approx([0.4] * 6)


def test_max_detections_is_per_class_and_image_as_in_coco():
    rows = [("1", "ship", 0.9), ("1", "dam", 0.8), ("1", "ship", 0.7), ("2", "dam", 0.1)]
    detections = detection_frame(*[(image, label, 0, 0, 10, 10, score) for image, label, score in rows])
    result = average_precision(detections, truth_frame(), max_detections=1, iou_thresholds=[0.5])
    assert dict(zip(result["label"], result["n_detections"], strict=True)) == {"dam": 2, "ship": 1}


def test_mean_is_over_classes_with_ground_truth():
    truth = truth_frame(("1", "ship", 0, 0, 10, 10), ("1", "dam", 0, 0, 10, 10))
    detections = detection_frame(("1", "ship", 0, 0, 10, 10, 0.9), ("1", "harbor", 0, 0, 10, 10, 0.9))
    result = average_precision(detections, truth, classes=["windmill", "ship"])
    assert result["label"].unique().tolist() == ["windmill", "ship", "dam", "harbor"]
    assert bootstrap_map(detections, truth, image_ids=["1"]).map.tolist() == [0.5] * 6  # of ship and dam


# intervals


def image_ids(n=6) -> list[str]:
    return [f"im{i}" for i in range(n)]


@WITH_EACH
@pytest.mark.parametrize("n_resamples", [1, 2, 13])
def test_half_samples_equal_evaluating_the_images_they_hold(interpolation, n_resamples, monkeypatch):
    detections, truth = random_frames(4, score_steps=10_000)
    options = {"interpolation": interpolation, "classes": ["a", "b", "c"]}
    result = bootstrap_map(detections, truth, image_ids=image_ids(), n_resamples=n_resamples, seed=5, **options)
    held = half_samples(6, -(-n_resamples // 2), seed=5)
    assert result.ap_samples.shape == (n_resamples, 3, 6)
    for sample, is_held in zip(result.ap_samples, [*held, *~held], strict=False):
        of_half = [f[f["image_id"].isin(np.array(image_ids())[is_held])] for f in (detections, truth)]
        expected = average_precision(*of_half, **options)
        np.testing.assert_allclose(sample.ravel(), expected["ap"], rtol=0, atol=1e-13)
    everything = average_precision(detections, truth, **options)
    np.testing.assert_array_equal(result.ap.ravel(), everything["ap"])
    of_classes = everything.groupby("iou_threshold")["ap"].mean()
    np.testing.assert_allclose(result.map, of_classes, rtol=0, atol=1e-15)
    np.testing.assert_allclose(result.map_samples, np.nanmean(result.ap_samples, axis=1), rtol=0, atol=1e-12)
    monkeypatch.setattr("surgerylib.metrics._BLOCK", 1)
    blocks = bootstrap_map(detections, truth, image_ids=image_ids(), n_resamples=n_resamples, seed=5, **options)
    np.testing.assert_array_equal(result.ap_samples, blocks.ap_samples)


def test_seed_and_images_decide_and_the_order_of_ids_does_not():
    detections, truth = random_frames(1)
    first, again, other = (
        bootstrap_map(detections, truth, image_ids=ids, n_resamples=40, seed=seed)
        for ids, seed in ((image_ids(), 1), (image_ids()[::-1], 1), (image_ids(), 2))
    )
    np.testing.assert_array_equal(first.ap_samples, again.ap_samples)
    assert first.data_hash == again.data_hash
    more_images = bootstrap_map(detections, truth, image_ids=image_ids(60), n_resamples=40)
    assert (first.n_images, more_images.n_images) == (6, 60)
    np.testing.assert_array_equal(first.map, more_images.map)
    assert not np.array_equal(first.ap_samples, other.ap_samples, equal_nan=True)


def test_summaries():
    detections, truth = random_frames(1, n_images=30, n_truth=300, n_detections=400)
    result = bootstrap_map(detections, truth, image_ids=image_ids(30), n_resamples=200, classes=["a", "z"])
    summary = result.summary()
    assert list(summary.columns) == ["iou_threshold", "map", "low", "high"]
    assert (summary["low"] < summary["map"]).all()
    assert (summary["map"] < summary["high"]).all()
    by_class = result.class_summary()
    assert list(by_class.columns) == ["label", "iou_threshold", "ap", "low", "high"]
    assert by_class["label"].unique().tolist() == ["a", "z", "b", "c"]
    assert by_class.loc[by_class["label"] == "z", ["ap", "low", "high"]].isna().all(axis=None)
    assert (by_class.loc[by_class["label"] == "a", "low"] < by_class.loc[by_class["label"] == "a", "high"]).all()
    value, low, high = result.mean_over_thresholds()
    assert value == pytest.approx(result.map.mean())
    assert low < value < high


def test_a_class_that_loses_its_ground_truth_is_left_out_of_that_half():
    truth = truth_frame(("im0", "ship", 0, 0, 10, 10), ("im1", "dam", 0, 0, 10, 10))
    detections = detection_frame(("im0", "ship", 0, 0, 10, 10, 0.9))
    result = bootstrap_map(detections, truth, image_ids=image_ids(2), n_resamples=50, iou_thresholds=[0.5])
    dam, ship = result.ap_samples[:, 0, 0], result.ap_samples[:, 1, 0]
    assert (np.isnan(dam) != np.isnan(ship)).all()
    assert set(result.map_samples[np.isnan(dam), 0]) == {1.0}
    assert set(result.map_samples[np.isnan(ship), 0]) == {0.0}


@pytest.mark.parametrize("n_images", [0, 1, 12])
def test_classes_in_fewer_than_two_images_have_no_interval(n_images):
    truth = truth_frame(*[(f"im{i}", f"class {i}", 0, 0, 10, 10) for i in range(n_images)])
    found = truth.assign(score=0.5)
    result = bootstrap_map(found, truth, image_ids=image_ids(n_images), classes=["none"], n_resamples=50)
    np.testing.assert_array_equal(result.map, [1.0 if n_images else np.nan] * 6)
    difference = paired_difference(result, result)
    for frame in (result.summary(), result.class_summary(), difference.summary(), difference.class_summary()):
        assert frame[["low", "high"]].isna().all(axis=None)
    assert np.isnan(result.mean_over_thresholds()[1:]).all()
    assert not difference.summary()["excludes_zero"].any()
    assert result.bias_note() == ""


def test_paired_difference():
    detections, truth = random_frames(7, n_images=30, n_truth=300, n_detections=300)
    options = {"image_ids": image_ids(30), "n_resamples": 200, "seed": 3}
    a, b = (bootstrap_map(found, truth, **options) for found in (truth.assign(score=0.5), detections))
    difference = paired_difference(a, b)
    np.testing.assert_array_equal(difference.map, a.map - b.map)
    np.testing.assert_array_equal(difference.ap_samples, a.ap_samples - b.ap_samples)
    summary = difference.summary()
    assert list(summary.columns) == ["iou_threshold", "difference", "low", "high", "excludes_zero"]
    assert summary["excludes_zero"].all()
    assert len(difference.class_summary()) == 18
    same = paired_difference(b, bootstrap_map(detections.copy(), truth, **options))
    assert same.mean_over_thresholds() == (0.0, 0.0, 0.0)
    assert not same.summary()["excludes_zero"].any()
    fewer_classes = bootstrap_map(detections[detections["label"] == "a"], truth, classes=["z"], **options)
    assert paired_difference(a, fewer_classes).classes == ("a", "b", "c")
    # who keeps many results may leave the classes out
    light = paired_difference(a.without_classes(), b.without_classes())
    assert light.mean_over_thresholds() == difference.mean_over_thresholds()


def test_pairing_is_refused_where_images_seed_or_settings_differ():
    detections, truth = random_frames(7)
    options = {"image_ids": image_ids(), "n_resamples": 5, "seed": 3}
    reference = bootstrap_map(detections, truth, **options)
    paired_difference(reference, bootstrap_map(detections, truth.sample(frac=1, random_state=0), **options))
    for changed, message in (
        ({"image_ids": image_ids(7)}, "images or ground truth"),
        ({"ground_truth": truth.iloc[1:]}, "images or ground truth"),
        ({"seed": 4}, "seed"),
        ({"n_resamples": 6}, "number of resamples"),
        ({"interpolation": "area"}, "interpolation"),
        ({"iou_thresholds": [0.5]}, "IoU thresholds"),
    ):
        other = bootstrap_map(**{"detections": detections, "ground_truth": truth, **options, **changed})
        with pytest.raises(ParameterError, match=f"not a paired comparison: the {message} differ"):
            paired_difference(reference, other)


@pytest.mark.parametrize("labels", [["c", "a"], ["z", "b"], ["a", "b", "c", "z"]])
def test_some_classes_of_a_result_are_those_of_frames_with_them_alone(labels):
    detections, truth = random_frames(7, n_images=30, n_truth=200, n_detections=300)
    options = {"image_ids": image_ids(30), "n_resamples": 60, "seed": 3}
    result = bootstrap_map(detections, truth, classes=[*"abcz"], **options)
    chosen = result.of_classes(labels)
    own = [frame[frame["label"].isin(labels)] for frame in (detections, truth)]
    alone = bootstrap_map(*own, classes=sorted(labels), **options)
    assert chosen.classes == alone.classes == tuple(sorted(labels))
    pd.testing.assert_frame_equal(chosen.summary(), alone.summary())
    pd.testing.assert_frame_equal(chosen.class_summary(), alone.class_summary())
    assert result.of_classes(labels[::-1]).data_hash == chosen.data_hash
    if len(labels) < 4:
        for other in (result.of_classes(labels[:1]), result):
            with pytest.raises(ParameterError, match="ground truth differ"):
                paired_difference(chosen, other)


def test_a_class_that_was_not_evaluated_has_no_figures_to_take_out():
    result = bootstrap_map(*random_frames(7), image_ids=image_ids(), n_resamples=5)
    with pytest.raises(ParameterError, match="no figures of 'ship', only of a, b, c; name those"):
        result.of_classes(["a", "ship"])
    with pytest.raises(ParameterError, match="no figures of 'a'"):
        result.without_classes().of_classes(["a"])
    assert result.of_classes([]).summary()[["map", "low", "high"]].isna().all(axis=None)


def test_a_sentence_says_where_few_images_read_high():
    # ten boxes a class among thirty false ones, ranked by chance: what comes first on few images is luck
    rng = np.random.default_rng(0)
    rows = [(f"im{(6 * i + c) % 60}", f"class {c}", 0, 0, 10, 10) for c in range(40) for i in range(10)]
    truth, empty = truth_frame(*rows), detection_frame(*[(*row[:2], 50, 50, 60, 60, 0.5) for row in rows * 3])
    found = pd.concat([truth.assign(score=0.5), empty], ignore_index=True)
    found["score"] = rng.random(len(found))
    result = bootstrap_map(found, truth, image_ids=image_ids(60), n_resamples=100, iou_thresholds=[0.3, 0.5])
    excess = result.map_samples.mean(axis=0)[0] - result.map[0]
    assert result.bias_note() == (
        "Average precision of few images reads high against that of very many: on half of these 60 mAP@0.30 reads "
        f"{excess:.3f} higher, more than half its interval's width, so on very many it would read lower by about as "
        "much or more."
    )
    assert paired_difference(result, result).bias_note() == ""
    perfect = bootstrap_map(truth.assign(score=0.5), truth, image_ids=image_ids(60), n_resamples=100)
    assert perfect.bias_note() == ""


# one clear line for each bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detections": detection_frame().drop(columns=["score", "xmin"])}, "lacks the column xmin, score"),
        ({"ground_truth": truth_frame().drop(columns="label")}, "ground_truth lacks the column label"),
        ({"detections": detection_frame(("1", "ship", 0, 0, 1, 1, np.nan))}, "row 0 .*finite"),
        ({"detections": detection_frame(("1", "ship", 0, 0, 1, 1, 1)).astype({"score": "str"})}, "not numbers"),
        ({"ground_truth": truth_frame(("1", "ship", 9, 0, 1, 1))}, "xmin <= xmax"),
        ({"ground_truth": truth_frame(("1", None, 0, 0, 1, 1))}, "no label in row 0"),
        ({"detections": detection_frame(("elsewhere", "ship", 0, 0, 1, 1, 1))}, "not in image_ids"),
        ({"image_ids": ["im0", "im0"]}, "names 'im0' twice"),
        ({"iou_thresholds": [0.5, 0.0]}, "iou_thresholds"),
        ({"iou_thresholds": []}, "iou_thresholds"),
        ({"iou_thresholds": "half"}, "iou_thresholds"),
        ({"iou_thresholds": [0.5, 0.5]}, "once"),
        ({"interpolation": "12point"}, "11point, area, coco101"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_input(change, message):
    arguments = {"detections": detection_frame(), "ground_truth": truth_frame(), "image_ids": [], **change}
    with pytest.raises(ParameterError, match=message) as error:
        bootstrap_map(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("most", [0, 1.5])
def test_max_detections_that_is_no_number_of_detections(most):
    with pytest.raises(ParameterError, match="max_detections"):
        average_precision(detection_frame(), truth_frame(), max_detections=most)
