"""What is looked at before a run with adapters, and what a notebook depends on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from adapted_scenes import SEEN, write_adapter
from tiny_models import write_model

from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset
from surgerylib.errors import CheckpointError, SurgeryError
from surgerylib.files import PROJECT_ROOT
from surgerylib.words import DIOR_CLASSES
from surgerylib.workbook import run as workbook
from surgerylib.workbook.check import check, check_head, check_values
from surgerylib.workbook.fingerprints import notebook_keys
from surgerylib.workbook.parameters import find_notebooks, known_parameters, notebook_parameters, validate

# ------------------------------------------------------------------------------------------------------ before a run


def defaults(**changes) -> dict:
    """Of every notebook's parameters."""
    return {name: parameter.default for name, parameter in known_parameters(find_notebooks()).items()} | changes


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
    "stage": ("all", "^stage must be 'heatmap', 'localizer' or 'both', got 'all'"),
    "epochs": (1, "^warmup_epochs must be below epochs"),
    "unseen_classes": (["zeppelin"], "unknown class 'zeppelin'"),
    "unseen_classes ": ("windmill", "unseen_classes must be a"),
    "unseen_classes  ": (list(DIOR_CLASSES), "unseen_classes names all classes"),
    "adapter_rank": (0, "adapter_rank must be .* 1"),
    "adapter_epochs": (1, "^adapter: warmup_epochs must be below epochs"),
    "adapter_learning_rate": (0.0, "adapter_learning_rate must be greater than 0"),
    "adapter_ablation_epochs": (-1, "adapter_ablation_epochs must be .* 0"),
    "localization_weight": (float("inf"), "localization_weight must be a"),
    "adapter_floor": (float("nan"), "adapter_floor must be a finite number"),
    "adapter": ("", "adapter must be text, or null, not ''"),
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
    for value in (None, -2.5, 0, "1e-3"):
        own = defaults(**validate({"adapter_floor": value}, known_parameters(find_notebooks())))
        check_values(own)
        assert own["adapter_floor"] == (None if value is None else float(value))


def test_no_box_of_the_classes_trained_on_is_found_before_the_run(arguments, training_root):
    boxes = {split: set(load_dataset(training_root, split).boxes["label"]) for split in ("train", "val")}
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
    names = [path.stem[:2] for path in workbook._without_left_out(find_notebooks(), defaults(**changes))]
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
    settings = defaults(stage="heatmap")
    assert workbook._without_left_out(chosen, settings) == chosen
    assert capsys.readouterr().out == ""
    with pytest.raises(CheckpointError, match="run notebook 03 into this folder first"):
        check_head(chosen, settings, tmp_path, tmp_path)


def test_a_training_of_adapters_alone_brings_no_head(tmp_path):
    check_head(find_notebooks(), defaults(stage="both"), tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match="run notebook 03"):
        check_head(find_notebooks(), defaults(stage="heatmap"), tmp_path, tmp_path)


# ------------------------------------------------------------------------------------------------------ fingerprints


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_key_follows_the_adapters_files(tiny, tmp_path, as_folder):
    paths = find_notebooks()
    folder = tmp_path / "adapters"
    folder.mkdir()
    path = write_adapter(folder / "adapter_vv_mixed.safetensors", tiny)
    settings = defaults(dataset=str(tmp_path / "none"), adapter=str(folder if as_folder else path))

    def keys() -> list[str]:
        return list(notebook_keys(paths, settings, PROJECT_ROOT).values())

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
    keys = [
        notebook_keys([notebook], defaults(**change), PROJECT_ROOT)[notebook]
        for change in ({}, {"adapter": "x"}, {"stage": "heatmap"}, {"unseen_classes": list(SEEN)})
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
