"""A researcher's own idea in place of a part: a few lines, as good as built in, and never served for another."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from surgerylib.boxes import extract_boxes
from surgerylib.datasets import load_dataset
from surgerylib.engine import finding
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, heatmaps

FAST = {"n_resamples": 20, "workers": 1}


@pytest.fixture(scope="module")
def store(tiny, training_root, tmp_path_factory) -> HeatmapStore:
    return HeatmapStore(tiny, load_dataset(training_root, "test"), tmp_path_factory.mktemp("own")).compute()


def cell(text: str):
    """The function that a notebook's cell defines: nobody can import it."""
    names = {"__name__": "__main__"}
    exec(compile(text, "<ipython-input-1>", "exec", dont_inherit=True), names)
    return names["f"]


def assert_same(own, built_in) -> None:
    pd.testing.assert_frame_equal(own.detections.drop(columns="kind"), built_in.detections.drop(columns="kind"),
                                  check_exact=False, atol=1e-5)  # fmt: skip
    columns = ["protocol", "iou_threshold", "map", "low", "high"]
    pd.testing.assert_frame_equal(own.summary()[columns], built_in.summary()[columns], atol=1e-6)


# --------------------------------------------------------------------- each idea in a few lines, as a cell has them

SIMILARITY = "def f(similarities):\n    return similarities[-1, 1, :, 1:]"  # last layer, VV path, without CLS
TOKENS = "def f(tokens, text):\n    return (tokens.vv[-1, 0, 1:] @ text.T).T"
BOXES = """
from surgerylib.boxes import extract_boxes
PERCENTILE = 80
def f(heatmap, size_wh):
    return extract_boxes(heatmap, size_wh, percentile=PERCENTILE)
"""


@pytest.mark.parametrize(("heatmap", "setting"), [
    (cell(SIMILARITY), Setting("vv_mixed")),
    (cell(TOKENS), Setting("vv_mixed")),
    (lambda tokens, text: heatmaps(tokens, text, "vv_qk", similarity="surgery"), Setting("standard", "surgery", 3)),
])  # fmt: skip
def test_an_own_map_is_the_built_in_one(store, heatmap, setting):
    own = evaluate(store, heatmap=heatmap, name="my own", **FAST)
    assert list(own.settings) == ["my own"]
    assert len(own.detections) > 0
    assert_same(own, evaluate(store, {"": setting}, **FAST))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_own_box_function_is_the_built_in_one_in_worker_processes_too(store, workers, monkeypatch):
    monkeypatch.setattr(finding, "_PIECE", 2)  # three pieces: more than one process has work
    own = evaluate(store, boxes=cell(BOXES), n_resamples=20, workers=workers)
    assert_same(own, evaluate(store, {"": Setting(percentile=80)}, **FAST))


def test_own_maps_and_own_boxes_go_together_under_several_settings(store):
    named = {"a": Setting(percentile=60), "b": Setting(percentile=90), "c": Setting("standard")}
    own = evaluate(store, named, boxes=cell(BOXES), **FAST)
    pd.testing.assert_frame_equal(*(own.of([n]).detections.drop(columns="kind") for n in "ab"))
    assert own.difference("a", "b", "all") == (0, 0, 0)
    both = evaluate(store, heatmap=cell(SIMILARITY), boxes=cell(BOXES), **FAST)
    assert_same(both, evaluate(store, {"": Setting(percentile=80)}, **FAST))
    cut = evaluate(store, {f"{p}": Setting(percentile=p) for p in (60, 90)}, heatmap=cell(TOKENS), **FAST)
    assert_same(cut.of(["90"]), evaluate(store, {"": Setting(percentile=90)}, **FAST))


def test_functions_that_find_nothing(store):
    found = evaluate(store, boxes=lambda heatmap, size_wh: [], **FAST)
    assert found.detections.empty
    assert (found.summary()["map"] == 0).all()
    flat = evaluate(store, heatmap=lambda similarities: torch.zeros(similarities.shape[2], 4, 4), **FAST)
    assert flat.detections.empty


def test_an_own_kind_beside_built_in_ones_has_a_paired_difference(store):
    own = evaluate(store, heatmap=lambda s: s[-1, 1, :, 1:].sigmoid(), name="sigmoid", **FAST)
    both = own.joined(evaluate(store, {"vv_mixed": Setting()}, **FAST))
    assert set(both.detections["kind"]) == set(both.by_class()["kind"]) == {"sigmoid", "vv_mixed"}
    value, low, high = both.difference("sigmoid", "vv_mixed", "all", 0.05)
    assert low <= value <= high


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(("functions", "message"), [
    ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:].T}, r"\[20, 4, 4\].*got \[16, 20\]"),
    ({"heatmap": lambda similarities: "a map"}, "got str"),
    ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:] / 0}, "NaN or infinite"),
    ({"heatmap": lambda tokens, text: tokens.vv[-1, 0] @ text.T}, r"got \[17, 20\]"),
    ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, 1]]}, r"finite \[K, 5\].*got \[1, 4\]"),
    ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, np.nan, 1]]}, "finite"),
    ({"boxes": lambda heatmap, size_wh: "x"}, "got str"),
    ({"iou_threshold": [0.5]}, "'iou_threshold'; nearest: iou_thresholds"),
    ({"interpolation": "12point"}, "11point"),
    ({"settings": {}}, "no settings"),
])  # fmt: skip
def test_a_wrong_shape_or_name_is_one_line(store, functions, message):
    refused(evaluate, ParameterError, message, store, **functions, **FAST)


def test_an_unknown_name_of_a_setting_raises_with_the_nearest():
    refused(Setting, ParameterError, "box_score must be 'mean', .*got 'means'", box_score="means")
    refused(Setting, ParameterError, "there is no setting 'layer'; nearest: layers", layer=2)
    refused(extract_boxes, ParameterError, "nearest: percentile", np.eye(4), (9, 9), percentiles=3)


# -------------------------------------------------------------------------- never an old result for a new idea


WEIGHTED = "A = {}\ndef f(tokens, text):\n    return {} * (tokens.vv[-1, 0, 1:] @ text.T).T\n"


def test_a_changed_function_is_never_served_what_the_one_before_gave(store, tmp_path):
    found = {}
    for w in (1, -1, 1):
        f = cell(WEIGHTED.format(w, "A"))
        kept = evaluate(store, heatmap=f, details=False, cache_dir=tmp_path, **FAST).summary()
        found.setdefault(w, []).append((kept, evaluate(store, heatmap=f, **FAST).detections["score"].mean()))
    assert len(list(tmp_path.glob("figures-*"))) == 2
    (first, score), (again, _) = found[1]
    pd.testing.assert_frame_equal(first, again)
    assert score != pytest.approx(found[-1][0][1])


def test_nothing_of_a_function_that_cannot_be_told_stays_on_disk(store, tmp_path):
    before = sorted(store.folder.parent.iterdir())
    f = cell(WEIGHTED.format("[object()]", "len(A)"))
    own = evaluate(store, heatmap=f, details=False, cache_dir=tmp_path, **FAST).summary()
    assert sorted(store.folder.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
    pd.testing.assert_frame_equal(own.drop(columns="kind"), evaluate(store, **FAST).summary().drop(columns="kind"))


def test_maps_of_tokens_are_computed_once_and_a_rerun_says_so(store, tiny, monkeypatch, capsys):
    f = cell(TOKENS.replace("tokens.vv", "2 * tokens.vv"))
    first = evaluate(store, heatmap=f, **FAST)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(tiny, "encode_image", lambda *_: pytest.fail("the model was used"))
    pd.testing.assert_frame_equal(evaluate(store, heatmap=f, **FAST).summary(), first.summary())
    assert re.search("own-maps of 4 of 4 .* 1 of 1 files were there already, made of", capsys.readouterr().out)
