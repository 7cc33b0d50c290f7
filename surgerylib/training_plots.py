"""Figures of the training notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .frames import BOX_COLUMNS
from .localizer_tables import METHOD_NAMES
from .plots import PREDICTION, TRUTH, draw_boxes, new_figure, photo_axis, styled

METHOD_COLOURS = {
    "oracle": "#0072B2",
    "cam_peak": "#D55E00",
    "whole_image": "#999999",
    "centre_box": "#999999",
    "class_mean": "#999999",
}
_LINES = {"val_iou": METHOD_COLOURS["oracle"], "val_peak_iou": METHOD_COLOURS["cam_peak"]}
PEAK = "#FFB000"


@styled
def method_bars(summary: pd.DataFrame, title: str) -> Figure:
    """Mean IoU of each method with its 95 % interval.

    Args:
        summary: of `localizer_training.summarise`.
        title: the finding.
    """
    means = summary[summary["figure"] == "mean"].set_index("method")
    fig, axes = new_figure(size=(8.2, 2.6))
    axis = axes[0, 0]
    for row, (method, values) in enumerate(means.iterrows()):
        if np.isnan(values["value"]):
            axis.text(0, row, " no boxes in this split", va="center", fontsize=8, color="#666666")
            continue
        axis.barh(row, values["value"], height=0.62, color=METHOD_COLOURS[method])
        end = values["value"] if np.isnan(values["high"]) else values["high"]
        axis.hlines(row, values["low"], values["high"], color="#333333", linewidth=1)
        axis.text(end, row, f"  {values['value']:.3f}", va="center", fontsize=9)
    axis.set_yticks(range(len(means)), [METHOD_NAMES[method] for method in means.index])
    axis.invert_yaxis()
    axis.set(title=title, xlabel="mean IoU with the ground truth box (line: 95 % interval over images)", xlim=(0, None))
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    return fig


@styled
def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Loss terms, positives, learning rate and validation by epoch.

    Args:
        history: of a `Training`.
        best_epoch: marked in the validation.
    """
    fig, axes = new_figure(2, 2, size=(9.2, 5.4), sharex=True)
    loss, validation, positives, rate = axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]
    trained = history[history["epoch"] > 0]
    for name, colour, style in (("loss", "#333333", "-"), ("giou", "#0072B2", "--"), ("l1", "#009E73", ":")):
        labels = {"loss": "total", "giou": "1 − GIoU", "l1": "L1"}
        loss.plot(trained["epoch"], trained[name], color=colour, linestyle=style, label=labels[name])
    loss.set(title="Loss on the training images", ylim=(0, None))
    loss.legend()
    names = {"val_iou": "best cell (oracle)", "val_peak_iou": "CAM's peak"}
    for name, colour in _LINES.items():
        validation.plot(history["epoch"], history[name], color=colour, marker="o", markersize=3, label=names[name])
    validation.plot(history["epoch"], history["val_share_50"], color="#56B4E9", linestyle="--", label="share > 0.5")
    validation.axvline(best_epoch, color="#999999", linewidth=1, linestyle=":")
    validation.set(title=f"Validation: mean IoU (best: epoch {best_epoch})", ylim=(0, None))
    validation.legend(loc="lower right")
    positives.plot(trained["epoch"], trained["positives_per_box"], color="#E69F00", label="positive cells a box")
    positives.set(title="Positives", xlabel="epoch", ylim=(0, None), ylabel="cells a box")
    share = positives.twinx()
    share.plot(trained["epoch"], trained["share_without_positive"], color="#CC79A7", linestyle="--")
    share.set(ylim=(0, 1), ylabel="share of boxes")
    share.grid(visible=False)
    share.spines["right"].set_visible(True)
    positives.legend(
        handles=[
            Line2D([], [], color="#E69F00", label="positive cells a box (left)"),
            Line2D([], [], color="#CC79A7", ls="--", label="boxes without one (right)"),
        ],
        loc="center right",
    )
    rate.plot(trained["epoch"], trained["learning_rate"], color="#333333")
    rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-3, -3))
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
    fig, axes = new_figure(rows, columns, size=(3.1 * columns, 0.5 + 3.3 * rows))
    for row, (picture, title) in enumerate(pictures):
        for column, (stage, per_image) in enumerate(predictions.items()):
            axis = axes[row, column]
            best, peak, text = per_image[row]
            photo_axis(axis, picture)
            draw_boxes(axis, pd.DataFrame(truths[row], columns=BOX_COLUMNS), colour=TRUTH)
            draw_boxes(axis, pd.DataFrame(best, columns=BOX_COLUMNS), colour=PREDICTION, style="--", width=1.5)
            draw_boxes(axis, pd.DataFrame([peak], columns=BOX_COLUMNS), colour=PEAK, style=":", width=2)
            heading = f"{title}\n" if column == 0 else "\n"
            axis.set_title(f"{heading}{stage}: {text}", fontsize=9)
    handles = [
        Line2D([], [], color=TRUTH, lw=1.8, label="ground truth"),
        Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="best cell (oracle)"),
        Line2D([], [], color=PEAK, lw=2, ls=":", label="cell of the CAM's peak"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return fig
