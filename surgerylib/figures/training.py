"""Figures of the training notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..matching import BOX_COLUMNS
from ..words import METHOD_NAMES
from .maps import (
    DARK,
    GREY,
    METHOD_COLOURS,
    PALE,
    PEAK,
    PREDICTION,
    SMALLEST,
    TERM_COLOURS,
    TRUTH,
    WIDTH,
    draw_boxes,
    headline,
    new_figure,
    photo_axis,
    styled,
)

_LOSSES = {
    "loss": ("total", DARK, "-"),
    "giou": ("1 − GIoU", TERM_COLOURS[0], "--"),
    "l1": ("L1", TERM_COLOURS[1], ":"),
}
_VALIDATION = {
    "val_iou": ("mean IoU, best cell (oracle)", METHOD_COLOURS["oracle"], "-"),
    "val_share_50": ("share > 0.5, best cell", METHOD_COLOURS["oracle"], "--"),
    "val_peak_iou": ("mean IoU, CAM's peak", METHOD_COLOURS["cam_peak"], "-"),
}


@styled
def method_bars(summary: pd.DataFrame, title: str) -> Figure:
    """Mean IoU of each method with its 95 % interval.

    Args:
        summary: of `localizer_training.summarise`.
        title: the finding.
    """
    means = summary[summary["figure"] == "mean"].set_index("method")
    fig, axes = new_figure(size=(WIDTH, 3.2))
    axis = axes[0, 0]
    for row, (method, values) in enumerate(means.iterrows()):
        if np.isnan(values["value"]):
            axis.text(0, row, " no boxes in this split", va="center", color=GREY)
            continue
        axis.barh(row, values["value"], height=0.62, color=METHOD_COLOURS[method])
        end = values["value"] if np.isnan(values["high"]) else values["high"]
        axis.hlines(row, values["low"], values["high"], color=DARK, linewidth=1)
        axis.text(end, row, f"  {values['value']:.3f}", va="center")
    axis.set_yticks(range(len(means)), [METHOD_NAMES[method] for method in means.index])
    end = np.nanmax([0.1, *means["value"], *means["high"]])
    headline(fig, title)
    axis.set(xlim=(0, 1.12 * end), ylim=(len(means) - 0.4, -0.6))
    axis.set_xlabel("mean IoU with the ground truth box (line: 95 % interval over images)")
    axis.grid(visible=False, axis="y")
    return fig


@styled
def training_curves(history: pd.DataFrame, rates: Sequence[float], best_epoch: int) -> Figure:
    """Loss terms, positives, learning rate and validation by epoch.

    Args:
        history: of a `Training`.
        rates: the learning rate of each step.
        best_epoch: marked in the validation.
    """
    fig, axes = new_figure(2, 2, size=(WIDTH, 5.6), sharex=True)
    loss, validation, positives, rate = axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]
    trained = history[history["epoch"] > 0]
    first, last = trained["loss"].iloc[0], trained["loss"].iloc[-1]
    for name, (label, colour, style) in _LOSSES.items():
        loss.plot(trained["epoch"], trained[name], color=colour, linestyle=style, label=label)
    loss.set(title=f"Training loss: from {first:.2f} to {last:.2f}", ylabel="loss (total: weighted)", ylim=(0, None))
    loss.legend()
    for name, (label, colour, style) in _VALIDATION.items():
        validation.plot(history["epoch"], history[name], color=colour, linestyle=style, label=label)
    validation.axvline(best_epoch, color=PALE, linewidth=1, linestyle=":")
    best = history.set_index("epoch").loc[best_epoch, "val_iou"]
    validation.set(title=f"Validation: best cell {best:.3f} at epoch {best_epoch}", ylabel="IoU, share", ylim=(0, 1))
    validation.legend(loc="lower right")
    without = trained["share_without_positive"]
    positives.plot(trained["epoch"], trained["positives_per_box"], color=TERM_COLOURS[2])
    title = f"{100 * without.iloc[-1]:.0f} % of the boxes have no positive cell"
    positives.set(title=title, xlabel="epoch", ylim=(0, None), ylabel="cells a box")
    share = positives.twinx()
    share.plot(trained["epoch"], without, color=TERM_COLOURS[3], linestyle="--")
    share.set(ylim=(-0.02, 1), ylabel="share of boxes")
    share.grid(visible=False)
    share.spines["right"].set_visible(True)
    positives.legend(
        handles=[
            Line2D([], [], color=TERM_COLOURS[2], label="positive cells a box (left)"),
            Line2D([], [], color=TERM_COLOURS[3], ls="--", label="boxes without one (right)"),
        ],
        loc="center right",
    )
    steps = int(history["step"].iloc[-1] / max(history["epoch"].iloc[-1], 1))
    rate.plot(np.arange(1, len(rates) + 1) / steps, rates, color=DARK)
    rate.set(title="Warm-up and cosine, by step", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="plain")
    return fig


@styled
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
    side = WIDTH / max(columns, 3)
    fig, axes = new_figure(rows, columns, size=(side * columns, 0.5 + (side + 0.35) * rows))
    for row, (picture, title) in enumerate(pictures):
        for column, (stage, per_image) in enumerate(predictions.items()):
            axis = axes[row, column]
            best, peak, text = per_image[row]
            photo_axis(axis, picture)
            draw_boxes(axis, pd.DataFrame(truths[row], columns=BOX_COLUMNS), colour=TRUTH)
            draw_boxes(axis, pd.DataFrame(best, columns=BOX_COLUMNS), colour=PREDICTION, style="--", width=1.5)
            draw_boxes(axis, pd.DataFrame([peak], columns=BOX_COLUMNS), colour=PEAK, style=":", width=2)
            heading = f"{title}\n" if column == 0 else "\n"
            axis.set_title(f"{heading}{stage}: {text}", fontsize=SMALLEST)
    head_legend(fig)
    return fig


def head_legend(fig: Figure) -> None:
    """What the lines around boxes mean where a head's are drawn with the ground truth."""
    handles = [
        Line2D([], [], color=TRUTH, lw=1.8, label="ground truth"),
        Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="best cell (oracle)"),
        Line2D([], [], color=PEAK, lw=2, ls=":", label="cell of the CAM's peak"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
