"""Draw the figures of docs/method.md into docs/figures/: `.venv/bin/python docs/figures.py [NAME ...]`.

`steps` and `localiser` show the embedded default; `localiser` takes the trained head of `make report`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from surgerylib import load_clip, load_dataset, plots, read_image
from surgerylib.errors import SurgeryError
from surgerylib.feature_batches import BatchReader
from surgerylib.features import FeatureCache
from surgerylib.files import atomic_write
from surgerylib.frames import BOX_COLUMNS
from surgerylib.head_evaluation import load_head
from surgerylib.heatmaps import heatmaps
from surgerylib.localizer_training import boxes_on_image
from surgerylib.locations import PROJECT_ROOT
from surgerylib.losses import assign_cells
from surgerylib.plots import PREDICTION, TRUTH, draw_boxes, new_figure, photo_axis, styled
from surgerylib.scenes import write_scenes
from surgerylib.training_plots import PEAK
from surgerylib.verdict import ABOVE, BELOW, outcome

SCENES = PROJECT_ROOT / "data" / "scenes"
HEAD = PROJECT_ROOT / "reports" / "embedded" / "localizer.safetensors"
QK, VV, GREY = plots.KIND_COLOURS["standard"], plots.KIND_COLOURS["vv_mixed"], "#555555"
IMAGE_ID, LABEL = "00392", "airplane"


@styled
def dual_path() -> Figure:
    """One of the last blocks: the stock path untouched, the value-value path beside it."""
    fig, axes = new_figure(size=(9.6, 4.5))
    axis = axes[0, 0]
    axis.set(xlim=(0, 20), ylim=(0, 9.4))
    axis.axis("off")

    def box(x: float, y: float, width: float, text: str, colour: str) -> None:
        axis.add_patch(
            FancyBboxPatch(
                (x, y - 0.5), width, 1, boxstyle="round,pad=0.05", facecolor="white", edgecolor=colour, lw=1.6
            )
        )
        axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-") -> None:
        axis.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.5, linestyle=style)
        )

    def add(x: float, y: float, colour: str) -> None:
        axis.text(x, y, "+", ha="center", va="center", fontsize=13, color=colour, fontweight="bold",
                  bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour})  # fmt: skip

    top, bottom = 7.2, 1.4
    axis.text(0, top + 1.4, "QK path: the stock model, MLP and all", color=QK, fontsize=10, fontweight="bold")
    axis.text(0, bottom - 1.1, "VV path: starts as the input of the first of the last blocks; no MLP", color=VV,
              fontsize=10, fontweight="bold")  # fmt: skip
    arrow((0, top), (20, top), QK)
    arrow((0, bottom), (20, bottom), VV)
    box(1.2, 5.1, 1.6, "ln_1", QK)
    arrow((0.7, top), (1.6, 5.65), QK)
    box(3.6, 5.1, 2.1, "q, k, v", GREY)
    arrow((2.85, 5.1), (3.55, 5.1), GREY)
    box(7.0, 5.1, 3.4, "softmax(s·q·kᵀ)·v", QK)
    arrow((5.75, 5.1), (6.95, 5.1), QK)
    box(7.0, 3.2, 3.4, "softmax(s·v·vᵀ)·v", VV)
    arrow((5.2, 4.55), (6.95, 3.3), VV)
    box(11.2, 5.1, 1.9, "out_proj", QK)
    arrow((10.45, 5.1), (11.15, 5.1), QK)
    box(11.2, 3.2, 1.9, "out_proj", VV)
    arrow((10.45, 3.2), (11.15, 3.2), VV)
    arrow((13.0, 5.6), (13.9, 6.9), QK)
    add(14.1, top, QK)
    arrow((13.0, 2.7), (13.9, 1.75), VV)
    add(14.1, bottom, VV)
    box(15.0, 5.1, 1.9, "ln_2, MLP", QK)
    arrow((14.6, top), (15.5, 5.65), QK)
    arrow((16.5, 5.65), (17.2, 6.9), QK)
    add(17.4, top, QK)
    axis.text(18.0, 4.2, "each layer asked for:\nln_post, proj,\nunit length", fontsize=8.5, ha="left", va="center",
              color=GREY)  # fmt: skip
    return fig


@styled
def steps() -> Figure:
    """From one heatmap to boxes."""
    clip, image, truth, heatmap = _example()
    return plots.extraction_steps(image, heatmap, truth, label=LABEL, patch_size=clip.patch_size)


@styled
def assigners() -> Figure:
    """Which cells teach the head of a large and of a small box, under both assigners."""
    side = 7
    rows, columns = (torch.arange(side) + 0.5) / side, (torch.arange(side) + 0.5) / side
    centre = torch.stack([columns.expand(side, side), rows[:, None].expand(side, side)], dim=-1)
    start = torch.cat([centre - 0.125, centre + 0.125], dim=-1).clamp(0, 1)  # what an untrained head says
    boxes = torch.tensor([[0.42, 0.18, 0.72, 0.48], [0.21, 0.78, 0.26, 0.83]])
    fig, axes = new_figure(1, 2, size=(7.6, 4.2))
    for axis, assign in zip(axes[0], ("best_iou", "best_iou_or_center"), strict=True):
        positive = assign_cells(start.expand(2, side, side, 4), boxes, assign=assign)
        for of_box in positive:
            for row, column in of_box.nonzero().tolist():
                axis.add_patch(Rectangle((column / side, row / side), 1 / side, 1 / side, color="#FFB000", alpha=0.45))
        draw_boxes(axis, pd.DataFrame(boxes.numpy(), columns=BOX_COLUMNS), colour=TRUTH)
        axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=np.arange(side + 1) / side,
                 yticks=np.arange(side + 1) / side)  # fmt: skip
        axis.tick_params(labelbottom=False, labelleft=False, length=0)
        counts = positive.flatten(1).sum(dim=1).tolist()
        axis.set_title(f"{assign}: {counts[0]} cells for the large box, {counts[1]} for the small", fontsize=9)
    handles = [Line2D([], [], color=TRUTH, lw=1.8, label="ground truth of one class"),
               Line2D([], [], color="#FFB000", lw=8, alpha=0.45, label="positive cells")]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return fig


@styled
def localiser() -> Figure:
    """Oracle, CAM's peak and the three guesses on one image."""
    data = load_dataset(SCENES, "test")
    clip = load_clip("embedded", device="cpu")
    model, about = load_head(HEAD, clip, data.classes)
    maps = {name: about["belongs_to"][name] for name in ("layers", "kind", "similarity", "picture_size", "templates")}
    reader = BatchReader(FeatureCache(clip, data, HEAD.parent / "cache", **maps).compute())
    position, label = data.images["image_id"].tolist().index(IMAGE_ID), data.classes.index(LABEL)
    best, peak, iou, peak_iou = boxes_on_image(model, reader, position, label)
    path, width, height = data.images[["path", "width", "height"]].iloc[position]
    sides = np.array([width, height, width, height])
    own = data.boxes[(data.boxes["image_id"] == IMAGE_ID) & (data.boxes["label"] == LABEL)]
    guesses = {
        "whole image": [0, 0, 1, 1],
        "centre box": [0.25, 0.25, 0.75, 0.75],
        "class's mean box": about["class_means"][label],
    }
    fig, axes = new_figure(1, 2, size=(8.6, 4.7))
    for axis in axes[0]:
        photo_axis(axis, read_image(path))
    draw_boxes(axes[0, 0], _frame(best * sides), colour=PREDICTION, style="--")
    draw_boxes(axes[0, 0], _frame(peak[None] * sides), colour=PEAK, style=":", width=2)
    styles = dict(zip(guesses, ("-", "--", "-."), strict=True))
    for name, box in guesses.items():
        draw_boxes(axes[0, 1], _frame(np.array([box]) * sides), colour="white", style=styles[name])
    for axis in axes[0]:
        draw_boxes(axis, own, colour=TRUTH)
    axes[0, 0].set_title(f"head: best cell {iou:.2f}, CAM's peak {peak_iou:.2f} (mean IoU)", fontsize=9)
    axes[0, 1].set_title("guesses that need no learning", fontsize=9)
    handles = [
        Line2D([], [], color=TRUTH, lw=1.8, label=f"ground truth: {LABEL}"),
        Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="best cell (oracle)"),
        Line2D([], [], color=PEAK, lw=2, ls=":", label="cell of the CAM's peak"),
        *(Line2D([], [], color="#888888", lw=1.5, ls=styles[name], label=name) for name in guesses),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return fig


@styled
def verdict() -> Figure:
    """The rule on a number line."""
    fig, axes = new_figure(size=(8.6, 3.2))
    axis = axes[0, 0]
    for low, high, colour, name in (
        (0, BELOW, "#F6D5C0", "localisation\nis the problem"),
        (BELOW, ABOVE, "#EFEFEF", "not decided"),
        (ABOVE, 1, "#C9DFF0", "classification\nis the problem"),
    ):
        axis.axvspan(low, high, color=colour, linewidth=0, zorder=0)
        axis.text((low + high) / 2, 4.85, name, ha="center", va="top", fontsize=9.5)
    examples = [(0.83, 0.78, 0.88), (0.74, 0.66, 0.80), (0.60, 0.55, 0.65), (0.42, 0.36, 0.47), (0.47, 0.41, 0.54)]
    for row, (share, low, high) in enumerate(examples):
        decided = outcome(share, low, high)
        at = 3.4 - 0.75 * row
        axis.plot([low, high], [at, at], color="#333333", linewidth=2)
        axis.plot(share, at, "o", color="#333333")
        axis.text(high + 0.012, at, decided, va="center", fontsize=8.5)
    axis.set(xlim=(0, 1), ylim=(-0.1, 5), yticks=[])
    axis.set_xlabel("share of the boxes whose best cell has IoU > 0.5, with its 95 % interval")
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    return fig


@styled
def errors() -> Figure:
    """The six types of error, drawn."""
    fig, axes = new_figure(2, 3, size=(8.6, 4.0))
    truth, other = (1.0, 1.0, 3.0, 3.0), (5.0, 1.2, 7.0, 3.2)
    right, twice = [((5.2, 1.1, 7.1, 3.1), "A")], [((1.05, 0.9, 3.2, 2.9), "A 0.9"), ((0.6, 1.5, 2.7, 3.8), "A 0.5")]
    cases: dict[str, tuple[list, list, str]] = {
        "classification": ([(other, "B")], right, "on an object of another class"),
        "localisation": ([(truth, "A")], [((2.0, 1.8, 4.4, 3.9), "A")], "on its object, too loosely"),
        "both": ([(other, "B")], [((5.9, 2.0, 8.3, 4.0), "A")], "on another class, too loosely"),
        "duplicate": ([(truth, "A")], twice, "the second box of one object"),
        "background": ([(truth, "A")], [((5.0, 1.0, 7.0, 3.0), "A")], "on nothing"),
        "missed": ([(truth, "A")], [], "no box comes near"),
    }
    for axis, (name, (truths, found, meaning)) in zip(axes.flat, cases.items(), strict=True):
        for box, letter in truths:
            _lettered(axis, box, letter, TRUTH, "-")
        for box, letter in found:
            _lettered(axis, box, letter, PREDICTION, "--")
        axis.set(xlim=(0, 9), ylim=(4.2, 0.4), xticks=[], yticks=[], aspect="equal")
        axis.grid(visible=False)
        axis.spines[:].set_visible(True)
        axis.set_title(f"{name}: {meaning}", fontsize=9)
    handles = [Line2D([], [], color=TRUTH, lw=1.8, label="object (A, B: classes)"),
               Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="detection")]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return fig


def _lettered(axis: Axes, box: tuple[float, ...], letter: str, colour: str, style: str) -> None:
    draw_boxes(axis, _frame(np.array([box])), colour=colour, style=style)
    inside = style == "-"
    x, y = (box[0] + 0.12, box[1] + 0.1) if inside else (box[2] - 0.12, box[3] - 0.1)
    align = ("left", "top") if inside else ("right", "bottom")
    axis.text(x, y, letter, color=colour, ha=align[0], va=align[1], fontsize=9)


def _frame(boxes: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(boxes, columns=BOX_COLUMNS)


def _example():
    data = load_dataset(SCENES, "test")
    clip = load_clip("embedded", device="cpu")
    image = read_image(data.images.set_index("image_id").loc[IMAGE_ID, "path"])
    maps = heatmaps(clip.encode_image(clip.preprocess(image)[None]), clip.encode_text(data.classes))
    truth = data.boxes[data.boxes["image_id"] == IMAGE_ID]
    return clip, image, truth, maps[0, data.classes.index(LABEL)].numpy()


FIGURES: dict[str, Callable[[], Figure]] = {
    figure.__name__: figure for figure in (dual_path, steps, assigners, localiser, verdict, errors)
}
PHOTOS = ("steps", "localiser")


def main(names: list[str]) -> int:
    """Draw the figures named, or all; returns the exit status."""
    if unknown := [name for name in names if name not in FIGURES]:
        print(f"no figure {unknown[0]!r}; there are: {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    write_scenes(SCENES)
    status = 0
    for name in names or FIGURES:
        try:
            form = "jpeg" if name in PHOTOS else "png"
            content = plots.figure_bytes(FIGURES[name](), form, FIGURES[name].__doc__.splitlines()[0])
        except SurgeryError as error:
            print(f"{name} is not drawn: {error}", file=sys.stderr)
            status = 1
            continue
        print(atomic_write(Path(__file__).parent / "figures" / f"{name}.{form}", content))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
