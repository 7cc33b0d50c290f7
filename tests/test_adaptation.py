"""Before and after an adapter: every figure against the judge that there was for it before, and what a reader gets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from adapted_scenes import LAYERS, SEEN, adapted_store, load_adapters, write_adapter, write_adapters
from refusals import refused

from surgerylib.boxes import extract_many
from surgerylib.datasets import Dataset, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.adapter_training import LOSSES, AdapterSettings
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.finding import find_boxes
from surgerylib.engine.measures import measure_boxes, present_pairs
from surgerylib.engine.store import HeatmapStore
from surgerylib.engine.training import Training
from surgerylib.errors import ParameterError
from surgerylib.figures import training as adaptation_plots
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.intervals import number, with_interval
from surgerylib.metrics import bootstrap_map, paired_difference
from surgerylib.study import adaptation as module
from surgerylib.study import adaptation_tables as tables
from surgerylib.study.adaptation import (
    EVEN_ODDS,
    FIGURES,
    FLOOR_PERCENTILES,
    Adaptation,
    Variant,
    loss_variants,
    states_of,
)
from surgerylib.study.example_images import examples
from surgerylib.study.quality import map_quality, quality_difference, quality_summary
from surgerylib.study.settings import Criterion, floor_values, sweep
from surgerylib.study.summary import present_only
from surgerylib.study.tables import plain
from surgerylib.words import ALL, DIOR_CLASSES, PROTOCOLS, STATES, UNSEEN
from surgerylib.words import SEEN as OF_SEEN

KIND = "vv_mixed"
DRAWN = {"n_resamples": 20, "seed": 3}
OPTIONS = {**DRAWN, "workers": 1}
SETTINGS = {kind: Setting(kind, "cosine", LAYERS, 70) for kind in HEATMAP_KINDS}
GROUPS = module.class_groups(DIOR_CLASSES, SEEN)
BOX = ["xmin", "ymin", "xmax", "ymax"]
ENDS = ["low", "high"]
VALUES = ["value", *ENDS]
of_each_group = pytest.mark.parametrize("group", [ALL, OF_SEEN, UNSEEN])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=0, num_val=4, num_test=6, size=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
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
def states(adapters) -> dict[str, dict[str, Setting]]:
    return states_of(SETTINGS, adapters, floors=dict.fromkeys(HEATMAP_KINDS, 0.12))


@pytest.fixture(scope="module")
def found(store, states) -> Adaptation:
    return module.compare_adapted(store, states, GROUPS, **OPTIONS)


@pytest.fixture(scope="module")
def detections(store, states) -> dict[str, pd.DataFrame]:
    """Boxes in each state of one kind."""
    return {state: evaluate(store, {"": setting}, **OPTIONS).detections for state, setting in states[KIND].items()}


def only(frame: pd.DataFrame, **match) -> pd.DataFrame:
    """The rows with these values."""
    return frame[(frame[list(match)] == list(match.values())).all(axis=1)].reset_index(drop=True)


def of_labels(data: Dataset, labels: Sequence[str]) -> Dataset:
    return replace(data, boxes=data.boxes[data.boxes["label"].isin(labels)].reset_index(drop=True))


def everywhere(data: Dataset, labels: Sequence[str] = DIOR_CLASSES, every: int = 1) -> Dataset:
    """A large box of these classes (every so many) on every image; the scenes' own are hard to hit by drawn maps."""
    rows = [
        (image_id, label, 10.0 + 2 * place, 10.0, 40.0 + 2 * place, 50.0)
        for number, image_id in enumerate(data.images["image_id"])
        for place, label in enumerate(labels)
        if (place + number) % every == 0
    ]
    return replace(data, boxes=pd.DataFrame(rows, columns=["image_id", "label", *BOX]))


@pytest.fixture(scope="module")
def cases(tiny, data, folder, adapters, store, states, found) -> dict[str, Adaptation]:
    def compare(other: Dataset, **options) -> Adaptation:
        of_other = adapted_store(tiny, other, folder, adapters)
        return module.compare_adapted(of_other, {KIND: states[KIND]}, GROUPS, **OPTIONS, **options)

    images = data.images.iloc[[4]].reset_index(drop=True)
    boxes = data.boxes[data.boxes["image_id"] == images["image_id"][0]].reset_index(drop=True)
    plain = {KIND: SETTINGS[KIND]}
    never = states_of(plain, adapters, adapter_floor=1e6)
    return {
        "plain": found,
        "one group": module.compare_adapted(store, states_of(plain, adapters), {ALL: DIOR_CLASSES}, **OPTIONS),
        "no floor": module.compare_adapted(store, states_of(plain, adapters), GROUPS, **OPTIONS),
        "one threshold": compare(data, iou_thresholds=[0.15]),
        "other thresholds": compare(data, iou_thresholds=[0.1, 0.3]),
        "no boxes": compare(of_labels(data, [])),
        "only unseen boxes": compare(everywhere(data, ["Expressway-Service-area", "windmill"])),
        "one image": compare(replace(data, images=images, boxes=boxes)),
        "no absent class": compare(everywhere(data)),
        "no box found": module.compare_adapted(store, never, GROUPS, **OPTIONS),
    }


@pytest.fixture(
    params=["plain", "one group", "no floor", "one threshold", "other thresholds", "no boxes", "only unseen boxes",
            "one image", "no absent class", "no box found"]
)  # fmt: skip
def case(cases, request) -> Adaptation:
    return cases[request.param]


# --------------------------------------------------------------------------------------------- against the judges


@of_each_group
def test_map_of_a_group_is_that_of_frames_with_its_classes_alone(data, detections, found, group):
    truth = of_labels(data, GROUPS[group]).boxes
    assert found.n_images == len(data.images)
    for protocol in PROTOCOLS:
        results, at = {}, {"group": group, "kind": KIND, "protocol": protocol}
        for state, boxes in detections.items():
            own = boxes[boxes["label"].isin(GROUPS[group])].reset_index(drop=True)
            own = present_only(own, truth) if protocol == "present" else own
            options = {"image_ids": data.images["image_id"], "classes": GROUPS[group], **DRAWN}
            results[state] = bootstrap_map(own, truth, **options)
            own = only(found.maps, state=state, reference="", **at)
            np.testing.assert_array_equal(own[VALUES], results[state].summary()[["map", *ENDS]])
            assert group != ALL or own["value"].max() > 0
        for state, reference in (("after", "before"), ("after", "floor"), ("floor", "before")):
            paired = paired_difference(results[state], results[reference]).summary()
            own = only(found.maps, state=state, reference=reference, **at)
            np.testing.assert_array_equal(own[VALUES], paired[["difference", *ENDS]])


@of_each_group
def test_inverted_and_pointing_are_those_of_quality_summary(store, states, found, group):
    named, names = {state: states["standard"][state] for state in ("before", "after")}, ["inverted", "pointing"]
    pairs = {
        state: frame[frame["label"].isin(GROUPS[group])]
        for state, frame in map_quality(store, named, workers=1).items()
    }

    def mine(**at) -> pd.DataFrame:
        return only(found.figures, group=group, kind="standard", **at).set_index("figure").loc[names, VALUES]

    for state, own in pairs.items():
        judge = quality_summary(own, **DRAWN).set_index("figure").loc[names, "value"].tolist()
        assert mine(state=state, reference="")["value"].tolist() == pytest.approx(judge)
    judge = quality_difference(pairs["after"], pairs["before"], **DRAWN).set_index("figure").loc[names]
    difference = mine(state="after", reference="before")
    assert difference["value"].tolist() == pytest.approx(judge["difference"].tolist())
    if pairs["before"]["image_id"].nunique() == found.n_images:  # they leave out images without a pair
        np.testing.assert_allclose(difference[ENDS], judge[ENDS].clip(-1, 1), atol=1e-12)


@of_each_group
def test_figures_of_the_boxes_are_those_of_measure_boxes(data, store, states, found, group):
    few = of_labels(data, GROUPS[group])
    in_group = np.tile(np.isin(few.classes, GROUPS[group]), (len(few.images), 1))
    for kind, of_kind in states.items():
        for state, setting in of_kind.items():
            (boxes,) = find_boxes(store, [setting], workers=1)
            own = only(found.figures, group=group, kind=kind, state=state, reference="").set_index("figure")["value"]
            assert list(own.index) == list(FIGURES)
            present = measure_boxes(boxes, few, present_pairs(few))
            for name in ("mean_iou", "max_iou", "mean_best_iou"):
                assert own[name] == pytest.approx(present[name], nan_ok=True)
            assert own["false_box_rate"] == pytest.approx(measure_boxes(boxes, few, in_group)["false_box_rate"])


def test_no_interval_leaves_what_can_be(found):
    figures = found.figures.dropna()
    least = np.where(figures["reference"] == "", 0, -1)
    assert ((least <= figures["low"]) & (figures["low"] <= figures["high"]) & (figures["high"] <= 1)).all()
    assert only(found.figures, figure="max_iou")[ENDS].isna().all(axis=None)


def test_groups_are_all_classes_and_the_two_parts_where_there_are_two():
    every = {ALL: tuple("abcd")}
    assert module.class_groups("abcd", ["c", "a"]) == {**every, OF_SEEN: ("a", "c"), UNSEEN: ("b", "d")}
    assert module.class_groups("abcd", [*"dcba"]) == module.class_groups("abcd", ["x"]) == every


def test_the_order_of_images_boxes_and_classes_changes_nothing(tiny, data, folder, adapters, states, found):
    turned = replace(
        data,
        images=data.images.iloc[::-1].reset_index(drop=True),
        boxes=data.boxes.sample(frac=1, random_state=0).reset_index(drop=True),
        classes=data.classes[::-1],
    )
    store = adapted_store(tiny, turned, folder, adapters)
    groups = {group: labels[::-1] for group, labels in GROUPS.items()}
    other = module.compare_adapted(store, {KIND: states[KIND]}, groups, **OPTIONS)
    pd.testing.assert_frame_equal(other.maps, only(found.maps, kind=KIND), rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(other.figures, only(found.figures, kind=KIND), rtol=0, atol=1e-6)


def test_without_a_box_to_find_there_is_the_rate_of_false_ones_alone_and_without_one_found_0(cases):
    nothing, found = cases["no boxes"], cases["no box found"]
    assert nothing.maps["value"].isna().all()
    assert set(nothing.figures.dropna(subset="value")["figure"]) == {"false_box_rate"}
    after = only(found.figures, group=ALL, state="after", reference="").set_index("figure")["value"]
    assert after[["false_box_rate", "mean_best_iou"]].tolist() == [0, 0]
    assert after[["mean_iou", "max_iou"]].isna().all()
    assert (only(found.maps, group=ALL, state="after", reference="")["value"] == 0).all()


# ---------------------------------------------------------------------------------------------------------- settings


def test_states_are_settings_of_the_kinds_that_have_an_adapter(tiny, tmp_path, adapters):
    plain = {kind: replace(setting, min_side=7, floor=0.3) for kind, setting in SETTINGS.items()}
    states = states_of(plain, adapters, adapter_floor=-1.5, floors=dict.fromkeys(HEATMAP_KINDS, 0.2))
    assert states == {
        kind: {
            "before": plain[kind],
            "floor": replace(plain[kind], floor=0.2),
            "after": Setting(kind, "cosine", LAYERS, 70, min_side=7, adapter=adapters[kind].key, floor=-1.5),
        }
        for kind in HEATMAP_KINDS
    }
    surgery = states_of({"standard": Setting("standard", "surgery")}, adapters)["standard"]
    assert list(surgery) == ["before", "after"]
    assert surgery["after"] == adapters["standard"].setting("standard", floor=0.0)  # even odds
    assert states_of(plain, adapters, adapter_floor=None)["standard"]["after"].floor is None
    one = load_adapters(write_adapter(tmp_path / "one.safetensors", tiny, "vv_qk"), tiny)
    assert list(states_of(plain, one)) == ["standard", "vv_qk"]
    without = {kind: plain[kind] for kind in ("vv_vv", "vv_mixed")}
    message = r"standard, vv_qk, none of which is among .* \(vv_vv, vv_mixed\)"
    refused(lambda: states_of(without, one), ParameterError, message)


@pytest.fixture(scope="module")
def choice(tiny, root, folder, adapters) -> HeatmapStore:
    return adapted_store(tiny, everywhere(load_dataset(root, "val"), every=3), folder, adapters)


@pytest.mark.parametrize(("score", "floored", "expected"), [("mean", True, 95), ("mean_sqrt_area", False, None)])
def test_the_floor_chosen_is_the_best_of_its_candidates(tiny, folder, adapters, choice, score, floored, expected):
    """The ground truth is what these maps show in places of a class above percentile 95 of all values."""
    plain = Setting(KIND, "cosine", LAYERS, 60, min_side=7, box_score=score)
    floors = floor_values(choice, plain, FLOOR_PERCENTILES)
    cut, all_boxes = (
        evaluate(choice, {"": replace(plain, floor=floor)}, **OPTIONS).detections for floor in (floors[95], None)
    )
    truth = (cut if floored else present_only(all_boxes, cut)).drop(columns=["score", "kind"])
    store = adapted_store(tiny, replace(choice.dataset, boxes=truth), folder, adapters)
    tried = sweep(store, [replace(plain, floor=floor) for floor in floors.values()], **OPTIONS)
    worth = [tried.value(setting, "all")[0] for setting in tried.settings]
    best = list(floors.values())[int(np.argmax(worth))]
    assert expected is None or best == floors[expected]
    assert module.choose_floor(store, plain, **OPTIONS) == best


def test_each_state_is_at_the_best_of_the_settings_tried_for_it(choice, adapters, monkeypatch):
    sweeps = []
    monkeypatch.setattr(module, "sweep", lambda *of, **options: sweeps.append(sweep(*of, **options)) or sweeps[-1])
    plain = {kind: replace(SETTINGS[kind], min_side=7, floor=0.05) for kind in ("standard", "vv_mixed")}
    tries = {"percentiles": [60, 90], "floor_percentiles": [80, 95], "box_scores": ["mean", "max", "mean"]}
    criterion = Criterion("present", 0.05)
    states = module.best_states(choice, plain, adapters, tries=tries, criterion=criterion, workers=1)
    (swept,) = sweeps
    assert len(swept.settings) == 2 * 2 * 2 * (1 + 2 + 3)
    for kind, of_kind in states.items():
        after = replace(plain[kind], layers=LAYERS, adapter=adapters[kind].key)
        floors = [list(floor_values(choice, setting, [80, 95]).values()) for setting in (plain[kind], after)]
        tried = {"before": [None], "floor": floors[0], "after": [EVEN_ODDS, *floors[1]]}
        assert list(of_kind) == list(tried)
        for state, of_state in tried.items():
            own = after if state == "after" else plain[kind]
            changes = [dict(zip(("percentile", "floor", "box_score"), of, strict=True))
                       for of in product([60, 90], of_state, ["mean", "max"])]  # fmt: skip
            values = {s: swept.value(s, *criterion.where)[0] for s in (replace(own, **of) for of in changes)}
            assert values[of_kind[state]] == max(values.values())
    tries["floor_percentiles"] = []  # before the adapter no state has a floor then
    without = module.best_states(choice, plain, adapters, tries=tries, criterion=criterion, workers=1)
    for of_kind in without.values():
        assert {state: of.floor for state, of in of_kind.items()} == {"before": None, "after": EVEN_ODDS}


def test_losses_are_tried_alone_in_pairs_and_together():
    """One that is switched off counts as of weight 1."""
    settings = AdapterSettings(sparsity_weight=0.0, localization_weight=2.5, unseen_classes=("ship",), rank=3)
    tried = {
        "classification alone": (1, 0, 0), "localization alone": (0, 2.5, 0), "sparsity alone": (0, 0, 1),
        "classification + localization": (1, 2.5, 0), "classification + sparsity": (1, 0, 1),
        "localization + sparsity": (0, 2.5, 1), "all three losses": (1, 2.5, 1),
    }  # fmt: skip
    names = [f"{name}_weight" for name in LOSSES]
    assert loss_variants(settings) == {
        title: replace(settings, **dict(zip(names, weights, strict=True))) for title, weights in tried.items()
    }


# --------------------------------------------------------------------------------------------------------- sentences

MORE, LESS, EQUAL, NONE = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.01, -0.1, 0.1), (0.01, np.nan, np.nan)
UNDECIDED = "The adapter is not told apart from the maps as they were"
BOTH_WAYS = "The adapter finds more at one end of the IoU thresholds and less at the other"
NUMBER = r"[−+]?\d\.\d{3}"
CELL = re.compile(rf"{NUMBER} \[({NUMBER}, {NUMBER}|interval not available)\]|no boxes|no absent class")


def assert_sentence(text: str) -> None:
    assert text.endswith(".")
    assert not text.endswith("..")
    assert not re.search(r"\b(nan|None|inf)\b", text), text


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((EQUAL, MORE), "The adapter finds more"),
        ((MORE, NONE), "The adapter finds more"),
        ((LESS, LESS), "The adapter finds less"),
        ((EQUAL, EQUAL), UNDECIDED),
        ((NONE, NONE), UNDECIDED),
        (((0.1, 0.0, 0.2), EQUAL), UNDECIDED),
        ((MORE, LESS), BOTH_WAYS),
        ((LESS, MORE), BOTH_WAYS),
    ],
)
def test_the_verdict_is_what_the_intervals_at_both_ends_allow(found, gains, said):
    """Differences of mAP under `all`, after minus before, at the lowest and the highest IoU threshold."""
    frame, keys = found.maps.copy(), ["group", "kind", "protocol", "state", "reference", "iou_threshold"]
    for threshold, gain in zip((0.05, 0.5), gains, strict=True):
        match = (frame[keys] == [OF_SEEN, KIND, "all", "after", "before", threshold]).all(axis=1)
        frame.loc[match, VALUES] = gain
    own = replace(found, maps=frame)
    assert tables.finding(own, KIND).startswith(f"{said}: under the all protocol")
    assert tables.title(own, KIND).startswith(f"{said}: mAP@0.05 of {KIND} ")
    assert_sentence(tables.finding(own, KIND))


def test_the_sentence_has_the_figures_of_the_frames(found):
    text, at = tables.finding(found, KIND), {"group": OF_SEEN, "kind": KIND, "protocol": "all"}

    def value(frame: pd.DataFrame, state: str = "after", reference: str = "", **match) -> float:
        return only(frame, state=state, reference=reference, **match)["value"].item()

    for t in (0.05, 0.5):
        before, after = (value(found.maps, state, iou_threshold=t, **at) for state in ("before", "after"))
        assert f"mAP@{t:.2f} {after:.3f} against {before:.3f} (difference " in text
    gain = value(found.maps, reference="floor", iou_threshold=0.05, **at)
    assert f"against a floor alone, without training: mAP@0.05 difference {number(gain, sign=True)} [" in text
    of_false = {"group": ALL, "kind": KIND, "figure": "false_box_rate"}
    before, after = (100 * value(found.figures, state, **of_false) for state in ("before", "after"))
    assert f"gets a box in {after:.1f} % of the cases, before in {before:.1f} %" in text


def test_the_best_of_the_short_trainings_is_named(found, cases):
    values = {"unknown": np.nan, "worst": 0.1, "best": 0.3, "second": 0.2}
    variants = {name: Variant(0.5, replace(found, maps=found.maps.assign(value=of))) for name, of in values.items()}
    assert tables.variants_finding(variants, KIND) == (
        "Highest mean mAP under all, seen classes: best (0.300), then second (0.200); lowest: worst (0.100)."
    )
    assert tables.variants_finding({"only": variants["worst"]}, KIND).endswith("seen classes: only (0.100).")
    assert tables.variants_finding({"a": Variant(0.1, cases["no boxes"])}, KIND) == "No box to compare on."
    assert f"under all, {ALL}: a (" in tables.variants_finding({"a": Variant(0.1, cases["one group"])}, KIND)
    table = tables.variant_table({**variants, "b": Variant(0.25, cases["no boxes"])}, KIND)
    assert table.columns[:4].tolist() == ["patch AP", "mAP@0.05, seen", "mAP@0.15, seen", "mAP@0.50, seen"]
    assert table["patch AP"].tolist() == ["0.500"] * 4 + ["0.250"]


def test_what_cannot_be_measured_is_said(cases):
    """Boxes of unseen classes alone are not called none of the class list."""
    nothing, unseen = cases["no boxes"], cases["only unseen boxes"]
    start, end = "No image of this split holds a box of the class", "nothing can be measured"
    assert tables.finding(nothing, KIND) == f"{start} list: {end}."
    assert tables.finding(unseen, KIND) == f"{start}es that were trained on: {end} of them."
    assert tables.title(unseen, KIND) == "No box of the seen classes to measure on"
    assert tables.title(replace(nothing, groups={ALL: DIOR_CLASSES}), KIND) == "No box to measure on"
    assert tables.title(cases["one group"], KIND).endswith("(all classes)")
    assert "gets a box" not in tables.finding(cases["no absent class"], KIND)
    assert "interval not available" in tables.finding(cases["one image"], KIND)
    assert tables.finding(cases["one threshold"], KIND).count("mAP@0.15") == 2  # and against the floor


# ------------------------------------------------------------------------------------------------- tables and results


def test_every_sentence_ends_and_every_cell_has_its_interval_or_says_why_not(case):
    kind, of_max = list(case.settings)[-1], FIGURES["max_iou"]
    for text in (tables.finding(case, kind), tables.settings_text(case, kind)):
        assert_sentence(text)
    assert not re.search(r"\b(nan|None)\b", tables.title(case, kind) + tables.caption(case, kind))
    figures = [tables.figures_table(case, group) for group in case.groups]
    shown = [tables.answer_table(case, kind), *(table.drop(columns=of_max) for table in figures)]
    shown += [tables.kinds_table(case, group, protocol) for group in case.groups for protocol in PROTOCOLS]
    for table in shown:
        assert len(table.columns)
        assert [text for text in table.to_numpy().ravel() if not CELL.fullmatch(text)] == []
    assert all(re.fullmatch(rf"{NUMBER}|no boxes", text) for table in figures for text in table[of_max])


def test_the_answer_has_states_and_differences_of_each_group(found, cases):
    table = tables.answer_table(found, KIND)
    assert KIND in " ".join(table.index.names)  # the table stands without a title
    rows = [*STATES.values(), "after − before", "after − floor alone"]
    names = ["seen classes (4)", "unseen classes (16)", "all classes (20)"]
    assert table.index.tolist() == [*product(names, rows)]
    (present,) = (column for column in table.columns if "present" in column)
    row = only(found.maps, group=ALL, kind=KIND, state="after", reference="", protocol="present").iloc[0]
    assert table.loc[("all classes (20)", STATES["after"]), present] == with_interval(*row[VALUES])
    plain = tables.answer_table(cases["no floor"], KIND)
    assert plain.index.get_level_values(1).unique().tolist() == [STATES["before"], STATES["after"], "after − before"]
    # at none of 0.05, 0.15 and 0.5 the first table of the report held no mAP
    other = tables.answer_table(cases["other thresholds"], KIND)
    assert [column[:8] for column in other.columns[:3]] == ["mAP@0.10", "mAP@0.30", "mAP@0.10"]


def test_no_absent_class_is_not_said_to_be_no_boxes(cases):
    """Under absent classes with a box, "no boxes" would say that they get none."""
    own = cases["no absent class"]
    of_variant = tables.variant_table({"own": Variant(0.5, own)}, KIND)
    for table in (tables.answer_table(own, KIND), tables.figures_table(own, ALL), of_variant):
        assert set(table[FIGURES["false_box_rate"]]) == {"no absent class"}


def test_results_are_plain_json_with_every_number(case, found, tmp_path):
    trainings = {KIND: Training(tmp_path, pd.DataFrame(), 3)}
    more = {"at_best": found, "plan": {"adapter_epochs": 3}}
    results = tables.results(case, KIND, "it does", trainings, {"own": Variant(0.5, case)}, **more)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert (results["best_epochs"], results["variants"]["own"]["patch_ap"]) == ({KIND: 3}, 0.5)
    assert set(results["at_best"]["groups"]) == set(GROUPS)
    assert {group: tuple(of["classes"]) for group, of in results["groups"].items()} == dict(case.groups)
    for frame in (case.maps, case.figures):
        for row in plain(frame[frame["state"].eq("after") | frame["reference"].eq("")]):
            of_kind = results["groups"][row["group"]]["kinds"][row["kind"]]
            own, name = of_kind[row["state"]], "map" if "protocol" in row else "value"
            if row["reference"]:
                own, name = of_kind[f"after - {row['reference']}"], "difference"
            if "figure" in row:
                assert set(own["figures"]) == set(FIGURES)
                written = own["figures"][row["figure"]]
            else:
                written = own["protocols"][row["protocol"]][results["iou_thresholds"].index(row["iou_threshold"])]
                assert written["iou_threshold"] == row["iou_threshold"]
            assert [written[of] for of in (name, *ENDS)] == [row[of] for of in VALUES]
    after = case.settings[KIND]["after"]
    assert results["settings"][KIND]["after"] == after.parameters() | {"description": after.describe()}


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("count", [0, 1, 3, 99])
def test_examples_take_seen_and_unseen_classes_in_turn_and_an_absent_one_last(store, states, data, count):
    shown = examples(store, states[KIND], GROUPS, count=count)
    assert len(shown) == min(count, 7) if count < 4 else 3 < len(shown) <= 7
    pairs = [tuple(example.title.split(" on ")) for example in shown]
    present, absent = (pairs[:-1], pairs[-1:]) if count > 1 else (pairs, [])
    for place, (label, image_id) in enumerate(present[:2]):
        assert (label in SEEN) == (place % 2 == 0)
        assert len(only(data.boxes, image_id=image_id, label=label))
    assert len({label for label, _ in present}) == len({image_id for _, image_id in present}) == len(present)
    ids, classes = data.images["image_id"].tolist(), data.classes
    for label, image_id in absent:
        assert image_id == present[0][1]
        others = set(classes) - set(only(data.boxes, image_id=image_id)["label"])
        maps = store.maps(states[KIND]["before"], ids.index(image_id))[0]
        assert label == max(others, key=lambda name: maps[classes.index(name)].max())
        assert shown[-1].truth.empty
    for example, (label, image_id) in zip(shown, pairs, strict=True):
        assert list(example.maps) == list(example.found) == list(STATES)
        assert set(example.truth["label"]) <= {label}
        for state, setting in states[KIND].items():
            heatmap = store.maps(setting, ids.index(image_id))[0, classes.index(label)]
            np.testing.assert_array_equal(example.maps[state], heatmap)
            (expected,) = extract_many(heatmap, (96, 96), [setting])
            np.testing.assert_array_equal(example.found[state], expected.boxes)


def test_a_group_without_boxes_leaves_the_examples_of_the_other(tiny, data, folder, adapters, states):
    """Without a box of a seen class there was no example at all."""
    for labels in (["windmill", "dam", "bridge"], ["ship", "vehicle", "airport"], []):
        store = adapted_store(tiny, everywhere(data, labels), folder, adapters)
        shown = examples(store, states[KIND], GROUPS, count=4)
        assert [example.title.split(" on ")[0] for example in shown][:3] == labels
        assert len(shown) == (4 if labels else 0)


@pytest.mark.filterwarnings("error")
def test_map_before_and_after_of_anything(case):
    kind, groups = list(case.settings)[-1], tables.groups_of(case)
    figure = adaptation_plots.before_after(case.maps, case.groups, kind, tables.title(case, kind))
    for axis, group in zip(figure.axes, groups, strict=True):
        rows = only(case.maps, kind=kind, protocol="all", group=group, state="after", reference="")
        said = [text.get_text() for text in axis.texts]
        assert said == (["no boxes in this split"] if rows["value"].isna().all() else [])
        np.testing.assert_array_equal(axis.lines[-1].get_ydata(), rows["value"])
