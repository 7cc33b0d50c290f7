"""The opening of every notebook: dataset, model and output folder from plain parameters, said in a few lines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from IPython.display import Markdown, display

from ..clip import SurgeryCLIP, load_clip
from ..datasets import Dataset, check_disjoint, load_dataset, sound
from ..embedded import write_scenes
from ..errors import OutputError
from ..files import PROJECT_ROOT, checkpoint_file, dataset_folder, library_sha256, versions
from ..study import TrainingPlan, skipped_note, warnings_for
from .parameters import notebook_parameters
from .run_files import data_provenance


@dataclass(frozen=True)
class Session:
    """What a notebook works on."""

    dataset: Dataset  # the images that are reported on, every one of them known to decode
    clip: SurgeryCLIP  # the frozen model
    out_dir: Path  # made, as is `cache_dir`
    cache_dir: Path
    parameters: Mapping[str, Any]  # of the notebook, with the values that it was run with
    started: float  # clock at the start, in seconds
    source: Path  # the dataset's folder
    whole_split: Dataset  # all images of the split that `dataset` is a sample of
    opened: list[Dataset] = field(default_factory=list)  # every data set that was opened, the first is `dataset`

    def other_split(self, split: str, num_images: int | None = None, *, purpose: str = "to choose on") -> Dataset:
        """Another split of the same dataset, which must not share an image with the session's own.

        Args:
            split: train, val, test or trainval.
            num_images: this many images, drawn at random with the seed; None takes all.
            purpose: what it is for, as it is printed.

        Raises:
            ParameterError: the two splits share an image.
            ImageReadError, AnnotationError: a damaged image, unless the session skips them.
        """
        policy = self.parameters["on_bad_image"]
        other = load_dataset(self.source, split, on_bad_image=policy, decode=False)
        check_disjoint(self.whole_split, other)  # samples of the two may miss what they share
        other = sound(other.sample(num_images, self.parameters["seed"]), policy, memory_dir=self.cache_dir)
        print(f"{purpose}: {other.describe()}")
        self.opened.append(other)
        return other

    def training_datasets(self, plan: TrainingPlan) -> dict[str, Dataset]:
        """train: to learn from, choose: to choose the epoch by, report: the session's own; no image is in two.

        Raises:
            ParameterError: two of them share an image.
        """
        train = self.other_split(plan.train_split, plan.num_train_images, purpose="to train on")
        choose = self.other_split(plan.choose_split, plan.num_choice_images)
        check_disjoint(train, choose)
        return {"train": train, "choose": choose, "report": self.dataset}

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing a number."""
        weights = self.clip.weights
        n_images = len(self.dataset.images)
        notes = warnings_for(n_images=n_images, saw_dior=weights.saw_dior, random_weights=weights.random)
        return notes + [skipped_note(data.split, data.count_skipped()) for data in self.opened if len(data.skipped)]

    def show_notes(self, notes: Sequence[str] | None = None) -> None:
        """Notes, by default `warnings`, for a reader to know first; a report page shows them in its head."""
        notes = self.warnings if notes is None else list(notes)
        if notes:
            display(Markdown("\n>\n".join(f"> {note}" for note in notes)), metadata={"notes": notes})

    def show_skipped(self) -> None:
        """A table of every image that was left out as damaged, with its reason; nothing where none was."""
        skipped = [data.skipped.assign(split=data.split) for data in self.opened if len(data.skipped)]
        if skipped:
            table = pd.concat(skipped)[["split", "image_id", "n_boxes", "reason"]]
            table = table.astype({"n_boxes": "object"}).fillna({"n_boxes": "unknown"})
            with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
                display(table.set_index(["split", "image_id"]).rename(columns={"n_boxes": "boxes"}))

    def show_provenance(self, provenance: Mapping[str, Any]) -> None:
        """The last cell of a notebook: what `provenance` gave, as a table."""
        rows = {**provenance, **provenance["versions"], "classes": ", ".join(provenance["classes"])}
        rows["parameters"] = json.dumps(provenance["parameters"], ensure_ascii=False)
        for name in ("versions", "skipped"):  # the one row by row, the other by `show_skipped`
            rows.pop(name)
        with pd.option_context("display.max_colwidth", None):
            display(pd.DataFrame({"value": pd.Series(rows, dtype=object).astype(str)}))

    def provenance(self) -> dict[str, Any]:
        """What is needed to repeat the notebook, as plain values, with the seconds since it started."""
        clip = self.clip
        return {
            "model": clip.name,
            "weights": clip.weights.source,
            "weights_sha256": clip.weights.sha256,
            "depth": clip.depth,
            "image_size": clip.image_size,
            "self_check_error": clip.self_check_error,
            **data_provenance(self.dataset),
            "classes": list(self.dataset.classes),
            "device": torch.cuda.get_device_name(clip.device) if clip.device.type == "cuda" else str(clip.device),
            "threads": torch.get_num_threads(),
            "seed": self.parameters["seed"],
            "parameters": dict(self.parameters),
            "library_sha256": library_sha256(),
            "versions": versions(),
            "seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        """Since the notebook started."""
        return round(time.monotonic() - self.started, 1)


def open_session(notebook: str, namespace: Mapping[str, Any]) -> Session:
    """Load dataset and model as a notebook's parameters name them, and say in a few lines what was found.

    Of the parameters it takes `dataset` (a folder in one of the layouts, relative to the project, or `embedded`: the
    procedural scenes, drawn on first use), `split`, `model`, `checkpoint`, `image_size`, `depth` and `device` (as in
    `load_clip`), `num_images` (so many, drawn at random with `seed`; None takes all), `out_dir` (made here),
    `cache_dir` (for what was computed; None takes `cache` in `out_dir`) and `on_bad_image` (`error` stops at
    a damaged image before the work begins, `skip` leaves such images out).

    Args:
        notebook: its file's name in `notebooks/`, without the ending.
        namespace: its `globals()`, before any name is used for something else; a parameter that is not there has the
            notebook's default.

    Raises:
        SurgeryError: whatever is wrong with the parameters, as one line.
    """
    started = time.monotonic()
    declared = notebook_parameters(PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb")
    given = {name: namespace.get(name, parameter.default) for name, parameter in declared.items()}
    source, embedded = dataset_folder(given["dataset"])
    if embedded:
        write_scenes(source)
    folder = PROJECT_ROOT / given["out_dir"]
    cache = PROJECT_ROOT / given["cache_dir"] if given["cache_dir"] else folder / "cache"
    policy = given["on_bad_image"]
    whole = load_dataset(source, given["split"], on_bad_image=policy, decode=False)
    data = sound(whole.sample(given["num_images"], given["seed"]), policy, memory_dir=cache)
    weights = checkpoint_file(given["checkpoint"]) or given["checkpoint"]
    clip = load_clip(given["model"], weights, **{name: given[name] for name in ("device", "image_size", "depth")})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}; choose another out_dir") from error
    session = Session(data, clip, folder, cache, given, started, source, whole, [data])
    print(f"data: {data.name}, {data.describe()}")
    print(
        f"model: {clip.name}, weights from {clip.weights.source}, {clip.image_size} pixels, "
        f"{clip.grid[0]} x {clip.grid[1]} patches, on {clip.device}"
    )
    print(f"self-check: QK path against stock open_clip, relative difference {clip.self_check_error:.1e}")
    for note in session.warnings:
        print(f"note: {note}")
    return session
