"""Figures of the notebooks. Every function returns a matplotlib figure; `show` puts one into a notebook with alt text.

One visual language, colour-blind safe and all of it here: the four kinds have Okabe and Ito's colours, which nothing
else wears; ground truth is green and solid, predictions are red and dashed, the box at a map's peak is magenta and
dotted; before and after an adapter, and the terms of a loss, have Paul Tol's muted set; what needs no learning is grey;
the jet map is used for the heatmap overlay alone. No letter is smaller than `SMALLEST`, no figure wider than `WIDTH`:
a page shows it pixel by pixel.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..boxes import (
    box_iou,
    extract_many,
    floored_level,
    keep_sides,
    mask_rectangles,
    resize_map,
    threshold_levels,
    threshold_mask,
)
from ..files import atomic_write
from ..frames import BOX_COLUMNS
from ..heatmaps import KIND_PREFERENCE, SCORE_NAMES, Setting
from .style import SMALLEST, styled

KIND_COLOURS = {"standard": "#0072B2", "vv_qk": "#56B4E9", "vv_vv": "#E69F00", "vv_mixed": "#D55E00"}
KIND_LINES = {"standard": "-", "vv_qk": (0, (2, 2)), "vv_vv": (0, (2, 2)), "vv_mixed": "-"}
KIND_MARKERS = {"standard": "o", "vv_qk": "s", "vv_vv": "s", "vv_mixed": "o"}
TRUTH, PREDICTION, PEAK, MASK = "#00B140", "#E60000", "#FF5CFF", "#F0E442"
_JPEG_QUALITY = 88
_PNG_EFFORT = 4  # of 9: half the time of 6, and 4 % more bytes for these figures
DARK, GREY, PALE = "#222222", "#666666", "#999999"
STATE_COLOURS = {"before": PALE, "floor": "#332288", "after": "#882255"}
# in a chart, on white, the same in the quiet: what a trained head says, and paler what an untrained one does
METHOD_COLOURS = {
    "oracle": "#CC4444",
    "cam_peak": "#A65CC0",
    "untrained_oracle": "#EFB8B8",
    "untrained_peak": "#DCC3E6",
}
METHOD_COLOURS |= dict.fromkeys(("whole_image", "centre_box", "class_mean"), PALE)
TERM_COLOURS = ("#117733", "#AA4499", "#999933", "#CC6677")  # of a loss, and of what else is counted beside it
WIDTH = 8.5  # inches: the column of a page
_BORDER = 0.04  # inches that are left around a figure
_FINER = 2  # so many pixels of a photograph are enough for one of its axis
_LABELLED = 4  # boxes whose score is printed: more would cover the image
_HEADLINE = 102  # letters of a figure's title in a line


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
    embedded = None
    if path is not None:
        file = figure_bytes(fig, "png", f"{alt}.", title=finding)
        atomic_write(path, file)
        if not finding:  # both look alike: drawn once
            embedded = _as_jpeg(file) if photo else file
    if embedded is None:
        if finding:
            fig.suptitle("").set_in_layout(False)
        embedded = figure_bytes(fig, form)
    metadata = {mime: {"alt": caption, "finding": finding, "caption": f"{alt}."}}
    display({mime: embedded}, raw=True, metadata=metadata)
    # JupyterLab shows no alt text; a report has the caption from the image and leaves this out
    display(Markdown(f"**{finding}.** {alt}." if finding else caption), metadata={"repeats_caption": True})


def headline(fig: Figure, text: str) -> None:
    """The finding, above all panels of a figure."""
    fig.suptitle(textwrap.fill(text, int(_HEADLINE * fig.get_figwidth() / WIDTH)), x=0.006, ha="left")


@styled
def figure_bytes(fig: Figure, form: str, description: str = "", *, title: str = "") -> bytes:
    """The figure as an image file of the given format; a PNG carries title and description, and no date."""
    picture, buffer = Image.fromarray(_drawn(fig)), io.BytesIO()
    dpi = (fig.dpi, fig.dpi)
    if form == "jpeg":
        picture.save(buffer, form, quality=_JPEG_QUALITY, dpi=dpi)
    else:
        texts = PngInfo()
        texts.add_text("Title", title)
        texts.add_text("Description", description)
        picture.save(buffer, form, pnginfo=texts, compress_level=_PNG_EFFORT, dpi=dpi)
    return buffer.getvalue()


def _drawn(fig: Figure) -> np.ndarray:
    """The figure's pixels, uint8 [H, W, 3], without its empty border: drawn once, where `bbox="tight"` draws twice."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    inches = fig.get_tightbbox(canvas.get_renderer())
    if inches.x0 < 0 or inches.y0 < 0 or inches.x1 > fig.get_figwidth() or inches.y1 > fig.get_figheight():
        return _drawn_beyond(fig)
    inches = inches.padded(_BORDER)
    left, right = (round(x * fig.dpi) for x in (inches.x0, inches.x1))
    top, bottom = (len(pixels) - round(y * fig.dpi) for y in (inches.y1, inches.y0))
    return pixels[max(top, 0) : bottom, max(left, 0) : right]


def _drawn_beyond(fig: Figure) -> np.ndarray:
    """As `_drawn`, where something sticks out of the figure: matplotlib makes room for it."""
    buffer = io.BytesIO()
    fig.savefig(
        buffer, format="png", bbox_inches="tight", pad_inches=_BORDER, facecolor="white",
        pil_kwargs={"compress_level": 0},
    )  # fmt: skip
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def _as_jpeg(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, "jpeg", quality=_JPEG_QUALITY, dpi=picture.info["dpi"])
    return buffer.getvalue()


@styled
def new_figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options) -> tuple[Figure, np.ndarray]:
    """A figure in the house style with its axes as an array [rows, columns]; nothing is left open behind it."""
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def kind_of_name(name: str) -> str:
    """Of kinds with the same maps under one name (`standard = vv_qk`) the one whose colour stands for them."""
    return min(name.split(" = "), key=KIND_PREFERENCE.index)


@styled
def map_curves(summary: pd.DataFrame, protocol_titles: Mapping[str, str]) -> Figure:
    """mAP by IoU threshold, a line a kind with its 95 % interval, a panel a protocol.

    Args:
        summary: rows with protocol, kind, iou_threshold, map, low, high.
        protocol_titles: protocol -> the panel's title.
    """
    fig, axes = new_figure(1, len(protocol_titles), size=(WIDTH, 3.6), sharey=True)
    for axis, (protocol, title) in zip(axes[0], protocol_titles.items(), strict=True):
        for kind, rows in summary[summary["protocol"] == protocol].groupby("kind", sort=False):
            colour = KIND_COLOURS[kind]
            axis.fill_between(rows["iou_threshold"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
            axis.plot(
                rows["iou_threshold"],
                rows["map"],
                color=colour,
                linestyle=KIND_LINES[kind],
                marker=KIND_MARKERS[kind],
                markersize=4,
                label=kind,
            )
        axis.set(title=title, xlabel="IoU threshold")
    axes[0, 0].set(ylabel="mAP (band: 95 % interval)", ylim=(0, None))
    axes[0, -1].legend(title="heatmap kind")
    return fig


@styled
def class_bars(frame: pd.DataFrame, value: str, title: str, xlabel: str) -> Figure:
    """One bar a class and kind with its interval, longest first; classes without ground truth say so, never 0.

    Args:
        frame: rows with label, kind, n_ground_truth, low, high and `value` (NaN where the class has no box).
        value: the column to draw.
        title: the finding.
        xlabel: the quantity.
    """
    kinds = list(dict.fromkeys(frame["kind"]))
    table = frame.pivot_table(index="label", columns="kind", values=value, dropna=False, sort=False)[kinds]
    counts = frame.drop_duplicates("label").set_index("label")["n_ground_truth"]
    table = table.sort_values(kinds[-1], na_position="first")
    fig, axes = new_figure(size=(WIDTH, 0.9 + 0.34 * max(len(table), 3)))
    axis = axes[0, 0]
    height = 0.8 / len(kinds)
    for offset, kind in enumerate(reversed(kinds)):
        at = np.arange(len(table)) + (offset - (len(kinds) - 1) / 2) * height
        axis.barh(at, table[kind].fillna(0), height=height, color=KIND_COLOURS[kind], label=kind)
        rows = frame[frame["kind"] == kind].set_index("label").loc[table.index]
        known = rows["low"].notna().to_numpy()
        axis.hlines(at[known], rows["low"][known], rows["high"][known], color=DARK, linewidth=0.8)
    for row, label in enumerate(table.index):
        if table.loc[label].isna().all():
            axis.text(0, row, " no boxes in this split", va="center", color=GREY)
    axis.set_yticks(range(len(table)), [f"{label}  ({counts[label]:,})" for label in table.index])
    axis.set(xlabel=xlabel, xlim=(0, None), ylim=(-0.6, len(table) - 0.4))
    headline(fig, title)
    axis.grid(visible=False, axis="y")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="lower right")
    return fig


@styled
def three_columns(
    image: np.ndarray, heatmap: np.ndarray, truth: pd.DataFrame, detections: pd.DataFrame, label: str, title: str
) -> Figure:
    """Image with ground truth, heatmap overlay, ground truth (green, solid) with predictions (red, dashed).

    Args:
        image: uint8 RGB [H, W, 3].
        heatmap: [h, w] raw map of the class.
        truth: all ground truth boxes of the image.
        detections: all detections of the image and kind.
        label: the class shown.
        title: above the first panel.
    """
    height, width = image.shape[:2]
    fig, axes = new_figure(1, 3, size=(WIDTH, 0.7 + 2.75 * min(height / width, 1.4)))
    own, other = truth[truth["label"] == label], truth[truth["label"] != label]
    found = detections[detections["label"] == label].sort_values("score", ascending=False)
    for axis in axes[0]:
        photo_axis(axis, image)
    draw_boxes(axes[0, 0], other, colour="white", width=0.8)
    draw_boxes(axes[0, 0], own, colour=TRUTH)
    axes[0, 0].set_title(textwrap.fill(title, 38))
    overlay(axes[0, 1], heatmap, (width, height))
    axes[0, 1].set_title(range_text(heatmap))
    draw_boxes(axes[0, 2], found, colour=PREDICTION, style="--", scores=True)
    draw_boxes(axes[0, 2], own, colour=TRUTH)
    axes[0, 2].set_title(f"{_count(len(found), 'box', 'boxes')}, {best_iou_text(own, found)}")
    handles = [
        Line2D([], [], color=TRUTH, lw=1.8, label=f"ground truth: {label}"),
        Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="prediction (number: score of the best)"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


@styled
def kinds_grid(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    label: str,
    title: str,
) -> Figure:
    """The same image under every kind: overlay above, boxes below.

    Args:
        image: uint8 RGB [H, W, 3].
        maps: kind -> [h, w] raw map of the class.
        truth: ground truth boxes of the image.
        detections: detections of the image, all kinds.
        label: the class shown.
        title: of the figure.
    """
    height, width = image.shape[:2]
    columns = len(maps)
    fig, axes = new_figure(2, columns, size=(WIDTH * columns / 4, 0.75 + 4.2 * min(height / width, 1.3)))
    own = truth[truth["label"] == label]
    for column, (kind, heatmap) in enumerate(maps.items()):
        found = detections[(detections["label"] == label) & (detections["kind"] == kind)]
        for axis in axes[:, column]:
            photo_axis(axis, image)
        overlay(axes[0, column], heatmap, (width, height))
        axes[0, column].set_title(kind, color=KIND_COLOURS[kind], fontweight="bold", loc="center")
        draw_boxes(axes[1, column], found, colour=PREDICTION, style="--")
        draw_boxes(axes[1, column], own, colour=TRUTH)
        axes[1, column].set_title(best_iou_text(own, found), loc="center")
    headline(fig, title)
    return fig


@styled
def extraction_steps(
    image: np.ndarray, heatmap: np.ndarray, truth: pd.DataFrame, *, label: str, patch_size: int,
    boxes: Setting | None = None,
) -> Figure:  # fmt: skip
    """How one heatmap becomes boxes, panel by panel: patches, similarity, upsampled map, mask, components, boxes.

    Of several thresholds, the first is shown; the last panel holds the boxes of all.
    """
    settings = boxes or Setting()
    height, width = image.shape[:2]
    rows, columns = heatmap.shape
    size, min_side = settings.working_size, settings.min_side
    resized = resize_map(heatmap, size)
    first = settings.thresholds[0]
    level = threshold_levels(resized, [first])[first]
    threshold = floored_level(level, settings.floor)
    # a constant map lies at its threshold everywhere, and has no box
    mask = threshold_mask(resized, threshold) * (resized.min() < resized.max())
    found = extract_many(heatmap, (width, height), [settings])[0].boxes
    fig, axes = new_figure(2, 3, size=(WIDTH, 1.0 + 5.4 * min(height / width, 1.4)))
    grid, similarity, upsampled, masked, components, result = axes.flat

    photo_axis(grid, image)
    grid.set_xticks(np.linspace(0, width, columns + 1)[1:-1])
    grid.set_yticks(np.linspace(0, height, rows + 1)[1:-1])
    grid.grid(visible=True, color="white", linewidth=0.5, alpha=0.8)
    grid.tick_params(length=0, labelbottom=False, labelleft=False)
    grid.set_title(f"1  {rows} × {columns} patches of {patch_size} pixels")

    shape = {"cmap": "viridis", "aspect": height / width}  # maps in the image's shape stand in line with it
    similarity.imshow(heatmap, **(shape | {"aspect": shape["aspect"] * columns / rows}))
    similarity.set_title(f"2  {range_text(heatmap)}")
    upsampled.imshow(resized, **shape)
    line = "line: Otsu's threshold" if first == "otsu" else f"line: percentile {first:g}"
    if threshold > level:
        line = f"line: floor {settings.floor:.3g}"
    if threshold <= resized.max():
        upsampled.contour(resized, levels=[threshold], colors="white", linewidths=1, linestyles="solid")
    else:
        line = f"all below floor {settings.floor:.3g}"
    upsampled.set_title(f"3  bilinear to {size}, {line}")
    look = {"cmap": "gray_r", "vmin": 0, "vmax": 1.6, "aspect": shape["aspect"]}
    masked.imshow(mask, **look)
    masked.set_title(f"4  mask ≥ {threshold:.3f}, closed, opened".replace("-", "−"))
    components.imshow(mask, **look)
    rectangles = keep_sides(mask_rectangles(mask), min_side, settings.max_side)
    draw_boxes(components, pd.DataFrame(rectangles, columns=BOX_COLUMNS), colour=PREDICTION, style="--", width=1.5)
    components.set_title(f"5  rectangles with sides > {min_side}")
    photo_axis(result, image)
    draw_boxes(result, truth[truth["label"] == label], colour=TRUTH)
    draw_boxes(result, pd.DataFrame(found, columns=[*BOX_COLUMNS, "score"]), colour=PREDICTION, style="--", scores=True)
    result.set_title(f"6  scored with the {SCORE_NAMES[settings.box_score]} inside")
    for axis in axes.flat:
        axis.title.set_fontsize(SMALLEST)
        axis._left_title.set_fontsize(SMALLEST)
    for axis in (similarity, upsampled, masked, components):
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#dddddd")
    return fig


def range_text(heatmap: np.ndarray, quantity: str = "similarity", digits: int = 2) -> str:
    """Lowest and highest value of a map, for a title."""
    return f"{quantity} {heatmap.min():.{digits}f} to {heatmap.max():.{digits}f}".replace("-", "−")


def photo_axis(axis: Axes, image: np.ndarray, size_wh: tuple[int, int] | None = None) -> None:
    """Show an image without ticks, in its own pixel coordinates (pixel edges at whole numbers), or in those given."""
    width, height = size_wh or (image.shape[1], image.shape[0])
    drawn = axis.get_window_extent()  # the layout, which is still to come, makes it at most a third larger
    shrunk = _FINER * max(drawn.width / image.shape[1], drawn.height / image.shape[0])
    if shrunk < 1:  # OpenCV is ten times as fast at it as what draws
        image = cv2.resize(image, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
    axis.imshow(image, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def overlay(axis: Axes, heatmap: np.ndarray, image_size_wh: tuple[int, int], *, alpha: float = 0.5) -> None:
    """Lay a heatmap over a shown image in the jet map; its colours span this map alone."""
    width, height = image_size_wh
    axis.imshow(
        resize_map(heatmap, 224), cmap="jet", alpha=alpha, extent=(0, width, height, 0), interpolation="bilinear"
    )


def draw_boxes(
    axis: Axes, boxes: pd.DataFrame, *, colour: str, style: str = "-", width: float = 1.8, scores: bool = False
) -> None:
    """Outline the boxes of a frame (xmin, ymin, xmax, ymax); with `scores`, print those of the best few."""
    best = boxes.sort_values("score", ascending=False).index[:_LABELLED] if scores else ()
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


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
