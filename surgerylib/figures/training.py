"""Figures of notebook 03: maps before and after an adapter, and what a head learns; the first in 01 and 02 as well."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..intervals import counted
from ..words import ALL, METHOD_NAMES, SEEN, STATES, UNSEEN
from . import style

_LOSSES = {
    "loss": ("total", style.DARK, "-"),
    "giou": ("1 − GIoU", style.TERM_COLOURS[0], "--"),
    "l1": ("L1", style.TERM_COLOURS[1], ":"),
}
_VALIDATION = {
    "val_iou": ("mean IoU, best cell (oracle)", style.METHOD_COLOURS["oracle"], "-"),
    "val_share_50": ("share > 0.5, best cell", style.METHOD_COLOURS["oracle"], "--"),
    "val_peak_iou": ("mean IoU, CAM's peak", style.METHOD_COLOURS["cam_peak"], "-"),
}
_STATE_MARKERS = {"before": "o", "floor": "s", "after": "D"}
_LOSS_LINES = {
    "loss": ("total", style.DARK, "-"),
    "classification": ("classification", style.TERM_COLOURS[0], "--"),
    "bce": ("cross-entropy of the patches", style.TERM_COLOURS[1], "-."),
    "dice": ("Dice", style.TERM_COLOURS[2], (0, (1, 1))),
    "sparsity": ("sparsity", style.TERM_COLOURS[3], ":"),
}


@style.styled
def method_bars(summary: pd.DataFrame, title: str) -> Figure:
    """Mean IoU of each method (`localizer_training.summarise`) with its 95 % interval."""
    means = summary[summary["figure"] == "mean"].set_index("method")
    fig, axis = style.row_figure(
        [METHOD_NAMES[method] for method in means.index], 3.2, title=title,
        xlabel="mean IoU with the ground truth box (line: 95 % interval over images)",
    )  # fmt: skip
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * np.nanmax([0.1, *means["value"], *means["high"]]))
    means = means.assign(row=range(len(means)), end=means["high"].fillna(means["value"]))
    known = means.dropna(subset="value")
    colours = [style.METHOD_COLOURS[method] for method in known.index]
    style.interval_bars(axis, known["row"], known, "value", height=0.62, color=colours)
    style.say_no_boxes(axis, means["row"].drop(known.index))
    for of in known.itertuples():
        axis.text(of.end, of.row, f"  {of.value:.3f}", va="center")
    return fig


@style.styled
def training_curves(history: pd.DataFrame, rates: Sequence[float], best_epoch: int) -> Figure:
    """Loss terms, positives, learning rate (`rates`, of each step) and validation by epoch, the best marked."""
    fig, ((loss, validation), (positives, rate)) = style.new_figure(2, 2, size=(style.WIDTH, 5.6), sharex=True)
    trained = history[history["epoch"] > 0]
    first, last = trained["loss"].iloc[0], trained["loss"].iloc[-1]
    _draw_terms(loss, trained, _LOSSES)
    loss.set(title=f"Training loss: from {first:.2f} to {last:.2f}", ylabel="loss (total: weighted)", ylim=(0, None))
    loss.legend()
    _draw_terms(validation, history, _VALIDATION)
    validation.axvline(best_epoch, color=style.PALE, linewidth=1, linestyle=":")
    best = history.set_index("epoch").loc[best_epoch, "val_iou"]
    validation.set(title=f"Validation: best cell {best:.3f} at epoch {best_epoch}", ylabel="IoU, share", ylim=(0, 1))
    validation.legend(loc="lower right")
    without = trained["share_without_positive"]
    left = positives.plot(trained["epoch"], trained["positives_per_box"], color=style.TERM_COLOURS[2])
    title = f"{100 * without.iloc[-1]:.0f} % of the boxes have no positive cell"
    positives.set(title=title, xlabel="epoch", ylim=(0, None), ylabel="cells a box")
    share = positives.twinx()
    right = share.plot(trained["epoch"], without, color=style.TERM_COLOURS[3], linestyle="--")
    share.set(ylim=(-0.02, 1), ylabel="share of boxes")
    share.grid(visible=False)
    share.spines["right"].set_visible(True)
    positives.legend([*left, *right], ["positive cells a box (left)", "boxes without one (right)"], loc="center right")
    steps = int(history["step"].iloc[-1] / max(history["epoch"].iloc[-1], 1))
    rate.plot(np.arange(1, len(rates) + 1) / steps, rates, color=style.DARK)
    rate.set(title="Warm-up and cosine, by step", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="plain")
    return fig


@style.styled
def prediction_steps(
    pictures: Sequence[tuple[np.ndarray, str]],
    truths: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, str]]],
) -> Figure:
    """What the head says of some images as training goes: a row an image, a column a stage.

    Args:
        pictures: for each image uint8 RGB [H, W, 3] and its title.
        truths: for each image the boxes [G, 4] of the class shown, in pixels.
        predictions: stage -> for each image the best cells' boxes [G, 4] and the box at the CAM's peak [4], in pixels,
            and a line of text.
    """
    rows, columns = len(pictures), len(predictions)
    side = style.WIDTH / max(columns, 3)
    fig, axes = style.new_figure(rows, columns, size=(side * columns, 0.5 + (side + 0.35) * rows))
    for row, (picture, title) in enumerate(pictures):
        for column, (stage, per_image) in enumerate(predictions.items()):
            axis = axes[row, column]
            best, peak, text = per_image[row]
            text = f"{title if column == 0 else ''}\n{stage}: {text}"
            style.photo_panel(axis, picture, truth=truths[row], prediction=best, peak=peak, title=text)
    style.box_legend(fig, truth="ground truth", prediction="best cell (oracle)", peak="cell of the CAM's peak")
    return fig


@style.styled
def before_after(maps: pd.DataFrame, groups: Mapping[str, Sequence[str]], kind: str, title: str) -> Figure:
    """mAP of a kind under `all` (`Adaptation.maps`) by IoU threshold, a line a state with its 95 % interval.

    A panel a group of classes, which are counted in the titles.
    """
    shown = [group for group in (SEEN, UNSEEN, ALL) if group in groups]
    size = (style.WIDTH * (0.25 + 0.25 * len(shown)), 3.6)
    fig, axes = style.new_figure(1, len(shown), size=size, title=title, sharey=True)
    rows = maps[(maps["kind"] == kind) & (maps["protocol"] == "all") & (maps["reference"] == "")]
    looks = {state: {"color": style.STATE_COLOURS[state], "marker": _STATE_MARKERS[state]} for state in STATES}
    for axis, group in zip(axes[0], shown, strict=True):
        for state in STATES:
            own = rows[(rows["group"] == group) & (rows["state"] == state)]
            if len(own):
                style.interval_curve(axis, own, "iou_threshold", "value", alpha=0.15, markersize=4, **looks[state])
        if own["value"].isna().all():
            axis.text(0.5, 0.5, "no boxes in this split", transform=axis.transAxes, ha="center", color=style.GREY)
        axis.set(title=f"{group} ({len(groups[group])})", xlabel="IoU threshold")
    # shared, and so set when all panels are drawn: a band that is higher in the last would be cut off
    axes[0, 0].set(ylabel=f"mAP of {kind}, all protocol", ylim=(0, None))
    drawn = [state for state in STATES if state in set(rows["state"])]
    style.legend_below(fig, [Line2D([], [], markersize=5, label=STATES[state], **looks[state]) for state in drawn])
    return fig


@style.styled
def example_rows(examples: Sequence[Any]) -> Figure:
    """The same images (`study.examples`) before and after: a row an image; map, its boxes, map after, its boxes."""
    states = [state for state in STATES if all(state in example.maps for example in examples)]
    # a floor changes the boxes of a map, not the map
    panels = [(state, shown) for state in states for shown in ("map", "boxes") if (state, shown) != ("floor", "map")]
    side = style.WIDTH / max(len(panels), 3)
    size = (side * len(panels), 0.5 + (side + 0.6) * len(examples))
    fig, axes = style.new_figure(len(examples), len(panels), size=size)
    for of_row, example in zip(axes, examples, strict=True):
        for axis, (state, shown) in zip(of_row, panels, strict=True):
            heading = f"{textwrap.fill(example.title, int(side * 13))}\n" if axis is of_row[0] else ""
            if shown == "map":
                heatmap = example.maps[state]
                quantity, digits = ("logit", 1) if state == "after" else ("similarity", 2)
                text = f"{heading}{style.range_text(heatmap, quantity, digits)}"
                style.photo_panel(axis, example.image, heatmap=heatmap, title=text)
                continue
            found, truth = example.found[state], example.truth
            text = style.best_iou_text(truth, found)
            if truth.empty:
                text = f"not in the image:\n{counted(len(found), 'false box')}"
            style.photo_panel(axis, example.image, truth=truth, prediction=found, title=f"{STATES[state]}\n{text}")
    style.box_legend(fig, truth="ground truth of the class", prediction="boxes found")
    return fig


@style.styled
def adapter_curves(histories: Mapping[str, pd.DataFrame], epochs: int, best_epochs: Mapping[str, int]) -> Figure:
    """Loss terms of each adapter's training (kind -> history) by epoch, and the validation of all.

    `epochs`: of the schedule of all; `best_epochs`: kind -> the epoch whose weights are taken, marked.
    """
    fig, axes = style.new_figure(1, len(histories) + 1, size=(style.WIDTH * min(1, (len(histories) + 1) / 3), 3.6))
    highest = max(history["loss"].max() for history in histories.values())
    for axis, (kind, history) in zip(axes[0], histories.items(), strict=False):
        trained = history[history["epoch"] > 0]
        _draw_terms(axis, trained, _LOSS_LINES)
        first, last = trained["loss"].iloc[0], trained["loss"].iloc[-1]
        axis.set(title=f"{kind}: loss {first:.2f} to {last:.2f}", xlabel="epoch", ylim=(0, 1.03 * highest))
    axes[0, 0].set_ylabel("loss (total: weighted)")
    handles = axes[0, 0].get_legend_handles_labels()
    validation, looks, parts = axes[0, -1], style.kind_looks(histories), []
    for kind, history in histories.items():
        own = history.set_index("epoch")["val_patch_ap"]
        validation.plot(own.index, own, color=looks[kind].colour, label=kind)
        best = best_epochs[kind]
        validation.plot(best, own[best], "o", color=looks[kind].colour, markersize=6)
        parts.append(f"{own.iloc[0]:.2f} to {own[best]:.2f}")
    title = f"Validation:\n{', '.join(parts)}"
    validation.set(title=title, xlabel="epoch", ylabel="patch AP of the classes trained on", xlim=(0, epochs))
    validation.set_ylim(0, None)
    validation.legend(title="point: weights taken")
    fig.legend(*handles, loc="outside lower center", ncols=3)
    return fig


def _draw_terms(
    axis: Axes, history: pd.DataFrame, lines: Mapping[str, tuple[str, str, str | tuple[int, tuple[int, ...]]]]
) -> None:
    """The columns of a history that it has: an own loss may have other terms."""
    for name, (label, colour, line) in lines.items():
        if name in history:
            axis.plot(history["epoch"], history[name], color=colour, linestyle=line, label=label)
