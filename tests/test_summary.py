from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from surgerylib.intervals import number, with_interval
from surgerylib.study import summary
from surgerylib.study.summary import evaluate_kinds, present_only, warnings_for

CLASSES = ("ship", "dam", "airport")
BOX = ["xmin", "ymin", "xmax", "ymax"]


def frames(n_images: int = 40, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two boxes an image (ship, dam); `vv` kinds hit most of them, `standard` few, all kinds ask for every class."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(n_images):
        for label in CLASSES[:2]:
            corner = rng.uniform(0, 60, 2)
            truth.append((f"{image:03d}", label, *corner, *(corner + 30)))
            for kind, hits in (("standard", 0.2), ("vv_qk", 0.2), ("vv_vv", 0.9), ("vv_mixed", 0.9)):
                shift = 0 if np.random.default_rng([image, len(label), hits > 0.5]).random() < hits else 200
                found.append(
                    (f"{image:03d}", label, *(corner + shift), *(corner + 30 + shift), 0.5 + image / 100, kind)
                )
        for kind in ("standard", "vv_qk", "vv_vv", "vv_mixed"):
            found.append((f"{image:03d}", "airport", 0, 0, 9, 9, 0.9, kind))
    columns = ["image_id", "label", *BOX]
    return pd.DataFrame(truth, columns=columns), pd.DataFrame(found, columns=[*columns, "score", "kind"])


@pytest.fixture(scope="module")
def evaluated():
    truth, found = frames()
    ids = sorted(truth["image_id"].unique())
    return evaluate_kinds(found, truth, image_ids=ids, classes=CLASSES, n_resamples=200)


def test_present_keeps_annotated_classes_only():
    truth, found = frames(3)
    kept = present_only(found, truth)
    assert set(kept["label"]) == {"ship", "dam"}
    assert len(kept) == 3 * 2 * 4
    assert present_only(found, truth.iloc[:0]).empty
    assert present_only(found.iloc[:0], truth).empty


def test_table_holds_every_protocol_kind_and_threshold(evaluated):
    table = summary.map_table(evaluated)
    assert list(table.columns) == [f"mAP@{t:.2f}" for t in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)]
    assert len(table) == 8
    assert table.notna().all().all()


def test_equal_kinds_get_equal_numbers_and_the_difference_is_real(evaluated):
    rows = evaluated.summary.set_index(["protocol", "kind", "iou_threshold"])["map"].sort_index()
    for protocol in ("present", "all"):
        pd.testing.assert_series_equal(rows[protocol, "standard"], rows[protocol, "vv_qk"])
    differences = evaluated.differences.set_index(["protocol", "iou_threshold"])
    assert (differences["low"] > 0).all()
    assert differences["excludes_zero"].all()
    assert "vv_mixed scores higher than standard" in summary.finding(evaluated)


def test_paired_difference_of_a_kind_with_itself_is_exactly_zero():
    truth, found = frames(10)
    ids = sorted(truth["image_id"].unique())
    result = evaluate_kinds(
        found, truth, image_ids=ids, classes=CLASSES, compared=("vv_mixed", "vv_vv"), n_resamples=50
    )
    assert (result.differences[["difference", "low", "high"]] == 0).all().all()
    assert "cannot be told apart" in summary.finding(result)


def test_one_image_has_no_interval_and_says_so():
    truth, found = frames(1)
    result = evaluate_kinds(found, truth, image_ids=["000"], classes=CLASSES, n_resamples=10)
    assert result.summary["low"].isna().all()
    assert "interval not available" in summary.map_table(result).iloc[0, 0]
    assert "cannot be told apart" in summary.finding(result)


def test_no_ground_truth_at_all():
    truth, found = frames(2)
    result = evaluate_kinds(found, truth.iloc[:0], image_ids=["000", "001"], classes=CLASSES, n_resamples=10)
    assert "nothing can be measured" in summary.finding(result)
    assert summary.map_table(result).iloc[0, 0] == "no boxes"


def test_no_detections_at_all():
    truth, found = frames(4)
    kept = found[found["kind"] == "standard"].iloc[:1]
    result = evaluate_kinds(kept, truth, image_ids=sorted(truth["image_id"].unique()), classes=CLASSES, n_resamples=10)
    assert (result.summary[result.summary["kind"] == "vv_mixed"]["map"] == 0).all()
    assert len(result.differences) == 12


def test_one_kind_has_no_difference_and_the_finding_names_it():
    truth, found = frames(4)
    ids = sorted(truth["image_id"].unique())
    result = evaluate_kinds(found, truth, image_ids=ids, classes=CLASSES, kinds=["vv_vv"], n_resamples=10)
    assert set(result.summary["kind"]) == {"vv_vv"}
    assert result.differences.empty
    assert "best of the kinds asked for is vv_vv" in summary.finding(result)


def test_finding_names_the_protocol_where_the_two_differ(evaluated):
    rows = evaluated.differences.copy()
    rows.loc[rows["protocol"] == "all", ["low", "high"]] = -1.0, 1.0
    mixed = dataclasses.replace(evaluated, differences=rows)
    assert "higher under present, not told apart otherwise" in summary.finding(mixed)
    rows.loc[rows["protocol"] == "all", ["low", "high"]] = -1.0, -0.5
    both = dataclasses.replace(evaluated, differences=rows)
    assert "higher under present and lower under all" in summary.finding(both)


def test_class_in_one_image_has_no_interval():
    truth, found = frames(6)
    truth.loc[len(truth)] = ["000", "airport", 0, 0, 9, 9]
    ids = sorted(truth["image_id"].unique())
    result = evaluate_kinds(found, truth, image_ids=ids, classes=CLASSES, n_resamples=50)
    rows = result.by_class.set_index("label")
    assert rows.loc["airport", "ap"].notna().all()
    assert rows.loc["airport", "low"].isna().all()
    assert rows.loc["ship", "low"].notna().all()


def test_class_without_boxes_is_nan_and_never_zero(evaluated):
    rows = evaluated.by_class[evaluated.by_class["label"] == "airport"]
    assert rows["ap"].isna().all()
    assert (rows["n_ground_truth"] == 0).all()
    assert (rows["n_detections"] > 0).any()


def test_results_are_plain_json_and_the_report_repeats_them(evaluated):
    results = summary.map_results(
        evaluated,
        settings={"similarity": "cosine", "description": "vv_mixed, cosine, percentile 75"},
        counts={"n_images": 40, "n_boxes": 80, "n_classes": 2},
        notes=["Only 40 images."],
        files={"detections.parquet": "ab"},
        provenance={"model": "m", "weights": "w", "image_size": 224, "dataset": "d", "split": "test"},
    )
    again = json.loads(json.dumps(results, allow_nan=False))
    cell = again["protocols"]["all"]["vv_mixed"][0]
    expected = evaluated.value("all", "vv_mixed", 0.05)
    assert cell["map"] == expected["map"]
    text = summary.markdown_report(again)
    assert with_interval(cell["map"], cell["low"], cell["high"]) in text
    assert "> Only 40 images." in text
    assert "40 images, 80 boxes, 2 classes" in text


def test_with_interval():
    assert with_interval(0.3124, 0.28, 0.344) == "0.312 [0.280, 0.344]"
    assert with_interval(0.3, math.nan, math.nan) == "0.300 [interval not available]"
    assert with_interval(math.nan, math.nan, math.nan) == "no boxes"
    assert with_interval(-0.0001, -0.25, 0.0004) == "0.000 [−0.250, 0.000]"
    assert with_interval(0.1, -0.25, 0.3, sign=True) == "+0.100 [−0.250, +0.300]"
    assert number(-0.0001, sign=True) == "+0.000"


def test_known_error_14_weights_that_saw_dior_called_zero_shot():
    notes = warnings_for(n_images=100, saw_dior=True, random_weights=False)
    assert len(notes) == 1
    assert "pre-training data holds DIOR" in notes[0]
    assert "zero-shot" not in notes[0]
    assert warnings_for(n_images=100, saw_dior=False, random_weights=False) == []
    assert len(warnings_for(n_images=49, saw_dior=False, random_weights=True)) == 2
