"""How the explorer draws: pictures as bytes, boxes as plain values that the browser draws, and the saved figure.

What moves with a slider (boxes, outline, sentence) is text of a few kilobytes; pictures change only with the image or
the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jinja2 import Template
from matplotlib.figure import Figure

from ..boxes import resize_map
from ..figures import PREDICTION, TRUTH, draw_boxes, new_figure, overlay, photo_axis, styled
from ..intervals import number
from .view_model import EVERY_BOX, Answer, Question, Shown
from .widgets import TEMPLATES

_OVERLAY_SIDE = 224
_TABLE = Template((TEMPLATES / "table.html.j2").read_text(encoding="utf-8"), autoescape=True)


def photo_bytes(image: np.ndarray) -> bytes:
    """uint8 RGB [H, W, 3] -> JPEG of at most 800 pixels a side: more than a panel shows would only take time."""
    height, width = image.shape[:2]
    scale = 800 / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _jpeg(image[..., ::-1])


def overlay_bytes(heatmap: np.ndarray, colours: int = cv2.COLORMAP_JET) -> bytes:
    """[h, w] -> JPEG of 224 x 224; the colours span this map alone."""
    resized = resize_map(heatmap, _OVERLAY_SIDE)
    low, high = float(resized.min()), float(resized.max())
    levels = np.rint((resized - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    return _jpeg(cv2.applyColorMap(levels, colours))


def truth_shapes(truth: pd.DataFrame, own: pd.DataFrame, *, named: bool = True) -> list[dict[str, Any]]:
    """Ground truth as shapes: `own`, the boxes held against, in green, the others thin and white.

    If `named`, the label stands beside the largest box of each class; beside every one they would overlap.
    """
    area = (truth["xmax"] - truth["xmin"]) * (truth["ymax"] - truth["ymin"])
    largest = set(area.groupby(truth["label"]).idxmax()) if named and len(truth) else set()
    return [
        {
            "box": [row.xmin, row.ymin, row.xmax, row.ymax],
            "style": "truth" if row.Index in own.index else "other",
            "text": row.label if row.Index in largest else "",
            "title": row.label,
        }
        for row in truth.itertuples()
    ]


def found_shapes(answer: Answer) -> list[dict[str, Any]]:
    """The best 200 boxes found as shapes, best first; the best four carry their score, as in the notebooks' figures."""
    best = answer.overlaps.max(axis=0, initial=0.0)
    return [
        {
            "box": box[:4].tolist(),
            "style": "found",
            "text": f"{box[4]:.2f}".replace("-", "−") if rank < 4 else "",
            "title": f"score {number(box[4])}, IoU {best[rank]:.2f}",
        }
        for rank, box in enumerate(answer.boxes[:200])
    ]


def outline_points(answer: Answer) -> list[list[float]]:
    """The outline of the mask: closed lines, each x, y, x, y... in 0..1."""
    return [np.round(line, 4).ravel().tolist() for line in answer.outline]


def headline(answer: Answer, against: str) -> str:
    """One sentence on the boxes: how many, and how well they meet what they are held against."""
    n_boxes, ious = len(answer.boxes), answer.best_ious
    boxes = f"{n_boxes} {'box' if n_boxes == 1 else 'boxes'}"
    if not len(ious):
        return f"{boxes}; no ground truth" + (f" of {against}" if against != EVERY_BOX else "")
    mean = f", mean {ious.mean():.2f}" if len(ious) > 1 else ""
    return f"{boxes}; best IoU {ious.max():.2f}{mean}; {(ious >= 0.5).sum()} of {len(ious)} met at IoU ≥ 0.5"


def truth_table(answers: Sequence[Answer], truth: pd.DataFrame, against: str) -> str:
    """HTML: each ground truth box held against, with the IoU of the box that fits it best, a column a kind."""
    if truth.empty:
        return f'<p class="explorer-note">No ground truth box of {escape(against)} in this image.</p>'
    rows = []
    for place, row in enumerate(truth.itertuples()):
        size = f"{row.xmax - row.xmin:.0f} × {row.ymax - row.ymin:.0f}"
        rows.append({"name": row.label, "cells": [size, *(f"{answer.best_ious[place]:.2f}" for answer in answers)]})
    kinds = [answer.kind for answer in answers]
    return _TABLE.render(
        caption=f"IoU with the ground truth ({against})", first="box", columns=["pixels", *kinds], rows=rows
    )


def patch_table(answers: Sequence[Answer], question: Question, patch: tuple[int, int]) -> str:
    """HTML: how similar the pointed patch is to all that is asked, highest first; a bar a row for one kind."""
    row, column = patch
    values = np.stack([answer.maps[:, row, column] for answer in answers], axis=1)  # [C, kinds]
    last = values[:, -1]
    shares = (last - last.min()) / (np.ptp(last) or 1)
    rows = [
        {
            "name": question.asked[place],
            "cells": [number(value) for value in values[place]],
            "bar": f"{100 * shares[place]:.0f}%" if len(answers) == 1 else "",
            "shown": question.asked[place] == question.shown,
        }
        for place in np.argsort(-last, kind="stable")
    ]
    caption = f"Patch in row {row + 1}, column {column + 1}: similarity"
    return _TABLE.render(caption=caption, first="asked for", columns=[answer.kind for answer in answers], rows=rows)


@styled
def figure(shown: Shown, *, patch: tuple[int, int] | None = None, opacity: float = 0.5, outline: bool = True) -> Figure:
    """The present view as a figure: image and ground truth, each kind's map with its boxes, where the patch attends."""
    subject, question, answers = shown.subject, shown.question, shown.answers
    width, height = subject.size_wh
    n_panels = 1 + len(answers) + (2 if patch is not None else 0)
    columns = min(n_panels, 3 if n_panels in (5, 6) else 4)
    n_rows = -(-n_panels // columns)
    row_height = 0.45 + 3.5 * min(height / width, 1.4)
    fig, axes = new_figure(n_rows, columns, size=(3.6 * columns, 0.5 + n_rows * row_height))
    for axis in axes.flat[:n_panels]:
        photo_axis(axis, subject.image)
    for axis in axes.flat[n_panels:]:
        axis.set_axis_off()
    first, *panels = axes.flat
    draw_boxes(first, subject.truth.drop(shown.own.index), colour="white", width=0.8)
    draw_boxes(first, shown.own, colour=TRUTH)
    first.set_title(f"{subject.name}: {len(subject.truth)} boxes")
    for axis, answer in zip(panels, answers, strict=False):
        overlay(axis, answer.shown, subject.size_wh, alpha=opacity)
        draw_boxes(axis, shown.own, colour=TRUTH)
        draw_boxes(axis, answer.boxes, colour=PREDICTION, style="--", scores=True)
        best = f", best IoU {answer.best_ious.max():.2f}" if len(answer.best_ious) else ""
        axis.set_title(f"{answer.kind}: {len(answer.boxes)} boxes{best}")
        for line in answer.outline if outline else ():
            axis.plot(*(np.vstack([line, line[:1]]) * subject.size_wh).T, color="white", linewidth=0.8)
    if patch is not None:
        corner, step = np.array(patch[::-1]), subject.size_wh / np.array(shown.seen.grid[::-1])  # x, y
        for axis, path in zip(panels[len(answers) :], ("qk", "vv"), strict=False):
            attended = resize_map(shown.seen.attended(path, patch), _OVERLAY_SIDE)
            axis.imshow(attended, cmap="viridis", alpha=0.6, extent=(0, width, height, 0))
            draw_boxes(axis, np.concatenate([corner * step, (corner + 1) * step]), colour="white")
            axis.set_title(f"attention of row {patch[0] + 1}, column {patch[1] + 1}: {path.upper()}")
    adapted, kind = ", through the adapter" if question.adapted else "", question.kinds[-1]
    setting = question.of_kind(kind).describe().removeprefix(f"{kind}, " if len(answers) > 1 else "")
    fig.suptitle(f"“{question.shown}” ({setting}{adapted})", fontsize=11, x=0.01, ha="left")
    return fig


def _jpeg(bgr: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return data.tobytes()
