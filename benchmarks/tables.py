"""The tables and figures of notebooks 04 and 05 at the size of a real split, with simulated predictions: time, memory.

    python benchmarks/tables.py --dataset DIR [--split test] [--detections 4]

Only the annotations of the dataset are read, no image. The boxes that a head would give, CLIP's responses and the
detections of two kinds are drawn around the ground truth (`--detections` a box and kind, some on nothing, some with
another name); then the notebooks' own calls run on them. Printed are the seconds of each step and the peak memory of
the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from surgerylib.boxes import box_iou
from surgerylib.datasets import Dataset, load_dataset
from surgerylib.engine.localization import baseline_ious, class_mean_boxes
from surgerylib.engine.localizer_training import METHODS, summarise
from surgerylib.engine.measures import truth_codes
from surgerylib.figures import evaluation as evaluation_plots
from surgerylib.figures import figure_bytes
from surgerylib.figures import per_class as per_class_plots
from surgerylib.heatmaps import Setting
from surgerylib.matching import BOX_COLUMNS
from surgerylib.metrics import IOU_THRESHOLDS, average_precision
from surgerylib.study import evaluation_tables, head_evaluation, localizer_tables, per_class, per_class_tables
from surgerylib.study.box_groups import box_groups
from surgerylib.study.classification import Classification
from surgerylib.study.error_types import detection_errors, error_decomposition, mean_gains
from surgerylib.study.tables import plain
from surgerylib.study.verdict import verdict
from surgerylib.workbook.tables import sortable_table

KINDS = ("standard", "vv_qk", "vv_vv", "vv_mixed")
SHOWN = "vv_mixed"
GRID = (7, 7)
SOURCES = {kind: Setting(kind) for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="a folder in one of the layouts")
    parser.add_argument("--split", default="test")
    parser.add_argument("--detections", type=int, default=4, help="detections a ground truth box and kind")
    options = parser.parse_args()

    data = load_dataset(options.dataset, options.split, require_images=False)
    rng = np.random.default_rng(0)
    ious, named = _ious(data, rng), _classification(data, rng)
    detections = {kind: _detections(data, rng, options.detections) for kind in ("standard", SHOWN)}
    pairs = _pairs(data, rng)
    n_detections = sum(map(len, detections.values()))
    print(f"{data.describe()}; {n_detections:,} detections of {len(detections)} kinds; {_memory()} before")

    steps = _Steps()
    _notebook_04(steps, data, ious, named)
    _notebook_05(steps, data, named, detections, pairs)
    print(f"all: {steps.seconds:.1f} s, peak memory {_memory()}")


class _Steps:
    """Times each step, and adds up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        print(f"  {name}: {seconds:.2f} s")
        return result


def _notebook_04(steps: _Steps, data: Dataset, ious: pd.DataFrame, named: Classification) -> None:
    classes = list(data.classes)
    summary = steps("summary", lambda: summarise(ious))
    said = steps(
        "verdict and answer table",
        lambda: (verdict(summary), localizer_tables.answer_table(summary)),
    )[0]
    groups = steps("by group", lambda: head_evaluation.by_group(ious))
    by_class = steps("by class", lambda: head_evaluation.by_class(ious, classes))
    seen = steps("seen and unseen", lambda: localizer_tables.by_seen(ious, classes[:10]))
    steps("tables", lambda: [evaluation_tables.groups_table(part) for part in (groups, by_class)])
    steps("naming: sentence and table", lambda: (
        evaluation_tables.classification_sentence(named, SOURCES[SHOWN], SHOWN),
        evaluation_tables.accuracy_table(named, SOURCES),
    ))  # fmt: skip
    levels = steps(
        "image level", lambda: {path: named.image_level(path, interpolation="11point") for path in ("qk", "vv")}
    )
    wording = steps("four prompt sets", lambda: evaluation_tables.prompt_figures(
        dict.fromkeys(("name", "single", "ensemble", "synonyms"), named) | {"ensemble": named}, SOURCES[SHOWN],
        reference="ensemble", interpolation="11point",
    ))  # fmt: skip
    confusion = named.confusion(SOURCES[SHOWN])
    steps("figures", lambda: [
        figure_bytes(figure, "png")
        for figure in (
            evaluation_plots.iou_distributions(ious, list(METHODS), "t"),
            evaluation_plots.class_method_bars(by_class, "t"),
            evaluation_plots.confusion_heatmap(confusion, "t"),
        )
    ])  # fmt: skip
    steps("evaluation_results.json", lambda: json.dumps(evaluation_tables.evaluation_results(
        said, summary, classes=by_class, groups=groups, seen=seen, prompts=plain(wording),
        **evaluation_tables.classification_results(named, SOURCES, levels, seed=0),
    )))  # fmt: skip


def _notebook_05(
    steps: _Steps, data: Dataset, named: Classification, detections: Mapping[str, pd.DataFrame], pairs: pd.DataFrame
) -> None:
    classes, own = list(data.classes), detections[SHOWN]
    ap = average_precision(own, data.boxes, classes=classes)  # notebook 01 leaves it
    ap = ap.assign(protocol="all", kind=SHOWN, low=ap["ap"], high=ap["ap"])
    decomposition = steps("error decomposition, 6 IoUs", lambda: error_decomposition(
        own, data.boxes, foreground_ious=IOU_THRESHOLDS, classes=classes
    ))  # fmt: skip
    errors = steps("types at the lowest IoU", lambda: detection_errors(own, data.boxes, foreground_iou=0.05))
    gaps = steps("response gaps", lambda: per_class.response_gaps({"standard": pairs, SHOWN: pairs}, classes))
    figures = steps("figures by class", lambda: per_class.class_figures(
        named, SOURCES[SHOWN], GRID, ap_by_class=ap, gaps=gaps[gaps["kind"] == SHOWN], decomposition=decomposition,
        errors=errors,
    ))  # fmt: skip
    failures = per_class.failing_classes(figures, IOU_THRESHOLDS, kind=SHOWN)
    steps("sortable table", lambda: sortable_table(
        *per_class_tables.overview(figures, ap, [0.05, 0.15, 0.5], SHOWN)[:1], caption="t"
    ))  # fmt: skip
    curves = steps("precision and recall", lambda: {
        kind: per_class.precision_recall(found, data.boxes, iou_threshold=0.05, classes=classes)
        for kind, found in detections.items()
    })  # fmt: skip
    steps("examples", lambda: per_class.pick_images(per_class.best_detection_iou(own, data), data, 2))
    gains = mean_gains(decomposition)
    steps("figures", lambda: [
        figure_bytes(figure, "png")
        for figure in (
            per_class_plots.error_bars(figures, classes, "t", "x"),
            per_class_plots.ap_against_size(figures, "mean_ap", "t", "y", 114.0, kind="vv_mixed"),
            per_class_plots.gap_dots(gaps, classes, "t"),
            per_class_plots.precision_recall_grid(
                curves, ap[ap["iou_threshold"] == 0.05].set_index("label")["ap"], classes, "t"
            ),
        )
    ])  # fmt: skip
    results = steps("per_class_results.json", lambda: json.dumps(per_class_tables.per_class_results(
        per_class.failing_finding(failures), failures, figures, gains, decomposition
    )))  # fmt: skip
    print(f"  {json.loads(results)['finding']}")


def _ious(data: Dataset, rng: np.random.Generator) -> pd.DataFrame:
    """A frame of `head_evaluation.evaluate_head` from boxes around the ground truth."""
    image, label = truth_codes(data)
    sides = data.images[["width", "height", "width", "height"]].to_numpy(np.float64)[image]
    boxes = data.boxes[BOX_COLUMNS].to_numpy(np.float64) / sides
    spread = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    columns = {
        method: box_iou(_ordered(boxes + rng.normal(0, noise, boxes.shape) * spread), boxes)
        for method, noise in (("oracle", 0.1), ("cam_peak", 0.4), ("untrained_oracle", 0.3), ("untrained_peak", 0.6))
    }
    columns["cam_peak"] = np.minimum(columns["cam_peak"], columns["oracle"])
    guesses = baseline_ious(boxes, label, class_mean_boxes(boxes, label, len(data.classes)))
    frame = data.boxes[["image_id", "label"]].assign(box_row=np.arange(len(boxes)), **columns)
    return pd.concat([frame, guesses, box_groups(data, GRID)], axis=1)


def _classification(data: Dataset, rng: np.random.Generator) -> Classification:
    _, label = truth_codes(data)
    found = {}
    for kind, source in SOURCES.items():
        responses = rng.normal(0, 0.1, (len(label), len(data.classes)))
        responses[np.arange(len(label)), label] += 0.05 if kind in ("standard", "vv_qk") else 0.2
        found[source] = responses
    scores = {path: rng.random((len(data.images), len(data.classes)), np.float32) for path in ("qk", "vv")}
    return Classification(data, found, scores)


def _detections(data: Dataset, rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Of each box so many: jittered, a third with another name, and a third of them moved away."""
    rows = np.tile(np.arange(len(data.boxes)), count)
    boxes = data.boxes[BOX_COLUMNS].to_numpy(np.float64)[rows]
    spread = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = np.where(rng.random(len(rows)) < 1 / 3, 3.0, 0.0)[:, None] * spread
    boxes = _ordered(boxes + rng.normal(0, 0.25, boxes.shape) * spread + moved)
    names = np.array(data.classes, dtype=object)
    label = data.boxes["label"].to_numpy(object)[rows]
    label = np.where(rng.random(len(rows)) < 1 / 3, rng.choice(names, len(rows)), label)
    frame = pd.DataFrame({"image_id": data.boxes["image_id"].to_numpy(object)[rows], "label": label})
    return frame.assign(**dict(zip(BOX_COLUMNS, boxes.T, strict=True)), score=rng.random(len(rows)))


def _pairs(data: Dataset, rng: np.random.Generator) -> pd.DataFrame:
    frame = data.boxes.groupby(["image_id", "label"]).size().reset_index(name="n_boxes")
    inside, outside = rng.normal(0.25, 0.05, len(frame)), rng.normal(0.2, 0.05, len(frame))
    return frame.assign(inside_mean=inside, outside_mean=outside, inverted=(inside < outside).astype(float))


def _ordered(boxes: np.ndarray) -> np.ndarray:
    """xmin <= xmax and ymin <= ymax."""
    return np.hstack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])])


def _memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"


if __name__ == "__main__":
    main()
