from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.measures import MEASURES
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, chosen_kind, maps_of
from surgerylib.study.settings import (
    N_BINS,
    Criterion,
    at_percentiles,
    check_floor_percentiles,
    floor_values,
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
    assert list(post_processing_variants(replace(plain, floor=0.25), {}, {"the same": 0.25})) == ["Otsu's threshold"]
    small = replace(plain, max_side=100)
    assert list(post_processing_variants(small, {"min_sides": [20, 100, 120]}))[:-1] == ["sides > 20"]


def of_grid(bad: dict) -> object:
    return setting_grid(**{**LISTS, **bad})


def of_variants(bad: dict) -> object:
    return [post_processing_variants(plain, bad) for plain in (Setting(), Setting(max_side=100))]


@pytest.mark.parametrize(
    ("call", "bad", "message"),
    [
        (of_grid, {"percentiles": []}, r"percentiles is \[\]"),
        (of_grid, {"percentiles": [75, 75.0]}, "twice"),
        (of_grid, {"percentiles": 75}, "percentiles is 75"),
        (of_grid, {"percentiles": ["otsu", 75]}, "percentiles holds 'otsu'"),
        (of_grid, {"similarities": ["dot"]}, "similarities: similarity must be"),
        (of_grid, {"layer_counts": [True]}, "layer_counts: layers .*got True"),
        # these ended in a traceback
        (of_variants, {"unions": [75, 85]}, "each must be a list of percentiles"),
        (of_variants, {"unions": [["a"]]}, "unions: .*between 0 and 100"),
        (of_variants, {"unions": 75}, "unions is 75"),
        (of_variants, {"nms_ious": ["x"]}, "nms_ious: nms_iou .*got 'x'"),
        (of_variants, {"nms_ious": [None]}, "nms_ious is"),
        (of_variants, {"box_scores": [["a"]]}, "box_scores: box_score must be"),
        (of_variants, {"min_sides": ["a"]}, "min_sides: min_side .*got 'a'"),
        (of_variants, {"max_sides": [2]}, "max_sides: max_side must be above min_side"),
        (lambda bad: Criterion(*bad).check([0.5]), ("some",), "choose_protocol is 'some'"),
        (lambda bad: Criterion(*bad).check([0.5]), ("all", 0.4), r"choose_iou is 0\.4"),
        (lambda bad: chosen_kind(*bad), ("vv_vv", ["standard"]), "not among kinds"),
        (check_floor_percentiles, 90, "floor_percentiles is 90"),
        (check_floor_percentiles, "otsu", "floor_percentiles is 'otsu'"),
        (check_floor_percentiles, ["otsu"], "floor_percentiles holds 'otsu'"),
        (check_floor_percentiles, [0], r"floor_percentiles: .*between 0 and 100.*got 0"),
    ],
)
def test_what_cannot_be_tried_or_chosen_by_is_refused(call, bad, message):
    refused(lambda: call(bad), ParameterError, message)


def test_names_of_criteria_and_the_kind_that_is_compared():
    assert (Criterion().name, Criterion("all", 0.3).name) == ("mean mAP", "mAP@0.30")
    assert [chosen_kind(kind, KINDS) for kind in (None, "vv_qk")] == ["vv_mixed", "vv_qk"]


# -------------------------------------------------------------------------------------------------------------- floors

GRID = (3, 5)
PERCENTILES = [0.01, 30, 50, 80, 90, 95, 97, 99, 99.99]


class Stored:
    """As a computed store: similarities [n, L, 2, C, 1 + h * w] by the number of a shard, read anew for each call."""

    def __init__(self, n_shards: int, shard: Callable[[int], np.ndarray], grid: tuple[int, int] = GRID) -> None:
        self.n_shards, self.shard, self.grid = n_shards, shard, grid

    def blocks(self, most: int) -> list[tuple[int, int]]:
        return [(number, number + 1) for number in range(self.n_shards)]

    def maps(self, setting: Setting, start: int, stop: int) -> np.ndarray:
        stored = torch.from_numpy(self.shard(start)[:, -setting.layers :])
        return maps_of(stored, self.grid, setting.kind, similarity=setting.similarity).numpy()


def similarities(seed: int, n_images: int = 6, n_layers: int = 2, n_classes: int = 4) -> np.ndarray:
    shape = (n_images, n_layers, 2, n_classes, 1 + GRID[0] * GRID[1])
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05) + np.float32(0.2)


def assert_percentiles(store: Stored, source: Setting, percentiles: list[float] = PERCENTILES) -> None:
    """Within half a bin of the histogram, and float64's rounding."""
    found = floor_values(store, source, percentiles)
    assert list(found) == percentiles
    assert all(type(value) is float for value in found.values())
    values = np.concatenate([store.maps(source, *block).ravel() for block in store.blocks(64)]).astype(np.float64)
    allowed = 0.5 * np.ptp(values) / N_BINS + 1e-12 * np.abs(values).max()
    np.testing.assert_allclose(list(found.values()), np.percentile(values, percentiles), rtol=0, atol=allowed)


def test_floors_are_percentiles_of_all_values_of_any_range():
    for source in (Setting("standard"), Setting("vv_mixed", "surgery"), Setting("vv_qk", "cosine", 2)):
        assert_percentiles(Stored(3, lambda number: similarities(number, (7, 7, 2)[number])), source)
    for change in (
        lambda values: values * 1e-6 + 0.2,  # a range of a few units in the last place of float32
        lambda values: np.rint(values * 20) / 20,  # ties
        lambda values: np.where(values > 0.32, 50.0, values),  # a few values far above all others
    ):
        shards = [change(similarities(number)).astype(np.float32) for number in range(2)]
        assert_percentiles(Stored(2, shards.__getitem__), Setting())


def test_two_values_a_single_one_no_image_and_no_percentile():
    pair = np.array([0, 0, 1], np.float32) * np.ones((1, 1, 2, 1, 1), np.float32)
    assert_percentiles(Stored(1, lambda _: pair, (1, 2)), Setting(), [25, 50, 90])
    constant = Stored(1, lambda _: np.full((2, 1, 2, 3, 5), 0.25, np.float32), (2, 2))
    assert floor_values(constant, Setting(), [80, 99.0]) == {80: 0.25, 99.0: 0.25}
    assert floor_values(constant, Setting(), []) == floor_values(Stored(0, similarities), Setting(), PERCENTILES) == {}


def test_memory_holds_a_shard_at_a_time():
    store = Stored(120, lambda number: similarities(number, 64, 1, 20))
    tracemalloc.start()
    floor_values(store, Setting(), PERCENTILES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = 120 * store.maps(Setting(), 0, 1).nbytes
    assert peak < 4e6 < size / 2  # bytes; half of all values would not fit in
    assert_percentiles(store, Setting())
