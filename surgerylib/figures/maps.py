"""Figures of notebook 01: mAP by IoU and class, one image under its maps, the steps from a map to boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..boxes import (
    extract_many,
    floored_level,
    mask_rectangles,
    resize_map,
    sides_fit,
    threshold_levels,
    threshold_mask,
)
from ..heatmaps import SCORE_NAMES, Setting
from ..intervals import counted
from . import style


@style.styled
def map_curves(summary: pd.DataFrame, protocol_titles: Mapping[str, str]) -> Figure:
    """mAP by IoU threshold (`Evaluation.summary`), a line a kind with its 95 % interval, a panel a protocol.

    `protocol_titles`: protocol -> the panel's title.
    """
    looks = style.kind_looks(summary["kind"].unique())
    fig, axes = style.new_figure(1, len(protocol_titles), size=(style.WIDTH, 3.6), sharey=True)
    for axis, (protocol, title) in zip(axes[0], protocol_titles.items(), strict=True):
        for kind, rows in summary[summary["protocol"] == protocol].groupby("kind", sort=False):
            look = {"color": looks[kind].colour, "linestyle": looks[kind].line, "marker": looks[kind].marker}
            style.interval_curve(axis, rows, "iou_threshold", "map", markersize=4, label=kind, **look)
        axis.set(title=title, xlabel="IoU threshold")
    axes[0, 0].set(ylabel="mAP (band: 95 % interval)", ylim=(0, None))
    axes[0, -1].legend(title="heatmap kind")
    return fig


@style.styled
def class_bars(frame: pd.DataFrame, value: str, title: str, xlabel: str) -> Figure:
    """One bar of column `value` a class and kind with its interval, longest first; NaN: no boxes, never 0.

    `frame`: rows with label, kind, n_ground_truth, low, high and `value`.
    """
    kinds = list(dict.fromkeys(frame["kind"]))
    looks = style.kind_looks(kinds)
    table = frame.pivot_table(index="label", columns="kind", values=value, dropna=False, sort=False)[kinds]
    counts = frame.drop_duplicates("label").set_index("label")["n_ground_truth"]
    table = table.sort_values(kinds[-1], na_position="first")
    labels = [f"{label}  ({counts[label]:,})" for label in table.index]
    fig, axis = style.row_figure(labels, 0.9 + 0.34 * max(len(table), 3), title=title, xlabel=xlabel)
    height = 0.8 / len(kinds)
    for offset, kind in enumerate(reversed(kinds)):
        at = np.arange(len(table)) + (offset - (len(kinds) - 1) / 2) * height
        rows = frame[frame["kind"] == kind].set_index("label").loc[table.index]
        style.interval_bars(axis, at, rows, value, height=height, color=looks[kind].colour, label=kind)
    style.say_no_boxes(axis, np.flatnonzero(table.isna().all(axis=1)))
    axis.set_xlim(0, None)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="lower right")
    return fig


@style.styled
def three_columns(
    image: np.ndarray, heatmap: np.ndarray, truth: pd.DataFrame, detections: pd.DataFrame, label: str, title: str
) -> Figure:
    """Image with ground truth, heatmap overlay, ground truth (green, solid) with predictions (red, dashed).

    `image` is uint8 RGB [H, W, 3], `heatmap` the raw map [h, w] of the class shown (`label`); `truth` are all boxes of
    the image, `detections` all of the image and kind.
    """
    height, width = image.shape[:2]
    fig, axes = style.new_figure(1, 3, size=(style.WIDTH, 0.7 + 2.75 * min(height / width, 1.4)))
    own, other = truth[truth["label"] == label], truth[truth["label"] != label]
    found = detections[detections["label"] == label].sort_values("score", ascending=False)
    style.photo_panel(axes[0, 0], image, truth=own, title=textwrap.fill(title, 38))
    style.draw_boxes(axes[0, 0], other, colour="white", width=0.8)
    style.photo_panel(axes[0, 1], image, heatmap=heatmap, title=style.range_text(heatmap))
    text = f"{counted(len(found), 'box')}, {style.best_iou_text(own, found)}"
    style.photo_panel(axes[0, 2], image, truth=own, prediction=found, scores=True, title=text)
    style.box_legend(fig, truth=f"ground truth: {label}", prediction="prediction (number: score of the best)")
    return fig


@style.styled
def kinds_grid(
    image: np.ndarray, maps: Mapping[str, np.ndarray], truth: pd.DataFrame, detections: pd.DataFrame, label: str,
    title: str,
) -> Figure:  # fmt: skip
    """The same image under every kind (-> raw map [h, w] of the class): overlay above, boxes below; four side by side.

    `image` is uint8 RGB [H, W, 3]; `truth` and `detections` are all of the image.
    """
    height, width = image.shape[:2]
    looks = style.kind_looks(maps)
    columns, rows = min(len(maps), 4), -(-len(maps) // 4)
    size = (style.WIDTH * columns / 4, 0.75 + 4.2 * rows * min(height / width, 1.3))
    fig, axes = style.new_figure(2 * rows, columns, size=size, title=title)
    own = truth[truth["label"] == label]
    for place, (kind, heatmap) in enumerate(maps.items()):
        above, below = axes[2 * (place // 4) :][:2, place % 4]
        found = detections[(detections["label"] == label) & (detections["kind"] == kind)]
        style.photo_panel(above, image, heatmap=heatmap)
        above.set_title(kind, color=looks[kind].colour, fontweight="bold", loc="center")
        style.photo_panel(below, image, truth=own, prediction=found)
        below.set_title(style.best_iou_text(own, found), loc="center")
    for axis in axes[-2:, len(maps) - 4 * (rows - 1) :].flat:
        axis.remove()
    return fig


@style.styled
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
    fig, axes = style.new_figure(2, 3, size=(style.WIDTH, 1.0 + 5.4 * min(height / width, 1.4)))
    grid, similarity, upsampled, masked, components, result = axes.flat

    style.photo_axis(grid, image)
    grid.set_xticks(np.linspace(0, width, columns + 1)[1:-1])
    grid.set_yticks(np.linspace(0, height, rows + 1)[1:-1])
    grid.grid(visible=True, color="white", linewidth=0.5, alpha=0.8)
    grid.tick_params(length=0, labelbottom=False, labelleft=False)
    grid.set_title(f"1  {rows} × {columns} patches of {patch_size} pixels")

    aspect = height / width  # maps in the image's shape stand in line with it
    similarity.imshow(heatmap, cmap="viridis", aspect=aspect * columns / rows)
    similarity.set_title(f"2  {style.range_text(heatmap)}")
    upsampled.imshow(resized, cmap="viridis", aspect=aspect)
    line = "line: Otsu's threshold" if first == "otsu" else f"line: percentile {first:g}"
    if threshold > level:
        line = f"line: floor {settings.floor:.3g}"
    if threshold <= resized.max():
        upsampled.contour(resized, levels=[threshold], colors="white", linewidths=1, linestyles="solid")
    else:
        line = f"all below floor {settings.floor:.3g}"
    upsampled.set_title(f"3  bilinear to {size}, {line}")
    for axis in (masked, components):
        axis.imshow(mask, cmap="gray_r", vmin=0, vmax=1.6, aspect=aspect)
    masked.set_title(f"4  mask ≥ {threshold:.3f}, closed, opened".replace("-", "−"))
    rectangles = mask_rectangles(mask)
    rectangles = rectangles[sides_fit(rectangles, min_side, settings.max_side)]
    style.draw_boxes(components, rectangles, colour=style.PREDICTION, style="--", width=1.5)
    components.set_title(f"5  rectangles with sides > {min_side}")
    style.photo_panel(result, image, truth=truth[truth["label"] == label], prediction=found, scores=True)
    result.set_title(f"6  scored with the {SCORE_NAMES[settings.box_score]} inside")
    for axis in axes.flat:
        axis._left_title.set_fontsize(style.SMALLEST)
    for axis in (similarity, upsampled, masked, components):
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#dddddd")
    return fig
