"""From detections of known errors to the words that explain a class's failing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from surgerylib.datasets import Dataset
from surgerylib.figures import per_class as per_class_plots
from surgerylib.heatmaps import Setting
from surgerylib.metrics import average_precision
from surgerylib.study import per_class, per_class_tables
from surgerylib.study.classification import Classification
from surgerylib.study.error_types import detection_errors, error_decomposition, mean_gains
from surgerylib.words import DIOR_CLASSES, ERROR_TYPES

CLASSES = ("airport", "Expressway-toll-station", "ship", "windmill")  # windmill has no box
THRESHOLDS = [0.05, 0.5]
SOURCE = Setting()
KIND = "vv_mixed"
COLUMNS = ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]


def dataset(n_images: int = 12) -> Dataset:
    """In each image an airport on the left, a toll station on the right; ships in the first four."""
    ids = [f"{number:02d}" for number in range(n_images)]
    rows = [(image_id, "airport", 0, 0, 40, 40) for image_id in ids]
    rows += [(image_id, "Expressway-toll-station", 60, 60, 80, 80) for image_id in ids]
    rows += [(image_id, "ship", 60, 0, 70, 10) for image_id in ids[:4]]
    boxes = pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=COLUMNS).astype(
        dict.fromkeys(COLUMNS[2:], float)
    )
    images = pd.DataFrame({"image_id": ids, "path": "", "width": 100, "height": 100})
    return Dataset("d", Path("d"), "test", "DIOR", images, boxes, CLASSES, pd.DataFrame(), 0)


def detections(data: Dataset) -> pd.DataFrame:
    """Airports are found; toll stations are asked for on the airports, with a higher score than on their own; ships'
    boxes lie on nothing."""
    everywhere = [
        ("airport", 0, 0, 40, 40, 0.9),
        ("Expressway-toll-station", 0, 0, 40, 40, 0.8),
        ("Expressway-toll-station", 60, 60, 80, 80, 0.4),
        ("ship", 85, 85, 99, 99, 0.7),
        ("windmill", 85, 0, 99, 10, 0.7),
    ]
    rows = [(image_id, *box) for image_id in data.images["image_id"] for box in everywhere]
    rows += [(image_id, "ship", 60, 0, 70, 10, 0.3) for image_id in ("00", "01", "02", "03")]
    columns = [*COLUMNS, "score"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


def pairs(data: Dataset) -> pd.DataFrame:
    frame = data.boxes.groupby(["image_id", "label"]).size().reset_index(name="n_boxes")
    inside = frame["label"].map({"airport": 0.4, "Expressway-toll-station": 0.2, "ship": 0.1})
    return frame.assign(inside_mean=inside, outside_mean=0.15, inverted=(inside < 0.15).astype(float))


def classification(data: Dataset) -> Classification:
    label = pd.Index(CLASSES).get_indexer(data.boxes["label"])
    responses = np.full((len(label), len(CLASSES)), 0.1)
    responses[np.arange(len(label)), np.where(label == 1, 0, label)] = 0.9  # toll stations answer to airport
    return Classification(data, {SOURCE: responses}, {})


class Case:
    def __init__(self, data: Dataset, evaluation: dict | None = None) -> None:
        self.data = data
        self.found = detections(data)
        ap = average_precision(self.found, data.boxes, iou_thresholds=THRESHOLDS, classes=list(CLASSES))
        self.ap = ap.assign(protocol="all", kind=KIND, low=ap["ap"] - 0.01, high=ap["ap"])
        self.decomposition = error_decomposition(
            self.found, data.boxes, foreground_ious=THRESHOLDS, classes=list(CLASSES)
        )
        self.errors = detection_errors(self.found, data.boxes, foreground_iou=min(THRESHOLDS))
        self.figures = per_class.class_figures(
            classification(data), SOURCE, (4, 4), ap_by_class=self.ap,
            gaps=per_class.response_gaps({KIND: pairs(data)}, CLASSES), decomposition=self.decomposition,
            errors=self.errors, evaluation=evaluation,
        )  # fmt: skip
        self.failures = per_class.failing_classes(self.figures, THRESHOLDS, kind=KIND, count=2)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(dataset())


def test_every_class_has_its_figures(case):
    figures = case.figures
    assert list(figures.index) == list(CLASSES)
    assert figures["n_boxes"].tolist() == figures["n_images"].tolist() == [12, 12, 4, 0]
    assert figures["side"].tolist()[:3] == [40, 20, 10]
    np.testing.assert_allclose(figures["patches"][:3], [1600 / 625, 400 / 625, 100 / 625])
    assert figures.loc["airport", "mean_ap"] == 1
    station = figures.loc["Expressway-toll-station", ["right_first", "confused_with", "lies_on"]]
    assert station.tolist() == [0, "airport", "airport"]
    assert figures.loc["ship", ["inverted", "gap"]].tolist() == pytest.approx([1, -0.05])
    assert figures.loc["windmill", ["mean_ap", "side", "gap", "right_first"]].isna().all()
    assert figures["oracle"].isna().all()  # notebook 04 has not run


def test_the_causes_are_those_that_were_planted(case):
    # each ship ranks behind the twelve boxes on nothing, each toll station behind the twelve on airports
    assert [failure.label for failure in case.failures] == ["ship", "Expressway-toll-station"]
    # the airports lack nothing, and a class without boxes is not judged
    assert len(per_class.failing_classes(case.figures, THRESHOLDS, kind=KIND, count=4)) == 2
    ship, station = case.failures
    for failure, cause, *parts in (
        (ship, "background", "4 boxes (too few to be sure of)", "lower inside its boxes than outside by 0.050"),
        (station, "classification", "100 % lie on airport", "first in 0 % of its boxes, airport in 100 %"),
    ):
        assert (failure.cause, failure.gain) == (cause, pytest.approx(1 - failure.mean_ap))
        assert all(part in failure.sentence for part in parts)
    table = per_class_tables.failing_table(case.failures, case.ap, [0.05], KIND)
    assert table.loc["ship", "AP@0.05"] == f"{ship.mean_ap:.3f} [{ship.mean_ap - 0.01:.3f}, {ship.mean_ap:.3f}]"
    worst = f"ship (mean AP {ship.mean_ap:.3f} on 4 boxes: the background)"
    assert per_class.failing_finding(case.failures).startswith(f"The classes that fail most: {worst} and Expressway")
    assert per_class.failing_finding([ship]) == f"The class that fails most: {worst}."


def test_a_class_without_a_cause_and_a_class_list_without_boxes(case):
    none = dict.fromkeys([f"gain_{error}" for error in ERROR_TYPES], 0.0)
    row = case.figures.loc[["airport"]].assign(mean_ap=0.9, **none, **{"fate_found": 18, "fate_named otherwise": 2})
    (failure,) = per_class.failing_classes(row, THRESHOLDS, kind=KIND)
    assert failure.cause == per_class.NO_CAUSE
    assert "18 found, 2 named otherwise" in failure.sentence
    nothing = Case(dataset(0))
    assert nothing.failures == []
    assert "no class can be judged" in per_class.failing_finding([], any_boxes=False)
    assert per_class.failing_finding([]) == "No class fails: every class with boxes is found."
    assert "nothing can be decomposed" in per_class_tables.errors_finding(mean_gains(nothing.decomposition))


def test_the_order_of_images_boxes_and_detections_changes_nothing(case):
    images, boxes = (of.sample(frac=1, random_state=3, ignore_index=True) for of in (case.data.images, case.data.boxes))
    pd.testing.assert_frame_equal(Case(replace(case.data, images=images, boxes=boxes)).figures, case.figures)


def test_the_heads_figures_are_read_by_name(case):
    head = {"oracle": {"mean": {"value": 0.8, "low": None, "high": None}},
            "cam_peak": {"mean": {"value": 0.3, "low": 0.2, "high": 0.4}}}  # fmt: skip
    methods = {"ship": head, "windmill": None, "stranger": None}
    evaluation = {"by_class": {name: {"methods": of} for name, of in methods.items()}}
    figures = Case(case.data, evaluation).figures
    assert figures.loc["ship", ["oracle", "cam_peak"]].tolist() == [0.8, 0.3]
    assert np.isnan(figures.loc["ship", "oracle_low"])
    assert figures.loc[["airport", "windmill"], "oracle"].isna().all()
    table, _ = per_class_tables.overview(figures, case.ap, [0.05], KIND)
    assert table["head, CAM's peak"].tolist() == ["–", "–", "0.300", "no boxes"]  # no head was asked for an airport


def test_tables_say_no_boxes_and_never_0(case):
    table, numbers = per_class_tables.overview(case.figures, case.ap, [0.05, 0.5], KIND)
    columns = ["mean AP", "AP@0.05", "size, px", "mending it", "costliest error"]
    assert table.loc["windmill", ["boxes", *columns]].tolist() == ["0", *["no boxes"] * 5]
    assert "head, best cell" not in table
    assert all(len(values) == len(table) for values in numbers.values())
    gaps = per_class.response_gaps({"vv_vv = vv_mixed": pairs(case.data)}, CLASSES)
    card = per_class_tables.card_table("ship", case.ap, gaps, {"vv_vv = vv_mixed": KIND}, [0.05])
    assert card.loc["vv_vv = vv_mixed", "inverted"] == "1.000 [0.283, 1.000]"
    assert "4 boxes on 4 images" in per_class_tables.card_text(case.figures.loc["ship"], 0.05, KIND)


def test_results_are_plain_json(case):
    gains = mean_gains(case.decomposition)
    results = per_class_tables.per_class_results("f", case.failures, case.figures, gains, case.decomposition, kind=KIND)
    assert json.loads(json.dumps(results, allow_nan=False))["classes"]["windmill"]["mean_ap"] is None


def test_each_box_has_its_best_detection_and_each_class_its_examples(case):
    assert (per_class.best_detection_iou(case.found, case.data) == 1).all()
    worse = case.found.assign(xmin=case.found["xmin"] + np.where(case.found["image_id"] == "05", 2, 0))
    best = per_class.best_detection_iou(worse, case.data)
    assert best[case.data.boxes["image_id"].to_numpy() == "05"].max() < 1
    picked = per_class.pick_images(best, case.data, 2)
    assert set(picked) == {"airport", "Expressway-toll-station", "ship"}
    assert picked["airport"][1][0] == "05"
    good, bad = picked["ship"]
    assert (len(good), len(bad), len({*good, *bad})) == (2, 2, 4)
    one = dataset(1)
    assert per_class.pick_images(np.ones(len(one.boxes)), one, 2)["ship"] == (["00"], [])


def test_card_thresholds():
    shown = per_class_tables.card_thresholds
    assert shown([0.05, 0.1, 0.15, 0.2, 0.3, 0.5]) == [0.05, 0.15, 0.5]
    assert (shown([0.5]), shown([0.3, 0.5, 0.7, 0.9])) == ([0.5], [0.3, 0.5, 0.9])


def test_figures_draw_with_few_classes_and_none(case):
    empty = per_class.response_gaps({"standard = vv_qk": pairs(case.data).iloc[:0]}, CLASSES)
    per_class_plots.ap_against_size(case.figures[3:], "mean_ap", "t", "y", 20.0, kind=KIND).draw_without_rendering()
    per_class_plots.gap_dots(empty, CLASSES, per_class_tables.gaps_finding(empty)).draw_without_rendering()
    errors = per_class_plots.error_bars(case.figures, list(CLASSES), "t", "x")
    assert "no boxes" in " ".join(text.get_text() for axis in errors.axes for text in axis.texts)
    nothing = pd.DataFrame(columns=["label", "recall", "precision", "score"])
    aps = case.ap[case.ap["iou_threshold"] == 0.05].set_index("label")["ap"]
    grid = per_class_plots.precision_recall_grid({"vv_vv = vv_mixed": nothing}, aps, CLASSES, "t")
    assert [axis.texts[0].get_text() for axis in grid.axes[::3]] == ["AP 1.00", "no boxes"]


def test_labels_of_points_that_lie_close_cover_none_of_them_and_nothing_is_logged(caplog):
    """A label stuck between two points, half over both; and the placement's warning stood in the page."""
    side = [51, 281, 125, 94, 79, 70, 112, 133, 118, 234, 113, 204, 172, 57, 123, 58, 84, 173, 32, 91]
    ap = [90, 263, 311, 216, 15, 20, 16, 56, 453, 567, 280, 465, 398, 172, 569, 69, 260, 35, 87, 164]
    n_boxes = [58, 16, 10, 17, 27, 7, 13, 5, 5, 10, 16, 16, 9, 50, 11, 24, 26, 14, 67, 13]
    names = sorted(DIOR_CLASSES, key=str.lower)
    figures = pd.DataFrame({"side": side, "mean_ap": np.array(ap) / 1000, "n_boxes": n_boxes}, index=names)
    figure = per_class_plots.ap_against_size(figures, "mean_ap", "t", "y", 32.0, kind="vv_mixed")
    axis = figure.axes[0]
    figure.draw_without_rendering()
    centres = axis.transData.transform(figures[["side", "mean_ap"]].to_numpy())
    radii = np.sqrt(axis.collections[0].get_sizes()) / 2 * figure.dpi / 72
    labels = [text for text in axis.texts if text.get_text() in names]
    boxes = np.array([text.get_window_extent().extents for text in labels])
    nearest = np.clip(centres[None], boxes[:, None, :2], boxes[:, None, 2:])  # of each label's box to each centre
    assert (np.linalg.norm(nearest - centres, axis=-1) > radii - 1).all()
    assert sorted(text.get_text() for text in labels) == sorted(names)
    assert not caplog.records


def test_the_costliest_error_and_what_all_boxes_find_are_counted_by_class():
    gains = pd.DataFrame(0.0, index=list("abc"), columns=[f"gain_{error}" for error in ERROR_TYPES])
    assert "would give something back" in per_class_tables.costliest_finding(gains)
    gains.loc["a", "gain_missed"], gains.loc["b", ["gain_missed", "gain_both"]] = 0.2, (0.3, 0.1)
    gains.loc["c"] = np.nan
    assert per_class_tables.costliest_finding(gains) == "Errors of the type missed cost most in 2 of 2 classes"
    curves = pd.DataFrame([("a", 0.2), ("a", 0.5), ("b", 0.4)], columns=["label", "recall"])
    said = per_class_tables.recall_finding(curves, ["a", "b", "c"], "vv_mixed")
    assert said == "All boxes of vv_mixed together find half of the objects or more in 1 of 3 classes"


# ---------------------------------------------------------------------------------------- precision and recall


BOX = {"xmin": 0.0, "ymin": 0.0, "xmax": 10.0, "ymax": 10.0}
ASKED = pd.DataFrame([{"image_id": image, "label": label, **BOX} for image, label in ["aX", "bX", "cX", "aY"]])


def ranked(*rows: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "label", "score"]).assign(**BOX)


def test_a_curve_by_hand_and_of_nothing():
    found = ranked(("z", "X", 0.9), ("a", "X", 0.8), ("y", "X", 0.7), ("b", "X", 0.6), ("a", "Z", 0.9))
    frame = per_class.precision_recall(found, ASKED, iou_threshold=0.5, classes=["X", "Y", "Z"])
    assert set(frame["label"]) == {"X"}  # Y has no true positive, Z no box
    expected = [[1 / 3, 1 / 2, 0.8], [2 / 3, 2 / 4, 0.6]]
    np.testing.assert_allclose(frame[["recall", "precision", "score"]], expected)
    assert per_class.precision_recall(found[:0], ASKED, iou_threshold=0.5).empty
    assert per_class.precision_recall(found, ASKED[:0], iou_threshold=0.5).empty


def test_the_area_under_the_envelope_is_the_average_precision():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame([{"image_id": f"{i}", "label": "X", **BOX} for i in range(300)])
    found = ranked(*((f"{i}", "X", rng.random()) for i in rng.permutation(600)))
    frame = per_class.precision_recall(found, truth, iou_threshold=0.5, most_points=1000)
    envelope = np.maximum.accumulate(frame["precision"].to_numpy()[::-1])[::-1]
    area = np.sum(np.diff(frame["recall"], prepend=0) * envelope)
    expected = average_precision(found, truth, iou_thresholds=[0.5], interpolation="area")["ap"].iloc[0]
    assert abs(area - expected) < 1e-12
    thinned = per_class.precision_recall(found, truth, iou_threshold=0.5, most_points=50)
    assert len(thinned) == 50
    assert thinned["recall"].iloc[[0, -1]].tolist() == frame["recall"].iloc[[0, -1]].tolist()
