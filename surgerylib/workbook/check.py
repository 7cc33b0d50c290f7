"""Everything a run needs, looked at before anything is written: values, dataset, images, model, output folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from ..clip import load_clip, pick_device
from ..datasets import Dataset, check_disjoint, check_have_boxes, check_on_bad_image, load_dataset, sound
from ..engine import Options, load_adapters
from ..errors import CheckpointError, OutputError, ParameterError, TrainingError, whole_number
from ..files import EMBEDDED, checkpoint_file, dataset_folder
from ..heatmaps import Setting, chosen_kind
from ..study import (
    Criterion,
    TrainingPlan,
    check_evaluated,
    check_floor_percentiles,
    find_head,
    load_head,
    post_processing_variants,
    setting_grid,
    states_of,
)
from ..words import DIOR_CLASSES, check_kinds, check_prompts
from .parameters import find_notebooks, known_parameters, load_config, validate, with_defaults

# parameters that count something, by the least they may be
_AT_LEAST = {
    0: ("num_examples", "ablation_epochs", "num_class_examples", "adapter_ablation_epochs"),
    1: ("image_size", "depth", "batch_size", "num_images", "num_choice_images", "feature_layers", "grid_size", "epochs",
        "training_batch_size", "num_train_images", "patience", "num_failing", "adapter_rank", "adapter_epochs"),
    8: ("picture_size",),
}  # fmt: skip


def check(
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    device: str = "cpu",
    only: str | None = None,
    notebooks_dir: str | Path | None = None,
) -> str:
    """Read everything that a run with this configuration reads, run the model's self-check, change nothing.

    Returns what was found, a line each; the first thing that would stop the run is a `SurgeryError`. Arguments as in
    `run_workbook`, and where the self-check runs: the CPU leaves a GPU's memory to the notebooks.
    """
    known = known_parameters(find_notebooks(notebooks_dir))
    settings = with_defaults(validate(load_config(config), known), known)
    return check_input(settings, find_notebooks(notebooks_dir, only), device)


def check_input(settings: Mapping[str, Any], notebooks: Sequence[Path], device: str = "cpu") -> str:
    """`check` with the values of all parameters, of which those count that these notebooks have."""
    own, root = known_parameters(notebooks), notebooks[0].resolve().parent.parent
    settings = {name: value for name, value in settings.items() if name in own}
    check_values(settings)
    check_cache(settings, root)
    lines = _check_dataset(settings, root) if "dataset" in settings else []
    lines += _check_model(settings, root, device) if "model" in settings else []
    return "\n".join(lines)


def check_values(settings: Mapping[str, Any]) -> None:
    """A `ParameterError` for the first value that can be judged, and refused, without reading a file."""
    if "kinds" in settings:
        check_kinds(settings["kinds"])
        Setting.of(settings, kind=chosen_kind(settings.get("kind"), settings["kinds"]))
    else:
        Setting.of(settings)
    Options(**{name: settings[name] for name in ("iou_thresholds", "interpolation", "seed") if name in settings})
    if settings.get("adapter_floor") is not None:
        try:
            Setting(floor=settings["adapter_floor"])
        except ParameterError as error:
            raise ParameterError(f"adapter_{error}") from None
    if "on_bad_image" in settings:
        check_on_bad_image(settings["on_bad_image"])
    for least, name in ((least, name) for least, names in _AT_LEAST.items() for name in names):
        if settings.get(name) is not None:
            whole_number(name, settings[name], least)
    if "percentiles" in settings:
        lists = {name: settings[name] for name in ("kinds", "similarities", "layer_counts", "percentiles")}
        setting_grid(**lists)
        post_processing_variants(Setting(), settings)
        check_floor_percentiles(settings["floor_percentiles"])
        Criterion(settings["choose_protocol"], settings["choose_iou"]).check(settings["iou_thresholds"])
    for name in ("train_split", "choose_split"):
        if settings.get(name) == "":
            raise ParameterError(f"{name} is empty; name a split, such as train or val")
    if settings.get("train_split") is not None:
        TrainingPlan.from_parameters(settings)
    if "localizer" in settings:
        check_evaluated(settings["classes_evaluated"])
        check_prompts(settings["prompts"])
    for name in ("checkpoint", "cache_dir", "localizer", "adapter"):
        value = settings.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise ParameterError(f"{name} must be text, or null, not {value!r}")
    if "model" in settings and settings["model"] != EMBEDDED and not settings.get("checkpoint"):
        raise CheckpointError(
            f"the model {settings['model']!r} needs a checkpoint: a file, an open_clip tag (openai) or "
            "hf:owner/repo/file; without one its weights would be random"
        )


def check_cache(settings: Mapping[str, Any], root: Path) -> None:
    """An `OutputError` unless the folder for computed heatmaps, where one is named, can be made or written to."""
    if settings.get("cache_dir"):
        check_writable(root / settings["cache_dir"], "another cache_dir")


def check_writable(folder: Path, other: str) -> None:
    """An `OutputError` that says to choose the `other`, unless the folder can be made or written to."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"cannot write to {folder}: {existing} is a file; choose {other}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: no permission in {existing}; choose {other}")


def check_head(chosen: Sequence[Path], settings: Mapping[str, Any], out_dir: Path, root: Path) -> None:
    """A `CheckpointError` unless notebooks that need a trained head will find one: named, trained before, or there."""
    accepted = known_parameters(chosen)
    trained = "train_split" in accepted and settings.get("stage") != "heatmap"
    if "localizer" in accepted and (settings.get("localizer") or not trained):
        find_head(out_dir, settings.get("localizer"), root)


def check_output(out_dir: Path) -> None:
    """An `OutputError` unless the run's folder can be made or written to, and holds no page that is not a run's."""
    check_writable(out_dir, "another --out")
    if (out_dir / "index.html").exists() and not (out_dir / "run.json").exists():
        raise OutputError(f"{out_dir} holds an index.html but no run.json, so it is no run's folder; choose another")


def _check_dataset(settings: Mapping[str, Any], root: Path) -> list[str]:
    policy = settings.get("on_bad_image", "error")
    folder, embedded = dataset_folder(settings["dataset"], root)
    if embedded and not folder.exists():
        return [f"dataset: the embedded scenes are not in {folder} yet; the first run draws them"]
    wanted = {"split": "num_images", "choose_split": "num_choice_images", "train_split": "num_train_images"}
    whole = {
        name: load_dataset(folder, settings.get(name, "test"), on_bad_image=policy, decode=False)
        for name in wanted
        if name == "split" or settings.get(name)
    }
    for one, other in combinations(whole.values(), 2):
        check_disjoint(one, other)
    # each image decoded: what can't be read is found here, and not in the middle of the night
    seed = settings.get("seed", 0)
    parts = {name: sound(data.sample(settings.get(wanted[name]), seed), policy) for name, data in whole.items()}
    if "train_split" in parts:
        _check_to_learn_from(parts, settings)
    lines = []
    for part in parts.values():
        lines += [f"dataset: {part.describe()}", f"images: all {len(part.images):,} can be read"]
        lines += [f"skipped: {row.image_id}: {row.reason}" for row in part.skipped.itertuples()]
    return lines


def _check_to_learn_from(parts: Mapping[str, Dataset], settings: Mapping[str, Any]) -> None:
    """The images to train and to choose on must have boxes of the classes that are trained on, at every stage."""
    train, seen = parts["train_split"], settings.get("seen_classes")
    plan = TrainingPlan.from_parameters(settings)
    trained_on = [plan.adapter.seen(train.classes)] if "heatmap" in plan.stages else []
    if "localizer" in plan.stages:
        trained_on.append(train.classes if seen is None else check_have_boxes(train, seen))
    for names, parameter in product(trained_on, ("train_split", "choose_split")):
        part = parts[parameter]
        if not part.boxes["label"].isin(names or part.classes).any():
            raise TrainingError(
                f"{parameter} {part.split!r} has no box of the classes that are trained on; choose another split, or "
                "leave the training out with train_split=null"
            )


def _check_model(settings: Mapping[str, Any], root: Path, device: str) -> list[str]:
    checkpoint = checkpoint_file(settings.get("checkpoint"), root) or settings.get("checkpoint")
    options = {name: settings[name] for name in ("image_size", "depth") if name in settings}
    clip = load_clip(settings["model"], checkpoint, device=device, **options)
    if "device" in settings:
        pick_device(settings["device"])  # where the notebooks will run
    most = {
        "last_layers": settings.get("last_layers", 1),
        "layer_counts": max(settings.get("layer_counts", []), default=1),
        "feature_layers": settings["feature_layers"] if settings.get("train_split") else 1,
    }
    for name, layers in most.items():
        if layers > clip.depth:
            raise ParameterError(
                f"{name} must be at most {clip.depth}, the blocks of {clip.name} in which the value-value path runs, "
                f"not {layers}"
            )
    if settings.get("localizer"):
        load_head(find_head(root, settings["localizer"], root), clip, DIOR_CLASSES)
    if settings.get("adapter"):
        states_of({kind: Setting(kind) for kind in settings["kinds"]}, load_adapters(settings["adapter"], clip))
    return [
        f"model: {clip.name}, weights from {clip.weights.source} (sha256 {clip.weights.sha256[:12]}), "
        f"{clip.image_size} pixels, {clip.grid[0]} x {clip.grid[1]} patches",
        f"self-check: the QK path equals stock open_clip to {clip.self_check_error:.1e} (relative)",
    ]
