"""Reading a detection dataset from disk: class names, splits, annotations and images.

Every image that leaves this module is uint8 RGB [H, W, 3] with the pixels as stored (no EXIF rotation); every box is
float xyxy in pixels of that image, width = xmax - xmin.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray
from tqdm import tqdm

from ..errors import ParameterError
from ..words import DIOR_CLASSES, PROMPT_TEMPLATES, canonical_class, check_classes, prompt_names
from .damage import SkippedImages, check_any_left, check_images, skipped_frame, sound
from .images import read_image
from .layouts import recognise
from .reading import SplitReading, read_split
from .voc import Annotation, read_annotation

__all__ = [
    "DIOR_CLASSES",
    "PROMPT_TEMPLATES",
    "Annotation",
    "Dataset",
    "canonical_class",
    "check_disjoint",
    "check_have_boxes",
    "check_images",
    "dataset_splits",
    "load_dataset",
    "prompt_names",
    "read_annotation",
    "read_image",
]

_KEY_DIGITS = 12


@dataclass(frozen=True)
class Dataset:
    """One split of a detection dataset: frames in the order of the split file.

    Attributes:
        name: the folder's name.
        root: the dataset folder.
        split: the split's name.
        layout: 'DIOR', 'VOC' or 'reorganised'.
        images: image_id (str), path (str, empty when images were not required), width, height (int, pixels).
        boxes: image_id, label (both str), xmin, ymin, xmax, ymax (float64 pixels), clipped and without empty boxes.
        classes: the class list in force; labels are among these.
        repairs: image_id, label, repair ('clipped' or 'dropped'): a row for each box that was changed or left out.
        n_repeated: ids that the split file named again; the first mention counts.
        skipped: image_id, reason, n_boxes (<NA> where the annotation cannot be read), position (in the split): images
            that were left out because they are damaged, and their boxes with them.
    """

    name: str
    root: Path
    split: str
    layout: str
    images: pd.DataFrame
    boxes: pd.DataFrame
    classes: tuple[str, ...]
    repairs: pd.DataFrame
    n_repeated: int = 0
    skipped: pd.DataFrame = field(default_factory=lambda: skipped_frame([]))

    @property
    def positions(self) -> np.ndarray:
        """Place of each image in the split, among those that were left out: int64 [n]."""
        everything = np.arange(len(self.images) + len(self.skipped))
        return np.setdiff1d(everything, self.skipped["position"].to_numpy(), assume_unique=True)

    @property
    def n_clipped(self) -> int:
        """Boxes that left the image and were cut at its border."""
        return int((self.repairs["repair"] == "clipped").sum())

    @property
    def n_dropped(self) -> int:
        """Boxes left out because they have no area inside the image."""
        return int((self.repairs["repair"] == "dropped").sum())

    def count_images(self) -> str:
        """`1 image`, `1,234 images`."""
        return _count(len(self.images), "image")

    def count_skipped(self) -> str:
        """`2 damaged images (and 5 boxes)`, `1 damaged image (its boxes cannot be counted)`."""
        counts = self.skipped["n_boxes"]
        boxes = f"and {_count(int(counts.sum()), 'box')}"
        if counts.isna().any():
            unknown = int(counts.isna().sum())
            known = f"{boxes}, without those of {unknown}, which cannot be counted"
            boxes = "its boxes cannot be counted" if unknown == len(counts) == 1 else known
        return f"{_count(len(self.skipped), 'damaged image')} ({boxes})"

    def describe(self) -> str:
        """One line: layout, split, sizes and what was mended."""
        text = (
            f"{self.layout} layout, split {self.split}: {_count(len(self.images), 'image')}, "
            f"{_count(len(self.boxes), 'box')}, {_count(len(self.classes), 'class')}"
        )
        repairs = []
        if self.n_clipped:
            repairs.append(f"{_count(self.n_clipped, 'box')} clipped")
        if self.n_dropped:
            repairs.append(f"{_count(self.n_dropped, 'box')} dropped (no area)")
        if self.n_repeated:
            repairs.append(f"{_count(self.n_repeated, 'repeated id')} dropped")
        if len(self.skipped):
            repairs.append(f"{self.count_skipped()} skipped")
        return "; ".join([text, ", ".join(repairs)]) if repairs else text

    def sample(self, n: int | None, seed: int = 0) -> Dataset:
        """`n` images chosen at random, in split order, with their boxes; all of them for None, 0 or n >= the size.

        Drawn among all of the split: an image that was left out as damaged does not change which others are drawn.

        Raises:
            ParameterError: `n` or `seed` is negative or no whole number.
            DatasetError: every image that was drawn is damaged.
        """
        if n is None:
            return self
        n = _whole_number("number of images", n, at_least=0)
        n_all = len(self.images) + len(self.skipped)
        if n == 0 or n >= n_all:
            return self
        seed = _whole_number("seed", seed, at_least=0)
        chosen = np.sort(np.random.default_rng(seed).choice(n_all, size=n, replace=False))
        images = self.images[np.isin(self.positions, chosen)].reset_index(drop=True)
        skipped = self.skipped[self.skipped["position"].isin(chosen)].reset_index(drop=True)
        skipped["position"] = np.searchsorted(chosen, skipped["position"].to_numpy())
        check_any_left(self.split, len(images), skipped)
        ids = set(images["image_id"])
        boxes, repairs = (
            frame[frame["image_id"].isin(ids)].reset_index(drop=True) for frame in (self.boxes, self.repairs)
        )
        return replace(self, images=images, boxes=boxes, repairs=repairs, skipped=skipped)

    def image_keys(self) -> list[str]:
        """12 hexadecimal digits an image, from its id, size and boxes: they know it again wherever its folder lies."""
        of_boxes = self.boxes[["label", "xmin", "ymin", "xmax", "ymax"]].itertuples(index=False, name=None)
        boxes: dict[str, list[tuple]] = {}
        for image_id, box in zip(self.boxes["image_id"], of_boxes, strict=True):
            boxes.setdefault(image_id, []).append(box)
        rows = self.images[["image_id", "width", "height"]].itertuples(index=False, name=None)
        return [hashlib.sha256(repr((row, boxes.get(row[0]))).encode()).hexdigest()[:_KEY_DIGITS] for row in rows]

    def origin(self) -> dict[str, str]:
        """What a file trained on these images says of them: names, and `image_keys` in one text."""
        return {"dataset": self.name, "split": self.split, "images": "".join(self.image_keys())}

    def shared_images(self, origin: Mapping[str, str]) -> int:
        """How many of these images are among those of an `origin`; 0 where it does not say which those are."""
        text = origin.get("images")
        if not isinstance(text, str):
            return 0
        theirs = {text[k : k + _KEY_DIGITS] for k in range(0, len(text), _KEY_DIGITS)}
        return sum(key in theirs for key in self.image_keys())

    def fingerprint(self) -> str:
        """sha256 (hex) of ids, sizes, boxes, labels and classes: the same wherever the folder lies."""
        digest = hashlib.sha256()
        for names in (self.classes, self.images["image_id"], self.boxes["image_id"], self.boxes["label"]):
            digest.update("\0".join(names).encode() + b"\1")
        digest.update(self.images[["width", "height"]].to_numpy("<i8").tobytes())
        digest.update(self.boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy("<f8").tobytes())
        return digest.hexdigest()


def _count(n: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("x", "s")) else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def _whole_number(what: str, value: int, at_least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least:
        raise ParameterError(f"{what} is {value!r}; it must be a whole number of at least {at_least}")
    return number


def load_dataset(
    root: str | os.PathLike[str],
    split: str,
    *,
    limit: int | None = None,
    classes: Sequence[str] = DIOR_CLASSES,
    require_images: bool = True,
    on_bad_image: str = "error",
    decode: bool | None = None,
    progress: type[tqdm] = tqdm,
) -> Dataset:
    """Reads one split of a dataset in DIOR's, plain VOC's or the reorganised layout, recognised from the folders.

    Boxes beyond the image are clipped and boxes without area inside it dropped; both are counted in the result, as are
    ids that a split file repeats. VOC's `difficult` flag is not looked at. Images are not decoded, only their headers
    are read, unless `decode` says so: `damage.sound` does it later, of a sample for one.

    Args:
        root: the dataset folder.
        split: 'train', 'val', 'test', 'trainval' (its own file, else train and val together) or any other split file.
        limit: only the first so many images of the split.
        classes: the class list; names in the files are brought to its spelling.
        require_images: False reads annotations alone: `path` stays empty and the sizes are those the XML states.
        on_bad_image: `error` raises the first damaged image, `skip` leaves such images out (see `damage`); they are
            listed in the result.
        decode: decode each image to see whether it can be; None does so under `skip`, where what is left must be sound.
        progress: tqdm, or a class of its kind that shows the progress elsewhere.

    Raises:
        DatasetError: missing folder, unknown layout, missing or empty split, an image that isn't there, or every image
            damaged.
        ImageReadError: an image whose header (or, with `decode`, whose pixels) cannot be read, that is there twice, or
            lies outside of the dataset.
        AnnotationError: an annotation that is missing or wrong, or states a size that is not the image's.
        UnknownClassError: an object whose class is not in `classes`.
        ParameterError: a `limit` or class list that cannot be.
    """
    root = Path(root)
    if limit is not None:
        limit = _whole_number("limit", limit, at_least=1)
    classes = tuple(classes)
    if not classes:
        raise ParameterError("the class list is empty; name at least one class")
    check_classes(classes)
    folder = recognise(root)
    all_ids = folder.ids(split)
    ids = list(dict.fromkeys(all_ids))[:limit]
    skipped = SkippedImages(root, on_bad_image)
    files = folder.image_files(split) if require_images else None
    if files is not None and on_bad_image == "error":
        files.check_all_there(ids)

    bar = progress(ids, desc=f"reading {split}", delay=2, leave=False)
    reading = read_split(folder, bar, classes, files, skipped)
    left_out = skipped.frame()
    check_any_left(split, len(reading.image_ids), left_out)
    images = pd.DataFrame({"image_id": reading.image_ids, "path": reading.paths}, dtype="str")
    images["width"], images["height"] = reading.sizes_wh.T
    boxes, repairs = _mend_boxes(images, reading, classes)
    dataset = Dataset(
        name=root.resolve().name,
        root=root,
        split=split,
        layout=folder.layout,
        images=images,
        boxes=boxes,
        classes=classes,
        repairs=repairs,
        n_repeated=len(all_ids) - len(set(all_ids)),
        skipped=left_out,
    )
    if decode is None:
        decode = require_images and on_bad_image == "skip"
    return sound(dataset, on_bad_image) if decode else dataset


def dataset_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits that a dataset folder has files for, in the order of their names.

    Raises:
        DatasetError: missing folder, unknown layout, or no split file.
    """
    return recognise(root).splits()


def _mend_boxes(
    images: pd.DataFrame, reading: SplitReading, classes: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clips to the image and drops what has no area left; returns the boxes frame and the repairs frame."""
    row = np.repeat(np.arange(len(images)), reading.n_boxes)
    limits = np.repeat(np.tile(reading.sizes_wh, 2).astype(np.float64), reading.n_boxes, axis=0)
    boxes_xyxy = np.clip(reading.boxes_xyxy, 0.0, limits)
    xmin, ymin, xmax, ymax = boxes_xyxy.T
    dropped = (xmax <= xmin) | (ymax <= ymin)
    mended = dropped.copy()
    for side, as_written in zip(boxes_xyxy.T, reading.boxes_xyxy.T, strict=True):
        mended |= side != as_written
    ids, names = images["image_id"].array, pd.array(classes, dtype="str")

    def columns(chosen: np.ndarray) -> dict[str, ExtensionArray]:
        return {"image_id": ids.take(row[chosen]), "label": names.take(reading.labels[chosen])}

    kept = np.flatnonzero(~dropped)
    boxes = columns(kept) | dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes_xyxy[kept].T, strict=True))
    what = pd.array(np.where(dropped[mended], "dropped", "clipped"), dtype="str")
    return pd.DataFrame(boxes), pd.DataFrame(columns(np.flatnonzero(mended)) | {"repair": what})


def check_disjoint(reported: Dataset, chosen_on: Dataset) -> None:
    """Raise a `ParameterError` when two splits share an image: trained, chosen and reported on are different images."""
    shared = set(reported.images["image_id"]) & set(chosen_on.images["image_id"])
    if shared:
        raise ParameterError(
            f"the splits {reported.split} and {chosen_on.split} share {_count(len(shared), 'image')}, {min(shared)!r} "
            "for one; what is trained or chosen on images must be reported on others: set split, choose_split or "
            "train_split"
        )


def check_have_boxes(dataset: Dataset, names: Sequence[str]) -> tuple[str, ...]:
    """The classes named, in the spelling and order of the class list; each must have a box in the split.

    Raises:
        ParameterError: no name, or a class without a box.
        UnknownClassError: a name that is not in the class list.
    """
    if isinstance(names, str) or not len(names):
        raise ParameterError(f"seen_classes must be a list of class names, or null for all, got {names!r}")
    asked = {canonical_class(name, dataset.classes) for name in names}
    empty = sorted(asked - set(dataset.boxes["label"]))
    if empty:
        raise ParameterError(
            f"seen_classes names {', '.join(empty)}, without a box in the split {dataset.split}: leave it out or "
            "choose another split"
        )
    return tuple(name for name in dataset.classes if name in asked)


def flattered_by(about: Mapping[str, Any], dataset: Dataset, name: str) -> list[str]:
    """What a reader must know of images on which a trained module is reported: those it was trained or chosen on.

    Args:
        about: what `load_trained` gave; a file that does not say which images it saw is taken at the name of its split.
        dataset: what is reported on.
        name: of the module.

    Returns:
        a sentence for each role that shares an image with the data set, wherever its folder lies and whatever its name.
    """
    notes = []
    for role, said in (("trained_on", "trained on"), ("chosen_on", "used to choose the epoch")):
        origin = about.get(role)
        if not isinstance(origin, Mapping):
            continue
        split, flattered = origin.get("split"), f"these figures flatter the {name}."
        if shared := dataset.shared_images(origin):
            notes.append(
                f"{shared:,} of the {len(dataset.images):,} images are among those of {split} that were {said}: "
                f"{flattered}"
            )
        elif "images" not in origin and origin.get("dataset") == dataset.name:
            alike = split == dataset.split or (
                "trainval" in (split, dataset.split) and "test" not in (split, dataset.split)
            )
            if alike:
                notes.append(
                    f"Images of {split} were {said}, and the file of the {name} does not say which: where they are "
                    f"among these, {flattered}"
                )
    return notes
