"""From parameters to trained heads and adapters: the plan, what stops a run, the head's tables, the commands."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from adapted_scenes import write_adapter
from disturbed import stop
from refusals import refused
from tiny_models import load_tiny, write_model

from surgerylib import clip as clip_module
from surgerylib.datasets import load_dataset
from surgerylib.engine import localizer_training as heads
from surgerylib.engine.adapter_training import LOSSES
from surgerylib.engine.adapters import find_adapters
from surgerylib.engine.features import BatchReader
from surgerylib.engine.tasks import Schedule
from surgerylib.engine.training import Training, progress_of
from surgerylib.errors import CheckpointError, ParameterError, SurgeryError
from surgerylib.figures import training as training_plots
from surgerylib.files import PROJECT_ROOT, RUN_LOCK, only_process
from surgerylib.localizer import load_localizer
from surgerylib.study import localizer_tables
from surgerylib.study.training import (
    PUBLISHED_FOLDER,
    TrainingPlan,
    adapted_kinds,
    head_variants,
    publish,
    publish_adapters,
)
from surgerylib.words import DIOR_CLASSES, KIND_PATHS, METHOD_NAMES
from surgerylib.workbook import check as check_module
from surgerylib.workbook import run as workbook
from surgerylib.workbook import session as session_module
from surgerylib.workbook.check import check, check_head, check_values
from surgerylib.workbook.cli import main
from surgerylib.workbook.fingerprints import notebook_keys
from surgerylib.workbook.parameters import find_notebooks, known_parameters, notebook_parameters, validate
from surgerylib.workbook.session import open_session

SMALL = {"picture_size": 32, "epochs": 2, "warmup_epochs": 0.5, "training_batch_size": 4, "adapter_epochs": 2,
         "adapter_rank": 2}  # fmt: skip


def defaults(only: str | None = None, **changes) -> dict:
    """Of these notebooks' parameters."""
    return {name: of.default for name, of in known_parameters(find_notebooks(only=only)).items()} | changes


# ---------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_has_the_notebooks_parameters_and_defaults():
    declared = defaults("03")
    plan = TrainingPlan.from_parameters(declared)
    for stage in ("localizer", "heatmap"):
        assert plan.parameters(stage).items() <= declared.items()
    assert (plan.head, plan.schedule) == (heads.LocalizerSettings(), Schedule())
    assert plan.adapter.unseen_classes == ("airport", "basketballcourt", "stadium", "windmill")


def test_each_training_takes_its_own_of_all_parameters():
    plan = TrainingPlan.from_parameters({
        "adapter": "folder", "adapter_epochs": 7, "epochs": 99, "learning_rate": 0.5, "adapter_rank": 3, "seed": 4,
        "weight_decay": 0.3,
    })  # fmt: skip
    assert plan.adapter_schedule == Schedule(epochs=7, learning_rate=0.5, weight_decay=0.3)
    assert plan.schedule == Schedule(epochs=99, learning_rate=0.5, weight_decay=0.3)
    assert (plan.adapter.rank, plan.adapter.seed, plan.head.seed) == (3, 4, 4)
    assert TrainingPlan.from_parameters({"stage": "localizer", "adapter_rank": -1}).adapter is None
    wrong, message = {"unseen_classes": "windmill"}, "unseen_classes must be a valid tuple, got 'windmill'"
    refused(lambda: TrainingPlan.from_parameters(wrong), ParameterError, message)


@pytest.mark.parametrize("name", ["embedded", "dior", "mini-dior", "earlier-study"])
def test_the_configurations_are_plans(name):
    config = yaml.safe_load((PROJECT_ROOT / "notebooks" / "configs" / f"{name}.yaml").read_text())
    assert set(config) <= set(defaults())
    settings = defaults() | config
    check_values(settings)
    if settings["train_split"] is None:  # nothing is trained
        return
    plan = TrainingPlan.from_parameters(settings)
    assert 1 <= len(plan.adapter.seen(DIOR_CLASSES)) <= 20
    if name == "earlier-study":
        assert (plan.schedule.epochs, plan.head.training_batch_size, plan.schedule.learning_rate) == (50, 8, 1e-4)
        assert len(plan.head.seen_classes) == 10
        assert plan.head.assign == "best_iou"


def test_values_of_a_stage_that_is_left_out_do_not_stop_a_run():
    check_values(defaults(stage="localizer", positive_weight=-1.0))
    check_values(defaults(stage="heatmap", learning_rate=-1.0, seen_classes="ship", adapter_learning_rate=0.1))
    check_values(defaults(train_split=None, stage="nothing"))
    refused(lambda: check_values(defaults(positive_weight=-1.0)), ParameterError, "positive_weight")


def test_no_floor_after_the_adapter_may_be_asked_for():
    """`adapter_floor: null` was refused, though null is what sets none."""
    own = defaults(**validate({"adapter_floor": None}, known_parameters(find_notebooks())))
    check_values(own)
    assert own["adapter_floor"] is None


def test_one_adapter_for_each_path_serves_all_kinds_and_the_variants_of_the_head():
    kinds = adapted_kinds()
    assert kinds == ["standard", "vv_mixed"]
    assert sorted(KIND_PATHS[kind][1] for kind in kinds) == sorted({patches for _, patches in KIND_PATHS.values()})
    variants = head_variants(heads.LocalizerSettings())
    assert list(variants) == ["all three", "cam only", "features only", "image only", "best_iou"]
    assert list(head_variants(heads.LocalizerSettings(assign="best_iou")))[-1] == "best_iou_or_center"


# ------------------------------------------------------------------------------------------------- what stops a run


def stopped(capsys, tmp_path: Path, command: str, config: dict) -> str:
    """The one line with which a command refuses a configuration; nothing is computed."""
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    assert main([command, "--config", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "out").exists()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "all"}, "^stage must be 'heatmap', 'localizer' or 'both', got 'all'"),
        ({"unseen_classes": ["zeppelin"]}, "unknown class 'zeppelin'"),
        ({"unseen_classes": "windmill"}, "unseen_classes must be a list"),
        ({"unseen_classes": list(DIOR_CLASSES)}, "unseen_classes names all classes"),
        ({"adapter_epochs": 1}, "^adapter: warmup_epochs must be below epochs"),
        ({"adapter_ablation_epochs": -1}, "adapter_ablation_epochs must be .* 0"),
        ({"adapter_floor": float("nan")}, "adapter_floor must be a finite number"),
        ({"adapter": ""}, "adapter must be text, or null, not ''"),
        ({f"{name}_weight": 0.0 for name in LOSSES}, "nothing would be learned"),
        ({"train_split": "test"}, "share 4 images"),
        ({"choose_split": "train"}, "share 12 images"),
        ({"train_split": "trian"}, "no split 'trian'"),
        ({"choose_split": ""}, "choose_split is empty"),
        ({"seen_classes": ["ship", "zeppelin"]}, "zeppelin"),
        ({"seen_classes": []}, "list of class names"),
        ({"feature_layers": 5}, "feature_layers must be at most 4"),
    ],
)
def test_a_value_that_cannot_be_stops_a_run_and_a_training(arguments, tmp_path, capsys, change, message):
    of_other_notebooks = not change.keys().isdisjoint({"adapter", "adapter_floor"})  # than that of `train`
    for command in ("run",) if of_other_notebooks else ("run", "train"):
        assert re.search(message, stopped(capsys, tmp_path, command, arguments | change))


def test_a_training_of_nothing_is_refused(arguments, tmp_path, capsys):
    assert "train_split is null" in stopped(capsys, tmp_path, "train", arguments | {"train_split": None})


def test_classes_trained_on_without_a_box_are_found_before_the_run(arguments, training_root, tmp_path, capsys):
    boxes = {split: set(load_dataset(training_root, split).boxes["label"]) for split in ("train", "val")}
    missing = next(name for name in DIOR_CLASSES if name not in boxes["train"])
    nowhere = next(name for name in DIOR_CLASSES if name not in boxes["train"] | boxes["val"])
    only_chosen = boxes["train"] - boxes["val"]
    for wrong, message in (
        ({"stage": "localizer", "seen_classes": [missing]}, f"{missing}, without a box in the split train"),
        ({"stage": "heatmap", "unseen_classes": [name for name in DIOR_CLASSES if name != nowhere]},
         "train_split 'train' has no box of the classes that are trained on"),
        ({"stage": "heatmap", "unseen_classes": [name for name in DIOR_CLASSES if name not in only_chosen]},
         "choose_split 'val' has no box of the classes that are trained on"),
    ):  # fmt: skip
        assert message in stopped(capsys, tmp_path, "train", arguments | wrong)
        check(arguments | wrong | {"stage": "localizer", "seen_classes": None}, only="03")


def test_more_layers_than_there_are_do_not_matter_where_nothing_is_trained(arguments):
    shallow = arguments | {"depth": 2, "layer_counts": [1]}  # 3 layers are the default
    refused(lambda: check(shallow), ParameterError, "feature_layers must be at most 2")
    check(shallow | {"train_split": None})


def test_an_adapter_that_cannot_be_used_stops_the_run(arguments, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "load_clip", lambda *args, **options: tiny)
    given = arguments | {"adapter": str(write_adapter(tmp_path / "own.safetensors", tiny, "vv_mixed"))}
    for only in ("02", None):
        check(given, only=only)
    strange = write_adapter(tmp_path / "b.safetensors", load_tiny(write_model(tmp_path / "model", seed=8)))
    for change, message in (
        ({"adapter": f"{tmp_path}/missing"}, "no file or folder .*missing; train adapters"),
        ({"adapter": str(strange)}, "belongs to something else .*weights"),
        ({"adapter": "~nobody-of-this-name/adapters"}, "nobody-of-this-name"),
        ({"adapter": "a" * 5000}, "aaa"),
        # it stopped notebook 01 behind its first answer
        ({"kinds": ["standard", "vv_qk"], "kind": None},
         r"none of which is among the kinds asked for \(standard, vv_qk\)"),
    ):  # fmt: skip
        wrong = given | change
        refused(lambda wrong=wrong: workbook.run_workbook(wrong, tmp_path / "out"), SurgeryError, message)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ what is left out, and the keys


@pytest.mark.parametrize(
    ("changes", "left", "words"),
    [
        ({"stage": "localizer"}, [], ""),
        ({"stage": "heatmap"}, ["04"], "04_gt_class_evaluation: left out, stage is heatmap, which trains no head\n"),
        ({"stage": "heatmap", "localizer": "head.safetensors"}, [], ""),
        ({"stage": "heatmap", "train_split": None}, ["03", "04"], "left out, train_split is null"),
    ],
)
def test_a_stage_without_a_head_leaves_out_what_needs_one_and_says_so(capsys, changes, left, words):
    notebooks, settings = find_notebooks(), defaults(**changes)
    chosen = workbook._without_left_out(notebooks, settings)
    assert chosen == [path for path in notebooks if path.stem[:2] not in left]
    said = capsys.readouterr().out
    assert (said.count(words), said.count("\n")) == (len(left) or 1, len(left))


def test_a_head_is_needed_where_no_training_of_the_run_brings_one(capsys, tmp_path):
    """Without notebook 03 in the run its stage decides nothing."""
    alone, settings = find_notebooks(only="04"), defaults(stage="heatmap")
    assert workbook._without_left_out(alone, settings) == alone
    assert capsys.readouterr().out == ""
    check_head(find_notebooks(), defaults(stage="both"), tmp_path, tmp_path)
    for chosen in (alone, find_notebooks()):
        message = "run notebook 03 into this folder first"
        refused(lambda chosen=chosen: check_head(chosen, settings, tmp_path, tmp_path), CheckpointError, message)


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_key_follows_the_adapters_files(tiny, tmp_path, as_folder):
    folder = tmp_path / "adapters"
    folder.mkdir()
    path, other = (folder / f"adapter_{kind}.safetensors" for kind in ("vv_mixed", "standard"))
    settings = defaults(dataset=str(tmp_path / "none"), adapter=str(folder if as_folder else path))

    def keys(**changes) -> list[str]:
        return list(notebook_keys(find_notebooks(), settings | changes, PROJECT_ROOT).values())

    write_adapter(path, tiny)
    before = keys()
    assert keys() == before
    write_adapter(path, tiny, strength=0.7)
    changed = keys()
    assert all(a != b for a, b in zip(before, changed, strict=True))
    write_adapter(other, tiny, "standard")
    assert (keys() != changed) == as_folder
    path.unlink()
    assert keys() != before  # `check` says what is missing
    assert keys(adapter=None) != before


def test_no_adapter_leaves_the_key_of_the_training_to_its_own_parameters():
    """Notebook 03 doesn't take adapters: its own key has no part of them."""
    (notebook,) = find_notebooks(only="03")
    assert "adapter" not in notebook_parameters(notebook)
    changes = ({}, {"adapter": "x"}, {"stage": "heatmap"})
    keys = [notebook_keys([notebook], defaults(**change), PROJECT_ROOT)[notebook] for change in changes]
    assert keys[0] == keys[1] != keys[2]


# ---------------------------------------------------------------------------------------------------- what is trained


@pytest.fixture(scope="module")
def session(arguments, tmp_path_factory):
    return open_session("03_training", arguments | {"split": "test", "out_dir": str(tmp_path_factory.mktemp("out"))})


@pytest.fixture(scope="module")
def trained(session):
    """Caches by role, task and training of a head."""
    plan = TrainingPlan.from_parameters(SMALL)
    caches = plan.feature_caches(session.clip, session.training_datasets(plan), session.cache_dir)
    for cache in caches.values():
        cache.compute()
    return caches, *heads.train_localizer(
        caches["train"], caches["choose"], plan.head, plan.schedule, session.cache_dir
    )


@pytest.fixture(scope="module")
def ious(trained) -> pd.DataFrame:
    caches, task, training = trained
    (model, _), (untrained, _) = load_localizer(training.best), load_localizer(training.kept(0))
    reader = BatchReader(caches["report"])
    return heads.with_untrained(heads.localize(model, reader, task.class_means), heads.localize(untrained, reader))


def test_what_is_published_is_the_best_epoch(trained, tmp_path):
    caches, _, training = trained
    _, about = load_localizer(publish(training, tmp_path), belongs_to=caches["report"].belongs_to)
    assert about["epoch"] == training.best_epoch
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "training_history.parquet"), training.history)


def test_adapters_are_published_and_replace_what_is_there(tmp_path):
    for content in (b"first", b"second"):
        trainings = {kind: Training(tmp_path / kind, pd.DataFrame(), 1) for kind in adapted_kinds()}
        for training in trainings.values():
            training.folder.mkdir(exist_ok=True)
            training.best.write_bytes(content)
        files = publish_adapters(trainings, tmp_path / "run")
        assert [path.read_bytes() for path in files.values()] == [content] * 2
    assert find_adapters(tmp_path / "run" / PUBLISHED_FOLDER) == sorted(files.values())


# --------------------------------------------------------------------------------------------- tables and figures


def frame_of(oracle: float, peak: float, guess: float, n: int = 40) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, 0.02, (n, 7))
    values = np.array([oracle, peak, 0.05, 0.05, guess, guess / 2, guess / 3]) + noise
    names = ["oracle", "cam_peak", *heads.UNTRAINED.values(), "whole_image", "centre_box", "class_mean"]
    return pd.DataFrame(values.clip(0, 1), columns=names).assign(image_id=[f"{k}" for k in range(n)], label="ship")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.7, 0.4, 0.1), "The trained head finds boxes that neither a guess nor the untrained.* guess .whole image"),
        ((0.7, 0.1, 0.1), "does not tell which one"),
        ((0.1, 0.1, 0.1), "not told apart"),
        ((1, 1, 1, 0), "nothing can be measured"),
    ],
)
def test_the_sentence_says_what_the_intervals_allow(values, said):
    frame = frame_of(*values)
    summary = heads.summarise(frame)
    text, table = localizer_tables.finding(frame, summary), localizer_tables.answer_table(summary)
    assert re.search(said, text)
    for method in ("oracle", "cam_peak") if len(frame) else ():
        assert table.loc[METHOD_NAMES[method], "mean IoU"] in text


def test_an_untrained_head_is_not_said_to_have_learned():
    """The oracle of random weights beats every fixed box: it is no sign of learning."""
    frame = frame_of(0.7, 0.4, 0.1)
    frame[list(heads.UNTRAINED.values())] = frame[list(heads.UNTRAINED)].to_numpy()
    assert "not told apart from what needs no learning" in localizer_tables.finding(frame, heads.summarise(frame))


def test_seen_and_unseen_classes_apart():
    frame = frame_of(0.6, 0.4, 0.1)
    frame.loc[:9, "label"] = "dam"
    table = localizer_tables.seen_table(localizer_tables.by_seen(frame, ["ship"]))
    assert list(table.columns) == ["seen classes (30 boxes)", "unseen classes (10 boxes)"]
    none = localizer_tables.seen_table(localizer_tables.by_seen(frame, ["ship", "dam"]))
    assert none.loc["head, best cell (oracle)", "unseen classes (0 boxes)"].startswith("no boxes")


def test_variants_have_paired_differences():
    frames = {"all three": frame_of(0.6, 0.4, 0.1), "cam only": frame_of(0.5, 0.4, 0.1)}
    figures = localizer_tables.variant_figures(frames, "all three")
    row = figures.set_index(["variant", "method"]).loc[("cam only", "oracle")]
    assert row["value"] == pytest.approx(frames["cam only"]["oracle"].mean())
    assert row["difference"] == pytest.approx(-0.1)
    assert row["difference_high"] < 0
    table = localizer_tables.variants_table(figures, "all three")
    assert table["minus all three, CAM's peak"].tolist() == ["–", "+0.000 [+0.000, +0.000]"]


@pytest.mark.parametrize(
    ("image_only", "n", "said"),
    [
        (0.5, 40, "less than all three.* Highest: all three, 0.6"),
        (0.7, 40, "add nothing here"),
        (0.6, 40, "not told apart"),
        (0.5, 1, "too few images"),
        (0.5, 0, "No box to compare on."),
    ],
)
def test_what_clip_adds_is_said_as_the_interval_allows(image_only, n, said):
    frames = {"all three": frame_of(0.6, 0.4, 0.1, n), "image only": frame_of(image_only, 0.3, 0.1, n)}
    figures = localizer_tables.variant_figures(frames, "all three")
    assert re.search(said, localizer_tables.variants_finding(figures, "all three"))


def test_positives_by_size_are_of_the_classes_that_are_trained_on(trained):
    caches = trained[0]
    data, train = caches["choose"].dataset, caches["train"].dataset
    seen = next(name for name in train.boxes["label"] if (data.boxes["label"] == name).any())
    task = heads.LocalizerTask(caches["train"], caches["choose"], heads.LocalizerSettings(seen_classes=(seen,)))
    task.ever_positive[task.is_trained_on] = True
    ious = heads.localize(task.model.eval(), BatchReader(caches["choose"], task.seen))
    figures = localizer_tables.positive_figures({"best_iou": task}, {"best_iou": ious}, data)
    assert figures["n_boxes"].sum() == (train.boxes["label"] == seen).sum()
    assert figures["n_measured"].sum() == (data.boxes["label"] == seen).sum()
    assert set(figures["ever_positive"].dropna()) == {1.0}
    assert "no boxes" in localizer_tables.positives_table(figures).to_numpy()


def test_results_are_plain_values_and_hold_the_history(ious, trained):
    training = trained[2]
    nothing = {"seen": {}, "variants": None, "positives": None}
    plan = TrainingPlan.from_parameters({}).parameters("localizer")
    results = localizer_tables.training_results("it does", heads.summarise(ious), training, plan=plan, **nothing)
    assert json.loads(json.dumps(results)) == results
    assert results["history"][0]["loss"] is None  # epoch 0 has no loss
    assert results["history"][1]["loss"] > 0
    assert results["methods"]["oracle"]["mean"]["value"] == pytest.approx(ious["oracle"].mean())
    empty = localizer_tables.training_results("", heads.summarise(ious.iloc[:0]), training, **nothing)
    assert empty["methods"]["oracle"]["mean"]["value"] is None


def test_the_boxes_on_an_image_are_those_of_a_class_and_bars_draw_without_a_box(ious, trained):
    caches, task, _ = trained
    targets = BatchReader(caches["choose"])
    position, label = int(targets.image[0]), int(targets.label[0])
    best, _, iou, peak_iou = heads.boxes_on_image(task.model.eval(), BatchReader(caches["choose"]), position, label)
    assert best.shape == (((targets.image == position) & (targets.label == label)).sum(), 4)
    assert 0 <= peak_iou <= iou <= 1
    training_plots.method_bars(heads.summarise(ious.iloc[:0]), "title").draw_without_rendering()


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def command(arguments, tmp_path, capsys, monkeypatch):
    """A command into the folder `out`: exit status, what it says, and its errors; CLIP is loaded once."""
    load = functools.cache(clip_module.load_clip)
    for module in (clip_module, session_module):
        monkeypatch.setattr(module, "load_clip", load)

    def call(name: str, *options: str, **more) -> tuple[int, str, str]:
        given = {**arguments, **SMALL, "stage": "localizer", **more}
        items = [item for name, value in given.items() if value is not None for item in ("-p", f"{name}={value}")]
        capsys.readouterr()
        return main([name, "--out", str(tmp_path / "out"), *items, *options]), *capsys.readouterr()

    return call


def test_features_says_their_size_before_it_computes_them(command, tmp_path):
    status, said, _ = command("features", "--predict")
    size = 20 * 16 * 4 + 3 * 16 * 64 * 2 + 3 * 32 * 32
    assert status == 0
    assert f"train (train): {size:,} bytes an image, 12 images, 0.000 GB" in said
    assert not (tmp_path / "out" / "cache").exists()
    status, said, _ = command("features")
    assert status == 0
    assert "features of 12 of 12 images" in said
    assert len(list((tmp_path / "out" / "cache").glob("features-*"))) == 3


def test_train_leaves_the_head_trains_once_and_leaves_the_report_of_another_training_alone(
    command, training_root, tmp_path
):
    scenes, out = shutil.copytree(training_root, tmp_path / "scenes"), tmp_path / "out"
    head, report = out / "localizer.safetensors", out / "training_results.json"
    status, said, _ = command("train", dataset=scenes)
    assert (status, said.splitlines()[-1]) == (0, str(head))
    assert len(list((out / "cache").glob("features-*"))) == 2  # the report's split is not needed to train
    before = head.read_bytes()
    plan = TrainingPlan.from_parameters(defaults("03") | SMALL).parameters("localizer")
    report.write_text(json.dumps({"plan": plan}))
    status, said, _ = command("train", dataset=scenes)
    assert status == 0
    assert "at its end already" in said
    status, _, error = command("train", dataset=scenes, epochs=3)
    assert status == 2
    assert "report of another training (epochs: 2 there, 3 here)" in error
    assert head.read_bytes() == before
    report.unlink()
    # a box that moved after the cache was made: another cache, another training
    image_id, xmin = load_dataset(scenes, "train").boxes[["image_id", "xmin"]].iloc[0]
    path = scenes / "Annotations" / "Horizontal Bounding Boxes" / f"{image_id}.xml"
    path.write_text(path.read_text().replace(f"<xmin>{int(xmin)}<", f"<xmin>{int(xmin) + 1}<", 1))
    status, said, _ = command("train", dataset=scenes)
    assert status == 0
    assert "at its end already" not in said
    assert len(list((out / "cache").glob("training-*"))) == 2


def test_resume_is_asked_for_and_only_where_there_is_something(command, tmp_path, monkeypatch):
    status, _, error = command("train", "--resume")
    assert status == 2
    assert "there is no training of these settings" in error
    with monkeypatch.context() as patch:
        stop(patch, heads.LocalizerTask, "loss", 5)
        assert command("train")[0] == 130
    (folder,) = (tmp_path / "out" / "cache").glob("training-*")
    assert progress_of(folder) == (1, False)
    status, _, error = command("train")
    assert status == 2
    assert "stopped behind epoch 1 of 2" in error
    status, said, _ = command("train", "--resume")
    assert status == 0
    assert "training the localiser: taken up behind epoch 1 of 2; trained GTClassLocalizer" in said
    assert progress_of(folder) == (2, True)
    assert (tmp_path / "out" / "localizer.safetensors").is_file()


def test_train_of_both_stages_and_the_stage_that_the_command_names(command, tmp_path):
    status, said, _ = command("train", "--stage", "heatmap", stage=None)  # `-p stage=…` would win over `--stage`
    out = tmp_path / "out"
    published = [out / "adapters" / f"adapter_{kind}.safetensors" for kind in ("standard", "vv_mixed")]
    assert status == 0
    assert sorted(said.splitlines()[-2:]) == list(map(str, published))
    assert not (out / "localizer.safetensors").exists()
    assert not list((out / "cache").glob("features-*"))  # the adapters don't pay for the head
    before = [path.read_bytes() for path in published]
    status, said, _ = command("train", stage="both")
    assert status == 0
    assert "the training of the adapter of vv_mixed is at its end already" in said
    assert said.splitlines()[-1] == str(out / "localizer.safetensors")
    assert [path.read_bytes() for path in published] == before
    status, _, error = command("train", "--stage", "heatmaps", stage=None)
    assert status == 2
    assert error.splitlines() == ["error: stage must be 'heatmap', 'localizer' or 'both', got 'heatmaps'"]


def test_train_waits_for_no_run_that_writes_there(command, tmp_path):
    with only_process(tmp_path / "out", "writes", lock_name=RUN_LOCK):
        status, _, error = command("train")
    assert (status, f"another process ({os.getpid()}) writes" in error) == (2, True)
