"""From parameters to trained adapters: the plan, what is looked at before a run, and what a notebook depends on."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from adapted_scenes import SEEN, load_adapters, write_adapter
from tiny_models import write_model

from surgerylib.clip import load_clip
from surgerylib.datasets.dataset import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.adapted_store import distinct_adapters, find_adapters
from surgerylib.engine.training import Training
from surgerylib.errors import CheckpointError, ParameterError, SurgeryError, UnknownClassError
from surgerylib.kinds import HEATMAP_KINDS, KIND_PATHS
from surgerylib.locations import PROJECT_ROOT
from surgerylib.study.adapter_plan import (
    NOVEL_CLASSES,
    PUBLISHED_FOLDER,
    AdapterPlan,
    adapted_kinds,
    check_stage,
    publish_adapters,
)
from surgerylib.study.localizer_plan import plain
from surgerylib.words import DIOR_CLASSES
from surgerylib.workbook import run as workbook
from surgerylib.workbook.check import check, check_head, check_values
from surgerylib.workbook.fingerprints import notebook_keys
from surgerylib.workbook.parameters import find_notebooks, known_parameters, notebook_parameters, validate

# ---------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_has_the_notebooks_parameters_and_defaults():
    (notebook,) = find_notebooks(only="03")
    declared = notebook_parameters(notebook)
    values = plain(AdapterPlan())
    assert set(values) <= set(declared)
    defaults = {name: declared[name].default for name in values}
    assert defaults == values | {"unseen_classes": list(NOVEL_CLASSES)}
    assert AdapterPlan.from_parameters(defaults) == AdapterPlan(unseen_classes=list(NOVEL_CLASSES))


def test_a_plan_takes_its_own_of_all_parameters():
    given = {"adapter_epochs": 7, "epochs": 99, "learning_rate": 0.5, "adapter_rank": 3, "kind": "standard", "seed": 4}
    assert AdapterPlan.from_parameters(given) == AdapterPlan(adapter_epochs=7, adapter_rank=3, seed=4)


@pytest.mark.parametrize("name", ["embedded", "dior", "mini-dior", "earlier-study"])
def test_the_configurations_are_plans(name):
    config = yaml.safe_load((PROJECT_ROOT / "notebooks" / "configs" / f"{name}.yaml").read_text())
    known = known_parameters(find_notebooks())
    plan = AdapterPlan.from_parameters({name: parameter.default for name, parameter in known.items()} | config)
    assert 1 <= len(plan.settings(DIOR_CLASSES).seen_classes or DIOR_CLASSES) <= 20
    assert plan.schedule.rate(10**9, 5) == plan.min_learning_rate


def test_the_schedule_is_the_adapters_own():
    plan = AdapterPlan(adapter_epochs=9, adapter_learning_rate=0.02, min_learning_rate=0.001, warmup_epochs=2.0,
                       weight_decay=0.3, gradient_clip=0.7, patience=4)  # fmt: skip
    assert asdict(plan.schedule) == {
        "epochs": 9, "learning_rate": 0.02, "min_learning_rate": 0.001, "warmup_epochs": 2.0, "weight_decay": 0.3,
        "gradient_clip": 0.7, "patience": 4,
    }  # fmt: skip


def test_what_is_wrong_with_the_adapters_schedule_is_not_said_of_the_heads():
    """`learning_rate` and `epochs` are parameters too: of the head."""
    for change in ({"adapter_learning_rate": 0}, {"adapter_epochs": 1, "warmup_epochs": 1.0}):
        with pytest.raises(ParameterError, match=r"^the adapter's schedule: "):
            _ = AdapterPlan(**change).schedule


def test_short_runs_shorten_the_warm_up_in_proportion():
    short = AdapterPlan(adapter_epochs=40, warmup_epochs=2.0, patience=3, adapter_rank=5).short(10)
    assert short == AdapterPlan(adapter_epochs=10, warmup_epochs=0.5, patience=None, adapter_rank=5)
    assert AdapterPlan(adapter_epochs=2, warmup_epochs=1.5).short(1).schedule.warmup_epochs == 0.75


def test_the_settings_have_the_plans_values():
    plan = AdapterPlan(
        training_batch_size=5, adapter_rank=6, classification_weight=0.1, localization_weight=0.2, sparsity_weight=0.3,
        anchor_weight=0.4, positive_weight=0.5, focal_gamma=0.6, seed=7,
    )  # fmt: skip
    values = asdict(plan.settings(DIOR_CLASSES))
    seen = values.pop("seen_classes")
    assert values == {
        "rank": 6, "batch_size": 5, "classification_weight": 0.1, "localization_weight": 0.2, "sparsity_weight": 0.3,
        "anchor_weight": 0.4, "positive_weight": 0.5, "focal_gamma": 0.6, "seed": 7,
    }  # fmt: skip
    assert set(seen) == set(DIOR_CLASSES) - set(NOVEL_CLASSES)


def test_unseen_classes_are_understood_however_they_are_written():
    reference = AdapterPlan().settings(DIOR_CLASSES)
    assert len(reference.seen_classes) == 16
    for written in (
        ["windmill", "stadium", "basketballcourt", "airport"],
        ["Wind Turbine", "STADIUM", "basketball court", "Airport"],
        ("airport", "airport", "basketball_court", "stadium", "wind-turbine", "windmill"),
    ):
        assert AdapterPlan(unseen_classes=written).settings(DIOR_CLASSES) == reference
    assert AdapterPlan(unseen_classes=[]).settings(DIOR_CLASSES).seen_classes is None
    one = AdapterPlan(unseen_classes=list(DIOR_CLASSES[1:])).settings(DIOR_CLASSES)
    assert one.seen_classes == ("airplane",)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (list(DIOR_CLASSES), ParameterError, "unseen_classes names all classes"),
        (["zeppelin"], UnknownClassError, "unknown class 'zeppelin'"),
        (["airprot"], UnknownClassError, "nearest known: airport"),
        ("windmill", ParameterError, "must be a list of class names, .* for none, got 'windmill'"),
        (None, ParameterError, "must be a list .* got None"),
        ([3], ParameterError, r"must be a list .* got \[3\]"),
        ({"windmill": 1}, ParameterError, "must be a list"),
    ],
)
def test_unseen_classes_that_cannot_be(names, error, message):
    with pytest.raises(error, match=message):
        AdapterPlan(unseen_classes=names).settings(DIOR_CLASSES)


def test_stages():
    assert check_stage("both") == ("heatmap", "localizer")
    assert check_stage("heatmap") == ("heatmap",)
    assert check_stage("localizer") == ("localizer",)
    for wrong in ("all", "", None, ["heatmap"], "Heatmap"):
        with pytest.raises(ParameterError, match="stage must be heatmap, localizer or both, got "):
            check_stage(wrong)


def test_one_adapter_for_each_path_serves_all_kinds():
    kinds = adapted_kinds()
    assert kinds == ["standard", "vv_mixed"]
    assert sorted(KIND_PATHS[kind][1] for kind in kinds) == sorted({patches for _, patches in KIND_PATHS.values()})


# ---------------------------------------------------------------------------------------------- training, publishing


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=8, num_val=4, num_test=3, size=96)


def test_what_is_trained_is_published_and_found_again(tiny, root, tmp_path):
    plan = AdapterPlan(feature_layers=2, adapter_rank=2, adapter_epochs=1, warmup_epochs=0.0, training_batch_size=4)
    datasets = {"train": load_dataset(root, "train"), "choose": load_dataset(root, "val")}
    caches = plan.caches(tiny, datasets, tmp_path / "cache")
    assert {role: (cache.dataset.split, cache.layers) for role, cache in caches.items()} == {
        "train": ("train", 2), "choose": ("val", 2),
    }  # fmt: skip
    for cache in caches.values():
        cache.compute()
    trained = {kind: plan.train(caches, tmp_path / "trainings", kind) for kind in adapted_kinds()}
    for task, training in trained.values():
        assert set(task.seen) == set(datasets["train"].boxes["label"]) - set(NOVEL_CLASSES)
        assert training.history["epoch"].tolist() == [0, 1]
    trainings = {kind: training for kind, (_, training) in trained.items()}
    files = publish_adapters(trainings, tmp_path / "run")
    assert list(files) == adapted_kinds()
    assert find_adapters(tmp_path / "run" / PUBLISHED_FOLDER) == sorted(files.values())
    adapters = load_adapters(tmp_path / "run" / PUBLISHED_FOLDER, tiny)
    assert list(adapters) == list(HEATMAP_KINDS)
    assert len(distinct_adapters(adapters)) == 2
    for kind, path in files.items():
        assert adapters[kind].file == path
        assert path.read_bytes() == trainings[kind].best.read_bytes()
        assert adapters[kind].seen_classes == trained[kind][0].seen
    settings = replace(plan.settings(DIOR_CLASSES), positive_weight=3.0)
    other, _ = plan.train(caches, tmp_path / "trainings", "standard", settings)
    assert other.settings == settings
    assert len(list((tmp_path / "trainings").iterdir())) == 3


def test_adapters_are_trained_side_by_side_to_the_weights_of_one_thread(tiny, root, tmp_path):
    plan = AdapterPlan(feature_layers=2, adapter_rank=2, adapter_epochs=2, warmup_epochs=0.0, training_batch_size=4)
    datasets = {"train": load_dataset(root, "train"), "choose": load_dataset(root, "val")}
    caches = plan.caches(tiny, datasets, tmp_path / "cache")
    for cache in caches.values():
        cache.compute()
    heavier = replace(plan.settings(DIOR_CLASSES), positive_weight=3.0)
    variants = {"one": ("standard", None), "other": ("vv_mixed", None), "again": ("standard", None)}
    variants["heavier"] = ("standard", heavier)
    n_threads = torch.get_num_threads()
    together = plan.train_all(caches, tmp_path / "together", variants)
    assert torch.get_num_threads() == n_threads
    assert list(together) == list(variants)
    assert together["one"] is together["again"]
    assert len(list((tmp_path / "together").iterdir())) == 3
    torch.set_num_threads(1)
    try:
        for name, (kind, settings) in variants.items():
            _, alone = plan.train(caches, tmp_path / "alone", kind, settings)
            assert alone.best.read_bytes() == together[name].best.read_bytes()
            pd.testing.assert_frame_equal(alone.history, together[name].history)
    finally:
        torch.set_num_threads(n_threads)
    again = plan.train_all(caches, tmp_path / "together", variants)
    assert again["one"].best_epoch == together["one"].best_epoch


def test_publishing_again_replaces_what_was_there(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    for content in (b"1", b"2"):
        (folder / "best.safetensors").write_bytes(content)
        training = Training(folder, pd.DataFrame(), 1, 0.0, None, False)
        (path,) = publish_adapters({"standard": training}, tmp_path / "run").values()
        assert path.read_bytes() == content


# ------------------------------------------------------------------------------------------------------ before a run


@pytest.fixture(scope="module")
def arguments(root, tiny_folder) -> dict:
    return {
        "dataset": str(root),
        "model": f"local-dir:{tiny_folder}",
        "checkpoint": str(tiny_folder / "model.safetensors"),
        "depth": 3,
    }


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Run the workbook with a configuration that must stop it; the error's one line."""

    def executed(*args, **options):
        raise AssertionError("the notebooks were executed")

    monkeypatch.setattr(workbook._Run, "execute", executed)

    def run(config: dict) -> str:
        with pytest.raises(SurgeryError) as caught:
            workbook.run_workbook(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        text = str(caught.value)
        assert text
        assert "\n" not in text
        return text

    return run


BAD = {
    "stage": ("all", "stage must be heatmap, localizer or both, got 'all'"),
    "stage ": ("", "stage must be heatmap"),
    "unseen_classes": (["zeppelin"], "unknown class 'zeppelin'"),
    "unseen_classes ": ("windmill", "unseen_classes must be a list"),
    "unseen_classes  ": (list(DIOR_CLASSES), "unseen_classes names all classes"),
    "unseen_classes   ": ([1], "unseen_classes must be a list of class names"),
    "adapter_rank": (0, "adapter_rank must be a whole number of at least 1"),
    "adapter_rank ": (2.5, "adapter_rank must be a whole number"),
    "adapter_epochs": (0, "adapter_epochs must be a whole number of at least 1"),
    "adapter_epochs ": (1, "the adapter's schedule: warmup_epochs must be below epochs"),
    "adapter_learning_rate": (0.0, "the adapter's schedule: learning_rate must be a number above 0"),
    "adapter_learning_rate ": (float("nan"), "the adapter's schedule: learning_rate"),
    "adapter_learning_rate  ": ("fast", "adapter_learning_rate must be a number"),
    "adapter_ablation_epochs": (-1, "adapter_ablation_epochs must be a whole number of at least 0"),
    "classification_weight": (-1.0, "classification_weight must be a number of at least 0"),
    "localization_weight": (float("inf"), "localization_weight must be a number"),
    "sparsity_weight": (-0.1, "sparsity_weight must be a number of at least 0"),
    "anchor_weight": (-1.0, "anchor_weight must be a number of at least 0"),
    "positive_weight": (0.0, "positive_weight must be a number above 0"),
    "focal_gamma": (-1.0, "focal_gamma must be a number of at least 0"),
    "focal_gamma ": (None, "focal_gamma must be a number"),
    "adapter_floor": ("high", "adapter_floor must be a number"),
    "adapter_floor ": (float("nan"), "adapter_floor: .* finite number"),
    "adapter_floor  ": (1e60, "adapter_floor: .* finite number"),
    "adapter_floor   ": (True, "adapter_floor"),
    "adapter": (3, "adapter must be text, or null, not 3"),
    "adapter ": ("", "adapter must be text, or null, not ''"),
    "adapter  ": (["a"], "adapter must be text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_cannot_be_stops_the_run_before_anything_is_written(arguments, refuse, case):
    value, message = BAD[case]
    assert re.search(message, refuse(arguments | {case.strip(): value}))


def test_all_losses_switched_off_learn_nothing(arguments, refuse):
    off = {f"{name}_weight": 0.0 for name in ("classification", "localization", "sparsity")}
    assert "nothing would be learned" in refuse(arguments | off)


def test_no_floor_after_the_adapter_may_be_asked_for():
    """`adapter_floor: null` was refused, though null is what sets none."""
    known = known_parameters(find_notebooks())
    settings = {name: parameter.default for name, parameter in known.items()}
    for value in (None, -2.5, 0, "1e-3"):
        own = settings | validate({"adapter_floor": value}, known)
        check_values(own)
        assert own["adapter_floor"] == (None if value is None else float(value))


def test_values_of_a_stage_that_is_left_out_do_not_stop_a_run():
    known = known_parameters(find_notebooks())
    settings = {name: parameter.default for name, parameter in known.items()}
    check_values(settings | {"stage": "localizer", "positive_weight": -1.0, "unseen_classes": ["zeppelin"]})
    check_values(settings | {"stage": "heatmap", "learning_rate": -1.0, "seen_classes": "ship"})
    check_values(settings | {"train_split": None, "stage": "nothing"})
    for stage in ("both", "heatmap"):
        with pytest.raises(ParameterError, match="positive_weight"):
            check_values(settings | {"stage": stage, "positive_weight": -1.0})


def test_no_box_of_the_classes_trained_on_is_found_before_the_run(arguments, root):
    boxes = {split: set(load_dataset(root, split).boxes["label"]) for split in ("train", "val")}
    nowhere = sorted(set(DIOR_CLASSES) - boxes["train"] - boxes["val"])
    only_nowhere = [name for name in DIOR_CLASSES if name not in nowhere[:1]]
    config = arguments | {"stage": "heatmap", "unseen_classes": only_nowhere}
    with pytest.raises(SurgeryError, match="train_split 'train' has no box of the classes that are trained on"):
        check(config, only="03")
    not_chosen_on = [name for name in DIOR_CLASSES if name not in boxes["train"] - boxes["val"]]
    with pytest.raises(SurgeryError, match="choose_split 'val' has no box of the classes that are trained on"):
        check(config | {"unseen_classes": not_chosen_on}, only="03")
    check(config | {"stage": "localizer"}, only="03")


@pytest.fixture
def loaded(tiny, monkeypatch):
    """The model is there already."""
    monkeypatch.setattr("surgerylib.clip.load_clip", lambda *args, **options: tiny)


def test_an_adapter_that_cannot_be_used_stops_the_run(arguments, refuse, loaded, tiny, tmp_path):
    folder = tmp_path / "adapters"
    folder.mkdir()
    no_adapter = tmp_path / "adapter_x.safetensors"
    no_adapter.write_bytes(b"not one")
    head = tmp_path / "weights.safetensors"
    head.write_bytes(Path(arguments["checkpoint"]).read_bytes())
    write_model(tmp_path / "model", seed=8)
    strange = load_clip(
        f"local-dir:{tmp_path / 'model'}", str(tmp_path / "model" / "model.safetensors"), device="cpu", depth=3
    )
    of_another = write_adapter(tmp_path / "of_another.safetensors", strange)
    for where, message in {
        tmp_path / "missing": "no file or folder .*missing; train adapters",
        folder: "no adapter_.* in the folder .*adapters",
        no_adapter: "adapter_x.safetensors is not a trained adapter",
        head: "weights.safetensors is not a trained adapter",
        of_another: "belongs to something else .*weights",
        "~nobody-of-this-name/adapters": "nobody-of-this-name",
        "a" * 5000: "aaa",
    }.items():
        assert re.search(message, refuse(arguments | {"adapter": str(where)}))
    own = write_adapter(tmp_path / "own.safetensors", tiny)
    for only in ("02", None):
        check(arguments | {"adapter": str(own)}, only=only)


def test_an_adapter_for_none_of_the_kinds_stops_the_run(arguments, refuse, loaded, tiny, tmp_path):
    """It stopped notebook 01 behind its first answer."""
    own = write_adapter(tmp_path / "own.safetensors", tiny, "vv_mixed")
    config = arguments | {"adapter": str(own), "kinds": ["standard", "vv_qk"], "kind": None}
    assert "none of which is among the kinds asked for (standard, vv_qk)" in refuse(config)


# -------------------------------------------------------------------------------------------------- what is left out


def left_out(capsys, **changes) -> tuple[list[str], str]:
    notebooks = find_notebooks()
    settings = {name: parameter.default for name, parameter in known_parameters(notebooks).items()} | changes
    names = [path.stem[:2] for path in workbook._without_left_out(notebooks, settings)]
    return names, capsys.readouterr().out


def test_a_stage_without_a_head_leaves_out_what_needs_one_and_says_so(capsys, tmp_path):
    assert left_out(capsys) == (["01", "02", "03", "04", "05"], "")
    assert left_out(capsys, stage="localizer") == (["01", "02", "03", "04", "05"], "")
    names, said = left_out(capsys, stage="heatmap")
    assert names == ["01", "02", "03", "05"]
    assert said == "04_gt_class_evaluation: left out, stage is heatmap, which trains no head\n"
    assert left_out(capsys, stage="heatmap", localizer="head.safetensors") == (["01", "02", "03", "04", "05"], "")
    names, said = left_out(capsys, stage="heatmap", train_split=None)
    assert names == ["01", "02", "05"]
    assert said.count("left out, train_split is null") == 2


def test_the_evaluation_alone_takes_the_head_that_is_there(capsys, tmp_path):
    """Without notebook 03 in the run its stage decides nothing."""
    chosen = find_notebooks(only="04")
    settings = {name: parameter.default for name, parameter in known_parameters(find_notebooks()).items()}
    settings |= {"stage": "heatmap"}
    assert workbook._without_left_out(chosen, settings) == chosen
    assert capsys.readouterr().out == ""
    with pytest.raises(CheckpointError, match="run notebook 03 into this folder first"):
        check_head(chosen, settings, tmp_path, tmp_path)


def test_a_training_of_adapters_alone_brings_no_head(tmp_path):
    notebooks = find_notebooks()
    settings = {name: parameter.default for name, parameter in known_parameters(notebooks).items()}
    check_head(notebooks, settings | {"stage": "both"}, tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match="run notebook 03"):
        check_head(notebooks, settings | {"stage": "heatmap"}, tmp_path, tmp_path)


# ------------------------------------------------------------------------------------------------------ fingerprints


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_key_follows_the_adapters_files(tiny, tmp_path, as_folder):
    paths = find_notebooks()
    folder = tmp_path / "adapters"
    folder.mkdir()
    path = write_adapter(folder / "adapter_vv_mixed.safetensors", tiny)
    defaults = {name: parameter.default for name, parameter in known_parameters(paths).items()}
    settings = defaults | {"dataset": str(tmp_path), "adapter": str(folder if as_folder else path)}

    def keys() -> list[str]:
        return list(notebook_keys(paths, settings, PROJECT_ROOT).values())

    settings["dataset"] = str(tmp_path / "none")
    before = keys()
    assert keys() == before
    write_adapter(path, tiny, strength=0.7)
    changed = keys()
    assert all(a != b for a, b in zip(before, changed, strict=True))
    write_adapter(folder / "adapter_standard.safetensors", tiny, "standard")
    assert (keys() != changed) == as_folder
    (folder / "notes.txt").write_text("x")
    write_adapter(path, tiny)
    (folder / "adapter_standard.safetensors").unlink()
    assert keys() == before
    path.unlink()
    assert keys() != before  # `check` says what is missing
    without = notebook_keys(paths, settings | {"adapter": None}, PROJECT_ROOT)
    assert list(without.values()) != before


def test_no_adapter_leaves_the_key_of_the_training_to_its_own_parameters():
    """Notebook 03 doesn't take adapters: its own key has no part of them."""
    (notebook,) = find_notebooks(only="03")
    assert "adapter" not in notebook_parameters(notebook)
    settings = {name: parameter.default for name, parameter in known_parameters([notebook]).items()}
    keys = [
        notebook_keys([notebook], settings | change, PROJECT_ROOT)[notebook]
        for change in ({}, {"adapter": "x"}, {"stage": "heatmap"}, {"unseen_classes": list(SEEN)})
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
