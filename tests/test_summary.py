from __future__ import annotations

import json
from dataclasses import replace

import pytest

from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.store import HeatmapStore
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.intervals import with_interval
from surgerylib.study import summary
from surgerylib.study.summary import present_only, warnings_for

CLASSES = ("ship", "dam", "airport")
KINDS = {kind: Setting(kind) for kind in HEATMAP_KINDS}
FAST = {"n_resamples": 50, "workers": 1}


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory) -> HeatmapStore:
    """A ship and a dam on each image where the VV maps have a box of theirs, so that those kinds do better."""
    folder = tmp_path_factory.mktemp("data")
    data = load_dataset(write_scenes(folder / "scenes", num_train=0, num_val=0, num_test=12, size=96), "test")
    data = replace(data, classes=CLASSES, boxes=data.boxes.iloc[:0])
    plain = HeatmapStore(tiny, data, folder / "cache").compute()
    found = evaluate(plain, {"vv_mixed": Setting()}, **FAST).detections.query("label != 'airport'")
    boxes = found.groupby(["image_id", "label"]).head(1).drop(columns=["score", "kind"]).reset_index(drop=True)
    return HeatmapStore(tiny, replace(data, boxes=boxes), folder / "cache")


@pytest.fixture(scope="module")
def evaluated(store):
    return evaluate(store, KINDS, **FAST)


def of_images(store: HeatmapStore, n: int, **changes) -> HeatmapStore:
    images = store.dataset.images.iloc[:n]
    boxes = store.dataset.boxes[store.dataset.boxes["image_id"].isin(images["image_id"])].reset_index(drop=True)
    data = replace(store.dataset, images=images, **{"boxes": boxes, **changes})
    return HeatmapStore(store.clip, data, store.folder.parent).compute()


def test_present_keeps_annotated_classes_only(store, evaluated):
    truth, found = store.dataset.boxes, evaluated.detections
    kept = present_only(found, truth)
    assert set(kept["label"]) == {"ship", "dam"} < set(found["label"])
    assert 0 < len(kept) < len(found)
    assert present_only(found, truth.iloc[:0]).empty
    assert present_only(found.iloc[:0], truth).empty


def test_tables_hold_every_protocol_kind_and_threshold(evaluated):
    table = summary.map_table(evaluated)
    assert list(table.columns) == [f"mAP@{t:.2f}" for t in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)]
    assert table.index.tolist() == [(protocol, kind) for protocol in ("present", "all") for kind in HEATMAP_KINDS]
    assert table.loc[("all", "vv_mixed"), "mAP@0.05"] == with_interval(*evaluated.value("vv_mixed", "all", 0.05))
    difference = evaluated.difference("vv_mixed", "standard", "all", 0.05)
    assert summary.difference_table(evaluated).loc[0.05, "all"] == with_interval(*difference, sign=True)
    assert set(summary.class_table(evaluated, "vv_mixed", 0.05).index) >= {"ship", "dam"}


UP, DOWN, NONE = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)


@pytest.mark.parametrize(
    ("present", "every", "said"),
    [
        (UP, UP, "vv_mixed scores higher than standard: mAP@0.05"),
        (DOWN, DOWN, "vv_mixed scores lower than standard"),
        (NONE, NONE, "vv_mixed and standard cannot be told apart on these images"),
        (UP, NONE, "higher under present, not told apart otherwise"),
        (UP, DOWN, "higher under present and lower under all"),
    ],
)
def test_the_finding_says_what_the_intervals_allow(evaluated, monkeypatch, present, every, said):
    ends = {"present": present, "all": every}
    monkeypatch.setattr(
        type(evaluated), "difference", lambda self, a, b, protocol, iou=None: (sum(ends[protocol]) / 2, *ends[protocol])
    )
    assert said in summary.finding(evaluated)


def test_little_to_measure(store):
    one = evaluate(of_images(store, 1), KINDS, **FAST)
    blind = evaluate(of_images(store, 2, boxes=store.dataset.boxes.iloc[:0]), KINDS, **FAST)
    alone = evaluate(of_images(store, 4), {"vv_vv": Setting("vv_vv")}, **FAST)
    assert "interval not available" in summary.map_table(one).iloc[0, 0]
    assert "cannot be told apart" in summary.finding(one)
    assert "nothing can be measured" in summary.finding(blind)
    assert summary.map_table(blind).iloc[0, 0] == "no boxes"
    assert alone.differences(*summary.COMPARED).empty
    assert summary.difference_table(alone).empty
    assert "best of the kinds asked for is vv_vv" in summary.finding(alone)
    without = evaluate(of_images(store, 4), KINDS, boxes=lambda heatmap, size_wh: [], **FAST)
    assert (without.summary()["map"] == 0).all()


def test_results_are_plain_json_and_the_report_repeats_them(evaluated):
    results = summary.map_results(
        evaluated,
        settings={"similarity": "cosine", "description": "vv_mixed, cosine, percentile 75"},
        counts={"n_images": 40, "n_boxes": 80, "n_classes": 2}, notes=["Only 40 images."],
        files={"detections.parquet": "ab"},
        provenance={"model": "m", "weights": "w", "image_size": 224, "dataset": "d", "split": "test"},
    )  # fmt: skip
    again = json.loads(json.dumps(results, allow_nan=False))
    cell = again["protocols"]["all"]["vv_mixed"][0]
    assert cell["map"] == evaluated.value("vv_mixed", "all", 0.05)[0]
    report, interval = summary.markdown_report(again), with_interval(cell["map"], cell["low"], cell["high"])
    for text in (interval, "> Only 40 images.", "40 images, 80 boxes, 2 classes"):
        assert text in report


def test_known_error_14_weights_that_saw_dior_called_zero_shot():
    notes = warnings_for(n_images=100, saw_dior=True, random_weights=False)
    assert len(notes) == 1
    assert "pre-training data holds DIOR" in notes[0]
    assert "zero-shot" not in notes[0]
    assert warnings_for(n_images=100, saw_dior=False, random_weights=False) == []
    assert len(warnings_for(n_images=49, saw_dior=False, random_weights=True)) == 2
