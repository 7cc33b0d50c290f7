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
from refusals import refused

from surgerylib.errors import ParameterError
from surgerylib.intervals import half_samples
from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import IOU_THRESHOLDS, BootstrapResult, average_precision, bootstrap_map, paired_difference

BOX = ["xmin", "ymin", "xmax", "ymax"]
WITH_EACH = pytest.mark.parametrize("interpolation", INTERPOLATIONS)
HIT, NOWHERE = ("1", "ship", 0, 0, 10, 10), ("1", "ship", 0, 50, 10, 60)
SHIPS = [("1", "ship", 20 * i, 0, 20 * i + 10, 10) for i in range(250)]  # boxes that touch no other


def truth_frame(*rows, more=()) -> pd.DataFrame:
    """Rows of image_id, label, xmin, ymin, xmax, ymax."""
    types = {"image_id": "str", "label": "str", **dict.fromkeys([*BOX, *more], float)}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def detection_frame(*rows) -> pd.DataFrame:
    """Rows of image_id, label, xmin, ymin, xmax, ymax, score."""
    return truth_frame(*rows, more=["score"])


def ranked(*boxes) -> pd.DataFrame:
    """Detections, the best first."""
    return detection_frame(*[(*box, 1 - i / 1000) for i, box in enumerate(boxes)])


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


def slow_voc(detections, truth, label, threshold) -> dict[str, float]:
    """VOC average precision of one class, one detection at a time, in exact fractions."""
    boxes = [row for row in truth.itertuples(index=False) if row.label == label]
    if not boxes:
        return {"11point": np.nan, "area": np.nan}
    ranked = sorted((row for row in detections.itertuples(index=False) if row.label == label), key=lambda r: -r.score)
    taken, points = set(), []
    for rank, detection in enumerate(ranked, start=1):
        best, best_iou = None, 0.0
        for i, box in enumerate(boxes):
            if box.image_id == detection.image_id and (iou := slow_iou(detection[2:6], box[2:6])) > best_iou:
                best, best_iou = i, iou
        if best is not None and best_iou >= threshold:
            taken.add(best)
        points.append((Fraction(len(taken), len(boxes)), Fraction(len(taken), rank)))
    levels = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
    steps = np.diff([0, *(recall for recall, _ in points)])
    area = sum(step * max(p for _, p in points[i:]) for i, step in enumerate(steps) if step)
    return {"11point": float(sum(levels) / 11), "area": float(area)}


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
    ours = {how: average_precision(detections, truth, interpolation=how) for how in ("11point", "area")}
    keys = zip(ours["area"]["label"], ours["area"]["iou_threshold"], strict=True)
    expected = pd.DataFrame([slow_voc(detections, truth, *key) for key in keys], columns=list(ours), dtype=float)
    for how, frame in ours.items():
        np.testing.assert_allclose(frame["ap"], expected[how], rtol=0, atol=1e-13)


# empty input first


@WITH_EACH
def test_empty_input(interpolation):
    def evaluated(found, truth, **options):
        return average_precision(ranked(*found), truth_frame(*truth), interpolation=interpolation, **options)

    nothing, listed = evaluated([], []), evaluated([], [], classes=["dam", "ship"])
    assert nothing.empty
    assert list(nothing.columns) == ["label", "iou_threshold", "ap", "n_ground_truth", "n_detections"]
    assert evaluated([], [HIT])[["ap", "n_ground_truth"]].to_numpy().tolist() == [[0.0, 1]] * 6
    no_truth = evaluated([HIT], [])
    assert no_truth["n_detections"].tolist() == [1] * 6
    assert listed["label"].unique().tolist() == ["dam", "ship"]
    assert np.isnan([*no_truth["ap"], *listed["ap"]]).all()
    numbers = [frame.assign(label=3) for frame in (ranked(HIT), truth_frame(HIT))]
    assert (average_precision(*numbers, interpolation=interpolation)["label"] == 3).all()


def check(truth: list, found: list, expected: dict) -> None:
    """IoU threshold -> AP of ships that is expected, one for all interpolations or one for each; best box first."""
    for place, interpolation in enumerate(INTERPOLATIONS):
        options = {"iou_thresholds": list(expected), "interpolation": interpolation}
        result = average_precision(ranked(*found), truth_frame(*truth), **options)
        values = [ap[place] if isinstance(ap, tuple) else ap for ap in expected.values()]
        np.testing.assert_allclose(result.loc[result["label"] == "ship", "ap"], values, rtol=0, atol=1e-14)
        assert result["n_detections"].sum() == len(found) * len(expected)


EMPTY_BOX, SHIFTED = ("1", "ship", 5, 5, 5, 5), ("1", "ship", 5, 0, 15, 10)  # the second has IoU 1/3 with HIT


@pytest.mark.parametrize(("truth", "found", "expected"), [
    # hit, miss, hit, miss, hit: recall 1/4, 2/4, 3/4 at precision 1, 2/3, 3/5
    (SHIPS[:4], [SHIPS[0], NOWHERE, SHIPS[1], NOWHERE, SHIPS[2]],
     dict.fromkeys(IOU_THRESHOLDS, ((3 + 2 + 6 / 5) / 11, (1 + 2 / 3 + 3 / 5) / 4, (26 + 50 / 3 + 15) / 101))),
    ([HIT], [("1", "ship", 0, 0, 10, 5)], {0.5: 1, 0.51: 0}),  # the threshold is reached
    # levels are compared exactly: recall 3/10 is below 0.3 + 4e-17, the third step of np.arange(0, 1.1, 0.1)
    (SHIPS[:10], SHIPS[:3], {0.5: (4 / 11, 0.3, 31 / 101)}),
    # the second detection's best box is taken; another one of IoU 1/3 is free: COCO takes it, VOC does not
    ([HIT, SHIFTED], [HIT, HIT], {0.3: (6 / 11, 0.5, 1), 0.5: (6 / 11, 0.5, 51 / 101)}),
    ([EMPTY_BOX, HIT], [EMPTY_BOX, HIT], {0.05: (3 / 11, 0.25, 51 / 202)}),  # without area: matches nothing
])  # fmt: skip
def test_worked_by_hand(truth, found, expected):
    check(truth, found, expected)


def test_known_error_01_boxes_of_one_image_matched_with_another():
    there = ("2", "ship", 50, 50, 60, 60)
    check([HIT, there], [("2", *HIT[1:]), ("1", *there[1:])], {0.05: 0})
    check([HIT], [("1", "dam", *HIT[2:])], {0.05: 0})  # nor those of another class


def test_known_error_02_giou_reported_as_iou():
    check([HIT], [SHIFTED], {0.33: 1, 0.34: 0})  # GIoU 1/3 too
    check([HIT], [("1", "ship", 7, 7, 17, 17)], {0.04: 1, 0.05: 0})  # IoU 9/191 = 0.047, GIoU -0.29


def test_known_error_08_scores_are_ranked_across_images_as_given():
    wrong = ("2", *HIT[1:])  # the only one of its image, and weak; stretched to [0, 1] within it, it would come first
    check(SHIPS[:2], [*SHIPS[:2], wrong], {0.5: 1})
    check(SHIPS[:2], [SHIPS[0], wrong, SHIPS[1]], {0.5: ((6 + 10 / 3) / 11, 5 / 6, (51 + 100 / 3) / 101)})


def test_known_error_12_ids_of_another_type_are_an_error_not_a_zero():
    found, truth = ranked(("7", *HIT[1:])).astype({"image_id": "int64"}), truth_frame(("7", *HIT[1:]))
    refused(average_precision, ParameterError, "image_id is int64 in detections", found, truth)


@pytest.mark.parametrize("written", ["Golf-Field", "golf course"])
def test_known_error_12_two_spellings_of_a_class_are_an_error_not_a_zero(written):
    truth, found = truth_frame(("1", "golffield", *HIT[2:])), ranked(("1", written, *HIT[2:]))
    for of, listed in ((found, None), (ranked(), [written])):
        refused(average_precision, ParameterError, "are the same; keep one spelling", of, truth, classes=listed)


def test_known_error_13_cap_of_100_detections():
    check(SHIPS, SHIPS, {0.5: 1})
    capped = average_precision(ranked(*SHIPS), truth_frame(*SHIPS), interpolation="area", max_detections=100)
    assert capped["ap"].tolist() == pytest.approx([0.4] * 6)


def test_max_detections_is_per_class_and_image_as_in_coco():
    detections = ranked(HIT, ("1", "dam", *HIT[2:]), HIT, ("2", "dam", *HIT[2:]))
    result = average_precision(detections, truth_frame(), max_detections=1, iou_thresholds=[0.5])
    assert dict(zip(result["label"], result["n_detections"], strict=True)) == {"dam": 2, "ship": 1}
    for most in (0, 1.5):
        refused(average_precision, ParameterError, "max_detections", detections, truth_frame(), max_detections=most)


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


# intervals


def image_ids(n=6) -> list[str]:
    return [f"im{i}" for i in range(n)]


def boot(detections, ground_truth, n_images=6, **options) -> BootstrapResult:
    return bootstrap_map(detections, ground_truth, **{"image_ids": image_ids(n_images), "n_resamples": 60, **options})


@WITH_EACH
@pytest.mark.parametrize("n_resamples", [1, 2, 13])
def test_half_samples_equal_evaluating_the_images_they_hold(interpolation, n_resamples, monkeypatch):
    frames = random_frames(4, n_truth=12, score_steps=10_000)
    options = {"interpolation": interpolation, "classes": ["a", "b", "c", "z"]}
    result = boot(*frames, n_resamples=n_resamples, seed=5, **options)
    held = half_samples(6, -(-n_resamples // 2), seed=5)
    assert result.ap_samples.shape == (n_resamples, 4, 6)
    assert n_resamples < 13 or np.isnan(result.ap_samples[:, :3]).any()  # a class without a box in a half is left out
    for sample, is_held in zip(result.ap_samples, [*held, *~held], strict=False):
        of_half = [f[f["image_id"].isin(np.array(image_ids())[is_held])] for f in frames]
        expected = average_precision(*of_half, **options)
        np.testing.assert_allclose(sample.ravel(), expected["ap"], rtol=0, atol=1e-13)
    everything = average_precision(*frames, **options)
    np.testing.assert_array_equal(result.ap.ravel(), everything["ap"])
    of_classes = everything.groupby("iou_threshold")["ap"].mean()
    np.testing.assert_allclose(result.map, of_classes, rtol=0, atol=1e-15)
    np.testing.assert_allclose(result.map_samples, np.nanmean(result.ap_samples, axis=1), rtol=0, atol=1e-12)
    monkeypatch.setattr("surgerylib.metrics._BLOCK", 1)
    blocks = boot(*frames, n_resamples=n_resamples, seed=5, **options)
    np.testing.assert_array_equal(result.ap_samples, blocks.ap_samples)


def test_seed_and_images_decide_and_the_order_of_ids_does_not():
    frames = random_frames(1)
    first, again, other = (boot(*frames, image_ids=ids, seed=seed)
                           for ids, seed in ((image_ids(), 1), (image_ids()[::-1], 1), (image_ids(), 2)))  # fmt: skip
    np.testing.assert_array_equal(first.ap_samples, again.ap_samples)
    assert first.data_hash == again.data_hash
    more_images = boot(*frames, 60)
    assert (first.n_images, more_images.n_images) == (6, 60)
    np.testing.assert_array_equal(first.map, more_images.map)
    assert not np.array_equal(first.ap_samples, other.ap_samples, equal_nan=True)


def test_summaries():
    result = boot(*random_frames(1, 30, 300, 400), 30, n_resamples=200, classes=["a", "z"])
    summary, by_class = result.summary(), result.class_summary()
    assert list(summary.columns) == ["iou_threshold", "map", "low", "high"]
    assert ((summary["low"] < summary["map"]) & (summary["map"] < summary["high"])).all()
    assert list(by_class.columns) == ["label", "iou_threshold", "ap", "low", "high"]
    assert by_class["label"].unique().tolist() == ["a", "z", "b", "c"]
    of_a, of_z = (by_class[by_class["label"] == label] for label in "az")
    assert (of_a["low"] < of_a["high"]).all()
    assert of_z[["ap", "low", "high"]].isna().all(axis=None)
    value, low, high = result.mean_over_thresholds()
    assert value == pytest.approx(result.map.mean())
    assert low < value < high


@pytest.mark.parametrize("n_images", [0, 1, 12])
def test_classes_in_fewer_than_two_images_have_no_interval(n_images):
    truth = truth_frame(*[(f"im{i}", f"class {i}", *HIT[2:]) for i in range(n_images)])
    result = boot(truth.assign(score=0.5), truth, n_images, classes=["none"])
    np.testing.assert_array_equal(result.map, [1.0 if n_images else np.nan] * 6)
    difference = paired_difference(result, result)
    for frame in (result.summary(), result.class_summary(), difference.summary(), difference.class_summary()):
        assert frame[["low", "high"]].isna().all(axis=None)
    assert np.isnan(result.mean_over_thresholds()[1:]).all()
    assert not difference.summary()["excludes_zero"].any()
    assert result.bias_note() == ""


def test_paired_difference():
    detections, truth = random_frames(7, 30, 300, 300)
    options = {"n_images": 30, "n_resamples": 200, "seed": 3}
    a, b = (boot(found, truth, **options) for found in (truth.assign(score=0.5), detections))
    difference = paired_difference(a, b)
    np.testing.assert_array_equal(difference.map, a.map - b.map)
    np.testing.assert_array_equal(difference.ap_samples, a.ap_samples - b.ap_samples)
    summary = difference.summary()
    assert list(summary.columns) == ["iou_threshold", "difference", "low", "high", "excludes_zero"]
    assert summary["excludes_zero"].all()
    assert len(difference.class_summary()) == 18
    same = paired_difference(b, boot(detections.copy(), truth, **options))
    assert same.mean_over_thresholds() == (0.0, 0.0, 0.0)
    assert not same.summary()["excludes_zero"].any()
    fewer_classes = boot(detections[detections["label"] == "a"], truth, classes=["z"], **options)
    assert paired_difference(a, fewer_classes).classes == ("a", "b", "c")
    # who keeps many results may leave the classes out
    light = paired_difference(a.without_classes(), b.without_classes())
    assert light.mean_over_thresholds() == difference.mean_over_thresholds()


@pytest.mark.parametrize("labels", [["c", "a"], ["z", "b"], ["a", "b", "c", "z"]])
def test_some_classes_of_a_result_are_those_of_frames_with_them_alone(labels):
    frames = random_frames(7, 30, 200, 300)
    result = boot(*frames, 30, classes=[*"abcz"], seed=3)
    chosen = result.of_classes(labels)
    alone = boot(*(f[f["label"].isin(labels)] for f in frames), 30, classes=sorted(labels), seed=3)
    assert chosen.classes == alone.classes == tuple(sorted(labels))
    pd.testing.assert_frame_equal(chosen.summary(), alone.summary())
    pd.testing.assert_frame_equal(chosen.class_summary(), alone.class_summary())
    assert result.of_classes(labels[::-1]).data_hash == chosen.data_hash
    for other in (result.of_classes(labels[:1]), result) if len(labels) < 4 else ():
        refused(paired_difference, ParameterError, "ground truth differ", chosen, other)
    unknown = "no figures of 'ship', only of a, b, c, z; name those"
    refused(result.of_classes, ParameterError, unknown, ["a", "ship"])
    refused(result.without_classes().of_classes, ParameterError, "no figures of 'a'", ["a"])
    assert result.of_classes([]).summary()[["map", "low", "high"]].isna().all(axis=None)


def test_a_sentence_says_where_few_images_read_high():
    # ten boxes a class among thirty false ones, ranked by chance: what comes first on few images is luck
    rows = [(f"im{(6 * i + c) % 60}", f"class {c}", 0, 0, 10, 10) for c in range(40) for i in range(10)]
    truth, empty = truth_frame(*rows), ranked(*[(*row[:2], 50, 50, 60, 60) for row in rows * 3])
    found = pd.concat([truth, empty], ignore_index=True)
    found["score"] = np.random.default_rng(0).random(len(found))
    result = boot(found, truth, 60, n_resamples=100, iou_thresholds=[0.3, 0.5])
    excess = result.map_samples.mean(axis=0)[0] - result.map[0]
    assert result.bias_note() == (
        "Average precision of few images reads high against that of very many: on half of these 60 mAP@0.30 reads "
        f"{excess:.3f} higher, more than half its interval's width, so on very many it would read lower by about as "
        "much or more."
    )
    assert paired_difference(result, result).bias_note() == ""
    assert boot(truth.assign(score=0.5), truth, 60).bias_note() == ""


# one clear line for each bad input


@pytest.mark.parametrize(("change", "message"), [
    ({"image_ids": image_ids(7)}, "images or ground truth"),
    ({"ground_truth": random_frames(7)[1].iloc[1:]}, "images or ground truth"),
    ({"seed": 4}, "seed"),
    ({"n_resamples": 6}, "number of resamples"),
    ({"interpolation": "area"}, "interpolation"),
    ({"iou_thresholds": [0.5]}, "IoU thresholds"),
])  # fmt: skip
def test_pairing_is_refused_where_images_seed_or_settings_differ(change, message):
    detections, truth = random_frames(7)
    reference = boot(detections, truth, seed=3)
    paired_difference(reference, boot(detections, truth.sample(frac=1, random_state=0), seed=3))
    other = boot(**{"detections": detections, "ground_truth": truth, "seed": 3, **change})
    refused(paired_difference, ParameterError, f"not a paired comparison: the {message} differ", reference, other)


@pytest.mark.parametrize(("change", "message"), [
    ({"detections": ranked().drop(columns=["score", "xmin"])}, "lacks the column xmin, score"),
    ({"ground_truth": truth_frame().drop(columns="label")}, "ground_truth lacks the column label"),
    ({"detections": detection_frame((*HIT, np.nan))}, "row 0 .*finite"),
    ({"detections": ranked(HIT).astype({"score": "str"})}, "not numbers"),
    ({"ground_truth": truth_frame(HIT, ("1", "ship", 9, 0, 1, 1))}, "ground_truth row 1 .*xmin <= xmax and"),
    ({"detections": ranked(("1", "ship", 0, 9, 1, 1))}, "detections row 0 .*ymin <= ymax"),
    ({"ground_truth": truth_frame(("1", None, 0, 0, 1, 1))}, "no label in row 0"),
    ({"ground_truth": truth_frame(HIT).assign(label=[["ship"]])}, "label holds values that cannot be compared"),
    ({"detections": ranked(("elsewhere", *HIT[1:]))}, "not in image_ids"),
    ({"image_ids": ["im0", "im0"]}, "names 'im0' twice"),
    ({"iou_thresholds": [0.5, 0.0]}, "iou_thresholds"),
    ({"iou_thresholds": []}, "iou_thresholds"),
    ({"iou_thresholds": "half"}, "iou_thresholds"),
    ({"iou_thresholds": [0.5, 0.5]}, "once"),
    ({"interpolation": "12point"}, "11point, area, coco101"),
    ({"n_resamples": 0}, "n_resamples"),
    ({"seed": 0.5}, "seed"),
])  # fmt: skip
def test_bad_input(change, message):
    arguments = {"detections": ranked(), "ground_truth": truth_frame(), "image_ids": [], **change}
    refused(bootstrap_map, ParameterError, message, **arguments)
