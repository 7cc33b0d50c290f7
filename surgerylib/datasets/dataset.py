"""One split of a detection dataset, and what is asked of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DatasetError, ParameterError, whole_number
from ..intervals import counted
from ..matching import BOX_COLUMNS
from ..words import canonical_class

_KEY_DIGITS = 12


def frame_of(rows: Sequence[tuple], **dtypes: str) -> pd.DataFrame:
    """A frame of rows with these columns and types, also where there is no row."""
    return pd.DataFrame(list(rows), columns=list(dtypes)).astype(dtypes)


def skipped_frame(rows: Sequence[tuple[str, str, int | None, int]] = ()) -> pd.DataFrame:
    """`Dataset.skipped` of rows (image_id, reason, n_boxes, position)."""
    return frame_of(rows, image_id="str", reason="str", n_boxes="Int64", position="int64")


def check_any_left(split: str, images: pd.DataFrame, skipped: pd.DataFrame) -> None:
    """Raise a `DatasetError` where every image is damaged."""
    if images.empty:
        raise DatasetError(
            f"all {len(skipped):,} images of split {split!r} are damaged, so there is nothing to work on; "
            f"{skipped['image_id'].iloc[0]!r}: {skipped['reason'].iloc[0]}"
        )


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
    skipped: pd.DataFrame = field(default_factory=skipped_frame)

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
        return counted(len(self.images), "image")

    def count_skipped(self) -> str:
        """`2 damaged images (and 5 boxes)`, `1 damaged image (its boxes cannot be counted)`."""
        counts = self.skipped["n_boxes"]
        unknown = counts.isna().sum()
        boxes = f"and {counted(int(counts.sum()), 'box')}"
        if unknown:
            boxes += f", without those of {unknown}, which cannot be counted"
        if unknown == len(counts) == 1:
            boxes = "its boxes cannot be counted"
        return f"{counted(len(self.skipped), 'damaged image')} ({boxes})"

    def describe(self) -> str:
        """One line: layout, split, sizes and what was mended."""
        text = (
            f"{self.layout} layout, split {self.split}: {self.count_images()}, {counted(len(self.boxes), 'box')}, "
            f"{counted(len(self.classes), 'class')}"
        )
        counts = (
            (self.n_clipped, "box", "clipped"),
            (self.n_dropped, "box", "dropped (no area)"),
            (self.n_repeated, "repeated id", "dropped"),
        )
        repairs = [f"{counted(n, noun)} {what}" for n, noun, what in counts if n]
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
        n = whole_number("number of images", n, 0)
        n_all = len(self.images) + len(self.skipped)
        if n == 0 or n >= n_all:
            return self
        rng = np.random.default_rng(whole_number("seed", seed, 0))
        chosen = np.sort(rng.choice(n_all, size=n, replace=False))
        skipped = self.skipped[self.skipped["position"].isin(chosen)].reset_index(drop=True)
        skipped["position"] = np.searchsorted(chosen, skipped["position"].to_numpy())
        return self.of_images(np.isin(self.positions, chosen), skipped)

    def of_images(self, kept: np.ndarray, skipped: pd.DataFrame) -> Dataset:
        """The images where `kept` (bool [n]) is set, with their boxes; `skipped` lists what else there would be.

        Raises:
            DatasetError: no image is left.
        """
        images = self.images[kept].reset_index(drop=True)
        check_any_left(self.split, images, skipped)
        boxes, repairs = (
            frame[frame["image_id"].isin(images["image_id"])].reset_index(drop=True)
            for frame in (self.boxes, self.repairs)
        )
        return replace(self, images=images, boxes=boxes, repairs=repairs, skipped=skipped)

    def image_keys(self) -> list[str]:
        """12 hexadecimal digits an image, from its id, size and boxes: they know it again wherever its folder lies."""
        of_boxes = self.boxes[["label", *BOX_COLUMNS]].itertuples(index=False, name=None)
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
        digest.update(self.boxes[BOX_COLUMNS].to_numpy("<f8").tobytes())
        return digest.hexdigest()


def check_disjoint(reported: Dataset, chosen_on: Dataset) -> None:
    """Raise a `ParameterError` when two splits share an image: trained, chosen and reported on are different images."""
    shared = set(reported.images["image_id"]) & set(chosen_on.images["image_id"])
    if shared:
        raise ParameterError(
            f"the splits {reported.split} and {chosen_on.split} share {counted(len(shared), 'image')}, {min(shared)!r} "
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
            both = (split, dataset.split)
            if split == dataset.split or ("trainval" in both and "test" not in both):
                notes.append(
                    f"Images of {split} were {said}, and the file of the {name} does not say which: where they are "
                    f"among these, {flattered}"
                )
    return notes
