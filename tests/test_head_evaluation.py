"""A head that is told the class: what it finds, box by box and group by group, the verdict, and CLIP's own naming."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from surgerylib.boxes import box_iou
from surgerylib.datasets import Dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.localization import localization_summary
from surgerylib.engine.localizer_training import summarise, train_localizer
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CheckpointError, ParameterError
from surgerylib.figures import evaluation as evaluation_plots
from surgerylib.files import file_sha256
from surgerylib.heatmaps import Setting
from surgerylib.localizer import GTClassLocalizer, load_localizer
from surgerylib.study import classification, evaluation_tables, head_evaluation, localizer_tables
from surgerylib.study.box_groups import GROUPINGS, box_groups, box_sizes
from surgerylib.study.evaluation_tables import CLASSIFICATION, LOCALISATION, NOT_DECIDED, Verdict, outcome, verdict
from surgerylib.study.tables import plain
from surgerylib.study.training import PUBLISHED, TrainingPlan, publish
from surgerylib.weights import save_trained, untrained_model
from surgerylib.workbook.session import Session, open_session

SOURCES = {kind: Setting(kind) for kind in ("standard", "vv_qk", "vv_mixed")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=6, num_val=4, num_test=8, size=96)


@pytest.fixture(scope="module")
def opened(tiny_folder, tmp_path_factory):
    """A session of the notebook on one split of some scenes."""

    def of(scenes: Path, split: str = "test") -> Session:
        parameters = {
            "dataset": str(scenes), "split": split, "model": f"local-dir:{tiny_folder}", "depth": 3, "device": "cpu",
            "checkpoint": str(tiny_folder / "model.safetensors"), "out_dir": str(tmp_path_factory.mktemp("run")),
        }  # fmt: skip
        return open_session("04_gt_class_evaluation", parameters)

    return of


@pytest.fixture(scope="module")
def session(scenes, opened) -> Session:
    session = opened(scenes)
    seen = sorted(session.other_split("train").boxes["label"].unique())
    validation = set(session.other_split("val").boxes["label"])
    plan = TrainingPlan.from_parameters({
        "stage": "localizer", "epochs": 1, "warmup_epochs": 0.5, "picture_size": 32, "training_batch_size": 4,
        "seen_classes": [name for name in seen if name in validation] or seen,
    })  # fmt: skip
    caches = plan.feature_caches(session.clip, session.training_datasets(plan), session.cache_dir)
    for cache in caches.values():
        cache.compute()
    _, training = train_localizer(caches["train"], caches["choose"], plan.head, plan.schedule, session.cache_dir)
    publish(training, session.out_dir)
    return session


@pytest.fixture(scope="module")
def head(session) -> head_evaluation.Head:
    return head_evaluation.open_head(session.out_dir, None, session.clip, session.dataset.classes)


@pytest.fixture(scope="module")
def cache(session, head):
    return head.cache(session.clip, session.dataset, session.cache_dir).compute()


@pytest.fixture(scope="module")
def ious(session, head, cache) -> pd.DataFrame:
    return head_evaluation.evaluate_head(head, cache, session.dataset.classes)


def test_the_head_of_the_run_is_taken_with_its_own_maps(session, head, cache):
    assert head.path == session.out_dir / PUBLISHED
    assert head.sha256 == file_sha256(head.path)
    assert cache.setting.layers == head.about["belongs_to"]["layers"] == 3
    assert cache.picture_size == 32
    start = untrained_model(GTClassLocalizer, head.model.config, 0).state_dict()
    assert all(torch.equal(value.cpu(), start[name]) for name, value in head.untrained.state_dict().items())


def test_the_boxes_shown_are_those_that_were_measured(session, head, cache, ious):
    rows = ious.iloc[[0, 3, 5]]
    for row, said in zip(rows.itertuples(), head_evaluation.head_boxes(head.model, cache, rows), strict=True):
        truth = session.dataset.boxes.iloc[row.box_row][["xmin", "ymin", "xmax", "ymax"]].to_numpy(float)
        found = box_iou(said, np.tile(truth, (2, 1)))
        np.testing.assert_allclose(found, [row.oracle, row.cam_peak], atol=1e-5)


def test_classes_are_chosen_by_what_the_head_was_trained_on(session, head, cache, ious):
    classes = session.dataset.classes
    seen, unseen = (head_evaluation.evaluated_classes(head, classes, which) for which in ("seen", "unseen"))
    assert seen == head.seen_classes
    assert sorted(seen + unseen) == sorted(classes)
    part = head_evaluation.evaluate_head(head, cache, unseen)
    expected = ious[ious["label"].isin(unseen)].reset_index(drop=True)
    # a head asked for fewer channels takes other products: equal to float32's rounding
    pd.testing.assert_frame_equal(
        part.drop(columns=["row", "column"]), expected.drop(columns=["row", "column"]), atol=1e-5
    )
    chosen = head_evaluation.evaluated_classes
    refused(lambda: chosen(head, classes, "sean"), ParameterError, "classes_evaluated must be one of all, seen, unseen")
    refused(lambda: chosen(head, seen, "unseen"), ParameterError, "trained on all classes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["belongs_to"].update(weights_sha256="ab"), "belongs to something else .*weights_sha256"),
        (lambda about: about["belongs_to"].update(classes=["ship"]), "belongs to something else .*classes"),
        (lambda about: about.clear(), "does not say which maps it takes"),
        (lambda about: about.pop("settings"), r"how it was trained \(settings\)"),
    ],
)
def test_a_head_of_another_model_or_class_list_is_refused(session, head, tmp_path, change, message):
    model, about = load_localizer(head.path)
    change(about := json.loads(json.dumps(about)))
    path = save_trained(tmp_path / "head.safetensors", "localizer", model.config, model.state_dict(), about)
    given = (session.out_dir, str(path), session.clip, session.dataset.classes)
    refused(lambda: head_evaluation.open_head(*given), CheckpointError, message)


def test_images_that_were_trained_or_chosen_on_are_named(scenes, opened, head, tmp_path):
    renamed = shutil.copytree(scenes, tmp_path / "others")
    on = {split: opened(scenes, split).dataset for split in ("train", "val", "trainval", "test")}
    of_renamed = opened(renamed, "train").dataset
    said = ["6 of the 6 images are among those of train that were trained on: these figures flatter the head."]
    assert head.notes(on["test"]) == []
    assert head.notes(on["train"]) == head.notes(of_renamed) == said
    assert "4 of the 4 images are among those of val that were used to choose the epoch" in head.notes(on["val"])[0]
    assert len(head.notes(on["trainval"])) == 2
    names_alone = replace(head, about=head.about | {"trained_on": {"dataset": "scenes", "split": "train"}})
    for split in ("train", "trainval"):
        assert "does not say which" in names_alone.notes(on[split])[0]
    assert not [note for note in names_alone.notes(on["val"]) if "trained on" in note]
    assert names_alone.notes(of_renamed) == []
    for damaged in ("train", {}, {"images": 3}):
        assert replace(head, about=head.about | {"trained_on": damaged}).notes(on["test"]) == []


def test_examples_are_the_best_the_worst_and_those_between():
    ious = pd.DataFrame({"image_id": list("aabbccdd"), "box_row": range(8), "oracle": np.linspace(0.1, 0.8, 8)})
    picked = head_evaluation.pick_examples(ious, 2)
    assert picked["best"]["box_row"].tolist() == [7, 5]  # no image twice
    assert picked["worst"]["box_row"].tolist() == [0, 2]
    assert set(picked["median"]["box_row"]) <= {1, 3, 4, 6}
    few = head_evaluation.pick_examples(ious.iloc[:2], 4)
    assert (len(few["best"]), len(few["worst"])) == (2, 0)
    assert head_evaluation.pick_examples(ious.iloc[:0], 4)["median"].empty


def test_results_are_plain_json_and_tables_repeat_them(session, head, ious):
    data = session.dataset
    store = HeatmapStore(session.clip, data, session.cache_dir).compute()
    named = classification.classify(store.shards(), data, session.clip.grid, list(SOURCES.values()))
    summary = summarise(ious)
    said = verdict(summary)
    classes = head_evaluation.by_class(ious, data.classes)
    groups = head_evaluation.by_group(ious)
    seen = localizer_tables.by_seen(ious, head.seen_classes)
    levels = {path: named.image_level(path, interpolation="11point") for path in ("qk", "vv")}
    prompts = classification.prompt_figures(
        {"ensemble": named, "again": named}, SOURCES["vv_mixed"], reference="ensemble", interpolation="11point"
    )
    results = evaluation_tables.evaluation_results(
        said, summary, classes=classes, groups=groups, seen=seen, prompts=plain(prompts), kind="vv_mixed",
        **classification.classification_results(named, SOURCES, levels, seed=0),
    )  # fmt: skip
    again = json.loads(json.dumps(results, allow_nan=False))
    absent = [name for name in data.classes if name not in set(data.boxes["label"])]
    assert absent
    assert all(again["by_class"][name] == {"n_boxes": 0, "n_images": 0, "methods": None} for name in absent)
    for of in (again["by_class"], *again["by_group"].values()):
        assert sum(part["n_boxes"] for part in of.values()) == len(data.boxes)
    for figure in ("difference", "top1_difference"):
        (same,) = prompts[(prompts["prompts"] == "again") & (prompts["figure"] == figure)].itertuples()
        assert (same.value, same.low, same.high) == (0, 0, 0)

    table = evaluation_tables.groups_table(classes)
    assert (table.loc[absent, ["mean IoU, best cell", "share > 0.5", "best guess"]] == "no boxes").all(axis=None)
    accuracy = classification.accuracy_table(named, SOURCES)
    assert list(accuracy.index)[:2] == ["standard = vv_qk", "vv_mixed"]
    assert accuracy.loc["any class at random", "right class first"] == "0.050"
    wordings = classification.prompts_table(prompts, reference="ensemble")
    assert wordings.loc["ensemble", "image-level, minus ensemble (paired)"] == "–"
    assert evaluation_tables.verdicts_table(seen).loc["seen classes", "verdict"] != "no boxes"
    for sentence in (
        evaluation_tables.groups_finding(groups),
        evaluation_tables.classes_finding(classes),
        classification.classification_sentence(named, SOURCES["vv_mixed"], "vv_mixed"),
        classification.confusion_finding(named.confusion(SOURCES["vv_mixed"])),
    ):
        assert "nan" not in sentence.lower()


def test_one_image_has_no_intervals_and_no_box_has_nothing_and_neither_decides(ious):
    one, nothing = ious[ious["image_id"] == ious["image_id"].iloc[0]], ious.iloc[:0]
    assert verdict(summarise(one)).outcome == verdict(summarise(nothing)).outcome == "not decided"
    cells = localizer_tables.answer_table(summarise(one))
    assert cells.map(lambda cell: "interval not available" in cell).all(axis=None)
    assert (localizer_tables.answer_table(summarise(nothing)) == "no boxes").all(axis=None)
    said = evaluation_tables.groups_finding(head_evaluation.by_group(one))
    assert said == "Too few images to compare groups of boxes."
    assert head_evaluation.by_group(nothing)["value"].isna().all()
    assert evaluation_tables.classes_finding(head_evaluation.by_class(nothing, ["ship"])) == "No class has boxes"


def test_main_confusions_by_hand():
    names = ["a", "b", "c", "d"]
    counts = pd.DataFrame([[3, 1, 1, 0], [0, 4, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]], names, names)
    found = classification.main_confusions(counts).set_index("label")
    assert found["other"].astype(object).where(found["other"].notna(), None).tolist() == ["b", None, "a", None]
    assert (found.loc["a", "boxes"], found.loc["a", "share"], found.loc["c", "share"]) == (1, 0.2, 1.0)
    assert math.isnan(found.loc["d", "share"])
    turned = classification.main_confusions(counts.loc[::-1, ::-1]).set_index("label").loc[names]
    pd.testing.assert_frame_equal(turned, found)  # the class list's order decides no tie
    assert classification.confusion_finding(counts * 0) == "No boxes to name"
    right = counts * np.eye(4, dtype=int)
    assert classification.confusion_finding(right) == "The right class responds most in 100 % of the boxes"


def test_classes_that_are_mistaken_for_each_other_stand_together():
    shares = np.eye(6)
    shares[0, 5] = shares[5, 0] = shares[1, 4] = shares[4, 1] = 0.5
    order = evaluation_plots.cluster_order(shares).tolist()
    assert abs(order.index(0) - order.index(5)) == 1
    assert abs(order.index(1) - order.index(4)) == 1
    for n in (0, 1, 2):
        assert evaluation_plots.cluster_order(np.eye(n)).tolist() == list(range(n))


# ------------------------------------------------------------------------------------------------ groups of boxes


def test_groups_by_hand():
    rows = [
        ("a", "ship", 0, 0, 31, 33),  # 1023 px, below 32²; of a 7 x 7 grid on 800 x 800: 0.08 patches; 1.06 : 1
        ("a", "dam", 0, 0, 32, 32),  # 1024 px is medium
        ("a", "dam", 0, 0, 96, 96),  # 9216 px is large; 0.71 patches
        ("a", "dam", 0, 0, 400, 100),  # 3.06 patches; 4 : 1
        ("b", "ship", 0, 0, 400, 200),  # the whole of a 400 x 200 image is 49 patches; 2 : 1
    ]
    sizes = [("a", 800, 800), ("b", 400, 200), ("c", 10, 10)]
    images = pd.DataFrame(sizes, columns=["image_id", "width", "height"]).assign(path="")
    boxes = pd.DataFrame(rows, columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"])
    data = Dataset("d", Path("d"), "test", "DIOR", images, boxes, ("ship", "dam"), pd.DataFrame(), 0)
    groups = box_groups(data, (7, 7))
    small, medium, large = GROUPINGS["size"]
    assert groups["size"].tolist() == [small, medium, large, large, large]
    assert groups["size in patches"].tolist() == ["below 1 patch"] * 3 + ["1 to 4 patches", "from 16 patches"]
    assert groups["boxes in the image"].tolist() == ["2 to 5 boxes"] * 4 + ["1 box"]
    assert groups["of them of its class"].tolist() == ["1 of it"] + ["2 to 5 of it"] * 3 + ["1 of it"]
    assert groups["aspect"].tolist() == ["below 1.5 : 1"] * 3 + ["from 3 : 1", "1.5 to 3 : 1"]
    assert box_sizes(data.boxes).tolist() == ["small", "medium", "large", "large", "large"]
    nothing = box_groups(replace(data, boxes=boxes[:0]), (7, 7))
    assert (len(nothing), list(nothing.columns)) == (0, list(GROUPINGS))


def test_each_group_is_summarised_by_itself_in_any_order_and_an_empty_one_is_listed():
    rng = np.random.default_rng(4)
    drawn_ious = pd.DataFrame(rng.random((150, 2)), columns=["oracle", "cam_peak"]).assign(
        image_id=np.repeat(np.arange(30), 5), label=rng.choice(["few", "many"], 150)
    )
    frame = head_evaluation.by_class(drawn_ious, ["few", "none", "many"])
    assert frame["group"].drop_duplicates().tolist() == ["few", "none", "many"]
    of = {name: rows.drop(columns="group").reset_index(drop=True) for name, rows in frame.groupby("group")}
    pd.testing.assert_frame_equal(of["many"], summarise(drawn_ious[drawn_ious["label"] == "many"]))
    assert of["none"]["value"].isna().all()
    assert (head_evaluation.by_class(drawn_ious.iloc[:0], ["few"])["n_boxes"] == 0).all()
    turned = head_evaluation.by_class(drawn_ious.sample(frac=1, random_state=1), ["many", "few"])
    for name, rows in turned.groupby("group"):
        pd.testing.assert_frame_equal(of[name], rows.drop(columns="group").reset_index(drop=True), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("share", "low", "high", "expected"),
    [
        (0.80, 0.75, 0.85, CLASSIFICATION),
        (0.80, 0.70, 0.85, NOT_DECIDED),  # on the line is not above it
        (0.60, 0.55, 0.65, NOT_DECIDED),
        (0.48, 0.44, 0.50, NOT_DECIDED),
        (0.40, 0.35, 0.45, LOCALISATION),
        (0.95, math.nan, math.nan, NOT_DECIDED),
        (math.nan, math.nan, math.nan, NOT_DECIDED),
    ],
)
def test_the_rule(share, low, high, expected):
    assert outcome(share, low, high) == expected


def said_of(oracle: np.ndarray, images: np.ndarray | None = None, guess: float = 0.1) -> Verdict:
    """The verdict on a head of these IoUs, a box an image unless said."""
    frame = pd.DataFrame(
        {"oracle": oracle, "cam_peak": oracle * 0.5, "untrained_oracle": 0.0, "whole_image": guess, "centre_box": 0.0,
         "class_mean": guess / 2}
    )  # fmt: skip
    return verdict(localization_summary(frame, np.arange(len(oracle)) if images is None else images))


def drawn(share: float, n: int) -> np.ndarray:
    return np.where(np.random.default_rng(0).random(n) < share, 0.9, 0.1)


def test_the_sentence_names_the_figures_behind_it():
    oracle = drawn(0.85, 400)
    said = said_of(oracle, np.repeat(np.arange(100), 4))
    share = (oracle > 0.5).mean()
    assert (said.outcome, said.share) == (CLASSIFICATION, pytest.approx(share))
    assert said.sentence.startswith("Classification is the problem: told its class,")
    for part in (f"{100 * share:.1f} %", f"{100 * said.low:.1f}, {100 * said.high:.1f}", "400 boxes on 100 images",
                 "above the 70 %", "whole image", "CAM's peak, for 0.0 %"):  # fmt: skip
        assert part in said.sentence


# two boxes, both found, had the interval [1, 1] and made classification the problem
@pytest.mark.parametrize(
    ("oracle", "images", "guess", "expected", "words"),
    [
        (np.full(60, 0.9), None, 0.8, CLASSIFICATION, "The guess's interval overlaps the head's"),
        (drawn(0.35, 200), None, 0.8, LOCALISATION, "The guess does better than the head"),
        (np.full(2, 0.9), None, 0.0, NOT_DECIDED, "above 70 %, but the interval crosses that line"),
        (np.full(4, 0.1), None, 0.0, NOT_DECIDED, "below 50 %, but the interval crosses that line"),
        (np.full(4, 0.9), np.zeros(4), 0.1, NOT_DECIDED, "[interval not available] of 4 boxes on 1 image,"),
        (np.empty(0), None, 0.1, NOT_DECIDED, "no image here holds a box"),
    ],
)  # fmt: skip
def test_what_a_guess_and_few_boxes_make_of_it(oracle, images, guess, expected, words):
    said = said_of(oracle, images, guess)
    assert said.outcome == expected
    assert words in said.sentence
    assert ("The guess does better" in said.sentence) == ("does better" in words)
    assert (plain(asdict(said))["low"] is None) == (images is not None or not len(oracle))
