"""Figures of maps before and after an adapter, in the house style of `plots`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plots
from .adaptation import ALL, SEEN, STATES, UNSEEN, Adaptation
from .datasets import read_image
from .extraction import extract_many
from .frames import BOX_COLUMNS
from .settings import Setting
from .store import HeatmapStore
from .training import Schedule

_STATE_MARKERS = {"before": "o", "floor": "s", "after": "D"}
_LOSS_LINES = {
    "loss": ("total", plots.DARK, "-"),
    "classification": ("classification", plots.TERM_COLOURS[0], "--"),
    "bce": ("cross-entropy of the patches", plots.TERM_COLOURS[1], "-."),
    "dice": ("Dice", plots.TERM_COLOURS[2], (0, (1, 1))),
    "sparsity": ("sparsity", plots.TERM_COLOURS[3], ":"),
}


class Example(NamedTuple):
    """One class on one image."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    title: str
    truth: pd.DataFrame  # boxes of the class
    maps: Mapping[str, np.ndarray]  # state -> [h, w]
    found: Mapping[str, pd.DataFrame]  # state -> boxes


def examples(
    store: HeatmapStore, states: Mapping[str, Setting], groups: Mapping[str, Sequence[str]], *, count: int
) -> list[Example]:
    """Images to look at before and after: classes of each group in turn, and last one that is not in the image.

    The absent class is the one whose map was highest before, on the first image shown: the worst of its false boxes.

    Args:
        store: computed, with the adapter's maps.
        states: state -> setting, of one kind.
        groups: of `adaptation.class_groups`.
        count: how many; fewer where there are no more, none for 0.
    """
    data = store.dataset
    ids = data.images["image_id"].tolist()
    names = [name for name in (SEEN, UNSEEN) if name in groups] or [ALL]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < max(count - 1, min(count, 1)):
        turn = len(pairs) % len(names)
        shown_ids, shown_labels = ([pair[place] for pair in pairs] for place in (0, 1))
        fresh = data.boxes[~data.boxes["image_id"].isin(shown_ids) & ~data.boxes["label"].isin(shown_labels)]
        # of a group without any more, the other's
        by_group = (fresh[fresh["label"].isin(groups[name])] for name in names[turn:] + names[:turn])
        found = next((own for boxes in by_group if (own := plots.example_pairs(boxes, ids, 1))), [])
        if not found:
            break
        pairs += found
    if pairs and count > 1:
        image_id = pairs[0][0]
        before = store.maps(ids.index(image_id), states["before"].source).max(axis=(1, 2))
        present = set(data.boxes.loc[data.boxes["image_id"] == image_id, "label"])
        absent = [place for place, label in enumerate(data.classes) if label not in present]
        if absent:
            pairs.append((image_id, data.classes[max(absent, key=lambda place: before[place])]))
    return [_example(store, states, ids.index(image_id), label) for image_id, label in pairs]


def _example(store: HeatmapStore, states: Mapping[str, Setting], position: int, label: str) -> Example:
    data = store.dataset
    row = data.images.iloc[position]
    maps = {state: store.maps(position, s.source)[data.classes.index(label)] for state, s in states.items()}
    found = {
        state: pd.DataFrame(
            extract_many(maps[state], (row["width"], row["height"]), [setting.boxes])[0].boxes,
            columns=[*BOX_COLUMNS, "score"],
        )
        for state, setting in states.items()
    }
    of_pair = (data.boxes["image_id"] == row["image_id"]) & (data.boxes["label"] == label)
    return Example(read_image(row["path"]), f"{label} on {row['image_id']}", data.boxes[of_pair], maps, found)


@plots.styled
def before_after(found: Adaptation, kind: str, title: str) -> Figure:
    """mAP under `all` by IoU threshold, a line a state with its 95 % interval, a panel a group of classes.

    Args:
        found: the figures.
        kind: the kind shown.
        title: the finding.
    """
    groups = [group for group in (SEEN, UNSEEN, ALL) if group in found.groups]
    fig, axes = plots.new_figure(1, len(groups), size=(plots.WIDTH * (0.25 + 0.25 * len(groups)), 3.6), sharey=True)
    rows = found.maps[(found.maps["kind"] == kind) & (found.maps["protocol"] == "all")]
    for axis, group in zip(axes[0], groups, strict=True):
        for state, name in STATES.items():
            own = rows[(rows["group"] == group) & (rows["state"] == state)]
            if own.empty:
                continue
            colour = plots.STATE_COLOURS[state]
            axis.fill_between(own["iou_threshold"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
            axis.plot(
                own["iou_threshold"], own["map"], color=colour, marker=_STATE_MARKERS[state], markersize=4, label=name
            )  # fmt: skip
        n_classes = len(found.groups[group])
        if own["map"].isna().all():
            axis.text(0.5, 0.5, "no boxes in this split", transform=axis.transAxes, ha="center", color=plots.GREY)
        axis.set(title=f"{group} ({n_classes})", xlabel="IoU threshold")
    # shared, and so set when all panels are drawn: a band that is higher in the last would be cut off
    axes[0, 0].set(ylabel=f"mAP of {kind}, all protocol", ylim=(0, None))
    plots.headline(fig, title)
    handles = [
        Line2D([], [], color=plots.STATE_COLOURS[state], marker=_STATE_MARKERS[state], markersize=5, label=name)
        for state, name in STATES.items()
        if state in found.settings[kind]
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


@plots.styled
def example_rows(examples: Sequence[Example]) -> Figure:
    """The same images before and after: a row an image; the map before, its boxes, the map after, its boxes."""
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
def adapter_curves(histories: Mapping[str, pd.DataFrame], schedule: Schedule, best_epochs: Mapping[str, int]) -> Figure:
    """Loss terms of each adapter's training by epoch, and the validation of all.

    Args:
        histories: kind -> history of its `Training`.
        schedule: that of all.
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
    validation.set_xlim(0, schedule.epochs)
    validation.legend(title="point: weights taken")
    fig.legend(*handles, loc="outside lower center", ncols=3)
    return fig
