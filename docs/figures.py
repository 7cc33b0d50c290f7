"""Draw the figures of docs/method.md into docs/figures/: `.venv/bin/python docs/figures.py [NAME ...]`.

`steps` and `localiser` show the embedded default; `localiser` takes the trained head of `make report`. Photographs are
written as JPEG, a fifth of the size of PNG.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from surgerylib import load_clip, load_dataset, read_image
from surgerylib.boxes import box_iou
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import BatchReader, FeatureCache, boxes_on_image
from surgerylib.errors import SurgeryError
from surgerylib.figures import figure_bytes
from surgerylib.figures.maps import extraction_steps
from surgerylib.figures.style import KIND_LOOKS, PEAK, PREDICTION, TRUTH, draw_boxes, new_figure, photo_axis, styled
from surgerylib.files import PROJECT_ROOT, atomic_write
from surgerylib.heatmaps import heatmaps
from surgerylib.losses import assign_cells
from surgerylib.matching import BOX_COLUMNS
from surgerylib.study.error_types import detection_errors
from surgerylib.study.evaluation_tables import ABOVE, BELOW, outcome
from surgerylib.study.head_evaluation import load_head

SCENES = PROJECT_ROOT / "data" / "scenes"
HEAD = PROJECT_ROOT / "reports" / "embedded" / "localizer.safetensors"
QK, VV, GREY = KIND_LOOKS["standard"].colour, KIND_LOOKS["vv_mixed"].colour, "#555555"
GUESS = "#DDDDDD"
IMAGE_ID, LABEL = "00392", "airplane"


@styled
def dual_path() -> Figure:
    """One of the last blocks: the stock path untouched, the value-value path beside it."""
    fig, axes = new_figure(size=(10.6, 4.9))
    axis = axes[0, 0]
    axis.set(xlim=(0, 23.8), ylim=(-0.2, 10))
    axis.axis("off")

    def box(x: float, y: float, width: float, text: str, colour: str) -> None:
        shape = FancyBboxPatch((x, y - 0.5), width, 1, boxstyle="round,pad=0.05", facecolor="white", edgecolor=colour,
                               lw=1.6, zorder=3)  # fmt: skip
        axis.add_patch(shape)
        axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=9, zorder=4)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-") -> None:
        axis.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.5, linestyle=style,
                            shrinkA=0, shrinkB=0)
        )  # fmt: skip

    def add(x: float, y: float, colour: str) -> None:
        axis.text(x, y, "+", ha="center", va="center", fontsize=13, color=colour, fontweight="bold", zorder=4,
                  bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour})  # fmt: skip

    top, upper, lower, bottom = 7.6, 5.5, 3.6, 1.5
    axis.add_patch(Rectangle((1.9, 0.7), 15.7, 7.8, facecolor="#f7f7f7", edgecolor=GREY, lw=1, linestyle=":", zorder=0))
    axis.text(17.5, 8.6, "one of the last blocks (depth: how many)", ha="right", va="bottom", fontsize=9, color=GREY)
    axis.text(0, 9.3, "QK path: the stock model, MLP and all", color=QK, fontsize=10, fontweight="bold")
    axis.text(0, 0, "VV path: no MLP, v from the QK path's ln_1", color=VV, fontsize=10, fontweight="bold")
    arrow((0, top), (19.4, top), QK)
    arrow((0.8, bottom), (19.4, bottom), VV)
    arrow((0.8, top), (0.8, bottom), VV, "--")
    axis.text(1.15, 4.55, "once, before the first of them", color=VV, fontsize=8.5, rotation=90, ha="left", va="center")
    for y in (top, bottom):
        axis.text(19.6, y, "next block", fontsize=8.5, va="center", color=GREY)

    box(2.5, upper, 1.5, "ln_1", QK)
    arrow((2.1, top), (3.0, upper + 0.58), QK)
    box(4.7, upper, 1.9, "q, k, v", GREY)
    arrow((4.05, upper), (4.62, upper), GREY)
    for y, path, colour in ((upper, "softmax(s·q·kᵀ)·v", QK), (lower, "softmax(s·v·vᵀ)·v", VV)):
        box(7.8, y, 3.5, path, colour)
        box(12.0, y, 1.9, "out_proj", colour)
        arrow((11.35, y), (11.92, y), colour)
    arrow((6.65, upper), (7.72, upper), QK)
    arrow((5.9, upper - 0.55), (7.72, lower), VV)
    arrow((13.4, upper + 0.55), (14.25, top - 0.42), QK)
    arrow((13.4, lower - 0.55), (14.25, bottom + 0.42), VV)
    box(14.8, upper, 2.0, "ln_2, MLP", QK)
    arrow((14.75, top), (15.4, upper + 0.58), QK)
    arrow((16.3, upper + 0.55), (16.9, top - 0.42), QK)
    for x, y, colour in ((14.4, top, QK), (17.0, top, QK), (14.4, bottom, VV)):
        add(x, y, colour)

    for y, start, end, tokens, colour in (
        (upper, top, upper + 0.58, "qk", QK),
        (lower, bottom, lower - 0.58, "vv", VV),
    ):
        box(18.0, y, 4.0, "ln_post, proj, unit length", colour)
        arrow((18.6, start), (18.6, end), colour)
        arrow((22.05, y), (22.9, y), colour)
        axis.text(23.0, y, tokens, fontsize=10, va="center", color=colour, fontweight="bold")
    middle = (upper + lower) / 2
    axis.text(20, middle, "after each layer asked for", fontsize=8.5, ha="center", va="center", color=GREY)
    return fig


@styled
def steps() -> Figure:
    """From one heatmap to boxes."""
    clip, image, truth, heatmap = _example()
    return extraction_steps(image, heatmap, truth, label=LABEL, patch_size=clip.patch_size)


@styled
def assigners() -> Figure:
    """Which cells teach the head of a large and of a small box, under both assigners."""
    side = 7
    rows, columns = (torch.arange(side) + 0.5) / side, (torch.arange(side) + 0.5) / side
    centre = torch.stack([columns.expand(side, side), rows[:, None].expand(side, side)], dim=-1)
    start = torch.cat([centre - 0.125, centre + 0.125], dim=-1).clamp(0, 1)  # what an untrained head says
    boxes = torch.tensor([[0.34, 0.19, 0.64, 0.49], [0.19, 0.76, 0.25, 0.82]])
    best_iou = box_iou(start.expand(2, side, side, 4), boxes[:, None, None]).flatten(1).max(dim=1).values.tolist()
    fig, axes = new_figure(1, 2, size=(7.6, 4.4))
    for axis, assign in zip(axes[0], ("best_iou", "best_iou_or_center"), strict=True):
        positive = assign_cells(start.expand(2, side, side, 4), boxes, assign=assign)
        for of_box, box, iou in zip(positive, boxes.tolist(), best_iou, strict=True):
            cells = of_box.nonzero()
            for row, column in cells.tolist():
                place = (column / side, row / side)
                axis.add_patch(Rectangle(place, 1 / side, 1 / side, color="#FFB000", alpha=0.4, lw=0))
            if len(cells):
                row, column = cells.float().mean(dim=0).tolist()
                axis.plot((column + 0.5) / side, (row + 0.5) / side, "o", color="#333333", markersize=5)
            axis.text(box[2] + 0.015, box[1], f"best IoU {iou:.2f}\n{len(cells)} positive cells", fontsize=8, va="top")
        draw_boxes(axis, pd.DataFrame(boxes.numpy(), columns=BOX_COLUMNS), colour=TRUTH)
        axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=np.arange(side + 1) / side,
                 yticks=np.arange(side + 1) / side)  # fmt: skip
        axis.tick_params(labelbottom=False, labelleft=False, length=0)
        axis.set_title(assign)
    handles = [Line2D([], [], color=TRUTH, lw=1.8, label="ground truth of one class"),
               Line2D([], [], color="#FFB000", lw=8, alpha=0.4, label="positive cells"),
               Line2D([], [], color="#333333", marker="o", ls="", label="the cell they lie around")]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return fig


@styled
def localiser() -> Figure:
    """Oracle, CAM's peak and the three guesses on one image."""
    data = load_dataset(SCENES, "test")
    of_image = (frame[frame["image_id"] == IMAGE_ID].reset_index(drop=True) for frame in (data.images, data.boxes))
    data = replace(data, **dict(zip(("images", "boxes"), of_image, strict=True)))
    clip = load_clip("embedded", device="cpu")
    model, about = load_head(HEAD, clip, data.classes)
    maps = {name: about["belongs_to"][name] for name in ("layers", "kind", "similarity", "picture_size", "templates")}
    label = data.classes.index(LABEL)
    with tempfile.TemporaryDirectory() as folder:
        reader = BatchReader(FeatureCache(clip, data, folder, **maps).compute(workers=1))
        best, peak, iou, peak_iou = boxes_on_image(model, reader, 0, label)
    path, width, height = data.images[["path", "width", "height"]].iloc[0]
    sides = np.array([width, height, width, height])
    own = data.boxes[data.boxes["label"] == LABEL]
    guesses = {
        "whole image": np.array([0, 0, 1, 1]) + np.array([1, 1, -1, -1]) / 150,  # drawn inside the border
        "centre box": [0.25, 0.25, 0.75, 0.75],
        "class's mean box": about["class_means"][label],
    }
    fig, axes = new_figure(1, 2, size=(8.6, 4.8))
    for axis in axes[0]:
        photo_axis(axis, read_image(path))
    near, everything = axes[0]
    draw_boxes(near, own, colour=TRUTH, width=3)
    draw_boxes(near, _frame(best * sides), colour=PREDICTION, style="--", width=2)
    draw_boxes(near, _frame(peak[None] * sides), colour=PEAK, style=":", width=2.5)
    reach = 1.5 * (own[["xmax", "ymax"]].to_numpy() - own[["xmin", "ymin"]].to_numpy()).max()
    right, bottom = min(own["xmax"].max() + 0.1 * reach, width), min(own["ymax"].max() + 0.1 * reach, height)
    near.set(xlim=(right - reach, right), ylim=(bottom, bottom - reach))
    styles = dict(zip(guesses, ("-", "--", "-."), strict=True))
    for name, box in guesses.items():
        draw_boxes(everything, _frame(np.array([box]) * sides), colour=GUESS, style=styles[name], width=2.5)
    draw_boxes(everything, own, colour=TRUTH)
    near.set_title(f"The head: IoU {iou:.2f} in the best cell, {peak_iou:.2f} at the peak", fontsize=9)
    everything.set_title("Guesses that need no learning", fontsize=9)
    handles = [
        Line2D([], [], color=TRUTH, lw=2.5, label=f"ground truth: {LABEL}"),
        Line2D([], [], color=PREDICTION, lw=2, ls="--", label="best cell (oracle)"),
        Line2D([], [], color=PEAK, lw=2.5, ls=":", label="cell of the CAM's peak"),
        *(Line2D([], [], color=GUESS, lw=2, ls=styles[name], label=name) for name in guesses),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, handlelength=4)
    return fig


@styled
def verdict() -> Figure:
    """The rule on a number line."""
    fig, axes = new_figure(size=(9.2, 3.6))
    axis = axes[0, 0]
    for low, high, colour, name in (
        (0, BELOW, "#F6D5C0", "localisation\nis the problem"),
        (BELOW, ABOVE, "#EFEFEF", "not decided"),
        (ABOVE, 1, "#C9DFF0", "classification\nis the problem"),
    ):
        axis.axvspan(low, high, color=colour, linewidth=0, zorder=0)
        axis.text((low + high) / 2, 5.75, name, ha="center", va="top", fontsize=9.5)
    examples = [
        (0.83, 0.78, 0.88, ""),
        (0.74, 0.66, 0.80, ": crosses the line"),
        (0.60, 0.55, 0.65, ": lies between"),
        (0.47, 0.41, 0.54, ": crosses the line"),
        (0.42, 0.36, 0.47, ""),
        (0.90, np.nan, np.nan, ": one image, no interval"),
    ]
    for row, (share, low, high, why) in enumerate(examples):
        at = 4.2 - 0.75 * row
        axis.plot([low, high], [at, at], color="#333333", linewidth=2)
        axis.plot(share, at, "o", color="#333333")
        axis.text(1.02, at, outcome(share, low, high) + why, va="center", fontsize=8.5)
    axis.set(xlim=(0, 1), ylim=(0, 6), yticks=[], xticks=np.arange(11) / 10)
    axis.set_xlabel("share of the boxes whose best cell has IoU > 0.5, with its 95 % interval")
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    return fig


@styled
def errors() -> Figure:
    """The six types of error, drawn."""
    fig, axes = new_figure(2, 3, size=(8.6, 4.9))
    thing = (1.4, 0.9, 3.6, 2.6)
    near, beside, far = (1.6, 1.05, 3.85, 2.8), (2.3, 1.6, 4.5, 3.3), (4.2, 0.9, 6.1, 2.6)
    # class of the object, boxes of class A with their scores (the last is the error), what is wrong
    cases = [
        ("B", [(near, 0.9)], "IoU {:.2f} with an object of another class"),
        ("A", [(beside, 0.9)], "IoU {:.2f} with an object of its class"),
        ("B", [(beside, 0.9)], "IoU {:.2f} with an object of another class"),
        ("A", [(near, 0.9), ((1.1, 0.75, 3.3, 2.45), 0.5)], "IoU {:.2f}, but the object is taken"),
        ("A", [(far, 0.9)], "IoU {:.2f} with every object"),
        ("A", [], "no box comes near the object"),
    ]
    for axis, (letter, found, meaning) in zip(axes.flat, cases, strict=True):
        truth = _frame(np.array([thing])).assign(image_id="0", label=letter)
        boxes = np.array([box for box, _ in found]).reshape(-1, 4)
        detections = _frame(boxes).assign(image_id="0", label="A", score=[score for _, score in found])
        types = detection_errors(detections, truth)
        draw_boxes(axis, truth, colour=TRUTH)
        draw_boxes(axis, detections, colour=PREDICTION, style="--")
        axis.text(thing[2], thing[1] - 0.1, letter, color=TRUTH, ha="right", va="bottom", fontsize=10)
        for place, (box, score) in enumerate(found):
            x, y, vertical = (box[2], box[3] + 0.08, "top") if place == 0 else (box[0] - 0.1, box[3], "bottom")
            text = "A" if len(found) == 1 else f"A {score}"
            axis.text(x, y, text, color=PREDICTION, ha="right", va=vertical, fontsize=10)
        axis.set_title(types.of_detection[-1] if found else types.fate[0], fontweight="bold", fontsize=10)
        axis.set_xlabel(meaning.format(*box_iou(boxes[-1:], np.array(thing))), fontsize=9)
        axis.set(xlim=(0, 6.8), ylim=(3.9, 0.2), xticks=[], yticks=[], aspect="equal")
        axis.grid(visible=False)
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#cccccc")
    handles = [Line2D([], [], color=TRUTH, lw=1.8, label="object"),
               Line2D([], [], color=PREDICTION, lw=1.5, ls="--", label="detection (number: score)")]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5, title_fontsize=8.5,
               title="A, B: classes; an object is found from IoU 0.5 on")  # fmt: skip
    return fig


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
            content = figure_bytes(FIGURES[name](), form, FIGURES[name].__doc__.splitlines()[0])
        except SurgeryError as error:
            print(f"{name} is not drawn: {error} (make report does)", file=sys.stderr)
            status = 1
            continue
        print(atomic_write(Path(__file__).parent / "figures" / f"{name}.{form}", content))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
