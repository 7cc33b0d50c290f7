from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from surgerylib.boxes import extract_boxes
from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.evaluate import DetectionSettings, detect
from surgerylib.engine.finding import boxes_of, detections_frame
from surgerylib.engine.measures import MEASURES, best_overlaps, measure_boxes, present_pairs
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CacheError, OutputError, ParameterError
from surgerylib.heatmaps import Setting, chosen_kind
from surgerylib.metrics import bootstrap_map, paired_difference
from surgerylib.study import sweep as sweep_module
from surgerylib.study.summary import evaluate_kinds
from surgerylib.study.sweep import Criterion, at_percentiles, post_processing_variants, setting_grid, sweep

KINDS = ["standard", "vv_qk", "vv_vv", "vv_mixed"]
FAST = {"n_resamples": 50, "workers": 1}


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory) -> HeatmapStore:
    root = write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=0, num_val=0, num_test=8, size=96)
    return HeatmapStore(tiny, load_dataset(root, "test"), tmp_path_factory.mktemp("cache")).compute()


@pytest.fixture(scope="module")
def grid() -> list[Setting]:
    return setting_grid(
        kinds=KINDS, similarities=["cosine", "surgery"], layer_counts=[1, 3], percentiles=[30, 60, 75, 90]
    )


@pytest.fixture(scope="module")
def swept(store, grid):
    return sweep(store, grid, **FAST)


def test_the_boxes_of_a_sweep_are_those_of_extract_boxes_setting_by_setting_bit_for_bit(store):
    percentiles = (30.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)
    settings = [
        *(Setting(percentile=value) for value in percentiles),
        Setting(percentile=90.0, nms_iou=0.3, score="max"),
        Setting(percentile=(60.0, 90.0), nms_iou=0.5, min_side=8, max_side=100),
        Setting(percentile="otsu", score="mean_sqrt_area"),
        Setting(percentile=60.0, floor=0.02),
    ]
    for source in (Setting("standard"), Setting("vv_mixed", "surgery", 3)):
        tables = boxes_of(store.shards, [source], settings, workers=2)[source]
        for setting, table in zip(settings, tables, strict=True):
            for image, (width, height) in enumerate(store.dataset.images[["width", "height"]].to_numpy()):
                maps = store.maps(image, source)
                for label in range(len(store.dataset.classes)):
                    alone = extract_boxes(
                        maps[label],
                        (int(width), int(height)),
                        percentile=setting.percentile,
                        min_side=setting.min_side,
                        max_side=setting.max_side,
                        score=setting.score,
                        nms_iou=setting.nms_iou,
                        floor=setting.floor,
                    )
                    own = table.boxes[(table.image == image) & (table.label == label)]
                    np.testing.assert_array_equal(own, alone)


def test_the_frame_is_tidy_and_its_map_is_average_precision_of_detect(tiny, store, grid, swept):
    frame = swept.frame
    assert len(frame) == len(grid) * 2 * 6
    assert not frame.duplicated(["setting", "protocol", "iou_threshold"]).any()
    assert set(MEASURES) < set(frame.columns)
    settings = DetectionSettings(similarity="surgery", percentile=60, last_layers=3)
    detections = detect(tiny, store.dataset, settings, workers=1)
    kinds = evaluate_kinds(
        detections,
        store.dataset.boxes,
        image_ids=store.dataset.images["image_id"],
        classes=store.dataset.classes,
        n_resamples=50,
    )
    rows = frame[(frame["similarity"] == "surgery") & (frame["percentile"] == 60) & (frame["last_layers"] == 3)]
    joined = kinds.summary.merge(rows, on=["protocol", "kind", "iou_threshold"], suffixes=("", "_swept"))
    assert len(joined) == 4 * 2 * 6
    for name in ("map", "low", "high"):
        np.testing.assert_array_equal(joined[name], joined[f"{name}_swept"])


def test_kinds_with_the_same_maps_are_evaluated_once_and_differ_by_exactly_nothing(grid, swept):
    assert swept.n_distinct == (2 + 3) * 2 * 4 < len(swept.settings) == 64
    by_kind = {s.source.kind: s for s in grid if s.source.similarity == "cosine" and s.boxes.percentile == 75}
    assert swept.difference(by_kind["vv_vv"], by_kind["vv_mixed"], "all") == (0, 0, 0)
    assert swept.difference(by_kind["standard"], by_kind["vv_qk"], "present", 0.05) == (0, 0, 0)


def test_intervals_and_differences_are_those_of_the_whole_bootstrap(store, grid, swept):
    a, b = grid[0], grid[-1]
    results = []
    for setting in (a, b):
        table = boxes_of(store.shards, [setting.source], [setting.boxes], workers=1)[setting.source][0]
        frame = detections_frame(table, store.dataset)
        results.append(
            bootstrap_map(
                frame,
                store.dataset.boxes,
                image_ids=store.dataset.images["image_id"],
                classes=store.dataset.classes,
                n_resamples=50,
            )
        )
        assert swept.value(setting, "all") == results[-1].mean_over_thresholds()
        assert swept.value(setting, "all", 0.15) == tuple(results[-1].summary().loc[2, ["map", "low", "high"]])
    whole = paired_difference(*results)
    assert swept.difference(a, b, "all") == whole.mean_over_thresholds()
    expected = whole.summary().loc[5, ["difference", "low", "high"]]
    assert swept.difference(a, b, "all", 0.5) == tuple(expected)


def test_the_best_setting_has_the_highest_map_and_equals_prefer_the_papers_kind(grid, swept):
    for protocol in ("present", "all"):
        for iou in (None, 0.05, 0.5):
            best = swept.best(protocol, iou)
            assert swept.value(best, protocol, iou)[0] == max(swept.value(s, protocol, iou)[0] for s in grid)
    same = [setting for setting in grid if setting.source.similarity == "cosine" and "vv_" in setting.source.kind]
    same = [setting for setting in same if setting.source.kind != "vv_qk"]
    only = replace(swept, settings=tuple(same))
    assert only.best("all").source.kind == "vv_mixed"
    best = swept.best("all")
    for other in swept.not_told_apart(best, "all"):
        _, low, high = swept.difference(best, other, "all")
        assert low <= 0 <= high


def test_a_rerun_takes_finished_figures_from_the_cache(store, grid, swept, tmp_path, monkeypatch):
    first = sweep(store, grid, cache_dir=tmp_path, **FAST)
    pd.testing.assert_frame_equal(first.frame, swept.frame)
    assert len(list(tmp_path.rglob("*.npz"))) == 10

    def not_again(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(sweep_module, "boxes_one_by_one", not_again)
    again = sweep(store, grid, cache_dir=tmp_path, **FAST)
    pd.testing.assert_frame_equal(again.frame, first.frame)
    assert again.difference(grid[0], grid[5], "all") == first.difference(grid[0], grid[5], "all")
    for other in ({"seed": 1}, {"interpolation": "area"}, {"iou_thresholds": [0.5]}):
        with pytest.raises(AssertionError, match="computed again"):
            sweep(store, grid[:1], cache_dir=tmp_path, **FAST, **other)


def test_an_interrupted_sweep_goes_on_behind_the_last_whole_map(store, grid, swept, tmp_path, monkeypatch):
    real, calls = sweep_module.boxes_one_by_one, []

    def killed_at_the_fourth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(sweep_module, "boxes_one_by_one", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        sweep(store, grid, cache_dir=tmp_path, **FAST)
    pd.testing.assert_frame_equal(sweep(store, grid, cache_dir=tmp_path, **FAST).frame, swept.frame)
    assert len(calls) == 4 + 7


def test_a_damaged_figure_file_is_named(store, grid, tmp_path):
    sweep(store, grid[:1], cache_dir=tmp_path, **FAST)
    path = next(tmp_path.rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match=path.name):
        sweep(store, grid[:1], cache_dir=tmp_path, **FAST)


def test_the_progress_bar_ends_at_its_total_with_and_without_cache(store, grid, tmp_path, monkeypatch):
    bars = []

    class Bar(sweep_module.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(sweep_module, "tqdm", Bar)
    for _ in range(2):
        sweep(store, grid[:9], cache_dir=tmp_path, **FAST)
    assert [bar.n for bar in bars] == [bar.total for bar in bars]
    assert bars[0].total > 0


def test_joined_sweeps_hold_every_setting_once(store, grid, swept):
    plain = grid[-1]
    variants = post_processing_variants(plain, nms_ious=[0.5], box_scores=["max"])
    changed = sweep(store, [plain, *variants.values()], **FAST)
    both = swept.joined(changed)
    assert len(both.settings) == len(set(both.settings)) == len(grid) + len(variants)
    assert both.frame["setting"].nunique() == len(both.settings)
    pd.testing.assert_frame_equal(both.joined(changed).frame, both.frame)  # nothing new
    for number, setting in enumerate(both.settings):
        row = both.frame[both.frame["setting"] == number].iloc[0]
        assert (row["kind"], row["box_score"]) == (setting.source.kind, setting.boxes.score)


def test_a_selection_of_settings_keeps_their_figures(grid, swept):
    few = swept.of(grid[3:5])
    assert few.settings == tuple(grid[3:5])
    assert few.frame["setting"].unique().tolist() == [0, 1]
    assert few.value(grid[4], "all") == swept.value(grid[4], "all")
    assert few.best("all") in grid[3:5]


def test_a_setting_at_other_percentiles():
    setting = Setting(boxes=Setting(90.0, score="max"))
    assert [own.boxes for own in at_percentiles(setting, [60, 75])] == [
        Setting(60.0, score="max"), Setting(75.0, score="max"),
    ]  # fmt: skip
    assert at_percentiles(Setting(boxes=Setting("otsu")), [60]) == []


def box_table(rows: list[tuple[int, int, float, float, float, float]], shape: tuple[int, int]) -> BoxTable:
    values = np.array(rows, dtype=float).reshape(-1, 6)
    boxes = np.column_stack([values[:, 2:], np.zeros(len(values))])
    activated = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    return BoxTable(values[:, 0].astype(np.int32), values[:, 1].astype(np.int16), boxes, activated)


def test_measures_by_hand(store):
    data = store.dataset
    ids = data.images["image_id"].iloc[:2].tolist()
    truth = pd.DataFrame(
        [
            (ids[0], data.classes[0], 0.0, 0.0, 10.0, 10.0),
            (ids[0], data.classes[0], 50.0, 50.0, 60.0, 60.0),
            (ids[1], data.classes[2], 0.0, 0.0, 20.0, 10.0),
        ],
        columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"],
    )
    few = replace(data, images=data.images.iloc[:2], boxes=truth)
    table = box_table(
        [
            (0, 0, 0, 0, 10, 10),  # IoU 1 with the first
            (0, 0, 50, 50, 60, 55),  # 0.5 with the second
            (0, 0, 90, 90, 95, 95),  # nothing
            (1, 0, 0, 0, 20, 10),  # the class is not in this image
            (1, 2, 0, 0, 10, 10),  # 0.5
            (1, 3, 0, 0, 10, 10),
            (1, 3, 20, 0, 30, 10),
        ],
        (2, len(data.classes)),
    )
    present = present_pairs(few)
    assert present.sum() == 2
    own = measure_boxes(table, few, present)
    assert own["boxes_per_image"] == 2
    assert own["mean_iou"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert own["max_iou"] == 1
    assert own["mean_best_iou"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert own["activated_share"] == pytest.approx(table.activated[present].mean())
    assert np.isnan(own["false_box_rate"])
    every = measure_boxes(table, few)
    assert every["boxes_per_image"] == 3.5
    assert every["mean_iou"] == pytest.approx(2 / 7)
    absent = 2 * len(data.classes) - 2
    assert every["false_box_rate"] == pytest.approx(2 / absent)
    assert every["boxes_per_absent_class"] == pytest.approx(3 / absent)
    nothing = measure_boxes(box_table([], (2, len(data.classes))), few)
    assert nothing["boxes_per_image"] == 0
    assert nothing["mean_best_iou"] == 0
    assert np.isnan(nothing["mean_iou"])


def test_best_overlaps_by_hand(store):
    data = store.dataset
    ids = data.images["image_id"].iloc[:2].tolist()
    truth = pd.DataFrame(
        [
            (ids[1], data.classes[2], 0.0, 0.0, 20.0, 10.0),  # not in the order of the images
            (ids[0], data.classes[0], 50.0, 50.0, 60.0, 60.0),
            (ids[0], data.classes[0], 0.0, 0.0, 10.0, 10.0),
            (ids[0], data.classes[1], 0.0, 0.0, 10.0, 10.0),
        ],
        columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"],
    )
    few = replace(data, images=data.images.iloc[:2], boxes=truth)
    table = box_table(
        [
            (0, 0, 0, 0, 10, 10),  # IoU 1 with the third
            (0, 0, 0, 0, 10, 5),  # 0.5 with the same
            (0, 0, 50, 50, 60, 54),  # 0.4 with the second
            (0, 2, 0, 0, 20, 10),  # the class is in the other image alone
            (1, 0, 0, 0, 10, 10),  # likewise
            (1, 2, 0, 0, 15, 10),  # 0.75 with the first
        ],
        (2, len(data.classes)),
    )
    of_box, of_truth = best_overlaps(table, few, np.ones(6, bool))
    assert of_box.tolist() == [1, 0.5, 0.4, 0, 0, 0.75]
    assert of_truth.tolist() == [0.75, 0.4, 1, 0]
    of_box, of_truth = best_overlaps(table, few, np.array([False, True, True, False, True, False]))
    assert of_box.tolist() == [0.5, 0.4, 0]
    assert of_truth.tolist() == [0, 0.4, 0.5, 0]
    of_box, of_truth = best_overlaps(table, few, np.zeros(6, bool))
    assert (of_box.tolist(), of_truth.tolist()) == ([], [0, 0, 0, 0])
    of_box, of_truth = best_overlaps(table, replace(few, boxes=truth.iloc[:0]), np.ones(6, bool))
    assert (of_box.tolist(), of_truth.tolist()) == ([0] * 6, [])


def test_no_images_and_no_ground_truth(store, grid):
    data = store.dataset
    without = replace(data, boxes=data.boxes.iloc[:0])
    blind = HeatmapStore(store.clip, without, store.folder.parent).compute()
    found = sweep(blind, grid[:2], **FAST)
    assert found.frame["map"].isna().all()
    assert found.best("all") == grid[0]
    assert Setting() not in found.not_told_apart(grid[0], "all")
    none = HeatmapStore(store.clip, replace(without, images=data.images.iloc[:0]), store.folder.parent).compute()
    assert np.isnan(sweep(none, grid[:1], **FAST).frame["boxes_per_image"]).all()


def test_variants_change_one_thing_and_leave_out_what_changes_nothing():
    plain = Setting(boxes=Setting(min_side=10))
    variants = post_processing_variants(
        plain, nms_ious=[0.3], min_sides=[10, 20], max_sides=[100], box_scores=["mean", "max"], unions=[[75, 90]],
        floors={"percentile 95 of all values": 0.25, "a small one": 0.000123456},
    )  # fmt: skip
    assert list(variants) == [
        "NMS at 0.3", "sides > 20", "sides ≤ 100", "score max", "percentiles 75 + 90, NMS at 0.5",
        "floor at 0.25 (percentile 95 of all values)", "floor at 0.000123 (a small one)", "Otsu's threshold",
    ]  # fmt: skip
    assert variants["floor at 0.25 (percentile 95 of all values)"].boxes == Setting(min_side=10, floor=0.25)
    of_floor = replace(plain, boxes=replace(plain.boxes, floor=0.25))
    assert "floor at 0.25 (the same)" not in post_processing_variants(of_floor, floors={"the same": 0.25})
    assert variants["percentiles 75 + 90, NMS at 0.5"].boxes == Setting((75, 90), min_side=10, nms_iou=0.5)
    assert variants["sides > 20"].boxes == Setting(min_side=20)


def test_a_setting_by_the_names_of_the_notebooks_and_in_words():
    setting = Setting(
        Setting("standard", "surgery", 3),
        Setting((60, 90), min_side=9, max_side=99, score="max", nms_iou=0.5, floor=0.25),
    )
    assert setting.parameters() == {
        "kind": "standard", "similarity": "surgery", "last_layers": 3, "percentile": [60, 90], "min_side": 9,
        "max_side": 99, "box_score": "max", "nms_iou": 0.5, "floor": 0.25, "adapter": None,
    }  # fmt: skip
    assert setting.describe() == (
        "standard, surgery, mean of the last 3 layers, percentile 60 + 90, floor 0.25, NMS at 0.5, sides > 9, "
        "sides ≤ 99, score max"
    )
    assert Setting().parameters()["floor"] is None
    adapted = Setting(Setting("vv_mixed", "cosine", 3, "0123456789ab"))
    assert adapted.describe() == "vv_mixed, cosine, adapter on the last 3 layers, percentile 75"
    assert Setting(boxes=Setting(floor=-0.012345)).describe() == "vv_mixed, cosine, percentile 75, floor -0.0123"
    assert Setting(boxes=Setting("otsu")).describe() == "vv_mixed, cosine, Otsu's threshold"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"percentiles": []}, r"percentiles is \[\]"),
        ({"percentiles": [75, 100]}, r"between 0 and 100.*100"),
        ({"percentiles": [0]}, "between 0 and 100"),
        ({"percentiles": [75, 75.0]}, "twice"),
        ({"percentiles": 75}, "percentiles is 75"),
        ({"kinds": ["vv"]}, "unknown heatmap kind"),
        ({"layer_counts": [1, 1]}, "layer_counts names one value twice"),
        ({"similarities": ["dot"]}, "unknown similarity"),
        ({"layer_counts": [0]}, "layer_counts holds 0"),
        ({"layer_counts": [True]}, "layer_counts holds True"),
    ],
)
def test_a_grid_of_values_that_cannot_be(bad, message):
    lists = {"kinds": KINDS, "similarities": ["cosine"], "layer_counts": [1], "percentiles": [75]}
    with pytest.raises(ParameterError, match=message) as error:
        setting_grid(**{**lists, **bad})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [[0], [1.2], [], ["0.5"], [0.5, 0.5], [float("nan")], [[0.1, 0.2], [0.3, 0.4]]])
def test_iou_thresholds_that_cannot_be(store, grid, bad):
    with pytest.raises(ParameterError, match="iou_thresholds"):
        sweep(store, grid[:1], iou_thresholds=bad, **FAST)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"unions": [75, 85]}, "each must be a list of percentiles"),
        ({"unions": [["a"]]}, "between 0 and 100"),
        ({"unions": [[75, 101]]}, "between 0 and 100"),
        ({"unions": 75}, "unions is 75"),
        ({"nms_ious": ["x"]}, "NMS threshold"),
        ({"nms_ious": [None]}, "nms_ious is"),
        ({"nms_ious": [0]}, "NMS threshold"),
        ({"floors": [0.25]}, r"floors is \[0.25\]"),
        ({"floors": {"no": None}}, "floors is"),
        ({"floors": {"none": float("nan")}}, "floors: the floor must be a finite number"),
        ({"box_scores": [["a"]]}, "unknown box score"),
        ({"min_sides": [-1]}, "each of min_sides"),
        ({"max_sides": [2]}, "each of max_sides"),
    ],
)
def test_bug_lists_of_what_cannot_be_tried_ended_in_a_traceback(bad, message):
    with pytest.raises(ParameterError, match=message) as error:
        post_processing_variants(Setting(), **bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [["otsu", 75], [[75, 85], 90], [None]])
def test_bug_a_grid_took_what_is_no_percentile(bad):
    with pytest.raises(ParameterError, match="percentile"):
        setting_grid(kinds=KINDS, similarities=["cosine"], layer_counts=[1], percentiles=bad)


def test_bug_many_percentiles_needed_more_open_files_than_a_process_may_have(store):
    percentiles = np.linspace(1, 99, 150).round(3).tolist()
    settings = setting_grid(kinds=["vv_mixed"], similarities=["cosine"], layer_counts=[1], percentiles=percentiles)
    few = HeatmapStore(store.clip, store.dataset.sample(1), store.folder.parent).compute()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 100, hard))
    try:
        assert len(sweep(few, settings, **FAST).settings) == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_boxes_that_cannot_be_kept_are_one_line(store, grid, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        sweep(store, grid[:1], cache_dir=tmp_path, **FAST)


def test_no_settings_an_unknown_criterion_and_a_kind_that_is_not_compared(store):
    with pytest.raises(ParameterError, match="no settings"):
        sweep(store, [])
    with pytest.raises(ParameterError, match="choose_protocol is 'some'"):
        Criterion("some").check([0.5])
    with pytest.raises(ParameterError, match=r"choose_iou is 0\.4"):
        Criterion("all", 0.4).check([0.5])
    with pytest.raises(ParameterError, match="not among kinds"):
        chosen_kind("vv_vv", ["standard"])
