"""Error types and what mending them gains: worked by hand, and judged by a slow reading of the definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refused
from test_metrics import BOX, WITH_EACH, detection_frame, random_frames, slow_iou, truth_frame

from surgerylib.errors import ParameterError
from surgerylib.matching import INTERPOLATIONS
from surgerylib.study.error_types import detection_errors, error_decomposition, fates_by_class, mean_gains
from surgerylib.words import ERROR_TYPES

SHIP_A, SHIP_B, DAM = ("1", "ship", 0, 0, 10, 10), ("1", "ship", 40, 0, 50, 10), ("1", "dam", 80, 0, 90, 10)


def detection(label: str, xmin: float, score: float, image_id: str = "1") -> tuple:
    """A box of 10 by 10 pixels at ymin 0; 5 pixels beside another one its IoU with that is 1/3."""
    return (image_id, label, xmin, 0, xmin + 10, 10, score)


def random_case(seed: int, n_truth: int = 30, n_detections: int = 100, score_steps: int = 12):
    """Crowded images with many equal scores and IoUs; a fifth of the detections gets another name."""
    detections, truth = random_frames(seed, 5, n_truth, n_detections, "abc", score_steps)
    rng = np.random.default_rng(seed)
    renamed = rng.random(len(detections)) < 0.2
    detections.loc[renamed, "label"] = rng.choice(list("abc"), renamed.sum())
    return detections, truth


# the judge


def slow_errors(detections, truth, f, b, matching):
    """Types, truth rows and found boxes, one detection after the other."""
    rows, boxes = list(detections.itertuples(index=False)), list(truth.itertuples(index=False))
    types, truth_rows, found = [""] * len(rows), [-1] * len(rows), set()
    ious = [[slow_iou(row[2:6], box[2:6]) * (row.image_id == box.image_id) for box in boxes] for row in rows]
    for i in sorted(range(len(rows)), key=lambda i: -rows[i].score):
        own = [j for j, box in enumerate(boxes) if box.label == rows[i].label]
        other = [j for j, box in enumerate(boxes) if box.label != rows[i].label]
        best_own = max(own, key=lambda j: ious[i][j], default=None)
        best_other = max(other, key=lambda j: ious[i][j], default=None)
        own_iou = 0.0 if best_own is None else ious[i][best_own]
        other_iou = 0.0 if best_other is None else ious[i][best_other]
        choice = best_own
        if matching == "coco":
            choice = max((j for j in own if j not in found), key=lambda j: (ious[i][j], j), default=None)
        if choice is not None and ious[i][choice] >= f and choice not in found:
            found.add(choice)
        elif own_iou > 0 and b <= own_iou < f:
            types[i], truth_rows[i] = "localisation", best_own
        elif other_iou >= f:
            types[i], truth_rows[i] = "classification", best_other
        elif own_iou >= f:
            types[i] = "duplicate"
        elif max(own_iou, other_iou) <= b:
            types[i] = "background"
        else:
            types[i] = "both"
    return types, truth_rows, [j in found for j in range(len(boxes))]


def slow_ap(flags, n_truth, interpolation) -> float:
    """AP of true and false positives by rank."""
    if not n_truth:
        return float("nan")
    points = [(hits / n_truth, hits / rank) for rank, hits in enumerate(np.cumsum(flags), start=1)]
    if interpolation == "area":
        levels = [hits / n_truth for hits in range(1, sum(flags) + 1)]
    else:
        levels = [k / 10 for k in range(11)] if interpolation == "11point" else np.linspace(0, 1, 101)
    highest = [max((precision for recall, precision in points if recall >= level), default=0) for level in levels]
    return sum(highest) / (n_truth if interpolation == "area" else len(levels))


def slow_decomposition(detections, truth, f, interpolation) -> list[tuple]:
    """(label, error, count, ap, ap_fixed), by editing the list of right and wrong detections, without matching anew."""
    types, truth_rows, found = slow_errors(detections, truth, f, f / 5, "coco" if interpolation == "coco101" else "voc")
    labels, scores = detections["label"].tolist(), detections["score"].tolist()
    names = truth["label"].tolist()
    meant = {row for row in truth_rows if row >= 0}
    missed = {j for j in range(len(names)) if not found[j] and j not in meant}
    rows = []
    for label in sorted({*labels, *names}):

        def ap(error, label=label):
            ranked = []  # (score, row, is right)
            for i, (own, kind, row) in enumerate(zip(labels, types, truth_rows, strict=True)):
                if kind != error or error == "":
                    ranked += [(-scores[i], i, kind == "")] * (own == label)
                elif row >= 0 and not found[row] and names[row] == label:
                    rivals = [k for k in range(len(types)) if types[k] == error and truth_rows[k] == row]
                    if i == max(rivals, key=lambda k: (scores[k], -k)):
                        ranked.append((-scores[i], i, True))
            gone = missed if error == "missed" else set()
            n_truth = sum(name == label and j not in gone for j, name in enumerate(names))
            return slow_ap([flag for *_, flag in sorted(ranked)], n_truth, interpolation)

        for error in ERROR_TYPES:
            count = sum(own == label and kind == error for own, kind in zip(labels, types, strict=True))
            if error == "missed":
                count = sum(names[j] == label for j in missed)
            plain, fixed = ap("none"), ap(error)
            rows.append((label, error, count, plain, plain if np.isnan(fixed) else fixed))
    return rows


def assert_equals_the_slow_reading(detections, truth, f, interpolation):
    matching = "coco" if interpolation == "coco101" else "voc"
    errors = detection_errors(detections, truth, foreground_iou=f, interpolation=interpolation)
    types, truth_rows, found = slow_errors(detections, truth, f, f / 5, matching)
    assert errors.of_detection.tolist() == types
    assert errors.truth_row.tolist() == truth_rows
    for j, fate in enumerate(errors.fate):
        wrong = {of for of, row in zip(types, truth_rows, strict=True) if row == j}
        missed = "named otherwise" if "classification" in wrong else "missed"
        assert fate == ("found" if found[j] else "badly located" if "localisation" in wrong else missed)
    ours = error_decomposition(detections, truth, foreground_ious=[f], interpolation=interpolation)
    theirs = slow_decomposition(detections, truth, f, interpolation)
    assert list(zip(ours["label"], ours["error"], ours["count"], strict=True)) == [row[:3] for row in theirs]
    expected = np.array([row[3:] for row in theirs]).reshape(-1, 2)
    np.testing.assert_allclose(ours[["ap", "ap_fixed"]], expected, rtol=0, atol=1e-12)
    known = ours.dropna(subset="gain")
    assert (known["gain"] >= -1e-12).all()
    assert (known["ap_fixed"] <= 1 + 1e-12).all()


# empty input first


@WITH_EACH
def test_empty_input(interpolation):
    assert_equals_the_slow_reading(detection_frame(), truth_frame(), 0.5, interpolation)
    errors = detection_errors(detection_frame(), truth_frame(), interpolation=interpolation)
    assert fates_by_class(errors, ["dam"]).loc["dam"].tolist() == [0, 0, 0, 0]
    listed = error_decomposition(detection_frame(), truth_frame(), classes=["dam"], interpolation=interpolation)
    assert list(listed) == ["label", "foreground_iou", "error", "count", "ap", "ap_fixed", "gain"]
    assert (listed["error"].tolist(), listed["count"].tolist()) == (list(ERROR_TYPES), [0] * 6)
    assert listed[["ap", "ap_fixed", "gain"]].isna().all(axis=None)
    assert list(mean_gains(listed.iloc[:0])) == ["foreground_iou", "error", "count", "map", "map_fixed", "gain"]


# worked by hand, under `area`


def test_all_types_together():
    truth = truth_frame(SHIP_A, SHIP_B, DAM, ("1", "ship", 120, 0, 130, 10), ("2", "dam", 0, 0, 10, 10))
    detections = detection_frame(
        detection("ship", 0, 0.99),
        detection("ship", 1, 0.9),  # duplicate
        detection("ship", 45, 0.8),  # localisation
        detection("ship", 80, 0.7),  # classification: the dam
        detection("ship", 85, 0.6),  # both
        detection("ship", 0, 0.5, image_id="2"),  # classification: the dam of image 2
        detection("ship", 0, 0.4, image_id="3"),  # background: image 3 has no boxes
    )
    errors = detection_errors(detections, truth, interpolation="area")
    types = ["", "duplicate", "localisation", "classification", "both", "classification", "background"]
    assert errors.of_detection.tolist() == types
    assert errors.truth_row.tolist() == [-1, -1, 1, 2, -1, 4, -1]
    assert errors.fate.tolist() == ["found", "badly located", "named otherwise", "missed", "named otherwise"]
    result = error_decomposition(detections, truth, interpolation="area")
    fates = fates_by_class(errors, ["airport"])
    assert fates.index.tolist() == ["airport", "dam", "ship"]
    assert list(fates.columns) == ["found", "named otherwise", "badly located", "missed"]
    assert fates.to_numpy().tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [1, 0, 1, 1]]
    means = mean_gains(result).set_index("error")
    assert means["count"].tolist() == [2, 1, 1, 1, 1, 1]
    assert means["map"].tolist() == pytest.approx([1 / 6] * 6)  # of the ships one of three, first of all; no dam
    # ships: hit, miss, hit of three boxes is (1 + 2/3) / 3 = 5/9; or one of the two that are not missed
    gains = pd.Series({"localisation": 2 / 9, "missed": 1 / 6, "classification": 1.0}) / 2
    assert means["gain"].to_dict() == pytest.approx(gains.reindex(ERROR_TYPES, fill_value=0.0).to_dict())


def test_several_foreground_ious():
    detections, truth = random_case(4)
    ious = (0.5, 0.05, 0.3)
    together = error_decomposition(detections, truth, foreground_ious=ious)
    assert together["foreground_iou"].tolist() == [*np.repeat(ious, 6)] * 3
    for iou, means in mean_gains(together).groupby("foreground_iou"):
        alone = error_decomposition(detections, truth, foreground_ious=[iou])
        pd.testing.assert_frame_equal(together[together["foreground_iou"] == iou].reset_index(drop=True), alone)
        pd.testing.assert_frame_equal(means.reset_index(drop=True), mean_gains(alone))


# against the judge


@settings(max_examples=40, deadline=None)
@example(seed=0, n_truth=5, n_detections=0, score_steps=3, f=0.5, interpolation="area")
@example(seed=0, n_truth=0, n_detections=5, score_steps=3, f=0.5, interpolation="area")
@given(
    seed=st.integers(0, 2**32 - 1),
    n_truth=st.integers(0, 20),
    n_detections=st.integers(0, 50),
    score_steps=st.sampled_from([1, 3, 1000]),
    f=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.75, 1.0]),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_equals_the_slow_reading_on_any_frame(seed, n_truth, n_detections, score_steps, f, interpolation):
    assert_equals_the_slow_reading(*random_case(seed, n_truth, n_detections, score_steps), f, interpolation)


def test_bounds_boxes_without_area_and_long_chains_of_refused_detections():
    # a fifth of the foreground's IoU with a box of another class: background, as in the original
    assert_equals_the_slow_reading(detection_frame(("1", "dam", 0, 0, 10, 1, 0.8)), truth_frame(SHIP_A), 0.5, "area")
    flat = ("1", "ship", 5, 5, 5, 5)
    assert_equals_the_slow_reading(detection_frame((*flat, 0.9)), truth_frame(flat), 0.5, "area")
    # each box overlaps the next, and every detection taken over pushes the one after it one box on
    truth = truth_frame(*[("1", "ship", 4 * i, 0, 4 * i + 10, 10) for i in range(40)])
    detections = detection_frame(*[("1", "ship", 4 * i - 1, 0, 4 * i + 9, 10, 1 - i / 100) for i in range(40)] * 2)
    for f in (0.1, 0.5):
        assert_equals_the_slow_reading(detections, truth, f, "coco101")


# what holds always


@WITH_EACH
def test_known_error_01_a_detection_means_a_box_of_another_image(interpolation):
    detections, truth = random_case(1)
    errors = detection_errors(detections, truth, foreground_iou=0.1, interpolation=interpolation)
    means_a_box = errors.truth_row >= 0
    assert means_a_box.any()
    wrong, meant = detections[means_a_box], truth.iloc[errors.truth_row[means_a_box]]
    assert (wrong["image_id"].to_numpy() == meant["image_id"].to_numpy()).all()
    assert fates_by_class(errors, ["c", "z"]).to_numpy().sum() == len(truth)


@pytest.mark.parametrize("kind", ["object", "category", "int64"])
def test_column_types_and_the_frames_stay_as_they_are(kind):
    detections, truth = random_case(6)
    expected = error_decomposition(detections, truth, interpolation="area")
    codes, frames = {"a": 0, "b": 1, "c": 2}, (detections, truth)
    if kind == "int64":
        frames = [of.assign(image_id=of["image_id"].str[2:], label=of["label"].map(codes)) for of in frames]
        expected["label"] = expected["label"].map(codes)
    # boxes are whole pixels here
    frames = [of.astype({"image_id": kind, "label": kind, **dict.fromkeys(BOX, "int32")}) for of in frames]
    before = [frame.copy() for frame in frames]
    result = error_decomposition(*frames, interpolation="area")
    pd.testing.assert_frame_equal(result, expected, check_dtype=False)
    for frame, old in zip(frames, before, strict=True):
        pd.testing.assert_frame_equal(frame, old)


# one clear line for each bad input


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (detection_errors, {"foreground_iou": 1.01}, "foreground_ious is .1.01.; "),
        (detection_errors, {"foreground_iou": True}, "foreground_ious"),
        (detection_errors, {"interpolation": "12point"}, "11point, area, coco101"),
        (detection_errors, {"detections": detection_frame().drop(columns="score")}, "lacks the column score"),
        (detection_errors, {"detections": detection_frame(detection("ship", 0, np.nan))}, "row 0 .*finite"),
        (error_decomposition, {"foreground_ious": ()}, "foreground_ious is"),
        (error_decomposition, {"foreground_ious": "half"}, "foreground_ious is"),
    ],
)
def test_bad_input(call, change, message):
    given = {"detections": detection_frame(), "ground_truth": truth_frame(), **change}
    refused(lambda: call(**given), ParameterError, message)
