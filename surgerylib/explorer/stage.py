"""What the explorer shows: the panels, and the tables under them."""

from __future__ import annotations

import cv2
import ipywidgets as widgets

from ..figures import kind_looks
from ..heatmaps import HEATMAP_KINDS
from ..intervals import number
from . import drawing as view
from .view_model import Look, Shown, Subject
from .widgets import Panel, box

Patch = tuple[int, int] | None
_HINT = (
    '<p class="explorer-note">Point at a patch: how similar it is to all that is asked for, and where it attends in '
    "the last block. A click pins it.</p>"
)


class Stage:
    """Panels of the photograph, of each kind's map and of the last block's attention, `all` of them, and two tables."""

    def __init__(self, opacity: widgets.FloatSlider) -> None:
        """`opacity` is of the overlays."""
        self.patch: Patch = None  # (row, column) pointed at
        self._grid = (0, 0)
        self.photo = Panel(title="image and ground truth")
        self.maps = [Panel() for _ in HEATMAP_KINDS]
        self.attention = {path: Panel(opacity=0.7) for path in ("qk", "vv")}
        self._drawn: list[object] = [None] * len(self.maps)  # the map that each panel's overlay shows
        for panel in (self.photo, *self.maps):
            widgets.jslink((opacity, "value"), (panel, "opacity"))
        self.all = (self.photo, *self.maps, *self.attention.values())
        self.truths, self.patches, self._hint = widgets.HTML(), widgets.HTML(), widgets.HTML(_HINT)
        plain, looks = {"kind": widgets.Box}, "explorer-panels explorer-looks"
        self.panels = box(self.photo, self.maps[0], names="explorer-panels", **plain)
        self.looks = box(*self.attention.values(), names=looks, display="none", **plain)
        tables = box(self.truths, self.patches, names="explorer-tables", **plain)
        self.widget = box(self.panels, self.looks, self._hint, tables, align_items="stretch", overflow="visible")

    def show_subject(self, subject: Subject, seen: Look) -> None:
        """Another image: its photograph in every panel, and no patch that the new grid lacks."""
        photo = view.photo_bytes(subject.image)
        self._grid = seen.grid
        self.patch = self.patch if self._has(self.patch) else None
        pointed = [] if self.patch is None else list(self.patch)
        for panel in self.all:
            with panel.hold_sync():
                panel.photo, panel.overlay = photo, b""
                panel.size, panel.grid = list(subject.size_wh), list(seen.grid)
                panel.shapes, panel.outline, panel.pointed = [], [], pointed
                panel.pinned = panel.pinned and self.patch is not None
        self._drawn = [None] * len(self.maps)

    def show_answers(self, shown: Shown, *, outline: bool) -> None:
        """Boxes, outlines and tables; an overlay is sent only where the map is another."""
        subject, question, answers = shown.subject, shown.question, shown.answers
        self.photo.shapes = view.truth_shapes(subject.truth, shown.own)
        width, height = subject.size_wh
        self.photo.caption = f"{subject.name}, {width} × {height}, {len(subject.truth)} annotated"
        panels = (self.photo, *self.maps[: len(answers)])
        if panels != self.panels.children:
            self.panels.children = panels
        quiet = view.truth_shapes(shown.own, shown.own, named=False)
        for place, answer in enumerate(answers):
            adapted = " + adapter" if question.adapted else ""
            panel, title = self.maps[place], f"{answer.kind}{adapted}: “{question.shown}”"
            with panel.hold_sync():
                if self._drawn[place] is not answer.maps or panel.title != title:
                    panel.overlay = view.overlay_bytes(answer.shown)
                    self._drawn[place] = answer.maps
                panel.title, panel.colour = title, kind_looks([answer.kind])[answer.kind].colour
                panel.shapes = quiet + view.found_shapes(answer)
                panel.outline = view.outline_points(answer) if outline else []
                low, high, level = map(number, (answer.shown.min(), answer.shown.max(), answer.threshold))
                panel.caption = f"{view.headline(answer, shown.against)}. Map {low} to {high}, threshold {level}."
        self.truths.value = view.truth_table(answers, shown.own, shown.against)

    def show_patch(self, shown: Shown | None) -> None:
        """The numbers of the pointed patch, and where it attends; nothing without an answer."""
        patch = None if shown is None else self.patch
        self.patches.value = "" if patch is None else view.patch_table(shown.answers, shown.question, patch)
        self._hint.layout.display = "" if patch is None else "none"
        self.looks.layout.display = "none" if patch is None else ""
        for path, panel in self.attention.items() if patch is not None else ():
            attended = shown.seen.attended(path, patch)
            with panel.hold_sync():
                panel.overlay = view.overlay_bytes(attended, cv2.COLORMAP_VIRIDIS)
                panel.title = f"{path.upper()}: where the patch attends"
                to_cls, to_itself = 100 * (1 - attended.sum()), 100 * attended[patch]
                panel.caption = f"to the CLS token {to_cls:.0f} %, to itself {to_itself:.0f} %"

    def blank(self) -> None:
        """No answer: maps and boxes of an earlier question would be taken for one."""
        for panel in self.maps:
            panel.overlay, panel.shapes, panel.outline, panel.caption = b"", [], [], "no answer to what is asked"
        self._drawn = [None] * len(self.maps)
        self.truths.value = ""
        self.show_patch(None)

    def point(self, source: Panel) -> bool:
        """One panel's patch is that of all; says whether it is another than before.

        A patch that the present grid lacks was pointed at before the image changed, and is nobody's.
        """
        patch = tuple(source.pointed) or None
        if patch is not None and not self._has(patch):
            source.pinned, source.pointed, patch = False, [], None
        for panel in self.all:
            if panel is not source:
                panel.pinned, panel.pointed = source.pinned, list(source.pointed)
        is_new, self.patch = patch != self.patch, patch
        return is_new

    def _has(self, patch: Patch) -> bool:
        return patch is not None and patch[0] < self._grid[0] and patch[1] < self._grid[1]
