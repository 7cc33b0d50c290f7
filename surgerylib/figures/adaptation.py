"""Figures of maps before and after an adapter, in the house style of `plots`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..words import ALL, SEEN, STATES, UNSEEN
from . import maps as plots

_STATE_MARKERS = {"before": "o", "floor": "s", "after": "D"}
_LOSS_LINES = {
    "loss": ("total", plots.DARK, "-"),
    "classification": ("classification", plots.TERM_COLOURS[0], "--"),
    "bce": ("cross-entropy of the patches", plots.TERM_COLOURS[1], "-."),
    "dice": ("Dice", plots.TERM_COLOURS[2], (0, (1, 1))),
    "sparsity": ("sparsity", plots.TERM_COLOURS[3], ":"),
}


@plots.styled
def before_after(maps: pd.DataFrame, groups: Mapping[str, Sequence[str]], kind: str, title: str) -> Figure:
    """mAP under `all` by IoU threshold, a line a state with its 95 % interval, a panel a group of classes.

    Args:
        maps: of an `Adaptation`.
        groups: of classes, which are counted in the titles.
        kind: the kind shown.
        title: the finding.
    """
    shown = [group for group in (SEEN, UNSEEN, ALL) if group in groups]
    fig, axes = plots.new_figure(1, len(shown), size=(plots.WIDTH * (0.25 + 0.25 * len(shown)), 3.6), sharey=True)
    rows = maps[(maps["kind"] == kind) & (maps["protocol"] == "all")]
    for axis, group in zip(axes[0], shown, strict=True):
        for state, name in STATES.items():
            own = rows[(rows["group"] == group) & (rows["state"] == state)]
            if own.empty:
                continue
            colour = plots.STATE_COLOURS[state]
            axis.fill_between(own["iou_threshold"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
            axis.plot(
                own["iou_threshold"], own["map"], color=colour, marker=_STATE_MARKERS[state], markersize=4, label=name
            )  # fmt: skip
        n_classes = len(groups[group])
        if own["map"].isna().all():
            axis.text(0.5, 0.5, "no boxes in this split", transform=axis.transAxes, ha="center", color=plots.GREY)
        axis.set(title=f"{group} ({n_classes})", xlabel="IoU threshold")
    # shared, and so set when all panels are drawn: a band that is higher in the last would be cut off
    axes[0, 0].set(ylabel=f"mAP of {kind}, all protocol", ylim=(0, None))
    plots.headline(fig, title)
    handles = [
        Line2D([], [], color=plots.STATE_COLOURS[state], marker=_STATE_MARKERS[state], markersize=5, label=name)
        for state, name in STATES.items()
        if state in set(rows["state"])
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


@plots.styled
def example_rows(examples: Sequence[Any]) -> Figure:
    """The same images before and after: a row an image; the map before, its boxes, the map after, its boxes.

    Args:
        examples: of `study.examples`.
    """
    states = [state for state in STATES if all(state in example.maps for example in examples)]
    # a floor changes the boxes of a map, not the map
    panels = [(state, shown) for state in states for shown in ("map", "boxes") if (state, shown) != ("floor", "map")]
    side = plots.WIDTH / max(len(panels), 3)
    fig, axes = plots.new_figure(
        len(examples), len(panels), size=(side * len(panels), 0.5 + (side + 0.6) * len(examples))
    )
    for row, example in enumerate(examples):
        size_wh = (example.image.shape[1], example.image.shape[0])
        for axis, (state, shown) in zip(axes[row], panels, strict=True):
            plots.photo_axis(axis, example.image)
            heading = f"{textwrap.fill(example.title, int(side * 13))}\n" if axis is axes[row, 0] else ""
            if shown == "map":
                heatmap = example.maps[state]
                plots.overlay(axis, heatmap, size_wh)
                quantity = "logit" if state == "after" else "similarity"
                text = f"{heading}{plots.range_text(heatmap, quantity, 1 if state == 'after' else 2)}"
                axis.set_title(text, fontsize=plots.SMALLEST)
                continue
            found = example.found[state]
            plots.draw_boxes(axis, found, colour=plots.PREDICTION, style="--", width=1.4)
            plots.draw_boxes(axis, example.truth, colour=plots.TRUTH)
            if len(example.truth):
                text = plots.best_iou_text(example.truth, found)
            else:
                text = f"not in the image:\n{len(found)} false box{'es' if len(found) != 1 else ''}"
            axis.set_title(f"{STATES[state]}\n{text}", fontsize=plots.SMALLEST)
    handles = [
        Line2D([], [], color=plots.TRUTH, lw=1.8, label="ground truth of the class"),
        Line2D([], [], color=plots.PREDICTION, lw=1.4, ls="--", label="boxes found"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


@plots.styled
def adapter_curves(histories: Mapping[str, pd.DataFrame], epochs: int, best_epochs: Mapping[str, int]) -> Figure:
    """Loss terms of each adapter's training by epoch, and the validation of all.

    Args:
        histories: kind -> history of its `Training`.
        epochs: of the schedule of all.
        best_epochs: kind -> the epoch whose weights are taken, marked.
    """
    fig, axes = plots.new_figure(1, len(histories) + 1, size=(plots.WIDTH * min(1, (len(histories) + 1) / 3), 3.6))
    highest = max(history["loss"].max() for history in histories.values())
    for axis, (kind, history) in zip(axes[0], histories.items(), strict=False):
        trained = history[history["epoch"] > 0]
        for name, (label, colour, style) in _LOSS_LINES.items():
            axis.plot(trained["epoch"], trained[name], color=colour, linestyle=style, label=label)
        first, last = trained["loss"].iloc[0], trained["loss"].iloc[-1]
        axis.set(title=f"{kind}: loss {first:.2f} to {last:.2f}", xlabel="epoch", ylim=(0, 1.03 * highest))
    axes[0, 0].set_ylabel("loss (total: weighted)")
    handles = axes[0, 0].get_legend_handles_labels()
    validation = axes[0, -1]
    parts = []
    for kind, history in histories.items():
        own = history.set_index("epoch")["val_patch_ap"]
        validation.plot(own.index, own, color=plots.KIND_COLOURS[kind], label=kind)
        best = best_epochs[kind]
        validation.plot(best, own[best], "o", color=plots.KIND_COLOURS[kind], markersize=6)
        parts.append(f"{own.iloc[0]:.2f} to {own[best]:.2f}")
    validation.set(
        title=f"Validation:\n{', '.join(parts)}", xlabel="epoch", ylabel="patch AP of the classes trained on"
    )
    validation.set_ylim(0, None)
    validation.set_xlim(0, epochs)
    validation.legend(title="point: weights taken")
    fig.legend(*handles, loc="outside lower center", ncols=3)
    return fig
