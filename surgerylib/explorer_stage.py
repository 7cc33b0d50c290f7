"""What the explorer shows: the panels, and the tables under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import ipywidgets as widgets
import pandas as pd

from . import exploration_view as view
from .exploration import Answer, Look, Question, Subject
from .explorer_widgets import Panel
from .kinds import HEATMAP_KINDS
from .plots import KIND_COLOURS

Patch = tuple[int, int] | None
_HINT = (
    '<p class="explorer-note">Point at a patch: how similar it is to all that is asked for, and where it attends in '
    "the last block. A click pins it.</p>"
)


class Stage:
    """Panels of the photograph, of each kind's map and of the last block's attention, and two tables.

    Attributes:
        widget: all of it.
        photo, maps, attention: panels of the photograph, of up to four kinds, and of the `qk` and `vv` attention.
        panels, looks: boxes of those shown.
        truths, patches: tables, HTML.
        patch: (row, column) pointed at; None before the first.
    """

    def __init__(self, opacity: widgets.FloatSlider, on_patch: Callable[[], None]) -> None:
        """
        Args:
            opacity: of the overlays; the browser alone follows it.
            on_patch: called when another patch is pointed at.
        """
        self.patch: Patch = None
        self._on_patch = on_patch
        self.photo = Panel(title="image and ground truth")
        self.maps = [Panel() for _ in HEATMAP_KINDS]
        self.attention = {path: Panel(opacity=0.7) for path in ("qk", "vv")}
        self._drawn: list[object] = [None] * len(self.maps)  # the map that each panel's overlay shows
        for panel in (self.photo, *self.maps):
            widgets.jslink((opacity, "value"), (panel, "opacity"))
        for panel in self._all:
            panel.observe(self._point, ["pointed", "pinned"])
        self.truths, self.patches, self._hint = widgets.HTML(), widgets.HTML(), widgets.HTML(_HINT)
        self.panels = _box("explorer-panels", self.photo, self.maps[0])
        self.looks = _box("explorer-panels", *self.attention.values())
        self.looks.add_class("explorer-looks")
        self.looks.layout.display = "none"
        tables = _box("explorer-tables", self.truths, self.patches)
        parts = [self.panels, self.looks, self._hint, tables]
        self.widget = widgets.VBox(parts, layout=widgets.Layout(align_items="stretch", overflow="visible"))

    @property
    def _all(self) -> tuple[Panel, ...]:
        return (self.photo, *self.maps, *self.attention.values())

    def show_subject(self, subject: Subject, seen: Look) -> None:
        """Another image: its photograph in every panel, and no patch that the new grid lacks."""
        photo = view.photo_bytes(subject.image)
        if self.patch is not None and (self.patch[0] >= seen.grid[0] or self.patch[1] >= seen.grid[1]):
            self.patch = None
        pointed = [] if self.patch is None else list(self.patch)
        for panel in self._all:
            with panel.hold_sync():
                panel.photo, panel.overlay = photo, b""
                panel.size, panel.grid = list(subject.size_wh), list(seen.grid)
                panel.shapes, panel.outline, panel.pointed = [], [], pointed
        self._drawn = [None] * len(self.maps)

    def show_answers(
        self, subject: Subject, question: Question, answers: Sequence[Answer], own: pd.DataFrame, against: str,
        *, outline: bool,
    ) -> None:  # fmt: skip
        """Boxes, outlines and tables; an overlay is sent only where the map is another."""
        truth = view.truth_shapes(subject.truth, own)
        self.photo.shapes = truth
        n_boxes = len(subject.truth)
        self.photo.caption = f"{subject.name}, {subject.size_wh[0]} × {subject.size_wh[1]}, {n_boxes} annotated"
        shown = [self.photo, *self.maps[: len(answers)]]
        if tuple(shown) != self.panels.children:
            self.panels.children = shown
        quiet = view.truth_shapes(own, own, named=False)
        for place, answer in enumerate(answers):
            panel = self.maps[place]
            with panel.hold_sync():
                if self._drawn[place] is not answer.maps or panel.title != self._title(question, answer):
                    panel.overlay = view.overlay_bytes(answer.shown)
                    self._drawn[place] = answer.maps
                panel.title, panel.colour = self._title(question, answer), KIND_COLOURS[answer.kind]
                panel.shapes = quiet + view.found_shapes(answer)
                panel.outline = view.outline_points(answer) if outline else []
                panel.caption = f"{view.headline(answer, against)}. Map {view.span(answer)}."
        self.truths.value = view.truth_table(answers, own, against)

    def show_patch(self, seen: Look, question: Question, answers: Sequence[Answer]) -> None:
        """The numbers of the pointed patch, and where it attends."""
        self.patches.value = "" if self.patch is None else view.patch_table(answers, question, self.patch)
        self._hint.layout.display = "" if self.patch is None else "none"
        self.looks.layout.display = "none" if self.patch is None else ""
        if self.patch is None:
            return
        for path, panel in self.attention.items():
            attended = seen.attended(path, self.patch)
            with panel.hold_sync():
                panel.overlay = view.overlay_bytes(attended, cv2.COLORMAP_VIRIDIS)
                panel.title = f"{path.upper()}: where the patch attends"
                panel.caption = f"to the CLS token {1 - attended.sum():.0%}, to itself {attended[self.patch]:.0%}"

    def blank(self) -> None:
        """No answer: maps and boxes of an earlier question would be taken for one."""
        for panel in self.maps:
            panel.overlay, panel.shapes, panel.outline, panel.caption = b"", [], [], "no answer to what is asked"
        self._drawn = [None] * len(self.maps)
        self.truths.value = self.patches.value = ""

    def _point(self, change: dict) -> None:
        """One panel's patch is that of all."""
        source = change["owner"]
        patch = tuple(source.pointed) or None
        for panel in self._all:
            if panel is not source:
                panel.pinned, panel.pointed = source.pinned, list(source.pointed)
        if patch != self.patch:
            self.patch = patch
            self._on_patch()

    @staticmethod
    def _title(question: Question, answer: Answer) -> str:
        adapted = " + adapter" if question.adapted else ""
        return f"{answer.kind}{adapted}: “{question.shown}”"


def _box(name: str, *children: widgets.Widget) -> widgets.Box:
    box = widgets.Box(children)
    box.add_class(name)
    return box
