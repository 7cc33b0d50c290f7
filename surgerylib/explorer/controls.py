"""The explorer's controls: what each is called, what it may be, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets

from ..clip import SurgeryCLIP
from ..errors import ParameterError
from ..heatmaps import HEATMAP_KINDS, SCORE_NAMES, SIMILARITIES, Setting
from .view_model import AS_NAMED, EVERY_BOX, Question, phrases
from .widgets import CopyButton, box

ALL_KINDS = "all four side by side"
ANY_CLASS = "any class"
CLASSES, OWN_WORDS, BOTH = "classes", "own words", "both"
_WIDE = widgets.Layout(width="auto")
_SIZE_FACTORS = (0.5, 1, 1.5, 2, 3)


class Controls:
    """Every control of the explorer as an attribute.

    Attributes:
        keep: a box of the buttons that keep a view.
        of_question: those that change what is asked of an image; `shown` and the list asked for stand apart.
    """

    def __init__(self, *, dataset: str, split: str, has_adapter: bool) -> None:
        plain = Setting()
        self.dataset = _text("dataset", dataset, "folder, or embedded")
        self.split = _choice("split", [split])
        self.split.layout.width = "200px"
        self.open = _button("read", "refresh", "read the data set again")
        self.path = _text("image file", "", "any JPEG, PNG, BMP or TIFF on this machine")
        self.upload = widgets.FileUpload(accept="image/*,.tif,.tiff", description="upload an image", layout=_WIDE)
        self.upload.tooltip = "up to 10 MB on a server other than make lab's; larger files by their name"

        self.previous, self.next = _button("previous", "chevron-left"), _button("next", "chevron-right")
        self.position = widgets.Label()
        self.find = _text("go to", "", "file name, or a part of it")
        self.with_class = _choice("images with", [ANY_CLASS])

        self.ask = widgets.ToggleButtons(options=[CLASSES, OWN_WORDS, BOTH], style={"button_width": "auto"})
        self.ask.tooltips = ["the data set's class list", "the phrases below", "phrases among the classes"]
        self.words = _text("own words", "", "red roof, boat in a harbor")
        self.shown = _choice("shown", [])
        self.against = _choice("held against", [AS_NAMED, EVERY_BOX])

        self.kind = _choice("kind", [*HEATMAP_KINDS, ALL_KINDS])
        self.kind.value = plain.kind
        self.similarity = _choice("similarity", SIMILARITIES)
        self.layers = _of(widgets.IntSlider, "last layers", value=1, min=1, max=6)
        self.image_size = _choice("image size", [("the model's own", 0)])
        self.adapted = _check("trained adapter")
        self.adapted.disabled = not has_adapter

        self.percentile = _slider("percentile", plain.percentile, 1.0, 99.5, 0.5, ".1f")
        self.min_side = _of(widgets.IntSlider, "least side", value=plain.min_side, min=0, max=100)
        self.min_side.tooltip = "smaller boxes are dropped, in pixels of the 224 x 224 map"
        self.use_nms, self.nms_iou = _check("suppress overlaps"), _slider("above IoU", 0.5, 0.05, 1.0, 0.05, ".2f")
        self.use_floor = _check("floor (raw value)")
        self.floor = _of(widgets.FloatText, "at least", value=0.0, step=0.01)
        self.score = _choice("box score", [(shown, name) for name, shown in SCORE_NAMES.items()])

        self.opacity = _slider("opacity", 0.5, 0.0, 1.0, 0.05, ".2f")
        self.outline = _check("outline of the mask", True)
        self.save = _button("save PNG and YAML", "save")
        self.copy = CopyButton(description="copy the Python call")

        self.of_question = (
            self.against, self.kind, self.similarity, self.layers, self.adapted, self.percentile,
            self.min_side, self.use_nms, self.nms_iou, self.use_floor, self.floor, self.score,
        )  # fmt: skip
        self._openers = (
            self.open, self.split, self.dataset, self.path, self.upload, self.find, self.with_class, self.previous,
            self.next, self.image_size,
        )  # fmt: skip
        self.keep = _row(self.save, self.copy)
        self.enable(False)
        self.depend()

    @property
    def main(self) -> widgets.VBox:
        """A box of the controls used all the time."""
        return box(
            _heading("Dataset"), self.dataset, _row(self.split, self.open),
            _heading("Image"), self.position, _row(self.previous, self.next), self.with_class, self.find, self.path,
            self.upload,
            _heading("Ask for"), self.ask, self.words, self.shown,
            _heading("Boxes"), self.percentile, self.opacity,
            names="explorer-main", align_items="stretch",
        )  # fmt: skip

    @property
    def more(self) -> widgets.VBox:
        """A box of the others."""
        return box(
            _heading("Heatmap"), self.kind, self.similarity, self.layers, self.image_size, self.adapted,
            _heading("Extraction"), self.min_side, self.use_nms, self.nms_iou, self.use_floor, self.floor, self.score,
            self.outline, self.against,
            names="explorer-more", align_items="stretch",
        )  # fmt: skip

    def take_model(self, clip: SurgeryCLIP, image_size: int | None) -> None:
        """Offer what this model can do: its layers, and sizes that are multiples of its patch."""
        self.layers.max = clip.depth
        patch, own = clip.patch_size, clip.image_size
        size = image_size or own
        sizes = {own, size} | {max(patch, round(factor * own / patch) * patch) for factor in _SIZE_FACTORS}
        self.image_size.options = [(f"{n} pixels, {n // patch} × {n // patch} patches", n) for n in sorted(sizes)]
        self.image_size.value = size

    def take_classes(self, n_images: Mapping[str, int]) -> None:
        """Offer the images of a class, and its ground truth to hold boxes against: class -> images that hold it."""
        holding = [(f"{name} ({count:,})", name) for name, count in n_images.items() if count]
        self.with_class.options = [(ANY_CLASS, ANY_CLASS), *holding]
        self.against.options = [AS_NAMED, EVERY_BOX, *n_images]

    def take_splits(self, splits: Sequence[str], chosen: str) -> None:
        """Offer a data set's splits; trainval also stands for train and val together."""
        whole = ["trainval"] if {"train", "val"} <= set(splits) else []
        self.split.options = list(dict.fromkeys([*splits, *whole, chosen]))
        self.split.value = chosen

    def enable(self, enabled: bool) -> None:
        """Switch the controls that open something else on or off."""
        for control in self._openers:
            control.disabled = not enabled

    def clear(self) -> None:
        """Empty what names an image once, so that the same name can be given again."""
        self.find.value = self.path.value = ""
        self.upload.value = ()

    def asked(self, classes: Sequence[str]) -> tuple[str, ...]:
        """All that is asked for; an error where own words are wanted, and none are there."""
        if self.ask.value == CLASSES:
            return tuple(classes)
        own = phrases(self.words.value)
        return own if self.ask.value == OWN_WORDS else tuple(dict.fromkeys([*own, *classes]))

    def question(self, asked: tuple[str, ...]) -> Question:
        """What the controls say together, of what is asked for."""
        if self.shown.value is None:
            raise ParameterError("nothing is chosen under “shown”; choose what to look at")
        kinds = HEATMAP_KINDS if self.kind.value == ALL_KINDS else (self.kind.value,)
        adapted = self.adapted.value
        setting = Setting(
            kinds[-1], "cosine" if adapted else self.similarity.value, self.layers.value, self.percentile.value,
            min_side=self.min_side.value, box_score=self.score.value,
            nms_iou=self.nms_iou.value if self.use_nms.value else None,
            floor=self.floor.value if self.use_floor.value else None,
        )  # fmt: skip
        return Question(asked, self.shown.value, kinds, setting, adapted, self.against.value)

    def depend(self) -> None:
        """Switch off the controls that another one makes void."""
        self.nms_iou.disabled = not self.use_nms.value
        self.floor.disabled = not self.use_floor.value
        self.similarity.disabled = self.layers.disabled = self.adapted.value
        self.words.disabled = self.ask.value == CLASSES


def _text(name: str, value: str, hint: str) -> widgets.Text:
    return _of(widgets.Text, name, value=value, placeholder=hint, continuous_update=False)


def _slider(name: str, value: float, least: float, most: float, step: float, form: str) -> widgets.FloatSlider:
    return _of(widgets.FloatSlider, name, value=value, min=least, max=most, step=step, readout_format=form)


def _choice(name: str, options: Sequence) -> widgets.Dropdown:
    return _of(widgets.Dropdown, name, options=options)


def _of(kind: type[widgets.Widget], name: str, **options: Any) -> Any:
    return kind(description=name, layout=widgets.Layout(width="auto"), style={"description_width": "84px"}, **options)


def _check(name: str, value: bool = False) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=name, indent=False, layout=_WIDE)


def _button(name: str, icon: str, tooltip: str = "") -> widgets.Button:
    return widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=_WIDE)


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f'<div class="explorer-group" role="heading" aria-level="2">{text}</div>')


_row = partial(box, kind=widgets.HBox, flex_flow="row wrap", overflow="visible")
