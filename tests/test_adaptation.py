"""Before and after an adapter: every figure is held against the judge that there was for it before."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from adapted_scenes import LAYERS, SEEN, adapted_store, load_adapters, write_adapter, write_adapters

from surgerylib.datasets import Dataset, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.adapter_training import LOSSES, AdapterSettings
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.finding import Boxes, find_boxes
from surgerylib.engine.measures import measure_boxes, present_pairs
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.metrics import bootstrap_map, paired_difference
from surgerylib.study import adaptation as module
from surgerylib.study.adaptation import (
    ALL,
    EVEN_ODDS,
    FIGURES,
    FLOOR_PERCENTILES,
    UNSEEN,
    best_states,
    choose_floor,
    class_groups,
    compare_adapted,
    states_of,
)
from surgerylib.study.adaptation import SEEN as OF_SEEN
from surgerylib.study.adapter_variants import loss_variants
from surgerylib.study.diagnosis import map_quality
from surgerylib.study.floors import floor_values
from surgerylib.study.quality import quality_difference, quality_summary
from surgerylib.study.summary import present_only
from surgerylib.study.sweep import Criterion, sweep
from surgerylib.words import PROTOCOLS

DRAWN = {"n_resamples": 40, "seed": 3}
OPTIONS = {**DRAWN, "workers": 1}
SETTINGS = {kind: Setting(kind, "cosine", LAYERS, 70) for kind in HEATMAP_KINDS}
KIND = "vv_mixed"
PAIRS = [("after", "before"), ("after", "floor"), ("floor", "before")]
NUMBERS = {
    "maps": ["map"],
    "map_differences": ["difference"],
    "figures": ["value"],
    "figure_differences": ["difference"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=4, num_val=4, num_test=6, size=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def data(root) -> Dataset:
    return load_dataset(root, "test")


@pytest.fixture(scope="module")
def adapters(tiny, folder):
    return load_adapters(write_adapters(folder / "adapters", tiny), tiny)


@pytest.fixture(scope="module")
def store(tiny, data, folder, adapters) -> HeatmapStore:
    return adapted_store(tiny, data, folder, adapters)


@pytest.fixture(scope="module")
def states(adapters):
    floors = {"standard": 0.1, "vv_qk": 0.1, "vv_vv": 0.12, "vv_mixed": 0.12}
    return states_of(SETTINGS, adapters, floors=floors)


@pytest.fixture(scope="module")
def groups(data, adapters):
    return class_groups(data.classes, adapters["vv_mixed"].seen_classes)


@pytest.fixture(scope="module")
def found(store, states, groups):
    return compare_adapted(store, states, groups, **OPTIONS)


def only(frame: pd.DataFrame, **match) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in match.items():
        frame = frame[frame[name] == value]
    return frame.reset_index(drop=True)


def of_labels(data: Dataset, labels) -> Dataset:
    return replace(data, boxes=data.boxes[data.boxes["label"].isin(labels)].reset_index(drop=True))


@pytest.fixture(scope="module")
def boxes(store, states) -> dict[Setting, Boxes]:
    """Of every setting, found once."""
    settings = {setting for of_kind in states.values() for setting in of_kind.values()}
    return {setting: find_boxes(store, [setting], workers=1)[0] for setting in settings}


@pytest.fixture(scope="module")
def detections(store, states) -> dict[str, pd.DataFrame]:
    """Boxes in each state of one kind."""
    return {state: evaluate(store, {"": setting}, **OPTIONS).detections for state, setting in states[KIND].items()}


def judged(data: Dataset, found: pd.DataFrame, protocol: str, labels):
    """The bootstrap of one setting, on frames that hold boxes of these classes alone."""
    truth = of_labels(data, labels).boxes
    found = found[found["label"].isin(labels)].reset_index(drop=True)
    found = present_only(found, truth) if protocol == "present" else found
    return bootstrap_map(found, truth, image_ids=data.images["image_id"], classes=labels, **DRAWN)


def with_large_boxes(data: Dataset, every: int = 1) -> Dataset:
    """A large box of each class (or of every so many) on every image; the scenes' own are hard to hit by drawn maps."""
    rows = [
        (image_id, label, 10.0 + 2 * place, 10.0, 40.0 + 2 * place, 50.0)
        for number, image_id in enumerate(data.images["image_id"])
        for place, label in enumerate(data.classes)
        if (place + number) % every == 0
    ]
    return replace(data, boxes=pd.DataFrame(rows, columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"]))


# --------------------------------------------------------------------------------------------- against the judges


@pytest.mark.parametrize("group", [ALL, OF_SEEN, UNSEEN])
def test_map_of_a_group_is_that_of_frames_with_its_classes_alone(data, detections, groups, found, group):
    assert found.n_images == len(data.images)
    for protocol in PROTOCOLS:
        results = {state: judged(data, boxes, protocol, groups[group]) for state, boxes in detections.items()}
        for state, result in results.items():
            own = only(found.maps, group=group, kind="vv_mixed", state=state, protocol=protocol)
            np.testing.assert_array_equal(own[["map", "low", "high"]], result.summary()[["map", "low", "high"]])
            assert group != ALL or own["map"].max() > 0
        for state, reference in PAIRS:
            own = only(found.map_differences, group=group, kind="vv_mixed", state=state, reference=reference,
                       protocol=protocol)  # fmt: skip
            paired = paired_difference(results[state], results[reference]).summary()
            columns = ["difference", "low", "high"]
            np.testing.assert_array_equal(own[columns], paired[columns])


@pytest.mark.parametrize("group", [ALL, OF_SEEN, UNSEEN])
def test_inverted_and_pointing_are_those_of_quality_summary(store, states, groups, found, group):
    named = {state: states["standard"][state] for state in ("before", "after")}
    pairs = {
        state: frame[frame["label"].isin(groups[group])]
        for state, frame in map_quality(store, named, workers=1).items()
    }
    for state, own in pairs.items():
        judge = quality_summary(own, **DRAWN).set_index("figure")["value"]
        mine = only(found.figures, group=group, kind="standard", state=state).set_index("figure")["value"]
        assert [mine[name] for name in ("inverted", "pointing")] == pytest.approx(
            [judge["inverted"], judge["pointing"]]
        )
    judge = quality_difference(pairs["after"], pairs["before"], **DRAWN).set_index("figure")
    mine = only(found.figure_differences, group=group, kind="standard", state="after", reference="before")
    mine = mine.set_index("figure")
    for name in ("inverted", "pointing"):
        assert mine.loc[name, "difference"] == pytest.approx(judge.loc[name, "difference"])
        if pairs["before"]["image_id"].nunique() == found.n_images:  # they leave out images without a pair
            expected = judge.loc[name, ["low", "high"]].astype(float).clip(-1, 1)
            np.testing.assert_allclose(mine.loc[name, ["low", "high"]].astype(float), expected, atol=1e-12)


def test_kinds_with_the_same_maps_have_the_same_figures_and_no_interval_leaves_what_can_be(found):
    for one, other in (("standard", "vv_qk"), ("vv_vv", "vv_mixed")):
        for name in NUMBERS:
            a, b = (only(getattr(found, name), kind=kind).drop(columns="kind") for kind in (one, other))
            pd.testing.assert_frame_equal(a, b)
    figures, differences = found.figures.dropna(), found.figure_differences.dropna()
    assert 0 <= figures["low"].min() <= figures["high"].max() <= 1
    assert -1 <= differences["low"].min() <= differences["high"].max() <= 1
    assert only(found.figures, figure="max_iou")[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("group", [ALL, OF_SEEN, UNSEEN])
def test_figures_of_the_boxes_are_those_of_measure_boxes(data, boxes, states, groups, found, group):
    few, labels = of_labels(data, groups[group]), groups[group]
    places = [few.classes.index(label) for label in labels]
    in_group = np.zeros((len(few.images), len(few.classes)), bool)
    in_group[:, places] = True
    for kind, of_kind in states.items():
        for state, setting in of_kind.items():
            table = boxes[setting]
            present = measure_boxes(table, few, present_pairs(few))
            own = only(found.figures, group=group, kind=kind, state=state).set_index("figure")["value"]
            assert list(own.index) == list(FIGURES)
            for name in ("mean_iou", "max_iou", "mean_best_iou"):
                assert own[name] == pytest.approx(present[name], nan_ok=True)
            every = measure_boxes(table, few, in_group)
            assert own["false_box_rate"] == pytest.approx(every["false_box_rate"])


# ---------------------------------------------------------------------------------------------------------- groups


def test_groups_are_all_classes_and_the_two_parts_where_there_are_two():
    classes = ("a", "b", "c", "d")
    assert class_groups(classes, ["c", "a"]) == {ALL: classes, OF_SEEN: ("a", "c"), UNSEEN: ("b", "d")}
    assert class_groups(classes, ["d", "c", "b", "a"]) == {ALL: classes}
    assert class_groups(classes, []) == {ALL: classes}
    assert class_groups(classes, ["x"]) == {ALL: classes}


# ------------------------------------------------------------------------------------------------ nothing has changed


def test_an_untrained_adapter_changes_no_figure_at_all(tiny, data, folder):
    untrained = load_adapters(write_adapters(folder / "untrained", tiny, strength=0.0), tiny)
    store = adapted_store(tiny, data, folder, untrained)
    states = states_of(SETTINGS, untrained, adapter_floor=None)
    found = compare_adapted(store, states, class_groups(data.classes, SEEN), **OPTIONS)
    for frame, keys in ((found.maps, ["protocol", "iou_threshold"]), (found.figures, ["figure"])):
        before, after = (only(frame, state=state).drop(columns="state") for state in ("before", "after"))
        pd.testing.assert_frame_equal(before.sort_values(["group", "kind", *keys]), after.sort_values(
            ["group", "kind", *keys]))  # fmt: skip
    numbers = found.map_differences[["difference", "low", "high"]]
    assert (numbers.dropna() == 0).all(axis=None)
    assert (found.figure_differences["difference"] == 0).all()
    assert (found.figure_differences[["low", "high"]].dropna() == 0).all(axis=None)
    assert len(numbers.dropna()) > 0


def test_the_order_of_images_boxes_and_classes_changes_nothing(tiny, data, folder, adapters, states, groups, found):
    turned = replace(
        data,
        images=data.images.iloc[::-1].reset_index(drop=True),
        boxes=data.boxes.sample(frac=1, random_state=0).reset_index(drop=True),
        classes=data.classes[::-1],
    )
    store = adapted_store(tiny, turned, folder, adapters)
    one = {"vv_mixed": states["vv_mixed"]}
    other = compare_adapted(store, one, {group: labels[::-1] for group, labels in groups.items()}, **OPTIONS)
    for name, numbers in NUMBERS.items():
        mine = only(getattr(found, name), kind="vv_mixed")
        numbers = [*numbers, "low", "high"]
        theirs = getattr(other, name)
        names = [column for column in mine if column not in numbers]
        both = mine.merge(theirs, on=names, suffixes=("", "_turned"))
        assert len(both) == len(mine) == len(theirs)
        for column in numbers:
            np.testing.assert_allclose(both[column], both[f"{column}_turned"], atol=1e-6)


# ------------------------------------------------------------------------------------------------- little to measure


def test_a_data_set_without_boxes(tiny, data, folder, adapters, states, groups):
    store = adapted_store(tiny, of_labels(data, []), folder, adapters)
    found = compare_adapted(store, {"standard": states["standard"]}, groups, **OPTIONS)
    assert found.maps["map"].isna().all()
    assert found.map_differences["difference"].isna().all()
    known = found.figures[found.figures["value"].notna()]
    assert set(known["figure"]) == {"false_box_rate"}
    assert set(found.figure_differences.dropna()["figure"]) == {"false_box_rate"}


def test_a_state_without_a_single_box(store, adapters, groups):
    states = states_of({"vv_mixed": SETTINGS["vv_mixed"]}, adapters, adapter_floor=1e6)
    found = compare_adapted(store, states, groups, **OPTIONS)
    after = only(found.figures, group=ALL, state="after").set_index("figure")["value"]
    assert after["false_box_rate"] == 0
    assert after["mean_best_iou"] == 0
    assert after[["mean_iou", "max_iou"]].isna().all()
    assert (only(found.maps, group=ALL, state="after")["map"] == 0).all()
    differences = only(found.figure_differences, group=ALL).set_index("figure")["difference"]
    before = only(found.figures, group=ALL, state="before").set_index("figure")["value"]
    assert differences["false_box_rate"] == -before["false_box_rate"]
    assert np.isnan(differences["mean_iou"])


# ---------------------------------------------------------------------------------------------------------- settings


def test_states_are_settings_of_the_kinds_that_have_an_adapter(tiny, tmp_path, adapters):
    plain = {kind: replace(setting, min_side=7, floor=0.3) for kind, setting in SETTINGS.items()}
    states = states_of(plain, adapters, adapter_floor=-1.5, floors=dict.fromkeys(HEATMAP_KINDS, 0.2))
    assert list(states) == list(HEATMAP_KINDS)
    for kind, of_kind in states.items():
        assert of_kind == {
            "before": plain[kind],
            "floor": replace(plain[kind], floor=0.2),
            "after": Setting(kind, "cosine", LAYERS, 70, min_side=7, adapter=adapters[kind].key, floor=-1.5),
        }
    surgery = states_of({"standard": Setting("standard", "surgery")}, adapters)["standard"]
    assert list(surgery) == ["before", "after"]
    assert surgery["after"] == adapters["standard"].setting("standard", floor=0.0)  # even odds
    assert states_of(plain, adapters, adapter_floor=None)["standard"]["after"].floor is None
    one = load_adapters(write_adapter(tmp_path / "one.safetensors", tiny, "vv_qk"), tiny)
    assert list(states_of(plain, one)) == ["standard", "vv_qk"]
    with pytest.raises(ParameterError, match=r"standard, vv_qk, none of which is among .* \(vv_vv, vv_mixed\)"):
        states_of({kind: plain[kind] for kind in ("vv_vv", "vv_mixed")}, one)


@pytest.fixture(scope="module")
def choice(tiny, root, folder, adapters) -> HeatmapStore:
    return adapted_store(tiny, with_large_boxes(load_dataset(root, "val"), every=3), folder, adapters)


@pytest.mark.parametrize(("score", "floored", "expected"), [("mean", True, 95), ("mean_sqrt_area", False, None)])
def test_the_floor_chosen_is_the_best_of_its_candidates(tiny, folder, adapters, choice, score, floored, expected):
    """The ground truth is what these maps show in places of a class above percentile 95 of all values."""
    plain = Setting("vv_mixed", "cosine", LAYERS, 60, min_side=7, box_score=score)
    floors = floor_values(choice, plain, FLOOR_PERCENTILES)
    cut, all_boxes = (
        evaluate(choice, {"": replace(plain, floor=floor)}, **OPTIONS).detections for floor in (floors[95], None)
    )
    truth = (cut if floored else present_only(all_boxes, cut)).drop(columns=["score", "kind"])
    store = adapted_store(tiny, replace(choice.dataset, boxes=truth), folder, adapters)
    found = sweep(store, [replace(plain, floor=floor) for floor in floors.values()], **OPTIONS)
    worth = [found.value(setting, "all")[0] for setting in found.settings]
    best = list(floors.values())[int(np.argmax(worth))]
    assert expected is None or best == floors[expected]
    assert choose_floor(store, plain, **OPTIONS) == best


def test_each_state_is_at_the_best_of_the_settings_tried_for_it(choice, adapters, monkeypatch):
    sweeps = {}

    def once(store, settings, **options):
        if tuple(settings) not in sweeps:
            sweeps[tuple(settings)] = sweep(store, settings, **options)
        return sweeps[tuple(settings)]

    monkeypatch.setattr(module, "sweep", once)
    plain = {kind: replace(SETTINGS[kind], min_side=7, floor=0.05) for kind in ("standard", "vv_mixed")}
    tries = {"percentiles": [60, 90], "floor_percentiles": [80, 95], "box_scores": ["mean", "max", "mean"]}
    for criterion in (Criterion("all", 0.2), Criterion("present", 0.05)):
        states = best_states(choice, plain, adapters, tries=tries, criterion=criterion, workers=1)
        assert list(states) == list(plain)
        ((tried, found),) = sweeps.items()
        assert len(tried) == len(set(tried)) == 2 * 2 * 2 * (1 + 2 + 3)
        for kind, of_kind in states.items():
            after = replace(plain[kind], layers=LAYERS, adapter=adapters[kind].key)
            assert list(of_kind) == ["before", "floor", "after"]
            floors = [list(floor_values(choice, setting, [80, 95]).values()) for setting in (plain[kind], after)]
            for state, of_state in {"before": [None], "floor": floors[0], "after": [EVEN_ODDS, *floors[1]]}.items():
                expected = {
                    replace(after if state == "after" else plain[kind], percentile=p, floor=floor, box_score=score)
                    for p, floor, score in product([60, 90], of_state, ["mean", "max"])
                }
                assert expected <= set(tried)
                values = {setting: found.value(setting, *criterion.where)[0] for setting in expected}
                assert values[of_kind[state]] == max(values.values())


def test_without_floors_to_try_no_state_has_one_before(choice, adapters):
    tries = {"percentiles": [75], "floor_percentiles": [], "box_scores": ["max"]}
    one = {"vv_mixed": SETTINGS["vv_mixed"]}
    states = best_states(choice, one, adapters, tries=tries, criterion=Criterion(), **OPTIONS)["vv_mixed"]
    before = replace(SETTINGS["vv_mixed"], percentile=75, box_score="max")
    assert states == {"before": before, "after": replace(before, adapter=adapters["vv_mixed"].key, floor=EVEN_ODDS)}


# ---------------------------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("weights", [{}, {"sparsity_weight": 0.0, "localization_weight": 2.5}])
def test_losses_are_tried_alone_in_pairs_and_together(weights):
    settings = AdapterSettings(**weights, unseen_classes=("ship",), rank=3)
    variants = loss_variants(settings)
    assert list(variants) == [
        "classification alone", "localization alone", "sparsity alone", "classification + localization",
        "classification + sparsity", "localization + sparsity", "all three losses",
    ]  # fmt: skip
    full = {name: getattr(settings, f"{name}_weight") or 1.0 for name in LOSSES}
    for name, variant in variants.items():
        for loss in LOSSES:
            expected = full[loss] if loss in name or name == "all three losses" else 0.0
            assert getattr(variant, f"{loss}_weight") == expected
        assert variant.rank == 3
        assert variant.unseen_classes == settings.unseen_classes
    assert (variants["all three losses"] == settings) == (not weights)
