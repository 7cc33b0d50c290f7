"""Figures of notebook 05, a class a point, row or panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..words import ERROR_TYPES
from . import style


@style.styled
def ap_against_size(
    figures: pd.DataFrame, value: str, title: str, ylabel: str, patch_side: float, *, kind: str
) -> Figure:
    """Average precision (column `value` of `per_class.class_figures`) against object size: a point a class.

    Points are as large as the class has boxes, in the colour of `kind`, whose AP it is; `patch_side`, of a patch of the
    model in pixels of the original image, is marked.
    """
    known = figures.dropna(subset=[value, "side"])
    fig, ((axis,),) = style.new_figure(size=(style.WIDTH, 6.0), title=title)
    axis.set_xscale("log")
    top = max(0.05, 1.12 * known[value].max()) if len(known) else 1.0
    axis.set(ylim=(-0.04 * top, top), ylabel=ylabel)
    axis.set_xlabel("median object size: √(box area) in pixels of the original image (logarithmic)")
    axis.axvline(patch_side, color=style.PALE, linewidth=1, linestyle=":")
    axis.text(patch_side, top, " a patch", color=style.GREY, va="top")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_formatter(lambda x, _: f"{x:.0f}" if f"{x:.0e}"[0] in "25" else "")
    if len(known):
        axis.set_xlim(0.75 * min(known["side"].min(), patch_side), 1.35 * max(known["side"].max(), patch_side))
        largest = known["n_boxes"].max()
        area = 30 + 370 * known["n_boxes"] / largest
        look = {"color": style.kind_looks([kind])[kind].colour, "alpha": 0.55}
        points = axis.scatter(known["side"], known[value], s=area, linewidths=0.8, edgecolors="white", **look)
        handles = [
            Line2D([], [], ls="", marker="o", ms=np.sqrt(30 + 370 * n / largest), label=f"{n:,}", **look)
            for n in dict.fromkeys([max(1, int(largest // 10)), int(largest // 2) or 1, int(largest)])
        ]
        fig.legend(handles=handles, title="boxes", loc="outside lower center", ncols=3)
        fig.draw_without_rendering()
        at = known[["side", value]].to_numpy(float)
        # labels start above their points: between two points that they touch both, none of them gives way
        radius = np.sqrt(area.to_numpy()) / 2 * fig.dpi / 72
        above = axis.transData.transform(at) + np.column_stack([np.zeros(len(at)), radius + 2])
        texts = [
            axis.text(*place, name, ha="center")
            for name, place in zip(known.index, axis.transData.inverted().transform(above), strict=True)
        ]
        adjust_text(
            texts, ax=axis, target_x=at[:, 0], target_y=at[:, 1], objects=points, expand=(1.05, 1.2), iter_lim=300,
            force_static=(0.2, 0.4), force_text=(0.3, 0.4),  # in smaller steps than its own, which jump over a gap
            arrowprops={"arrowstyle": "-", "color": style.PALE, "lw": 0.6},
        )  # fmt: skip
    return fig


@style.styled
def gap_dots(gaps: pd.DataFrame, order: Sequence[str], title: str) -> Figure:
    """How much more a class's map responds inside its boxes than outside: a row a class, a dot a kind, with interval.

    `gaps` of `per_class.response_gaps`, kinds with the same maps under one name; the classes from top to bottom.
    """
    looks = style.kind_looks(gaps["kind"].unique())
    fig, axis = style.row_figure(
        order[::-1], 1.2 + 0.3 * max(len(order), 3), title=title,
        xlabel="mean response inside the class's boxes minus outside (line: 95 % interval over images)",
    )  # fmt: skip
    axis.grid(visible=True, axis="y")
    place = {label: row for row, label in enumerate(reversed(order))}
    for number, (kind, look) in enumerate(looks.items()):
        own = gaps[gaps["kind"] == kind].dropna(subset="gap")
        at = own["label"].map(place).astype(float) + 0.16 * ((len(looks) - 1) / 2 - number)
        axis.hlines(at, own["gap_low"], own["gap_high"], color=look.colour, linewidth=1.2, alpha=0.8)
        axis.plot(own["gap"], at, "o", color=look.colour, markersize=5, label=kind)
    measured = set(gaps.dropna(subset="gap")["label"])
    style.say_no_boxes(axis, [row for label, row in place.items() if label not in measured], " no boxes")
    axis.axvline(0, color=style.DARK, linewidth=1)
    style.legend_below(fig, axis.get_legend_handles_labels()[0])
    return fig


@style.styled
def precision_recall_grid(
    curves: Mapping[str, pd.DataFrame], aps: pd.Series, order: Sequence[str], title: str
) -> Figure:
    """Precision against recall (`per_class.precision_recall`), a panel a class, a line a kind; `aps` in the corner.

    `curves`: kind (those with the same maps under one name) -> its frame; `aps`: class -> AP of the kind shown, NaN
    where it has no box.
    """
    looks = style.kind_looks(curves)
    columns = min(4, max(len(order), 1))
    rows = -(-max(len(order), 1) // columns)
    size = (style.WIDTH * columns / 4, 1.8 * rows + 0.8)
    fig, axes = style.new_figure(rows, columns, size=size, title=title, sharex=True, sharey=True)
    for axis in axes.flat[len(order) :]:
        axis.set_visible(False)
    for axis, label in zip(axes.flat, order, strict=False):
        for kind, frame in curves.items():
            own = frame[frame["label"] == label]
            look = looks[kind]
            # a NaN at the end, so that a kind without a point stands in the legend
            recall, precision = (np.append(own[part].to_numpy(float), np.nan) for part in ("recall", "precision"))
            axis.plot(recall, precision, color=look.colour, linestyle=look.line, linewidth=1.4, label=kind)
            if len(own) == 1:  # a line of one point would not be seen
                axis.plot(recall, precision, ".", color=look.colour)
        ap = aps.get(label, np.nan)
        text = "no boxes" if np.isnan(ap) else f"AP {ap:.2f}"
        axis.text(0.97, 0.95, text, transform=axis.transAxes, ha="right", va="top")
        axis.set_title(label, fontsize=style.SMALLEST)
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xlabel("recall")
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    style.legend_below(fig, axes.flat[0].get_legend_handles_labels()[0])
    return fig


@style.styled
def error_bars(gains: pd.DataFrame, order: Sequence[str], title: str, xlabel: str) -> Figure:
    """What mending each type of error alone would give back, by class, side by side in one row a class.

    The parts do not add up to what is missing: mended together, errors give back more or less than one by one.
    `gains`: columns `gain_<error>`, by class; the classes from top to bottom.
    """
    size = (style.WIDTH, 1.2 + 0.27 * max(len(order), 3))
    fig, axes = style.new_figure(1, len(ERROR_TYPES), size=size, title=title, sharey=True, sharex=True)
    at = np.arange(len(order))[::-1]
    most = np.nanmax([0.05, *(gains[f"gain_{error}"].max() for error in ERROR_TYPES)])
    for axis, error in zip(axes[0], ERROR_TYPES, strict=True):
        values = gains.loc[list(order), f"gain_{error}"].to_numpy(float)
        axis.barh(at, np.nan_to_num(values), color=style.GREY, height=0.7)
        axis.axvline(0, color=style.DARK, linewidth=0.8)
        axis.set_title(error, fontsize=style.SMALLEST, loc="center")
        axis.set_xlim(min(0, 1.05 * np.nanmin([0, *values])), 1.08 * most)
        axis.grid(visible=False, axis="y")
    style.say_no_boxes(axes[0, 0], at[gains.loc[list(order), "gain_missed"].isna()], " no boxes")
    axes[0, 0].set_yticks(at, order)
    fig.supxlabel(xlabel, fontsize="medium")
    return fig


@style.styled
def class_examples(examples: Sequence[tuple[str, np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame, str]]) -> Figure:
    """Images of one class: the heatmap over each, its boxes and those found.

    `examples`: each a heading, uint8 RGB [H, W, 3], raw map [h, w], ground truth and detections of the class, image id.
    """
    fig, axes = style.new_figure(1, len(examples), size=(style.WIDTH * len(examples) / max(len(examples), 4), 2.9))
    for axis, (heading, picture, heatmap, truth, found, image_id) in zip(axes[0], examples, strict=True):
        title = f"{heading} {image_id}\n{style.best_iou_text(truth, found)}"
        style.photo_panel(axis, picture, heatmap=heatmap, truth=truth, prediction=found, title=title)
    style.box_legend(fig, truth="ground truth", prediction="prediction")
    return fig
