"""Boxes of every image and class, and their figures: held against one image, one class and one setting at a time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from disturbed import stop
from judged_frames import judged
from refusals import refused

from surgerylib.boxes import extract_many
from surgerylib.datasets import load_dataset
from surgerylib.engine import evaluation as module
from surgerylib.engine import finding
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.finding import Boxes, find_boxes
from surgerylib.engine.measures import MEASURES, best_overlaps, measure_boxes, present_pairs
from surgerylib.engine.parallel import in_processes
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CacheError, OutputError, ParameterError, UnknownClassError
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.metrics import BootstrapResult

FAST = {"n_resamples": 30, "workers": 1}
KINDS = {kind: Setting(kind, percentile=60) for kind in HEATMAP_KINDS}
COLUMNS = ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
CUTS = [
    Setting("standard", "surgery", 2),
    Setting("standard", "surgery", 2, (60, 90), nms_iou=0.5, min_side=8, max_side=100),
    Setting("standard", "surgery", 2, "otsu", box_score="max", floor=0.0),
]


@pytest.fixture(scope="module")
def store(tiny, training_root, tmp_path_factory) -> HeatmapStore:
    return HeatmapStore(tiny, load_dataset(training_root, "train", limit=6), tmp_path_factory.mktemp("cache")).compute()


@pytest.fixture(scope="module")
def found(store):
    return evaluate(store, KINDS, **FAST)


# ------------------------------------------------------------------------------------------------------- boxes


def test_boxes_are_those_of_every_image_and_class_under_each_setting_bit_for_bit(store):
    data = store.dataset
    tables = find_boxes(store, CUTS, workers=1)
    maps = np.concatenate([store.maps(CUTS[0], *block) for block in store.blocks(4)])
    sizes_wh = data.images[["width", "height"]].to_numpy().tolist()
    for setting, table in zip(CUTS, tables, strict=True):
        for image, label in np.ndindex(maps.shape[:2]):
            (expected,) = extract_many(maps[image, label], sizes_wh[image], [setting])
            rows = (table.image == image) & (table.label == label)
            np.testing.assert_array_equal(table.boxes[rows], expected.boxes)
            assert table.activated[image, label] == np.float32(expected.activated)
        order = np.lexsort((-table.boxes[:, 4], table.label, table.image))
        np.testing.assert_array_equal(order, np.arange(len(order)))
        assert len(order)


def test_workers_and_pieces_do_not_change_the_boxes(store, monkeypatch):
    alone = find_boxes(store, CUTS, workers=1)
    for options in ({"workers": 2}, {"workers": 1}):
        for mine, theirs in zip(find_boxes(store, CUTS, **options), alone, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
        monkeypatch.setattr(finding, "_PIECE", 1)


def test_no_images_and_no_ground_truth(store):
    data = store.dataset
    without = replace(data, boxes=data.boxes.iloc[:0])
    blind = evaluate(HeatmapStore(store.clip, without, store.folder.parent), KINDS, **FAST)
    assert blind.summary()["map"].isna().all()
    assert blind.best("all") == "vv_mixed"  # of equals the paper's kind
    assert len(blind.detections)
    none = HeatmapStore(store.clip, replace(without, images=data.images.iloc[:0]), store.folder.parent).compute()
    empty = evaluate(none, KINDS, **FAST)
    assert empty.detections.empty
    assert list(empty.detections) == [*COLUMNS, "score", "kind"]
    assert np.isnan(empty.figures["vv_mixed", "all"].measures["boxes_per_image"])


# -------------------------------------------------------------------------------------------------- their figures


def test_figures_are_those_of_the_boxes_as_frames_with_their_bootstrap(store, found):
    data, kinds = store.dataset, ("vv_mixed", "standard")
    judge = judged(
        found.detections, data.boxes, image_ids=data.images["image_id"], classes=data.classes, kinds=kinds,
        n_resamples=30,
    )  # fmt: skip
    mine = found.of(kinds)
    for own, expected in (
        (mine.summary(), judge.summary()), (mine.by_class(), judge.by_class()),
        (mine.differences(*kinds), judge.differences(*kinds)),
    ):  # fmt: skip
        assert len(own)
        pd.testing.assert_frame_equal(own, expected, check_exact=True)


def test_kinds_with_equal_maps_are_found_and_judged_once_and_differ_by_exactly_nothing(store, found, monkeypatch):
    find = Mock(wraps=module.find_boxes)
    monkeypatch.setattr(module, "find_boxes", find)
    again = evaluate(store, {**KINDS, "again": Setting("vv_vv", percentile=60), "other": Setting("vv_vv")}, **FAST)
    assert [len(call.args[1]) for call in find.call_args_list] == [1, 2]  # settings of equal maps
    assert again.difference("vv_vv", "vv_mixed", "all") == (0, 0, 0)
    assert again.difference("standard", "vv_qk", "present", 0.05) == (0, 0, 0)
    assert [sorted(names) for names in again.distinct.values()] == [
        ["standard", "vv_qk"], ["again", "vv_mixed", "vv_vv"], ["other"],
    ]  # fmt: skip
    by_kind = {kind: frame.drop(columns="kind").to_numpy() for kind, frame in again.detections.groupby("kind")}
    np.testing.assert_array_equal(by_kind["vv_vv"], by_kind["vv_mixed"])
    assert not np.array_equal(by_kind["standard"], by_kind["vv_vv"])


def test_known_error_13_no_cap_on_detections(store):
    table = np.tile([0.0, 0, 10, 10, 0.1], (150, 1))
    own = evaluate(store, boxes=lambda heatmap, size_wh: table, **FAST)
    assert (own.detections.groupby(["image_id", "label"]).size() == 150).all()


def test_the_first_setting_that_reads_high_says_so_also_beside_another_of_its_kind(store, monkeypatch):
    same = evaluate(store, {"a": Setting(percentile=60), "b": Setting(percentile=90)}, n_resamples=2)
    high = {id(same.figures[name, "all"].ap): name for name in "ab"}
    said = lambda own, of="": f"{high[id(own)]}{of}" if id(own) in high else ""  # noqa: E731
    monkeypatch.setattr(BootstrapResult, "bias_note", said)
    assert same.bias_notes() == ["a (vv_mixed, all)"]
    assert same.of(["b"]).bias_notes() == ["b (vv_mixed, all)"]
    high.clear()
    assert same.bias_notes() == []


def test_the_best_has_the_highest_map_and_a_selection_keeps_its_figures(found):
    for protocol in ("present", "all"):
        for iou in (None, 0.05):
            best = found.best(protocol, iou)
            assert found.value(best, protocol, iou)[0] == max(found.value(kind, protocol, iou)[0] for kind in KINDS)
            for other in found.not_told_apart(best, protocol, iou):
                _, low, high = found.difference(best, other, protocol, iou)
                assert low <= 0 <= high
    few = found.of(["vv_vv", "vv_mixed", "gone"])
    assert list(few.settings) == ["vv_vv", "vv_mixed"]
    assert few.best("all") == "vv_mixed"
    assert set(few.detections["kind"]) == {"vv_vv", "vv_mixed"}
    both = few.joined(found.of(["standard", "vv_vv"]))
    assert list(both.settings) == ["vv_vv", "vv_mixed", "standard"]


# ----------------------------------------------------------------------------------------------- what is kept


def test_a_rerun_takes_finished_figures_from_the_folder_and_says_so(store, tmp_path, monkeypatch, capsys):
    settings = {f"{kind} {p}": Setting(kind, percentile=p) for kind in ("standard", "vv_mixed") for p in (60, 90)}
    options = {"details": False, "cache_dir": tmp_path, **FAST}
    calls = stop(monkeypatch, module, "find_boxes", 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(store, settings, **options)
    assert "there already" not in capsys.readouterr().out
    first = evaluate(store, settings, **options)  # goes on behind the first maps
    made_of = f"{store.clip.name}, weights {store.clip.weights.sha256[:12]}, store version 2, evaluation version 1"
    assert capsys.readouterr().out == f"figures: 2 of 4 settings were there already, made of {made_of}\n"
    assert (len(calls), len(list(tmp_path.rglob("*.npz")))) == (3, 2)
    again, plain = evaluate(store, settings, **options), evaluate(store, settings, details=False, **FAST)
    assert len(calls) == 5
    two = ("standard 60", "vv_mixed 90", "all")
    for other in (again, plain):
        pd.testing.assert_frame_equal(other.summary(), first.summary())
        assert other.difference(*two) == first.difference(*two)
        assert other.figures["standard 60", "all"].measures == first.figures["standard 60", "all"].measures
    for change in ({"seed": 1}, {"interpolation": "area"}, {"iou_thresholds": [0.5]}, {"n_resamples": 31}):
        evaluate(store, {"": Setting("standard", percentile=60)}, **{**options, **change})
    assert len(list(tmp_path.glob("figures-*"))) == 5
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    refused(lambda: evaluate(store, settings, **options), CacheError, r"\.npz cannot be read .*; delete it")


def test_other_annotations_are_not_served_the_figures_of_these(store, tmp_path):
    options = {"details": False, "cache_dir": tmp_path, **FAST}
    moved = store.dataset.boxes.assign(xmin=lambda frame: frame["xmin"] * 0.5)
    other = HeatmapStore(store.clip, replace(store.dataset, boxes=moved), store.folder.parent)
    found = [evaluate(of, KINDS, **options).summary() for of in (store, other)]
    assert other.folder == store.folder
    assert not found[0].equals(found[1])


def test_bug_many_percentiles_needed_more_open_files_than_a_process_may_have(store):
    settings = {p: Setting(percentile=float(p)) for p in np.linspace(1, 99, 50).round(3)}
    few = HeatmapStore(store.clip, store.dataset.sample(1), store.folder.parent).compute()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, hard))
    try:
        assert len(evaluate(few, settings, details=False, n_resamples=1, workers=1).settings) == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------------------------------------------ measures


def box_table(rows: list[tuple[float, ...]], shape: tuple[int, int]) -> Boxes:
    values = np.array(rows, dtype=float).reshape(-1, 6)
    boxes = np.column_stack([values[:, 2:], np.zeros(len(values))])
    activated = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    return Boxes(values[:, 0].astype(np.int32), values[:, 1].astype(np.int16), boxes, activated)


def test_measures_and_overlaps_by_hand(store):
    data = store.dataset
    a, b = data.images["image_id"].iloc[:2]
    names = data.classes
    truth = pd.DataFrame(
        [(b, names[2], 0, 0, 20, 10), (a, names[0], 50, 50, 60, 60), (a, names[0], 0, 0, 10, 10)], columns=COLUMNS
    ).astype(dict.fromkeys(COLUMNS[2:], "float64"))
    few = replace(data, images=data.images.iloc[:2], boxes=truth)
    table = box_table(
        [
            (0, 0, 0, 0, 10, 10),  # IoU 1 with the third
            (0, 0, 50, 50, 60, 55),  # 0.5 with the second
            (0, 0, 90, 90, 95, 95),  # nothing
            (1, 0, 0, 0, 20, 10),  # known error 1: the class is in the other image alone
            (1, 2, 0, 0, 10, 10),  # 0.5 with the first
            (1, 3, 0, 0, 10, 10),
            (1, 3, 20, 0, 30, 10),
        ],
        (2, len(names)),
    )
    for kept, expected in ((True, ([1, 0.5, 0, 0, 0.5, 0, 0], [0.5, 0.5, 1])), (False, ([], [0, 0, 0]))):
        assert tuple(of.tolist() for of in best_overlaps(table, few, np.full(7, kept))) == expected
    present = present_pairs(few)
    every = np.ones_like(present)
    absent, nan, activated = 2 * len(names) - 2, np.nan, table.activated
    for found, expected in (  # in the order of `MEASURES`
        (measure_boxes(table, few, present), (2, 2 / 4, 1, 2 / 3, activated[present].mean(), nan, nan)),
        (measure_boxes(table, few, every), (3.5, 2 / 7, 1, 2 / 3, activated.mean(), 2 / absent, 3 / absent)),
        (measure_boxes(box_table([], (2, len(names))), few, every), (0, nan, nan, 0, activated.mean(), 0, 0)),
    ):
        assert [found[name] for name in MEASURES] == pytest.approx(list(expected), nan_ok=True)


# ----------------------------------------------------------------------------------------------------- processes
# functions inside of functions travel by value: a worker need not import this file, and torch with it


def test_what_workers_and_readers_of_settings_load_is_not_torch():
    names = ["surgerylib", "surgerylib.boxes", "surgerylib.engine.evaluation", "surgerylib.engine.own"]
    code = f"import sys, {', '.join(names)}; print(bool({{'torch', 'open_clip', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "False\n", done.stderr


def test_results_come_in_the_order_of_the_tasks_from_as_many_processes_as_asked_for():
    def slow_at_first(number: int) -> tuple[int, int]:
        import os
        import time

        time.sleep(0.05 if number == 0 else 0)
        return number * number, os.getpid()

    for workers in (1, 2):
        found = list(in_processes(slow_at_first, range(12), sizes=[1] * 12, workers=workers, description="squares"))
        assert [square for square, _ in found] == [number * number for number in range(12)]
        assert (os.getpid() in [pid for _, pid in found]) == (workers == 1)
    assert [*in_processes(slow_at_first, [3], sizes=[1], workers=2, description="x")] == [(9, os.getpid())]
    assert list(in_processes(slow_at_first, [], sizes=[], workers=2, description="x")) == []


@pytest.mark.parametrize("error", [ParameterError, UnknownClassError, ZeroDivisionError])
def test_an_error_of_a_worker_arrives_as_itself(error):
    def fails(number: int) -> int:
        if number == 2:
            raise error("the number is 2; take another")
        return number

    with pytest.raises(error, match=r"^the number is 2; take another$") as raised:
        list(in_processes(fails, [0, 1, 2, 3], sizes=[1] * 4, workers=2, description="x"))
    assert raised.type is error


@pytest.mark.slow
def test_a_killed_worker_is_an_error_of_one_line_and_the_next_work_goes_on():
    def killed(number: int) -> int:
        import os
        import signal

        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    options = {"sizes": [1] * 4, "workers": 2, "description": "boxes of all maps"}
    refused(lambda: list(in_processes(killed, range(4), **options)), OutputError,
            "a worker process died during: boxes of all maps")  # fmt: skip
    assert list(in_processes(abs, range(4), **options)) == [0, 1, 2, 3]
