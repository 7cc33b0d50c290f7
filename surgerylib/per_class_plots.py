"""Figures of the per-class analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .error_types import ERROR_TYPES
from .plots import (
    KIND_COLOURS,
    KIND_LINES,
    PREDICTION,
    TRUTH,
    best_iou_text,
    draw_boxes,
    kind_of_name,
    new_figure,
    overlay,
    photo_axis,
    styled,
)

# Okabe and Ito's set, and grey for what is not there
ERROR_COLOURS = {
    "classification": "#0072B2",
    "localisation": "#D55E00",
    "both": "#CC79A7",
    "duplicate": "#F0E442",
    "background": "#009E73",
    "missed": "#999999",
}


@styled
def ap_against_size(figures: pd.DataFrame, value: str, title: str, ylabel: str, patch_side: float) -> Figure:
    """Average precision against object size: a point a class, as large as it has boxes.

    Args:
        figures: of `per_class.class_figures`.
        value: its column that is drawn.
        title: the finding.
        ylabel: the quantity.
        patch_side: side of a patch of the model in pixels of the original image, marked in the figure.
    """
    known = figures.dropna(subset=[value, "side"])
    fig, axes = new_figure(size=(8.6, 5.2))
    axis = axes[0, 0]
    axis.set_xscale("log")
    top = max(0.05, 1.12 * known[value].max()) if len(known) else 1.0
    axis.set(ylim=(-0.04 * top, top), title=title, ylabel=ylabel)
    axis.set_xlabel("median object size: √(box area) in pixels of the original image (logarithmic)")
    if len(known):
        axis.set_xlim(0.75 * min(known["side"].min(), patch_side), 1.35 * max(known["side"].max(), patch_side))
        area = 30 + 370 * known["n_boxes"] / known["n_boxes"].max()
        points = axis.scatter(
            known["side"], known[value], s=area, color="#0072B2", alpha=0.55, linewidths=0.8, edgecolors="white"
        )
    axis.axvline(patch_side, color="#888888", linewidth=1, linestyle=":")
    axis.text(patch_side, top, " a patch", fontsize=8, color="#666666", va="top")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_formatter(lambda x, _: f"{x:.0f}" if f"{x:.0e}"[0] in "25" else "")
    if len(known):
        largest = known["n_boxes"].max()
        handles = [
            Line2D(
                [],
                [],
                ls="",
                marker="o",
                color="#0072B2",
                alpha=0.55,
                ms=np.sqrt(30 + 370 * n / largest),
                label=f"{n:,}",
            )
            for n in dict.fromkeys([max(1, int(largest // 10)), int(largest // 2) or 1, int(largest)])
        ]
        fig.legend(handles=handles, title="boxes", loc="outside right upper", fontsize=8, labelspacing=1.4)
        fig.draw_without_rendering()
        at = known[["side", value]].to_numpy(float)
        # labels start above their points: between two points that they touch both, none of them gives way
        radius = np.sqrt(area.to_numpy()) / 2 * fig.dpi / 72
        above = axis.transData.transform(at) + np.column_stack([np.zeros(len(at)), radius + 2])
        texts = [
            axis.text(*place, name, fontsize=8, ha="center")
            for name, place in zip(known.index, axis.transData.inverted().transform(above), strict=True)
        ]
        adjust_text(
            texts, ax=axis, target_x=at[:, 0], target_y=at[:, 1], objects=points, expand=(1.1, 1.3), iter_lim=300,
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6},
        )  # fmt: skip
    return fig


@styled
def gap_dots(gaps: pd.DataFrame, order: Sequence[str], title: str) -> Figure:
    """How much more a class's map responds inside its boxes than outside: a row a class, a dot a kind, with interval.

    Args:
        gaps: of `per_class.response_gaps`; kinds with the same maps under one name.
        order: the classes from top to bottom.
        title: the finding.
    """
    kinds = list(dict.fromkeys(gaps["kind"]))
    fig, axes = new_figure(size=(8.6, 1.2 + 0.3 * max(len(order), 3)))
    axis = axes[0, 0]
    place = {label: row for row, label in enumerate(reversed(order))}
    for number, kind in enumerate(kinds):
        own = gaps[gaps["kind"] == kind].dropna(subset="gap")
        at = own["label"].map(place).astype(float) + 0.16 * ((len(kinds) - 1) / 2 - number)
        colour = KIND_COLOURS[kind_of_name(kind)]
        axis.hlines(at, own["gap_low"], own["gap_high"], color=colour, linewidth=1.2, alpha=0.8)
        axis.plot(own["gap"], at, "o", color=colour, markersize=5, label=kind)
    for label, row in place.items():
        if gaps.loc[gaps["label"] == label, "gap"].isna().all():
            axis.text(0, row, " no boxes", va="center", fontsize=8, color="#666666")
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(order)), list(reversed(order)))
    axis.set(title=title, ylim=(-0.6, len(order) - 0.4))
    axis.set_xlabel("mean response inside the class's boxes minus outside (line: 95 % interval over images)")
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), fontsize=8)
    return fig


@styled
def precision_recall_grid(
    curves: Mapping[str, pd.DataFrame], aps: pd.Series, order: Sequence[str], title: str
) -> Figure:
    """Precision against recall, a panel a class, a line a kind; in the corner the AP of the kind shown.

    Args:
        curves: kind (those with the same maps under one name) -> frame of `precision_recall.precision_recall`.
        aps: class -> AP of the kind shown; NaN where it has no box.
        order: the classes.
        title: the finding.
    """
    columns = min(5, max(len(order), 1))
    rows = -(-max(len(order), 1) // columns)
    fig, axes = new_figure(rows, columns, size=(2.0 * columns + 0.4, 1.75 * rows + 0.8), sharex=True, sharey=True)
    for axis in axes.flat[len(order) :]:
        axis.set_visible(False)
    for axis, label in zip(axes.flat, order, strict=False):
        for kind, frame in curves.items():
            own = frame[frame["label"] == label]
            name = kind_of_name(kind)
            recall, precision = (
                np.append(own[part].to_numpy(float), end) for part, end in (("recall", np.nan), ("precision", np.nan))
            )
            axis.plot(
                recall, precision, color=KIND_COLOURS[name], linestyle=KIND_LINES[name], linewidth=1.4, label=kind
            )
            if len(own) == 1:  # a line of one point would not be seen
                axis.plot(own["recall"], own["precision"], ".", color=KIND_COLOURS[name])
        ap = aps.get(label, np.nan)
        axis.text(0.97, 0.95, "no boxes" if np.isnan(ap) else f"AP {ap:.2f}", transform=axis.transAxes, ha="right",
                  va="top", fontsize=8)  # fmt: skip
        axis.set_title(label, fontsize=8.5)
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axis.tick_params(labelsize=7.5)
    for axis in axes[-1]:
        axis.set_xlabel("recall", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("precision", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(curves), fontsize=8)
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    return fig


@styled
def error_bars(gains: pd.DataFrame, order: Sequence[str], title: str, xlabel: str) -> Figure:
    """What mending each type of error alone would give back, by class, side by side in one row a class.

    The parts do not add up to what is missing: mended together, errors give back more or less than one by one.

    Args:
        gains: indexed by class, columns `gain_<error>`.
        order: the classes from top to bottom.
        title: the finding.
        xlabel: the quantity.
    """
    fig, axes = new_figure(1, len(ERROR_TYPES), size=(10.2, 1.2 + 0.27 * max(len(order), 3)), sharey=True, sharex=True)
    at = np.arange(len(order))[::-1]
    most = np.nanmax([0.05, *(gains[f"gain_{error}"].max() for error in ERROR_TYPES)])
    for axis, error in zip(axes[0], ERROR_TYPES, strict=True):
        values = gains.loc[list(order), f"gain_{error}"].to_numpy(float)
        axis.barh(at, np.nan_to_num(values), color=ERROR_COLOURS[error], height=0.7)
        axis.axvline(0, color="#333333", linewidth=0.8)
        axis.set_title(error, fontsize=9.5, loc="center")
        axis.set_xlim(min(0, 1.05 * np.nanmin([0, *values])), 1.08 * most)
        axis.tick_params(labelsize=8)
        axis.grid(visible=False, axis="y")
    for row, label in zip(at, order, strict=True):
        if np.isnan(gains.loc[label, "gain_missed"]):
            axes[0, 0].text(0, row, " no boxes", va="center", fontsize=8, color="#666666")
    axes[0, 0].set_yticks(at, order)
    fig.supxlabel(xlabel, fontsize=9)
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    return fig


@styled
def class_examples(examples: Sequence[tuple[str, np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame, str]]) -> Figure:
    """Images of one class: the heatmap over each, its boxes and those found.

    Args:
        examples: for each a heading, uint8 RGB [H, W, 3], raw map [h, w], ground truth and detections of the class in
            the image, image id.
    """
    fig, axes = new_figure(1, len(examples), size=(2.5 * len(examples), 3.05))
    for axis, (heading, picture, heatmap, truth, found, image_id) in zip(axes[0], examples, strict=True):
        _example(axis, picture, heatmap, truth, found)
        axis.set_title(f"{heading} {image_id}\n{best_iou_text(truth, found)}", fontsize=8)
    handles = [
        Line2D([], [], color=TRUTH, lw=1.8, label="ground truth"),
        Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="prediction"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7.5)
    return fig


def _example(axis: Axes, picture: np.ndarray, heatmap: np.ndarray, truth: pd.DataFrame, found: pd.DataFrame) -> None:
    photo_axis(axis, picture)
    overlay(axis, heatmap, (picture.shape[1], picture.shape[0]), alpha=0.3)
    draw_boxes(axis, found, colour=PREDICTION, style="--", width=1.4)
    draw_boxes(axis, truth, colour=TRUTH, width=1.6)
