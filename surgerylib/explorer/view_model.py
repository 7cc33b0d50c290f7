"""One image at a time of a data set through a frozen CLIP: all that the explorer computes, without a widget.

What an answer costs decides where it is kept: a new image is one forward of both paths and all layers (`look`), a new
phrase one pass of the text tower, another map a product of kept tokens, another threshold the boxes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..boxes import box_iou, extract_many, floored_level, resize_map, threshold_levels, threshold_mask
from ..clip import ImageTokens, SurgeryCLIP
from ..datasets import Dataset, read_image
from ..engine import TrainedAdapter
from ..errors import ParameterError, UnknownClassError, nearest
from ..heatmaps import Setting, heatmaps
from ..matching import BOX_COLUMNS
from ..words import DIOR_CLASSES, canonical_class, prompt_names

AS_NAMED, EVERY_BOX = "as named", "every box"  # what boxes are held against, beside a class
NO_TRUTH = pd.DataFrame(columns=["label", *BOX_COLUMNS]).astype({"label": "str"} | dict.fromkeys(BOX_COLUMNS, float))


class Subject(NamedTuple):
    """An image to look at."""

    name: str  # its id, or the file's name
    path: str  # where it lies; empty for one that was uploaded
    image: np.ndarray  # uint8 RGB [H, W, 3]
    truth: pd.DataFrame = NO_TRUTH  # ground truth boxes: label, xmin, ymin, xmax, ymax in pixels

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


class Look(NamedTuple):
    """What one forward gives of an image."""

    tokens: ImageTokens  # of all layers in which the value-value path runs, one image
    attention: dict[str, np.ndarray]  # qk, vv -> [1 + N, 1 + N], the last block's weights, mean over heads; CLS first
    image_size: int  # side in pixels that the image was brought to

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""
        return self.tokens.grid

    def attended(self, path: str, patch: tuple[int, int]) -> np.ndarray:
        """Where the patch (row, column) attends on `qk` or `vv`: [h, w], what is left to 1 goes to the CLS token."""
        row, column = patch
        return self.attention[path][1 + row * self.grid[1] + column, 1:].reshape(self.grid)


@dataclass(frozen=True)
class Question:
    """What is asked of an image."""

    asked: tuple[str, ...]  # class names or phrases; under `surgery` each map depends on all of them
    shown: str  # the one looked at
    kinds: tuple[str, ...] = ("vv_mixed",)  # of the maps, side by side
    setting: Setting = field(default_factory=Setting)  # from tokens to boxes, but for kind and adapter
    adapted: bool = False  # whether maps go through the trained adapter of their kind
    held_against: str = AS_NAMED  # a class, `AS_NAMED` (the class that `shown` names, else every box) or `EVERY_BOX`

    def of_kind(self, kind: str) -> Setting:
        """The setting with this kind."""
        return replace(self.setting, kind=kind)


class Answer(NamedTuple):
    """What one kind says to a question."""

    kind: str
    maps: np.ndarray  # float32 [C, h, w], raw, of all that is asked
    shown: np.ndarray  # [h, w], the one looked at
    boxes: np.ndarray  # float64 [K, 5], xyxy in pixels of the image and score, best first
    outline: list[np.ndarray]  # of the mask that the boxes enclose, closed lines [P, 2] in 0..1 of the image
    threshold: float  # raw value that a pixel had to reach
    overlaps: np.ndarray  # [G, K], IoU of each ground truth box that it is held against with each box

    @property
    def best_ious(self) -> np.ndarray:
        """[G] IoU of the box that fits each ground truth box best; 0 without boxes."""
        return self.overlaps.max(axis=1, initial=0.0)


class Shown(NamedTuple):
    """A question about an image, answered: all that is drawn, saved and copied, so that the three agree."""

    subject: Subject
    seen: Look  # what the model saw of it
    question: Question
    answers: list[Answer]  # of each kind
    own: pd.DataFrame  # the ground truth boxes that boxes are held against
    against: str  # in words, which these are


class Album:
    """A place among the images of a split, `dataset`, as one leafs through them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._order = np.arange(len(dataset.images))
        self._place = 0

    @property
    def n_images(self) -> dict[str, int]:
        """Class -> images that hold it."""
        holding = self.dataset.boxes.groupby("label")["image_id"].nunique()
        return holding.reindex(list(self.dataset.classes), fill_value=0).to_dict()

    @property
    def image_id(self) -> str:
        """Of the image at this place."""
        return self.dataset.images["image_id"].iloc[self._order[self._place]]

    @property
    def position(self) -> str:
        """`3 of 17: 00324`."""
        return f"{self._place + 1:,} of {len(self._order):,}: {self.image_id}"

    def take(self, label: str | None) -> None:
        """Only the images that hold a class, or all; the first of them."""
        images, boxes = self.dataset.images["image_id"], self.dataset.boxes
        holding = images if label is None else boxes.loc[boxes["label"] == label, "image_id"]
        self._order, self._place = np.flatnonzero(images.isin(holding)), 0

    def step(self, by: int) -> None:
        """So many images on; behind the last comes the first."""
        self._place = (self._place + by) % len(self._order)

    def find(self, name: str) -> None:
        """Among all images the one of this name, with or without its ending, or the first whose name holds it."""
        names = self.dataset.images["image_id"]
        for found in (names == name, names == Path(name).stem, names.str.contains(name, case=False, regex=False)):
            if found.any():
                self._order, self._place = np.arange(len(names)), int(np.argmax(found))
                return
        raise ParameterError(
            f"no image {name!r} in split {self.dataset.split} of {self.dataset.name}, which holds {names.iloc[0]} to "
            f"{names.iloc[-1]}; type a name, or a part of one"
        )

    def subject(self, image_id: str) -> Subject:
        """An image, read from its file, with its ground truth."""
        images, boxes = self.dataset.images, self.dataset.boxes
        path = images.loc[images["image_id"] == image_id, "path"].iloc[0]
        truth = boxes[boxes["image_id"] == image_id].drop(columns="image_id").reset_index(drop=True)
        return Subject(image_id, path, read_image(path), truth)


def look(clip: SurgeryCLIP, image: np.ndarray, image_size: int | None = None) -> Look:
    """One forward of uint8 RGB [H, W, 3]: both paths, all layers, the last block's attention."""
    tokens = clip.encode_image(clip.preprocess(image, image_size)[None], clip.depth, return_attention=True)
    weights = {"qk": tokens.qk_attention, "vv": tokens.vv_attention}
    attention = {path: of_heads[0].mean(dim=0).cpu().numpy() for path, of_heads in weights.items()}
    size = clip.image_size if image_size is None else image_size
    return Look(replace(tokens, qk_attention=None, vv_attention=None), attention, size)


def phrases(text: str) -> tuple[str, ...]:
    """What somebody typed, taken apart at commas: each phrase once, in order; an error where nothing is left."""
    readable = "".join(character if character.isprintable() else " " for character in text.replace("\n", ","))
    found = tuple(dict.fromkeys(filter(None, (" ".join(part.split()) for part in readable.split(",")))))
    if not found:
        raise ParameterError(f"no own words in {text!r}: type what to look for, phrases with commas between them")
    return found


def words_of(asked: Sequence[str], classes: Sequence[str]) -> list[str]:
    """What CLIP is asked with: a class in the words that the notebooks use, a phrase as it was typed."""
    words = dict(zip(classes, prompt_names(classes), strict=True))
    return [words.get(name, name) for name in asked]


def held_against(question: Question, truth: pd.DataFrame, classes: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Of an image's ground truth the boxes that boxes are compared with, and in words which these are."""
    wanted = question.held_against
    if wanted == AS_NAMED:
        try:
            wanted = canonical_class(question.shown, classes)
        except UnknownClassError:
            return truth, f"every box, as “{question.shown}” names no class"
    if wanted == EVERY_BOX:
        return truth, "every box"
    return truth[truth["label"] == wanted], wanted


class Exploration:
    """A CLIP, its adapters (by kind) and one image after another: `subject`, and what was `seen` of it."""

    def __init__(self, clip: SurgeryCLIP, adapters: Mapping[str, TrainedAdapter] | None = None) -> None:
        self.clip = clip
        self.adapters = dict(adapters or {})
        self.classes = DIOR_CLASSES
        self.subject: Subject | None = None
        self.seen: Look | None = None
        self._text: dict[str, Tensor] = {}  # words -> [D]
        self._maps: dict[tuple, np.ndarray] = {}

    def unread(self, asked: Sequence[str]) -> list[str]:
        """The words of what is asked that the text tower has not seen yet."""
        return [words for words in dict.fromkeys(words_of(asked, self.classes)) if words not in self._text]

    def text(self, asked: Sequence[str]) -> Tensor:
        """Text embeddings [C, D]; only words that were not asked before go through the text tower, all at once."""
        if unread := self.unread(asked):
            self._text |= zip(unread, self.clip.encode_text(unread), strict=True)
        return torch.stack([self._text[words] for words in words_of(asked, self.classes)])

    def show(self, subject: Subject, seen: Look) -> None:
        """Take another image, of which `look` has already been made."""
        self.subject, self.seen, self._maps = subject, seen, {}

    def maps(self, question: Question, kind: str) -> np.ndarray:
        """float32 [C, h, w] of all that is asked; kept until the next image."""
        setting = question.of_kind(kind)
        if question.adapted:
            if kind not in self.adapters:
                have = ", ".join(self.adapters) or "none"
                raise ParameterError(f"no trained adapter for {kind} (have: {have}); take another kind, or switch off")
            setting = self.adapters[kind].setting(kind)
        key = (setting.maps_key, question.asked)
        if key not in self._maps:
            tokens, layers = self.seen.tokens, setting.layers
            if layers > len(tokens.qk):
                raise ParameterError(f"layers is {layers}; the value-value path runs in the last {len(tokens.qk)}")
            if setting.similarity == "surgery" and len(question.asked) < 2:
                raise ParameterError(
                    f"surgery similarity compares phrases, and {question.asked[0]!r} is alone: add another, ask for "
                    "the classes too, or choose cosine"
                )
            how = {"similarity": setting.similarity, "adapter": self.adapters[kind].model if question.adapted else None}
            with torch.no_grad():
                found = heatmaps(tokens.last(layers), self.text(question.asked), kind, **how)
            self._maps[key] = found[0].float().cpu().numpy()
        return self._maps[key]

    def ask(self, question: Question) -> Shown:
        """An answer of each kind to a question about the present image; an error where there cannot be one."""
        if question.shown not in question.asked:
            close = nearest(question.shown, question.asked)
            raise ParameterError(f"{question.shown!r} is not asked for; nearest: {close}")
        own, against = held_against(question, self.subject.truth, self.classes)
        own_xyxy = own[BOX_COLUMNS].to_numpy(np.float64)
        place, found = question.asked.index(question.shown), []
        for kind in question.kinds:
            maps = self.maps(question, kind)
            boxes = extract_many(maps[place], self.subject.size_wh, [question.setting])[0].boxes
            outline, threshold = mask_outline(maps[place], question.setting)
            overlaps = box_iou(own_xyxy[:, None], boxes[None, :, :4])
            found.append(Answer(kind, maps, maps[place], boxes, outline, threshold, overlaps))
        return Shown(self.subject, self.seen, question, found, own, against)


def mask_outline(heatmap: np.ndarray, settings: Setting) -> tuple[list[np.ndarray], float]:
    """The outline of the mask that boxes enclose (of several thresholds: the lowest), and the raw value at its edge.

    Returns:
        closed lines [P, 2], x and y in 0..1 of the image; none for a constant map.
    """
    resized = resize_map(heatmap, settings.working_size)
    level = floored_level(min(threshold_levels(resized, settings.thresholds).values()), settings.floor)
    if resized.min() == resized.max():
        return [], level
    contours, _ = cv2.findContours(threshold_mask(resized, level), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    return [(contour[:, 0] + 0.5) / settings.working_size for contour in contours], level
