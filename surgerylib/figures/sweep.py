"""Figures of notebook 02: one question a figure, whatever the data look like."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator
from seaborn.utils import relative_luminance

from ..boxes import extract_many, resize_map, threshold_levels, threshold_mask
from ..heatmaps import Setting
from ..intervals import counted, interval_text, number
from ..matching import BOX_COLUMNS
from . import style

_ROW = 0.075  # of a panel's height: a line of text
_SHADE, _DIAGONAL = "#f1f1f1", (0, (4, 2))
_EDGE = [withStroke(linewidth=3.4, foreground=style.DARK)]  # round a white line: one of the two stands out anywhere
_FEW_PAIRS = 500  # more points than this lie on top of each other: they are counted in hexagons


@style.styled
def percentile_curves(
    frame: pd.DataFrame, titles: Mapping[str, str], *, value_label: str, marks: Mapping[str, tuple[float, str]]
) -> Figure:
    """A value (mAP) by threshold percentile, a line a kind with its 95 % interval, a panel a protocol -> its title.

    Args:
        frame: rows with protocol, kind, percentile, value, low, high; in the order of their percentiles.
        value_label: of the vertical axis, such as `mAP at IoU 0.1`.
        marks: label -> (percentile, kind), the points to point out; one that has no point is left out.
    """
    looks = style.kind_looks([*(kind for kind in style.KIND_LOOKS if kind in set(frame["kind"])), *frame["kind"]])
    percentiles = frame["percentile"].unique()
    # a single percentile has no lines to tell kinds apart by: they stand side by side
    apart = 0.25 if len(percentiles) == 1 else 0.0
    shifts = {kind: apart * (place - (len(looks) - 1) / 2) for place, kind in enumerate(looks)}
    fig, axes = style.new_figure(1, len(titles), size=(style.WIDTH, 3.9), sharey=True)
    names = _names(frame, looks)
    panels = [frame[frame["protocol"] == protocol] for protocol in titles]
    points = [_marked_points(rows, marks, shifts) for rows in panels]
    highest = [np.nan_to_num(rows[["value", "high"]]).max(initial=0) for rows in panels]
    free = 0.05 + _ROW * max(map(len, points))  # of the height: one row a label, above all lines
    top = max(highest) / (1 - free) or 1.0
    for axis, rows, title, of_panel, of_lines in zip(axes[0], panels, titles.values(), points, highest, strict=True):
        for kind, look in looks.items():
            _curve(axis, rows[rows["kind"] == kind], look, names[kind], shifts[kind])
        axis.set(title=textwrap.fill(title, 100 // len(titles)), xlabel="threshold percentile", ylim=(0, top))
        if apart:
            axis.set(xticks=percentiles, xlim=(percentiles[0] - 1, percentiles[0] + 1))
        elif np.diff(percentiles).min() >= 0.07 * np.ptp(percentiles):  # their numbers have room
            axis.set_xticks(percentiles, [f"{percentile:g}" for percentile in percentiles])
        _draw_marks(axis, of_panel, of_lines / top)
    interval = "bar: 95 % interval" if apart else "band: 95 % interval"
    axes[0, 0].set_ylabel(f"{value_label} ({interval})" if frame["low"].notna().any() else value_label)
    style.legend_below(fig, axes[0, 0].get_legend_handles_labels()[0])
    return fig


@style.styled
def percentile_iou_grid(tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str]) -> Figure:
    """mAP by threshold percentile (rows) and IoU threshold (columns), a panel a protocol, one colour scale.

    The best cell of each column is outlined; where all are equal, none is. NaN: not defined.
    """
    shown = [tables[protocol].astype(float) for protocol in titles]
    n_rows, n_columns = (max(table.shape[place] for table in shown) for place in (0, 1))
    look = {"cmap": "viridis", "vmin": 0, "vmax": max(np.nan_to_num(table).max(initial=0) for table in shown) or 1}
    beside = n_columns * len(titles) <= 14  # more columns than that leave no room for their numbers
    shape = (1, len(titles)) if beside else (len(titles), 1)
    fig, axes = style.new_figure(*shape, size=(style.WIDTH, (1.2 + 0.3 * max(n_rows, 4)) * shape[0]))
    for axis, table, title in zip(axes.flat, shown, titles.values(), strict=True):
        axis.set_facecolor("#eeeeee")
        axis.grid(visible=False)
        sns.heatmap(table, ax=axis, cbar=False, linewidths=0.5, linecolor="white", **look)
        _write_cells(axis, table)
        axis.set_title(textwrap.fill(title, 90 // shape[1]))
        axis.set(xlabel="IoU threshold", ylabel="threshold percentile")
        axis.set_xticks(np.arange(table.shape[1]) + 0.5, [f"{threshold:g}" for threshold in table.columns], rotation=0)
        axis.set_yticks(np.arange(table.shape[0]) + 0.5, [f"{percentile:g}" for percentile in table.index], rotation=0)
        axis.tick_params(length=0)
    for axis, table in zip(axes[0, 1:], shown[1:], strict=False):
        if table.index.equals(shown[0].index):
            axis.set(yticklabels=[], ylabel="")
    bar = fig.colorbar(axes.flat[0].collections[0], ax=axes.ravel().tolist(), aspect=30, pad=0.01, label="mAP")
    bar.outline.set_visible(False)
    return fig


@style.styled
def percentile_multiples(
    image: np.ndarray, heatmap: np.ndarray, truth: pd.DataFrame, label: str, percentiles: Sequence[float], *, title: str
) -> Figure:  # fmt: skip
    """One image and class under many thresholds: image, heatmap overlay, then mask and boxes of each percentile.

    `image` is uint8 RGB [H, W, 3], `heatmap` the raw map [h, w]; `truth` has all boxes of the image, of all classes.
    """
    height, width = image.shape[:2]
    settings = [Setting(percentile=float(percentile)) for percentile in percentiles]
    found = extract_many(heatmap, (width, height), settings)
    resized = resize_map(heatmap, Setting().working_size)
    levels = threshold_levels(resized, [setting.percentile for setting in settings])
    own, other = truth[truth["label"] == label], truth[truth["label"] != label]
    columns = min(2 + len(settings), 4 if width < 1.7 * height else 3 if width < 3.5 * height else 2)
    side = style.WIDTH / columns
    fig, panels = _grid(2 + len(settings), columns, (side, 0.4 + 0.97 * side * min(height / width, 1.4)), title)
    boxes = counted(len(own), "ground truth box")
    style.photo_panel(panels[0], image, truth=own, title=f"image\n{boxes}")
    style.draw_boxes(panels[0], other, colour="white", width=0.8)
    style.photo_panel(panels[1], image, heatmap=heatmap, title=f"heatmap\n{style.range_text(heatmap)}")
    for axis, setting, (rows, _) in zip(panels[2:], settings, found, strict=True):
        predicted = pd.DataFrame(rows[:, :4], columns=BOX_COLUMNS)
        # a constant map lies at its threshold everywhere, and has no box
        mask = threshold_mask(resized, levels[setting.percentile]) * (resized.min() < resized.max())
        overlap = f"best IoU {style.best_iou(own, predicted).max():.2f}" if len(own) else "no ground truth"
        text = f"percentile {setting.percentile:.4g}:\n{counted(len(predicted), 'box')}, {overlap}"
        style.photo_panel(axis, image, truth=own, prediction=predicted, title=text)
        _tint(axis, mask, (width, height))
    more: list[Line2D | Patch] = [
        Patch(facecolor=to_rgba(style.MASK, 0.5), edgecolor=style.DARK, label="mask, closed and opened")
    ]
    if len(other):
        more.append(Line2D([], [], color="white", lw=1.4, path_effects=_EDGE, label="other classes"))
    style.box_legend(fig, truth=f"ground truth: {textwrap.shorten(label, 60)}", prediction="prediction", more=more)
    return fig


@style.styled
def inside_outside(pairs: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean response inside the ground truth against outside, pair by pair, a panel a kind; below the line: inverted.

    `pairs`: kind (those with the same maps as one, `standard = vv_qk`) -> a row an (image, class) pair with inside_mean
    and outside_mean; rows with a NaN are left out.
    """
    columns = 2 if len(pairs) == 4 else min(len(pairs), 3)
    side = min(style.WIDTH / columns, 4.6)
    fig, axes = _grid(len(pairs), columns, (side, side + 0.1))
    hexagons, looks = [], style.kind_looks(pairs)
    for axis, (kind, frame) in zip(axes, pairs.items(), strict=True):
        x, y = frame[["outside_mean", "inside_mean"]].dropna().to_numpy(float).T
        ends = _equal_axes(axis, np.concatenate([x, y]))
        if len(x) > _FEW_PAIRS:
            hexagons.append(axis.hexbin(x, y, gridsize=40, extent=ends * 2, mincnt=1, cmap="viridis_r", linewidths=0.1))
        else:
            axis.scatter(x, y, s=18, color=looks[kind].colour, alpha=0.65, edgecolor="white", linewidth=0.4)
        axis.set_title(textwrap.fill(kind, int(side * 6.5)), color=looks[kind].colour, fontweight="bold")
        _inverted_share(axis, y < x)
    if hexagons:  # all on one logarithmic scale, which stands below the panels
        norm = LogNorm(1, max(2, *(drawn.get_array().max() for drawn in hexagons)))
        for drawn in hexagons:
            drawn.set_norm(norm)
        place = {"location": "bottom", "shrink": 0.5, "aspect": 40, "pad": 0.02}
        bar = fig.colorbar(hexagons[0], ax=fig.axes, format="{x:,.0f}", label="pairs in a hexagon", **place)
        bar.minorlocator = NullLocator()
    handles = [
        Line2D([], [], color=style.DARK, lw=1, ls=_DIAGONAL, label="inside = outside"),
        Patch(facecolor=_SHADE, edgecolor="#cccccc", label="inverted: inside below outside"),
    ]
    style.legend_below(fig, handles)
    return fig


@style.styled
def difference_bars(frame: pd.DataFrame, *, title: str, xlabel: str) -> Figure:
    """Paired differences (name, difference, low, high) with their 95 % intervals, a row each, in the order given.

    Filled where 0 is excluded; NaN: not known.
    """
    names = [textwrap.fill(str(name), 42) for name in frame["name"]]
    n_lines = sum(1.0 + 0.55 * name.count("\n") for name in names)
    inches = 1.4 + 0.2 * (len(title) // 90) + 0.34 * max(n_lines, 2)
    fig, axis = style.row_figure(names, inches, title=title, xlabel=xlabel)
    axis.invert_yaxis()
    axis.axvline(0, color=style.DARK, linewidth=1)
    for place, row in enumerate(frame.itertuples()):
        certain = row.low > 0 or row.high < 0
        colour, weight = (style.DARK, "bold") if certain else (style.GREY, "normal")
        axis.plot([row.low, row.high], [place, place], color=colour, linewidth=2.4 if certain else 1.4)
        axis.plot(row.difference, place, "o", color=colour, mfc=colour if certain else "white", markersize=7)
        text = f"{number(row.difference, sign=True)} {interval_text(row.low, row.high, sign=True)}".replace("+nan", "–")
        look = {"va": "center", "color": colour, "fontweight": weight}
        axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), **look)
    axis.locator_params(axis="x", nbins=7)
    look = {"marker": "o", "markersize": 7}
    handles = [
        Line2D([], [], color=style.DARK, lw=2.4, label="95 % interval excludes 0", **look),
        Line2D([], [], color=style.GREY, lw=1.4, markerfacecolor="white", label="it holds 0, or is not known", **look),
    ]
    style.legend_below(fig, handles)
    return fig


def _curve(axis: Axes, rows: pd.DataFrame, look: style.KindLook, name: str, shift: float) -> None:
    """Solid lines with large markers below, dashed ones with small markers above: both show where they coincide."""
    x, single, above = rows["percentile"] + shift, len(rows) == 1, look.line != "-"
    if single:  # a bar where others have a band
        axis.vlines(x, rows["low"], rows["high"], color=look.colour, linewidth=1.4)
    style.interval_curve(
        axis, rows.assign(percentile=x), "percentile", "value", color=look.colour, label=name, linestyle=look.line,
        linewidth=1.6 if above else 2.4, marker=look.marker, markersize=3 if above and not single else 6,
        zorder=2.2 if above else 2.1, clip_on=False,  # a marker at 0 is shown whole
    )  # fmt: skip


def _names(frame: pd.DataFrame, looks: Mapping[str, style.KindLook]) -> dict[str, str]:
    """kind -> its name for the legend, which says whose line it shares; solid lines come first."""
    table = frame.pivot_table(index=["protocol", "percentile"], columns="kind", values="value", dropna=False)
    names: dict[str, str] = {}
    for kind in sorted(looks, key=lambda kind: looks[kind].line != "-"):
        same = [other for other in names if np.array_equal(table[kind], table[other], equal_nan=True)]
        names[kind] = f"{kind} (same as {same[0]})" if same else kind
    return names


def _marked_points(rows: pd.DataFrame, marks: Mapping, shifts: Mapping[str, float]) -> list[tuple[float, float, str]]:
    """x, y and label of each marked point that exists, from the left; labels of one point are joined."""
    labels: dict[tuple[float, float], list[str]] = {}
    values = rows.set_index(["percentile", "kind"])["value"].dropna()
    for label, at in marks.items():
        if at in values.index:
            labels.setdefault((at[0] + shifts[at[1]], float(values[at])), []).append(label)
    return [(x, y, " = ".join(joined)) for (x, y), joined in sorted(labels.items())]


def _draw_marks(axis: Axes, points: Sequence[tuple[float, float, str]], bottom: float) -> None:
    """A ring round each point, and its label above all lines, which end at `bottom` (share of the height).

    Labels point inwards, the outermost one on top: none meets another, nor the line that leads to another.
    """
    middle = np.mean(axis.get_xlim())
    inner = [point for point in points if point[0] < middle] + [point for point in points[::-1] if point[0] >= middle]
    for row, (x, y, label) in enumerate(inner):
        side = 0.0 if x < middle else 1.0
        axis.plot(x, y, "o", color=style.DARK, markerfacecolor="none", markersize=11, markeredgewidth=1.5, zorder=4)
        axis.annotate(
            label, (x, y), (x, bottom + 0.03 + _ROW * (len(inner) - 1 - row)), textcoords=axis.get_xaxis_transform(),
            ha="right" if side else "left", va="bottom",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
            arrowprops={
                "arrowstyle": "-", "color": style.DARK, "lw": 0.8, "shrinkA": 0, "shrinkB": 5, "relpos": (side, 0)
            },
        )  # fmt: skip


def _write_cells(axis: Axes, table: pd.DataFrame) -> None:
    """The number of each cell, in black or white; the best of a column outlined, unless all of it is equal."""
    scale = axis.collections[0]
    best = ((table == table.max()) & (table.max() > table.min())).to_numpy()
    outline = {"fill": False, "edgecolor": "white", "linewidth": 1.6, "path_effects": _EDGE}
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        dark = relative_luminance(scale.to_rgba(value)) < 0.18 and not np.isnan(value)  # where white has more contrast
        text = "–" if np.isnan(value) else f"{value:.3f}"
        look = {"ha": "center", "va": "center", "fontsize": style.SMALLEST, "color": "white" if dark else "black"}
        axis.text(column + 0.5, row + 0.5, text, **look)
        if best[row, column]:
            axis.add_patch(Rectangle((column + 0.07, row + 0.1), 0.86, 0.8, **outline))


def _tint(axis: Axes, mask: np.ndarray, image_size_wh: tuple[int, int]) -> None:
    """Colour what is in the mask, and outline it."""
    width, height = image_size_wh
    tint = np.where(mask[..., None], to_rgba(style.MASK, 0.38), 0.0)
    axis.imshow(tint, extent=(0, width, height, 0), interpolation="nearest")
    if mask.any():
        # one pixel of nothing around it closes outlines at the border of the image
        x, y = ((np.arange(-1, side + 1) + 0.5) / side for side in mask.shape[::-1])
        axis.contour(x * width, y * height, np.pad(mask, 1), levels=[0.5], colors=style.DARK, linewidths=0.7)


def _grid(count: int, columns: int, size: tuple[float, float], title: str = "") -> tuple[Figure, list[Axes]]:
    """`count` axes in rows of `columns`; `size` is that of one of them, with what is written round it."""
    rows = -(-count // columns)
    fig, axes = style.new_figure(rows, columns, size=(size[0] * columns, size[1] * rows + 0.8), title=title)
    for axis in axes.flat[count:]:
        axis.remove()
    return fig, axes.ravel()[:count].tolist()


def _equal_axes(axis: Axes, values: np.ndarray) -> tuple[float, float]:
    """The same limits for both axes, lowest and highest value with a margin, and the line where they are equal."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 0.1
    ends = (low - margin, high + margin)
    axis.fill_between(ends, ends, ends[0], color=_SHADE, linewidth=0, zorder=0)
    axis.plot(ends, ends, color=style.DARK, linewidth=1, linestyle=_DIAGONAL)
    axis.set(xlim=ends, ylim=ends, aspect="equal", xlabel="mean response outside", ylabel="mean response inside")
    axis.locator_params(nbins=5)
    return ends


def _inverted_share(axis: Axes, inverted: np.ndarray) -> None:
    """Write the share of inverted pairs into the corner that has fewer points."""
    share = float(np.mean(inverted)) if len(inverted) else 0.0
    pairs = counted(len(inverted), "pair")
    text = f"inverted: {100 * share:.0f} %\nof {pairs}" if len(inverted) else "no pairs"
    at, ha, va = ((0.04, 0.96), "left", "top") if share > 0.5 else ((0.96, 0.04), "right", "bottom")
    axis.text(*at, text, transform=axis.transAxes, ha=ha, va=va, linespacing=1.3)
