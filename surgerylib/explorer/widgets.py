"""The explorer's own widgets: a picture whose patches can be pointed at, a button that copies text, boxes of both."""

from __future__ import annotations

from pathlib import Path

import anywidget
import ipywidgets
import traitlets

TEMPLATES = Path(__file__).parent / "templates"


def box(*children: ipywidgets.Widget, names: str = "", kind: type = ipywidgets.VBox, **layout: str) -> ipywidgets.Box:
    """Widgets in a box that has these CSS classes and this layout."""
    made = kind(children, layout=ipywidgets.Layout(**layout))
    for name in names.split():
        made.add_class(name)
    return made


class Panel(anywidget.AnyWidget):
    """A photograph with a heatmap over it and boxes on top; says which patch is pointed at."""

    _esm = TEMPLATES / "panel.js"
    _css = TEMPLATES / "explorer.css"
    photo = traitlets.Bytes(b"").tag(sync=True)  # JPEG
    overlay = traitlets.Bytes(b"").tag(sync=True)  # JPEG, stretched over the whole picture
    opacity = traitlets.Float(0.5).tag(sync=True)  # of the overlay, 0 to 1; the browser alone changes it
    size = traitlets.List([1, 1]).tag(sync=True)  # width and height in pixels, the coordinates of `shapes`
    shapes = traitlets.List([]).tag(sync=True)  # dicts of box (xyxy), style (truth, other, found), text and title
    outline = traitlets.List([]).tag(sync=True)  # closed lines, each x, y, x, y... in 0..1
    grid = traitlets.List([0, 0]).tag(sync=True)  # rows and columns of patches
    pointed = traitlets.List([]).tag(sync=True)  # row and column, or nothing; hover, touch and arrow keys set it
    pinned = traitlets.Bool(False).tag(sync=True)  # whether hovering leaves it alone (a click)
    title = traitlets.Unicode("").tag(sync=True)
    colour = traitlets.Unicode("").tag(sync=True)
    caption = traitlets.Unicode("").tag(sync=True)


class CopyButton(anywidget.AnyWidget):
    """A button that puts `text` into the reader's clipboard."""

    _esm = TEMPLATES / "copy.js"
    text = traitlets.Unicode("").tag(sync=True)
    description = traitlets.Unicode("copy").tag(sync=True)
