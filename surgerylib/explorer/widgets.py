"""The explorer's own two widgets: a picture whose patches can be pointed at, and a button that copies text."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_FRONT = Path(__file__).parent / "templates"


class Panel(anywidget.AnyWidget):
    """A photograph with a heatmap over it and boxes on top; says which patch is pointed at.

    Attributes:
        photo, overlay: JPEG; none when empty. The overlay is stretched over the whole picture.
        opacity: of the overlay, 0 to 1; the browser alone changes it.
        size: width and height in pixels, the coordinates of `shapes`.
        shapes: dicts of box (xyxy), style (truth, other, found), text and title.
        outline: closed lines, each x, y, x, y... in 0..1.
        grid: rows and columns of patches.
        pointed: row and column of the patch, or nothing; hover, touch and arrow keys set it.
        pinned: whether hovering leaves it alone (a click).
        title, colour, caption: above and below the picture.
    """

    _esm = _FRONT / "panel.js"
    _css = _FRONT / "explorer.css"
    photo = traitlets.Bytes(b"").tag(sync=True)
    overlay = traitlets.Bytes(b"").tag(sync=True)
    opacity = traitlets.Float(0.5).tag(sync=True)
    size = traitlets.List([1, 1]).tag(sync=True)
    shapes = traitlets.List([]).tag(sync=True)
    outline = traitlets.List([]).tag(sync=True)
    grid = traitlets.List([0, 0]).tag(sync=True)
    pointed = traitlets.List([]).tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)
    colour = traitlets.Unicode("").tag(sync=True)
    caption = traitlets.Unicode("").tag(sync=True)


class CopyButton(anywidget.AnyWidget):
    """A button that puts `text` into the reader's clipboard."""

    _esm = _FRONT / "copy.js"
    text = traitlets.Unicode("").tag(sync=True)
    description = traitlets.Unicode("copy").tag(sync=True)
