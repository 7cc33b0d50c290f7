"""Before and after an adapter for a reader: sentences, tables, plain results, figures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from adapted_scenes import LAYERS, SEEN, adapted_store, load_adapters, write_adapters

from surgerylib.boxes import extract_many
from surgerylib.datasets import Dataset, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.store import HeatmapStore
from surgerylib.engine.training import Training
from surgerylib.figures import training as adaptation_plots
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.intervals import number
from surgerylib.study import adaptation_tables as module
from surgerylib.study.adaptation import (
    ALL,
    FIGURES,
    Adaptation,
    class_groups,
    compare_adapted,
    states_of,
)
from surgerylib.study.adapter_variants import Variant
from surgerylib.study.examples import Example, examples
from surgerylib.words import DIOR_CLASSES, PROTOCOLS, STATES
from surgerylib.words import SEEN as OF_SEEN

KIND = "vv_mixed"
OPTIONS = {"n_resamples": 20, "seed": 3, "workers": 1}
SETTINGS = {kind: Setting(kind, "cosine", LAYERS, 70) for kind in HEATMAP_KINDS}
BOX = ["xmin", "ymin", "xmax", "ymax"]
NUMBER = r"[−+]?\d\.\d{3}"
CELL = re.compile(rf"{NUMBER} \[({NUMBER}, {NUMBER}|interval not available)\]|no boxes|no absent class")
FLOORS = dict.fromkeys(HEATMAP_KINDS, 0.12)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "scenes"
    return load_dataset(write_scenes(root, num_train=0, num_val=0, num_test=6, size=96), "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def adapters(tiny, folder):
    return load_adapters(write_adapters(folder / "adapters", tiny), tiny)


@pytest.fixture(scope="module")
def store(tiny, data, folder, adapters) -> HeatmapStore:
    return adapted_store(tiny, data, folder, adapters)


@pytest.fixture(scope="module")
def states(adapters):
    return states_of(SETTINGS, adapters, floors=FLOORS)


GROUPS = class_groups(DIOR_CLASSES, SEEN)


@pytest.fixture(scope="module")
def found(store, states) -> Adaptation:
    return compare_adapted(store, states, GROUPS, **OPTIONS)


def everywhere(data: Dataset, labels=DIOR_CLASSES) -> Dataset:
    rows = [(image_id, label, 10, 10, 60, 60) for image_id in data.images["image_id"] for label in labels]
    boxes = pd.DataFrame(rows, columns=["image_id", "label", *BOX]).astype(dict.fromkeys(BOX, float))
    return replace(data, boxes=boxes)


CASES = (
    "plain", "one group", "no floor", "one threshold", "other thresholds", "no boxes", "only unseen boxes", "one image",
    "no absent class", "no box found",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases(tiny, data, folder, adapters, store, states, found) -> dict[str, Adaptation]:
    def compare(other: Dataset, **options) -> Adaptation:
        own, of_other = {KIND: states[KIND]}, adapted_store(tiny, other, folder, adapters)
        return compare_adapted(of_other, own, GROUPS, **OPTIONS, **options)

    images = data.images.iloc[[4]].reset_index(drop=True)
    boxes = data.boxes[data.boxes["image_id"] == images["image_id"][0]].reset_index(drop=True)
    only = {KIND: SETTINGS[KIND]}
    never = states_of(only, adapters, adapter_floor=1e6)
    return {
        "plain": found,
        "one group": compare_adapted(store, states_of(only, adapters), {ALL: DIOR_CLASSES}, **OPTIONS),
        "no floor": compare_adapted(store, states_of(only, adapters), GROUPS, **OPTIONS),
        "one threshold": compare(data, iou_thresholds=[0.15]),
        "other thresholds": compare(data, iou_thresholds=[0.1, 0.3]),
        "no boxes": compare(replace(data, boxes=data.boxes.iloc[:0])),
        "only unseen boxes": compare(everywhere(data, ["Expressway-Service-area", "windmill"])),
        "one image": compare(replace(data, images=images, boxes=boxes)),
        "no absent class": compare(everywhere(data)),
        "no box found": compare_adapted(store, never, GROUPS, **OPTIONS),
    }


@pytest.fixture(params=CASES)
def case(cases, request) -> Adaptation:
    return cases[request.param]


def assert_sentence(text: str) -> None:
    assert text.endswith(".")
    assert not text.endswith("..")
    assert not re.search(r"\b(nan|None|inf)\b", text), text


def with_gains(found: Adaptation, *gains: tuple[float, float, float], group: str = OF_SEEN) -> Adaptation:
    """Differences of mAP under `all`, after minus before, at the lowest and the highest IoU threshold."""
    frame = found.map_differences.copy()
    match = (frame["group"] == group) & (frame["kind"] == KIND) & (frame["protocol"] == "all")
    match &= (frame["state"] == "after") & (frame["reference"] == "before")
    for threshold, gain in zip((0.05, 0.5), gains, strict=True):
        frame.loc[match & (frame["iou_threshold"] == threshold), ["difference", "low", "high"]] = gain
    return replace(found, map_differences=frame)


# --------------------------------------------------------------------------------------------------------- sentences

MORE, LESS, EQUAL = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.01, -0.1, 0.1)
NONE = (0.01, np.nan, np.nan)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((MORE, MORE), "The adapter finds more"),
        ((EQUAL, MORE), "The adapter finds more"),
        ((MORE, NONE), "The adapter finds more"),
        ((LESS, LESS), "The adapter finds less"),
        ((EQUAL, EQUAL), "The adapter is not told apart from the maps as they were"),
        ((NONE, NONE), "The adapter is not told apart from the maps as they were"),
        (((0.1, 0.0, 0.2), EQUAL), "The adapter is not told apart from the maps as they were"),
        ((MORE, LESS), "The adapter finds more at one end of the IoU thresholds and less at the other"),
        ((LESS, MORE), "The adapter finds more at one end of the IoU thresholds and less at the other"),
    ],
)
def test_the_verdict_is_what_the_intervals_at_both_ends_allow(found, gains, said):
    own = with_gains(found, *gains)
    assert module.finding(own, KIND).startswith(f"{said}: under the all protocol")
    assert module.title(own, KIND).startswith(f"{said}: mAP@0.05 of {KIND} ")
    assert_sentence(module.finding(own, KIND))


def test_the_sentence_has_the_figures_of_the_frames(found):
    text = module.finding(found, KIND)

    def value(frame: pd.DataFrame, column: str, state: str, **match) -> float:
        match |= {"kind": KIND, "state": state}
        (only,) = frame.loc[(frame[list(match)] == list(match.values())).all(axis=1), column]
        return only

    at = {"group": OF_SEEN, "protocol": "all"}
    for t in (0.05, 0.5):
        before, after = (value(found.maps, "map", state, iou_threshold=t, **at) for state in ("before", "after"))
        assert f"mAP@{t:.2f} {after:.3f} against {before:.3f} (difference " in text
    gain = value(found.map_differences, "difference", "after", iou_threshold=0.05, reference="floor", **at)
    assert f"against a floor alone, without training: mAP@0.05 difference {number(gain, sign=True)} [" in text
    after, before = (
        100 * value(found.figures, "value", state, group=ALL, figure="false_box_rate") for state in ("after", "before")
    )
    assert f"gets a box in {after:.1f} % of the cases, before in {before:.1f} %" in text


def test_the_best_of_the_short_trainings_is_named(found, cases):
    variants = {name: Variant(0.5, replace(found, maps=found.maps.assign(map=value)))
                for name, value in {"unknown": np.nan, "worst": 0.1, "best": 0.3, "second": 0.2}.items()}  # fmt: skip
    assert module.variants_finding(variants, KIND) == (
        "Highest mean mAP under all, seen classes: best (0.300), then second (0.200); lowest: worst (0.100)."
    )
    assert module.variants_finding({"only": variants["worst"]}, KIND).endswith("seen classes: only (0.100).")
    assert module.variants_finding({"a": Variant(0.1, cases["no boxes"])}, KIND) == "No box to compare on."
    assert f"under all, {ALL}: a (" in module.variants_finding({"a": Variant(0.1, cases["one group"])}, KIND)
    table = module.variant_table({**variants, "b": Variant(0.25, cases["no boxes"])}, KIND)
    assert table.columns[:4].tolist() == ["patch AP", "mAP@0.05, seen", "mAP@0.15, seen", "mAP@0.50, seen"]
    assert table["patch AP"].tolist() == ["0.500"] * 4 + ["0.250"]


def test_what_cannot_be_measured_is_said(cases):
    assert module.finding(cases["no boxes"], KIND) == (
        "No image of this split holds a box of the class list: nothing can be measured."
    )
    assert module.title(cases["one group"], KIND).endswith("(all classes)")
    assert module.title(replace(cases["no boxes"], groups={ALL: DIOR_CLASSES}), KIND) == "No box to measure on"
    assert "gets a box" not in module.finding(cases["no absent class"], KIND)
    assert "interval not available" in module.finding(cases["one image"], KIND)
    assert module.finding(cases["one threshold"], KIND).count("mAP@0.15") == 2  # and against the floor


def test_boxes_of_unseen_classes_alone_are_not_called_none_of_the_class_list(cases):
    own = cases["only unseen boxes"]
    assert module.finding(own, KIND) == (
        "No image of this split holds a box of the classes that were trained on: nothing can be measured of them."
    )
    assert module.title(own, KIND) == "No box of the seen classes to measure on"


# ------------------------------------------------------------------------------------------------------------ tables


def cells(table: pd.DataFrame) -> list[str]:
    return table.to_numpy().ravel().tolist()


def test_every_sentence_ends_and_every_cell_has_its_interval_or_says_why_not(case):
    kind = list(case.settings)[-1]
    for text in (module.finding(case, kind), module.settings_text(case, kind)):
        assert_sentence(text)
    assert not re.search(r"\b(nan|None)\b", module.title(case, kind) + module.caption(case, kind))
    tables = [module.answer_table(case, kind)]
    tables += [module.kinds_table(case, group, protocol) for group in case.groups for protocol in PROTOCOLS]
    figures = [module.figures_table(case, group) for group in case.groups]
    tables += [table.drop(columns=FIGURES["max_iou"]) for table in figures]
    for table in tables:
        assert len(table.columns)
        assert [text for text in cells(table) if not CELL.fullmatch(text)] == []
    for table in figures:
        assert all(re.fullmatch(rf"{NUMBER}|no boxes", text) for text in table[FIGURES["max_iou"]])


def test_the_answer_has_states_and_differences_of_each_group(found, cases):
    table = module.answer_table(found, KIND)
    assert KIND in " ".join(table.index.names)  # the table stands without a title
    after_before, after_floor = module._DIFFERENCES.values()
    rows = [*STATES.values(), after_before, after_floor]
    names = ["seen classes (4)", "unseen classes (16)", "all classes (20)"]
    assert table.index.tolist() == [(name, row) for name in names for row in rows]
    assert {FIGURES["false_box_rate"], FIGURES["pointing"]} < set(table.columns)
    assert sum("mAP" in column for column in table.columns) == 4
    (present,) = (column for column in table.columns if "present" in column)
    row = found.maps.query("group == @ALL and kind == @KIND and state == 'after' and protocol == 'present'").iloc[0]
    cell = table.loc[("all classes (20)", STATES["after"]), present]
    assert cell == f"{row['map']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    plain = module.answer_table(cases["no floor"], KIND)
    states = [STATES["before"], STATES["after"], after_before]
    assert plain.index.get_level_values(1).unique().tolist() == states


def test_an_answer_at_other_iou_thresholds_still_has_map(cases):
    """At none of 0.05, 0.15 and 0.5 the first table of the report held no mAP."""
    table = module.answer_table(cases["other thresholds"], KIND)
    assert [column[:8] for column in table.columns[:3]] == ["mAP@0.10", "mAP@0.30", "mAP@0.10"]
    assert module.kinds_table(cases["plain"], ALL, "all").index.get_level_values(0).unique().tolist() == [
        *HEATMAP_KINDS
    ]


def test_no_absent_class_is_not_said_to_be_no_boxes(cases):
    """Under absent classes with a box, "no boxes" would say that they get none."""
    own = cases["no absent class"]
    column = FIGURES["false_box_rate"]
    for table in (module.answer_table(own, KIND), module.figures_table(own, ALL)):
        assert set(table[column]) == {"no absent class"}
    assert module.variant_table({"own": Variant(0.5, own)}, KIND)[column].tolist() == ["no absent class"]


# ----------------------------------------------------------------------------------------------------------- results


def history(epochs: int, start: float = 0.2) -> pd.DataFrame:
    rows = [
        {"epoch": epoch, "loss": np.nan if epoch == 0 else 3.0 / epoch, "classification": 0.5, "bce": 0.4, "dice": 0.9,
         "sparsity": 0.1, "val_patch_ap": start + 0.1 * epoch}
        for epoch in range(epochs + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def training(folder, epochs: int = 3) -> Training:
    return Training(folder, history(epochs), epochs, 1.0, None, False)


def test_results_are_plain_json_with_every_number(case, found, tmp_path):
    variants = {"own": Variant(0.5, case)}
    results = module.results(
        case, KIND, "it does", {KIND: training(tmp_path)}, variants, at_best=found, plan={"adapter_epochs": 3}
    )
    again = json.loads(json.dumps(results, allow_nan=False))
    assert again == results
    assert again["finding"] == "it does"
    assert again["best_epochs"] == {KIND: 3}
    assert again["plan"] == {"adapter_epochs": 3}
    assert again["variants"]["own"]["patch_ap"] == 0.5
    assert set(again["at_best"]["groups"]) == set(GROUPS)
    for group, labels in case.groups.items():
        assert again["groups"][group]["classes"] == list(labels)
        for kind, states in case.settings.items():
            entry = again["groups"][group]["kinds"][kind]
            differences = [f"after - {reference}" for reference in ("before", "floor") if reference in states]
            assert set(entry) == {*states, *differences}
            for name in entry:
                column = "difference" if name in differences else "map"
                assert set(entry[name]["figures"]) == set(FIGURES)
                for protocol in PROTOCOLS:
                    rows = entry[name]["protocols"][protocol]
                    assert [row["iou_threshold"] for row in rows] == again["iou_thresholds"]
                    assert all(set(row) == {"iou_threshold", column, "low", "high"} for row in rows)


def test_plain_results_hold_the_numbers_of_the_frames(found):
    results = module.plain_results(found)
    for row in found.map_differences[found.map_differences["state"] == "after"].to_dict("records"):
        entry = results["groups"][row["group"]]["kinds"][row["kind"]][f"after - {row['reference']}"]
        (own,) = (o for o in entry["protocols"][row["protocol"]] if o["iou_threshold"] == row["iou_threshold"])
        expected = [None if np.isnan(row[name]) else row[name] for name in ("difference", "low", "high")]
        assert [own[name] for name in ("difference", "low", "high")] == expected
    for row in found.figures.to_dict("records"):
        own = results["groups"][row["group"]]["kinds"][row["kind"]][row["state"]]["figures"][row["figure"]]
        assert own["value"] == (None if np.isnan(row["value"]) else row["value"])
    after = found.settings[KIND]["after"]
    assert results["settings"][KIND]["after"] == after.parameters() | {"description": after.describe()}
    assert results["n_images"] == 6


# ---------------------------------------------------------------------------------------------------------- examples


def title_parts(shown: list[Example]) -> list[tuple[str, str]]:
    return [tuple(example.title.split(" on ")) for example in shown]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 99])
def test_examples_take_seen_and_unseen_classes_in_turn_and_an_absent_one_last(store, states, data, count):
    shown = examples(store, states[KIND], GROUPS, count=count)
    assert len(shown) == min(count, 7) if count < 4 else 3 < len(shown) <= 7
    pairs = title_parts(shown)
    present, absent = (pairs[:-1], pairs[-1:]) if count > 1 else (pairs, [])
    for place, (label, image_id) in enumerate(present[:2]):
        assert (label in SEEN) == (place % 2 == 0)
        assert ((data.boxes["image_id"] == image_id) & (data.boxes["label"] == label)).any()
    assert len({label for label, _ in present}) == len({image_id for _, image_id in present}) == len(present)
    for label, image_id in absent:
        assert image_id == present[0][1]
        own = data.boxes.loc[data.boxes["image_id"] == image_id, "label"]
        assert label not in set(own)
        maps = store.maps(states[KIND]["before"], data.images["image_id"].tolist().index(image_id))[0]
        highest = {name: maps[place].max() for place, name in enumerate(data.classes) if name not in set(own)}
        assert highest[label] == max(highest.values())
        assert shown[-1].truth.empty


def test_an_example_has_maps_and_boxes_of_every_state(store, states, data):
    example = examples(store, states[KIND], GROUPS, count=1)[0]
    assert list(example.maps) == list(example.found) == list(STATES)
    np.testing.assert_array_equal(example.maps["before"], example.maps["floor"])
    label, image_id = title_parts([example])[0]
    position, place = data.images["image_id"].tolist().index(image_id), data.classes.index(label)
    for state, setting in states[KIND].items():
        heatmap = store.maps(setting, position)[0, place]
        np.testing.assert_array_equal(example.maps[state], heatmap)
        (expected,) = extract_many(heatmap, (96, 96), [setting])
        np.testing.assert_array_equal(example.found[state], expected.boxes)
    assert set(example.truth["label"]) == {label}


def test_a_group_without_boxes_leaves_the_examples_of_the_other(tiny, data, folder, adapters, states):
    """Without a box of a seen class there was no example at all."""
    for labels in (["windmill", "dam", "bridge"], ["ship", "vehicle", "airport"]):
        store = adapted_store(tiny, everywhere(data, labels), folder, adapters)
        shown = examples(store, states[KIND], GROUPS, count=4)
        assert [label for label, _ in title_parts(shown)][:3] == sorted(labels, key=labels.index)
        assert len(shown) == 4
    empty = adapted_store(tiny, replace(data, boxes=data.boxes.iloc[:0]), folder, adapters)
    assert examples(empty, states[KIND], GROUPS, count=4) == []


# ----------------------------------------------------------------------------------------------------------- figures


def assert_readable(figure) -> None:
    """No title reaches into another, or out of the figure at a side."""
    figure.draw_without_rendering()
    texts = [axis._left_title for axis in figure.axes] + ([figure._suptitle] if figure._suptitle else [])
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for text, box in boxes:
        assert figure.bbox.x0 - 2 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 + 2, text
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


@pytest.mark.filterwarnings("error")
def test_map_before_and_after_of_anything(case):
    kind = list(case.settings)[-1]
    figure = adaptation_plots.before_after(case.maps, case.groups, kind, module.title(case, kind))
    groups = module.groups_of(case)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [f"{g} ({len(case.groups[g])})" for g in groups]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        name for state, name in STATES.items() if state in case.settings[kind]
    ]
    of_kind = case.maps.query("kind == @kind and protocol == 'all'")
    for axis, group in zip(figure.axes, groups, strict=True):
        rows = of_kind[of_kind["group"] == group]
        said = [text.get_text() for text in axis.texts]
        assert said == (["no boxes in this split"] if rows["map"].isna().all() else [])
        own = rows[rows["state"] == "after"]
        np.testing.assert_array_equal(axis.lines[-1].get_ydata(), own["map"])
    assert_readable(figure)


@pytest.mark.filterwarnings("error")
def test_examples_are_drawn_a_row_each(store, states):
    shown = examples(store, states[KIND], GROUPS, count=2)
    figure = adaptation_plots.example_rows(shown)
    assert len(figure.axes) == 5 * 2
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert "".join(titles[0].split()).startswith("".join(shown[0].title.split()))
    assert "similarity" in titles[0]
    assert titles[-2].startswith("logit")
    assert titles[-1].endswith(f"not in the image:\n{len(shown[1].found['after'])} false boxes")
    assert len(figure.axes[4].patches) == len(shown[0].found["after"]) + len(shown[0].truth)
    assert_readable(figure)
