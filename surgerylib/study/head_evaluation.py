"""A trained localiser on images that it has not seen: the head of a file, judged box by box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..clip import SurgeryCLIP
from ..datasets import Dataset, flattered_by
from ..engine import METHODS, BatchReader, FeatureCache, localize, predict, summarise, with_untrained
from ..errors import CheckpointError, ParameterError
from ..files import PROJECT_ROOT, checkpoint_file, file_sha256
from ..heatmaps import Setting
from ..localizer import GTClassLocalizer, clip_and_maps, load_localizer, to_grid
from ..weights import untrained_model
from .box_groups import GROUPINGS, box_groups
from .tables import joined
from .training import PUBLISHED

EVALUATED = ("all", "seen", "unseen")


@dataclass(frozen=True)
class Head:
    """A trained localiser and what its file says about it."""

    model: GTClassLocalizer  # in eval mode, on the CLIP's device
    untrained: GTClassLocalizer  # the same before training
    about: dict[str, Any]  # what `load_localizer` gives
    path: Path  # the file
    sha256: str  # of its bytes

    @property
    def seen_classes(self) -> list[str]:
        """The classes that it was trained on."""
        return list(self.about["seen_classes"])

    @property
    def summary(self) -> dict[str, Any]:
        """Which head it is, for a JSON file."""
        known = self.about["trained_on"]
        origin = {name: known.get(name) for name in ("dataset", "split")} if isinstance(known, Mapping) else {}
        of_head = {name: self.about[name] for name in ("epoch", "seen_classes")}
        return {"file": self.path.name, "sha256": self.sha256, **of_head, "trained_on": origin}

    def cache(self, clip: SurgeryCLIP, dataset: Dataset, cache_dir: Path) -> FeatureCache:
        """The features of a data set's images as this head takes them, not computed yet."""
        maps = self.about["belongs_to"]
        setting = Setting(maps["kind"], maps["similarity"], maps["layers"])
        return FeatureCache(
            clip, dataset, cache_dir, setting=setting, picture_size=maps["picture_size"], templates=maps["templates"]
        )

    def notes(self, dataset: Dataset) -> list[str]:
        """What a reader must know of the images, see `flattered_by`."""
        return flattered_by(self.about, dataset, "head")


def open_head(out_dir: Path, localizer: str | None, clip: SurgeryCLIP, classes: Sequence[str]) -> Head:
    """The head to evaluate, of `find_head`, for this CLIP and class list.

    Raises:
        CheckpointError: there is none, or it belongs to another CLIP or class list.
    """
    path = find_head(out_dir, localizer)
    model, about = load_head(path, clip, classes)
    untrained = untrained_model(GTClassLocalizer, model.config, about["settings"]["seed"])
    return Head(model.to(clip.device), untrained.to(clip.device), about, path, file_sha256(path))


def load_head(path: Path, clip: SurgeryCLIP, classes: Sequence[str]) -> tuple[GTClassLocalizer, dict[str, Any]]:
    """`load_localizer` of a head for this CLIP and class list, with the maps that it was trained on, whatever they are.

    Raises:
        CheckpointError: it is none, or belongs to another CLIP or class list.
    """
    _, about = load_localizer(path)
    maps = about.get("belongs_to", {})
    names = ("layers", "kind", "similarity", "templates", "picture_size")
    needed = ("settings", "class_means", "seen_classes", "trained_on", "epoch")
    missing = [name for name in names if name not in maps] + [name for name in needed if name not in about]
    if missing:
        raise CheckpointError(
            f"{path} does not say which maps it takes and how it was trained ({', '.join(missing)}); train it again"
        )
    own = clip_and_maps(clip, classes, **{name: maps[name] for name in names})
    return load_localizer(path, belongs_to=own)


def find_head(out_dir: Path, localizer: str | None, root: Path = PROJECT_ROOT) -> Path:
    """The head's file: `localizer`, absolute or relative to the project (`root`), or else what notebook 03 left.

    Raises:
        CheckpointError: there is none; the message says how to get one.
    """
    if localizer is None:
        if not (path := out_dir / PUBLISHED).is_file():
            raise CheckpointError(
                f"there is no trained localiser in {out_dir}: run notebook 03 into this folder first (python -m "
                f"surgerylib run --only 03,04), or name one with localizer=FILE"
            )
    elif not (path := checkpoint_file(localizer, root)):
        raise CheckpointError(
            f"localizer {localizer!r} is no file; name one that notebook 03 or 'python -m surgerylib train' wrote"
        )
    return path


def check_evaluated(which: str) -> None:
    """Raise a `ParameterError` unless this is one of `EVALUATED`."""
    if which not in EVALUATED:
        raise ParameterError(f"classes_evaluated must be one of {', '.join(EVALUATED)}, got {which!r}")


def evaluated_classes(head: Head, classes: Sequence[str], which: str) -> list[str]:
    """The classes whose boxes are evaluated: all, those that the head was trained on, or the others.

    Raises:
        ParameterError: an unknown choice, or one that no class fits.
    """
    check_evaluated(which)
    seen = set(head.seen_classes)
    chosen = [name for name in classes if which == "all" or (name in seen) == (which == "seen")]
    if not chosen:
        raise ParameterError(f"classes_evaluated is {which!r}, but the head was trained on all classes; choose all")
    return chosen


def evaluate_head(head: Head, cache: FeatureCache, classes: Iterable[str]) -> pd.DataFrame:
    """Every ground truth box of some classes, told its class: IoUs by method, and its groups.

    `cache` is `Head.cache`, computed.

    Returns:
        Frame image_id, label, box_row (of the data set's boxes), row, column (of the best cell), an IoU column for each
        of `localizer_training.METHODS`, and a column for each of `box_groups.GROUPINGS`.
    """
    data = cache.dataset
    reader = BatchReader(cache, [data.classes.index(name) for name in classes])
    trained = localize(head.model, reader, np.array(head.about["class_means"]))
    ious = with_untrained(trained, localize(head.untrained, reader))
    ious = ious[["image_id", "label", "box_row", "row", "column", *METHODS]]
    groups = box_groups(data, cache.clip.grid).iloc[ious["box_row"].to_numpy(np.int64)].reset_index(drop=True)
    return pd.concat([ious, groups], axis=1).sort_values("box_row", ignore_index=True)


def by_group(ious: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """As `by_class`, under each of `box_groups.GROUPINGS`, which the frame's first column names: `grouping`."""
    groupings = tqdm(GROUPINGS.items(), desc="groups of boxes", delay=2, leave=False)
    return joined({grouping: _breakdown(ious, grouping, of, seed) for grouping, of in groupings}, "grouping")


def by_class(ious: pd.DataFrame, classes: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """`summarise` of each class's boxes (`ious` of `evaluate_head`), with a first column `group`, the class.

    Intervals are over the images that hold some of them; classes without a box are listed too, with NaN.
    """
    return _breakdown(ious, "label", classes, seed)


def _breakdown(ious: pd.DataFrame, column: str, names: Iterable[str], seed: int) -> pd.DataFrame:
    return joined({name: summarise(ious[ious[column] == name], seed=seed) for name in names}, "group")


def pick_examples(ious: pd.DataFrame, count: int) -> dict[str, pd.DataFrame]:
    """Rows to look at: the best boxes, those around the median and the worst, by IoU of the best cell.

    No image is shown twice as long as there are others.
    """
    ranked = ious.sort_values(["oracle", "box_row"], ascending=[False, True], kind="stable")
    middle = ranked.iloc[np.argsort(np.abs(np.arange(len(ranked)) - (len(ranked) - 1) / 2), kind="stable")]
    picks: dict[str, pd.DataFrame] = {}
    shown: set[int] = set()
    for name, rows in (("best", ranked), ("worst", ranked[::-1]), ("median", middle)):
        free = rows[~rows["box_row"].isin(shown)]
        picks[name] = pd.concat([free.drop_duplicates("image_id"), free]).drop_duplicates("box_row").head(count)
        shown |= set(picks[name]["box_row"])
    return {name: picks[name] for name in ("best", "median", "worst")}


@torch.no_grad()
def head_boxes(model: GTClassLocalizer, cache: FeatureCache, rows: pd.DataFrame) -> list[np.ndarray]:
    """The head's boxes for some rows of `evaluate_head`: for each [2, 4], of the best cell and at the CAM's peak.

    xyxy in pixels of the original image, in the order of the rows.
    """
    data = cache.dataset
    place = pd.Index(data.images["image_id"])
    labels = {name: data.classes.index(name) for name in rows["label"].unique()}
    readers = {label: BatchReader(cache, [label]) for label in labels.values()}  # each goes through every box there is
    found = []
    for row in rows.itertuples():
        position, label = int(place.get_loc(row.image_id)), labels[row.label]
        sides = np.tile(data.images[["width", "height"]].iloc[position].to_numpy(np.float64), 2)
        batch = readers[label].batch([position])
        cells = predict(model, batch).float().cpu()[0, label].numpy() * sides  # [H, W, 4]
        peak = divmod(int(to_grid(batch.cam, model.grid)[0, label].argmax()), model.grid[1])
        found.append(np.stack([cells[row.row, row.column], cells[peak]]))
    return found
