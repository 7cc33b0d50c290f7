"""Figures of notebook 04: what a head finds when it is told the class, and what CLIP takes a box for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ..words import METHOD_NAMES
from . import style

# dashes tell the guesses, which share a colour, apart
_LINES = {"whole_image": (0, (1, 1)), "centre_box": (0, (4, 2)), "class_mean": (0, (6, 2, 1, 2))}
_OF_HEAD = ("oracle", "cam_peak")


@style.styled
def iou_distributions(ious: pd.DataFrame, methods: Sequence[str], title: str) -> Figure:
    """How the IoUs are spread: a histogram of what the head says, and the share of boxes above each IoU.

    Args:
        ious: a column a method, a row a box.
        methods: those drawn; the histogram holds those of the head.
    """
    fig, axes = style.new_figure(1, 2, size=(style.WIDTH, 4.4), title=title)
    histogram, cumulative = axes[0]
    bins, grid = np.linspace(0, 1, 21), np.linspace(0, 1, 201)
    for method in [name for name in methods if name in _OF_HEAD]:
        shares = np.histogram(ious[method].to_numpy(float), bins)[0] / max(len(ious), 1)
        histogram.stairs(shares, bins, fill=True, color=style.METHOD_COLOURS[method], alpha=0.35)
        histogram.stairs(shares, bins, color=style.METHOD_COLOURS[method], linewidth=1.6)
    histogram.set(xlabel="IoU with the ground truth box", ylabel="share of the boxes", xlim=(0, 1), ylim=(0, None))
    for method in methods:
        values = np.sort(ious[method].to_numpy(float))
        above = 1 - np.searchsorted(values, grid, side="right") / max(len(values), 1)
        line = _LINES.get(method, "-" if method in _OF_HEAD else "--")
        cumulative.plot(grid, above, color=style.METHOD_COLOURS[method], linestyle=line, label=METHOD_NAMES[method])
    cumulative.axvline(0.5, color=style.PALE, linewidth=1, zorder=0)
    cumulative.set(xlabel="IoU", ylabel="share of the boxes above it", xlim=(0, 1), ylim=(0, 1.01))
    style.legend_below(fig, cumulative.get_legend_handles_labels()[0], 3)
    return fig


@style.styled
def class_method_bars(classes: pd.DataFrame, title: str) -> Figure:
    """Mean IoU by class (`head_evaluation.by_class`): best cell and CAM's peak with intervals, best guess as tick."""
    means = classes[classes["figure"] == "mean"].set_index(["group", "method"])
    order = means["value"].xs("oracle", level="method").sort_values(na_position="first").index
    counts = means["n_boxes"].xs("oracle", level="method")
    fig, axis = style.row_figure(
        [f"{name}  ({counts[name]:,})" for name in order], 1.1 + 0.36 * max(len(order), 3), title=title,
        xlabel="mean IoU with the ground truth box (lines: 95 % interval; boxes in brackets)",
    )  # fmt: skip
    axis.set_xlim(0, 1)
    at = np.arange(len(order))
    for method, offset in zip(_OF_HEAD, (0.2, -0.2), strict=True):
        own = means.xs(method, level="method").loc[order]
        style.interval_bars(axis, at + offset, own, "value", height=0.4, color=style.METHOD_COLOURS[method])
    style.say_no_boxes(axis, at[own["value"].isna()])
    guesses = means["value"][means.index.isin(_LINES, level="method")]
    guess = guesses.groupby("group").max()[order]
    axis.vlines(guess, at - 0.42, at + 0.42, color=style.DARK, linewidth=1.6, linestyle=":")
    handles = [Patch(color=style.METHOD_COLOURS[name], label=METHOD_NAMES[name]) for name in _OF_HEAD]
    handles.append(Line2D([], [], color=style.DARK, ls=":", lw=1.6, label="best guess without learning"))
    style.legend_below(fig, handles)
    return fig


@style.styled
def box_examples(rows: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]]]) -> Figure:
    """Ground truth boxes with what the head says of them, each in its surroundings: a row a group of examples.

    Args:
        rows: name of the row -> examples: uint8 RGB [H, W, 3], the ground truth box [4], the head's boxes [2, 4] (best
            cell, CAM's peak), all in pixels, and a line or two of text.
    """
    columns = max(1, *map(len, rows.values()))
    size = (style.WIDTH * columns / max(columns, 4), 2.75 * len(rows) + 0.4)
    fig, axes = style.new_figure(len(rows), columns, size=size)
    for of_row, (name, examples) in zip(axes, rows.items(), strict=True):
        for axis in of_row[len(examples) :]:
            axis.set_visible(False)
        for place, (axis, (picture, truth, said, text)) in enumerate(zip(of_row, examples, strict=False)):
            text = f"{name if place == 0 else ''}\n{text}"
            style.photo_panel(axis, picture, truth=truth, prediction=said[0], peak=said[1], title=text)
            x0, y0, x1, y1 = _surroundings(np.vstack([truth, said]), picture.shape[1], picture.shape[0])
            axis.set(xlim=(x0, x1), ylim=(y1, y0))
    style.box_legend(fig, truth="ground truth", prediction="best cell (oracle)", peak="cell of the CAM's peak")
    return fig


@style.styled
def confusion_heatmap(confusion: pd.DataFrame, title: str) -> Figure:
    """Which class responds most in the boxes of a class, in per cent of its boxes; alike classes stand together.

    `confusion`: counts, rows the class, columns the class that responds most, both the class list.
    """
    counts = confusion.to_numpy(np.float64)
    n_boxes = counts.sum(axis=1)
    shares = counts / np.maximum(n_boxes, 1)[:, None]
    order = cluster_order(shares)
    rows = order[n_boxes[order] > 0]  # a class without a box is never asked for, but may answer
    shown = 100 * shares[np.ix_(rows, order)]
    names = np.array(confusion.index)
    # as wide as the page for DIOR's 20 classes; a list that needs more room for its letters than that gets it
    cell = max(0.31, min(0.4, (style.WIDTH - 2.3) / len(names)))
    fig, ((axis,),) = style.new_figure(size=(2.3 + cell * len(names), 2.9 + cell * len(rows)), title=title)
    texts = np.where(shown >= 0.5, np.char.mod("%.0f", shown), "")
    seaborn.heatmap(
        shown, ax=axis, cmap="Blues", vmin=0, vmax=100, annot=texts, fmt="", annot_kws={"fontsize": style.SMALLEST},
        square=True, linewidths=0.4, linecolor="white",
        cbar_kws={"label": "% of the class's boxes", "location": "bottom", "shrink": 0.5, "aspect": 40, "pad": 0.02},
    )  # fmt: skip
    at = np.arange(len(order)) + 0.5
    axis.set_xticks(at, names[order], rotation=60, ha="right", rotation_mode="anchor")
    labels = [f"{names[row]}  ({int(n_boxes[row]):,})" for row in rows]
    axis.set_yticks(at[: len(rows)], labels, rotation=0)
    axis.set(xlabel="class whose map responds most inside the box", ylabel="class of the box")
    axis.grid(visible=False)
    return fig


def cluster_order(shares: np.ndarray) -> np.ndarray:
    """The order of classes that puts those mistaken for each other (`shares` [C, C] of i named j) next to each other.

    Average linkage with leaves in the best order (Bar-Joseph et al. 2001), on how little two classes are confused.
    """
    if len(shares) < 3:
        return np.arange(len(shares))
    likeness = shares + shares.T
    distance = 1 - likeness / max(likeness[~np.eye(len(shares), dtype=bool)].max(), 1e-9)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def _surroundings(boxes: np.ndarray, width: int, height: int) -> tuple[float, float, float, float]:
    """A square window that holds all boxes with a margin, as far as the image goes: x0, y0, x1, y1."""
    x0, y0 = boxes[:, :2].min(axis=0)
    x1, y1 = boxes[:, 2:].max(axis=0)
    side = min(1.3 * max(x1 - x0, y1 - y0, 48), width, height)
    window = []
    for low, high, limit in ((x0, x1, width), (y0, y1, height)):
        start = np.clip((low + high - side) / 2, 0, max(limit - side, 0))
        # beyond the image by a hair, so that a box along its border is seen
        window.append((min(start, low) - 0.015 * side, max(start + side, high) + 0.015 * side))
    return window[0][0], window[1][0], window[0][1], window[1][1]
