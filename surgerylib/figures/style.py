"""The visual language of all figures, and what they share; `show` puts a figure into a notebook with alt text.

Colour-blind safe: the four kinds have Okabe and Ito's colours, which nothing else wears, kinds of other names a few
more; ground truth is green and solid, predictions are red and dashed, the box at a map's peak is magenta and dotted;
before and after an adapter, and the terms of a loss, have Paul Tol's muted set; what needs no learning is grey; the
jet map is used for the heatmap overlay alone. No letter is smaller than `SMALLEST`, no figure wider than `WIDTH`: a
page shows it pixel by pixel.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ..boxes import box_iou, resize_map
from ..files import atomic_write
from ..matching import BOX_COLUMNS
from ..words import KIND_PREFERENCE


class KindLook(NamedTuple):
    """How a heatmap kind is drawn: colour, dashes and marker."""

    colour: str
    line: str | tuple[int, tuple[int, ...]] = "-"
    marker: str = "o"


_DASHED = (0, (2, 2))
KIND_LOOKS = {
    "standard": KindLook("#0072B2"),
    "vv_qk": KindLook("#56B4E9", _DASHED, "s"),
    "vv_vv": KindLook("#E69F00", _DASHED, "s"),
    "vv_mixed": KindLook("#D55E00"),
}
OTHER_LOOKS = tuple(
    KindLook(colour, line, marker)
    for line, marker in (("-", "^"), ((0, (5, 2)), "v"), ((0, (1, 1)), "D"))
    for colour in ("#785EF0", "#663333", "#BB5566", "#DDCC77")
)
TRUTH, PREDICTION, PEAK, MASK = "#00B140", "#E60000", "#FF5CFF", "#F0E442"
DARK, GREY, PALE = "#222222", "#666666", "#999999"
STATE_COLOURS = {"before": PALE, "floor": "#332288", "after": "#882255"}
# in a chart, on white, the same in the quiet: what a trained head says, and paler what an untrained one does
METHOD_COLOURS = {
    "oracle": "#CC4444",
    "cam_peak": "#A65CC0",
    "untrained_oracle": "#EFB8B8",
    "untrained_peak": "#DCC3E6",
    **dict.fromkeys(("whole_image", "centre_box", "class_mean"), PALE),
}
# colour, dashes and width of boxes: those on top leave what is under them in sight
BOX_LOOKS = {"truth": (TRUTH, "-", 1.8), "prediction": (PREDICTION, "--", 1.5), "peak": (PEAK, ":", 2.0)}
TERM_COLOURS = ("#117733", "#AA4499", "#999933", "#CC6677")  # of a loss, and of what else is counted beside it
WIDTH = 8.5  # inches: the column of a page
SMALLEST = 9.0  # points: on a phone, where a figure keeps three quarters of its width, still 10 pixels
# asked for the letters that matplotlib's own font lacks, where the machine has one: names of images are in any script
_MORE_LETTERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip
_STYLE = {
    "figure.dpi": 110,
    "font.size": SMALLEST,
    "legend.fontsize": SMALLEST,
    "legend.title_fontsize": SMALLEST,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "figure.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a file name is a $
}


@contextmanager
def _house_style() -> Iterator[None]:
    there = set(font_manager.get_font_names())
    family = ["DejaVu Sans", *(name for name in _MORE_LETTERS if name in there)]
    with matplotlib.rc_context(_STYLE | {"font.family": family}), warnings.catch_warnings():
        # a letter that no font has is drawn as an empty square; the caption, which is text, has it
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# as a decorator: each call draws in the house style and leaves matplotlib's settings as they were
styled = _house_style()


def show(fig: Figure, alt: str, path: str | Path | None = None, *, photo: bool = False) -> None:
    """Put a figure with its caption into the notebook's output, and optionally into a PNG file.

    The figure's title says the finding. A file keeps it, for it may stand alone; in the notebook it becomes the first
    sentence of the caption, as letters that wrap on a narrow screen and that are read aloud.

    Args:
        fig: the figure.
        alt: what is drawn, for the caption and for a reader who cannot see it; a sentence without its full stop.
        path: PNG to write as well (aside, then renamed).
        photo: embed as JPEG, a fifth of the size of PNG for photographs.
    """
    finding = " ".join(fig.get_suptitle().split()).rstrip(".")
    caption = f"{finding}. {alt}." if finding else f"{alt}."
    mime, form = ("image/jpeg", "jpeg") if photo else ("image/png", "png")
    if path is not None:
        atomic_write(path, figure_bytes(fig, "png", f"{alt}.", title=finding))
    if finding:
        fig.suptitle("").set_in_layout(False)
    metadata = {mime: {"alt": caption, "finding": finding, "caption": f"{alt}."}}
    display({mime: figure_bytes(fig, form)}, raw=True, metadata=metadata)
    # JupyterLab shows no alt text; a report has the caption from the image and leaves this out
    display(Markdown(f"**{finding}.** {alt}." if finding else caption), metadata={"repeats_caption": True})


@styled
def figure_bytes(fig: Figure, form: str, description: str = "", *, title: str = "") -> bytes:
    """The figure as an image file of the given format; a PNG carries title and description, and no date."""
    if form == "jpeg":
        options = {"pil_kwargs": {"quality": 88}}
    else:  # effort 4 of 9: half the time of 6, and 4 % more bytes for these figures
        texts = {"Title": title, "Description": description, "Software": None}
        options = {"metadata": texts, "pil_kwargs": {"compress_level": 4}}
    buffer = io.BytesIO()
    fig.savefig(buffer, format=form, bbox_inches="tight", pad_inches=0.04, facecolor="white", **options)
    return buffer.getvalue()


@styled
def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], title: str = "", **options
) -> tuple[Figure, np.ndarray]:
    """A figure in the house style with its axes as an array [rows, columns]; `title` is the finding, above all."""
    fig = Figure(figsize=size, layout="constrained")  # which nothing has to close
    if title:
        letters = int(102 * size[0] / WIDTH)  # in a line
        fig.suptitle(textwrap.fill(title, letters), x=0.006, ha="left")
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def kind_looks(names: Iterable[str]) -> dict[str, KindLook]:
    """The look of each kind in a figure: known kinds have theirs, any other name one of a few more, in their order.

    Kinds with the same maps may come under one name (`standard = vv_qk`), which looks like the preferred of them.
    """
    others = itertools.cycle(OTHER_LOOKS)
    own = {name: [kind for kind in KIND_PREFERENCE if kind in name.split(" = ")] for name in names}
    return {name: KIND_LOOKS[kinds[0]] if kinds else next(others) for name, kinds in own.items()}


@styled
def row_figure(labels: Sequence[str], inches: float, *, title: str, xlabel: str) -> tuple[Figure, Axes]:
    """A figure so many inches high with one axis that has a row a label, the first at the bottom."""
    fig, ((axis,),) = new_figure(size=(WIDTH, inches), title=title)
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel=xlabel, ylim=(-0.6, len(labels) - 0.4))
    axis.grid(visible=False, axis="y")
    return fig, axis


def interval_curve(axis: Axes, rows: pd.DataFrame, x: str, y: str, *, alpha: float = 0.12, **look) -> None:
    """A line of column `y` over column `x` with the band between `low` and `high`; `look` is the line's."""
    axis.fill_between(rows[x], rows["low"], rows["high"], color=look["color"], alpha=alpha, linewidth=0)
    axis.plot(rows[x], rows[y], **look)


def interval_bars(axis: Axes, at: np.ndarray, rows: pd.DataFrame, value: str, **look) -> None:
    """Horizontal bars of column `value` at the given heights, with lines from `low` to `high`; nothing for NaN."""
    axis.barh(at, rows[value].fillna(0), **look)
    known = rows["low"].notna().to_numpy()
    axis.hlines(np.asarray(at)[known], rows["low"][known], rows["high"][known], color=DARK, linewidth=0.9)


def say_no_boxes(axis: Axes, rows: Iterable[float], text: str = " no boxes in this split") -> None:
    """In place of a bar: a class without ground truth is never 0."""
    for row in rows:
        axis.text(0, row, text, va="center", color=GREY)


def box_legend(fig: Figure, *, more: Sequence[Line2D | Patch] = (), **texts: str) -> None:
    """What the lines around boxes mean, a text for some of `BOX_LOOKS`, below the panels; `more` is also drawn."""
    looks = {texts[name]: BOX_LOOKS[name] for name in BOX_LOOKS if name in texts}
    handles = [Line2D([], [], color=colour, ls=ls, lw=lw, label=text) for text, (colour, ls, lw) in looks.items()]
    legend_below(fig, [*handles, *more])


def legend_below(fig: Figure, handles: Sequence[Line2D | Patch], columns: int | None = None) -> None:
    """One legend of all panels, below them; in one row unless `columns` are given."""
    fig.legend(handles=handles, loc="outside lower center", ncols=columns or max(len(handles), 1), handlelength=2.6)


def range_text(heatmap: np.ndarray, quantity: str = "similarity", digits: int = 2) -> str:
    """Lowest and highest value of a map, for a title."""
    return f"{quantity} {heatmap.min():.{digits}f} to {heatmap.max():.{digits}f}".replace("-", "−")


def photo_axis(axis: Axes, image: np.ndarray) -> None:
    """Show an image without ticks, in its own pixel coordinates (pixel edges at whole numbers)."""
    height, width = image.shape[:2]
    drawn = axis.get_window_extent()  # the layout, which is still to come, makes it at most a third larger
    shrunk = 2 * max(drawn.width / width, drawn.height / height)  # 2 pixels for one drawn are enough
    if shrunk < 1:  # OpenCV is ten times as fast at it as what draws
        image = cv2.resize(image, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
    axis.imshow(image, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def photo_panel(
    axis: Axes, image: np.ndarray, *, heatmap: np.ndarray | None = None, title: str | None = None,
    scores: bool = False, **boxes: pd.DataFrame | np.ndarray,
) -> None:  # fmt: skip
    """An image with a heatmap over it, if given, and boxes in some of `BOX_LOOKS`, such as `truth=`."""
    photo_axis(axis, image)
    if heatmap is not None:
        overlay(axis, heatmap, image.shape[1::-1], alpha=0.3 if boxes else 0.5)
    for name in [name for name in BOX_LOOKS if name in boxes]:
        colour, line, width = BOX_LOOKS[name]
        of_found = scores and name == "prediction"
        draw_boxes(axis, boxes[name], colour=colour, style=line, width=width, scores=of_found)
    if title is not None:
        axis.set_title(title, fontsize=SMALLEST)


def overlay(axis: Axes, heatmap: np.ndarray, image_size_wh: tuple[int, int], *, alpha: float = 0.5) -> None:
    """Lay a heatmap over a shown image in the jet map; its colours span this map alone."""
    width, height = image_size_wh
    look = {"cmap": "jet", "alpha": alpha, "interpolation": "bilinear"}
    axis.imshow(resize_map(heatmap, 224), extent=(0, width, height, 0), **look)


def draw_boxes(
    axis: Axes, boxes: pd.DataFrame | np.ndarray, *, colour: str, style: str = "-", width: float = 1.8,
    scores: bool = False,
) -> None:  # fmt: skip
    """Outline boxes; with `scores`, print those of the best four: more would cover the image.

    `boxes`: a frame with xmin, ymin, xmax, ymax (and score), or xyxy [4], [N, 4] or, with scores, [N, 5].
    """
    if isinstance(boxes, np.ndarray):
        boxes = np.atleast_2d(boxes)
        boxes = pd.DataFrame(boxes, columns=[*BOX_COLUMNS, "score"][: boxes.shape[1]])
    best = boxes.sort_values("score", ascending=False).index[:4] if scores else ()
    for row in boxes.itertuples():
        size = (row.xmax - row.xmin, row.ymax - row.ymin)
        axis.add_patch(
            Rectangle((row.xmin, row.ymin), *size, fill=False, edgecolor=colour, linestyle=style, linewidth=width)
        )
        if row.Index in best:
            look = {"color": "white", "va": "top", "bbox": {"facecolor": colour, "edgecolor": "none", "pad": 0.8}}
            left, right = axis.get_xlim()
            # at the right border of the image a text that starts with its box would be cut off
            x, side = (row.xmax, "right") if row.xmin > right - 0.15 * (right - left) else (row.xmin, "left")
            axis.text(x, row.ymin, f"{row.score:.2f}".replace("-", "−"), ha=side, clip_on=True, **look)


def best_iou(truth: pd.DataFrame, found: pd.DataFrame) -> np.ndarray:
    """For each ground truth box the IoU of the detection that overlaps it most: [G], 0 without detections."""
    if truth.empty or found.empty:
        return np.zeros(len(truth))
    truth_xyxy, found_xyxy = truth[BOX_COLUMNS].to_numpy(), found[BOX_COLUMNS].to_numpy()
    return box_iou(truth_xyxy[:, None], found_xyxy[None]).max(axis=1)


def best_iou_text(truth: pd.DataFrame, found: pd.DataFrame) -> str:
    """How well ground truth boxes are met, for a title."""
    if truth.empty:
        return "no ground truth"
    values = best_iou(truth, found)
    return f"best IoU {values.max():.2f}" + (f", mean {values.mean():.2f}" if len(values) > 1 else "")
