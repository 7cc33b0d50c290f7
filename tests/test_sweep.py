from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from refusals import refused

from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.measures import MEASURES
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, chosen_kind
from surgerylib.study.settings import (
    Criterion,
    at_percentiles,
    post_processing_variants,
    setting_grid,
    sweep,
    sweep_frame,
)

KINDS = ["standard", "vv_qk", "vv_vv", "vv_mixed"]
LISTS = {"kinds": KINDS, "similarities": ["cosine", "surgery"], "layer_counts": [1, 3], "percentiles": [60, 90]}


def test_a_sweep_is_a_tidy_frame_of_every_setting(tiny, tmp_path):
    root = write_scenes(tmp_path / "scenes", num_train=0, num_val=0, num_test=4, size=96)
    store = HeatmapStore(tiny, load_dataset(root, "test"), tmp_path / "cache").compute()
    grid = setting_grid(**LISTS)
    found = sweep(store, [*grid, grid[0]], n_resamples=20, workers=1, cache_dir=tmp_path)
    assert len(found.distinct) == (2 + 3) * 2 * 2 < len(found.settings) == len(grid) == 32
    assert len(list(tmp_path.rglob("*.npz"))) == 10  # a file for the settings of one map
    frame = sweep_frame(found)
    assert len(frame) == len(grid) * 2 * 6
    assert not frame.duplicated(["setting", "protocol", "iou_threshold"]).any()
    assert set(MEASURES) < set(frame.columns)
    row = frame.query("setting == 9 and protocol == 'all' and iou_threshold == 0.15").iloc[0]
    assert found.value(grid[9], "all", 0.15) == (row["map"], row["low"], row["high"])
    assert found.value(grid[9], "all") == (row["mean_map"], row["mean_low"], row["mean_high"])
    assert (row["kind"], row["last_layers"], row["percentile"]) == (grid[9].kind, grid[9].layers, grid[9].percentile)
    variants = post_processing_variants(grid[0], {"box_scores": ["max"], "unions": [[60, 90]]})
    both = found.joined(sweep(store, [grid[0], *variants.values()], n_resamples=20, workers=1))
    shown = sweep_frame(both)
    assert shown["setting"].nunique() == len(both.settings) == 32 + 3
    assert shown["box_score"].unique().tolist() == ["mean", "max"]
    assert set(shown.loc[shown["percentile"].isna(), "threshold"]) == {"60 + 90", "otsu"}
    pd.testing.assert_frame_equal(shown.iloc[: len(frame)], frame)


def test_a_setting_at_other_percentiles():
    setting = Setting(percentile=90, box_score="max")
    assert at_percentiles(setting, [60, 75]) == [Setting(percentile=p, box_score="max") for p in (60, 75)]
    assert at_percentiles(Setting(percentile="otsu"), [60]) == []


def test_variants_change_one_thing_and_leave_out_what_changes_nothing():
    plain = Setting(min_side=10)
    tries = {"nms_ious": [0.3], "min_sides": [10, 20], "max_sides": [100], "box_scores": ["mean", "max"],
             "unions": [[75, 90]]}  # fmt: skip
    floors = {"percentile 95 of all values": 0.25, "a small one": 0.000123456}
    variants = post_processing_variants(plain, tries, floors)
    assert variants == {
        "NMS at 0.3": replace(plain, nms_iou=0.3),
        "sides > 20": Setting(min_side=20),
        "sides ≤ 100": replace(plain, max_side=100),
        "score max": replace(plain, box_score="max"),
        "percentiles 75 + 90, NMS at 0.5": replace(plain, percentile=(75, 90), nms_iou=0.5),
        "floor at 0.25 (percentile 95 of all values)": replace(plain, floor=0.25),
        "floor at 0.000123 (a small one)": replace(plain, floor=0.000123456),
        "Otsu's threshold": replace(plain, percentile="otsu"),
    }
    assert post_processing_variants(replace(plain, floor=0.25), {}, {"the same": 0.25}, otsu=False) == {}
    small = replace(plain, max_side=100)
    assert list(post_processing_variants(small, {"min_sides": [20, 100, 120]}, otsu=False)) == ["sides > 20"]


def of_grid(bad: dict) -> object:
    return setting_grid(**{**LISTS, **bad})


def of_variants(bad: dict) -> object:
    return [post_processing_variants(plain, bad) for plain in (Setting(), Setting(max_side=100))]


@pytest.mark.parametrize(
    ("call", "bad", "message"),
    [
        (of_grid, {"percentiles": []}, r"percentiles is \[\]"),
        (of_grid, {"percentiles": [75, 100]}, "between 0 and 100.*100"),
        (of_grid, {"percentiles": [75, 75.0]}, "twice"),
        (of_grid, {"percentiles": 75}, "percentiles is 75"),
        (of_grid, {"percentiles": ["otsu", 75]}, "percentiles holds 'otsu'"),
        (of_grid, {"percentiles": [[75, 85], 90]}, r"percentiles holds \[75, 85\]"),
        (of_grid, {"percentiles": [None]}, "between 0 and 100"),
        (of_grid, {"kinds": ["vv"]}, "unknown heatmap kind"),
        (of_grid, {"layer_counts": [1, 1]}, "layer_counts names one value twice"),
        (of_grid, {"similarities": ["dot"]}, "similarities: similarity must be"),
        (of_grid, {"layer_counts": [0]}, "layer_counts: layers .*got 0"),
        (of_grid, {"layer_counts": [True]}, "layer_counts: layers .*got True"),
        # these ended in a traceback
        (of_variants, {"unions": [75, 85]}, "each must be a list of percentiles"),
        (of_variants, {"unions": [["a"]]}, "unions: .*between 0 and 100"),
        (of_variants, {"unions": [[75, 101]]}, "between 0 and 100"),
        (of_variants, {"unions": 75}, "unions is 75"),
        (of_variants, {"nms_ious": ["x"]}, "nms_ious: nms_iou .*got 'x'"),
        (of_variants, {"nms_ious": [None]}, "nms_ious is"),
        (of_variants, {"nms_ious": [0]}, "nms_ious: nms_iou .*got 0"),
        (of_variants, {"box_scores": [["a"]]}, "box_scores: box_score must be"),
        (of_variants, {"min_sides": [-1]}, "min_sides: min_side .*got -1"),
        (of_variants, {"min_sides": ["a"]}, "min_sides: min_side .*got 'a'"),
        (of_variants, {"max_sides": [2]}, "max_sides: max_side must be above min_side"),
        (lambda bad: Criterion(*bad).check([0.5]), ("some",), "choose_protocol is 'some'"),
        (lambda bad: Criterion(*bad).check([0.5]), ("all", 0.4), r"choose_iou is 0\.4"),
        (lambda bad: chosen_kind(*bad), ("vv_vv", ["standard"]), "not among kinds"),
        (lambda bad: chosen_kind(*bad), (None, []), r"kinds is \[\]"),
        (lambda bad: chosen_kind(*bad), (None, ["vv_vv", "vv_vv"]), "each once"),
    ],
)
def test_what_cannot_be_tried_or_chosen_by_is_refused(call, bad, message):
    refused(lambda: call(bad), ParameterError, message)


def test_names_of_criteria_and_the_kind_that_is_compared():
    assert (Criterion().name, Criterion("all", 0.3).name) == ("mean mAP", "mAP@0.30")
    assert [chosen_kind(kind, KINDS) for kind in (None, "vv_qk")] == ["vv_mixed", "vv_qk"]
