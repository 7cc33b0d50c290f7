"""Average precision and its intervals at the size of DIOR's test split, against pycocotools and faster-coco-eval.

    python benchmarks/average_precision.py

11,738 images, 124,445 boxes, 497,780 detections (four around each box, some with another name, some on nothing), 20
classes, 6 IoU thresholds, COCO's rules, area `all`, no cap of detections; images as crowded as DIOR's. The others get
their input as they need it, ready made: what is timed is their `evaluate` and `accumulate`, against `average_precision`
of the two frames.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial

import harness
import numpy as np
import pandas as pd
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pictures import crowds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from surgerylib import DIOR_CLASSES, average_precision
from surgerylib.metrics import IOU_THRESHOLDS, bootstrap_map

N_IMAGES, N_BOXES, A_BOX = 11_738, 124_445, 4
COLUMNS = ["xmin", "ymin", "xmax", "ymax"]
NAMES = np.array(DIOR_CLASSES, dtype=object)
# package -> its two classes, rounds (pycocotools takes most of a minute), limit
OTHERS = {"faster_coco_eval": (FasterCOCO, COCOeval_faster, 3, 1 / 3), "pycocotools": (COCO, COCOeval, 1, 1 / 25)}


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Detections and ground truth, the same at each call; image ids are whole numbers, in the order of the images."""
    counts, place, boxes = crowds(N_IMAGES, N_BOXES)
    truth = pd.DataFrame({"image_id": np.repeat(np.arange(N_IMAGES), counts), "label": NAMES[place]})
    truth = truth.assign(**dict(zip(COLUMNS, boxes.T, strict=True)))
    rng = np.random.default_rng(0)
    xyxy, label = truth[COLUMNS].to_numpy(), truth["label"].to_numpy(object)
    rows = np.repeat(np.arange(len(truth)), A_BOX)
    spread = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)[rows]
    moved = np.where(rng.random(len(rows)) < 1 / 3, 3.0, 0.0)[:, None] * spread
    boxes = xyxy[rows] + rng.normal(0, 0.25, (len(rows), 4)) * spread + moved
    boxes = np.hstack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])])
    named = np.where(rng.random(len(rows)) < 1 / 3, rng.choice(NAMES, len(rows)), label[rows])
    found = pd.DataFrame({"image_id": truth["image_id"].to_numpy()[rows], "label": named})
    return found.assign(**dict(zip(COLUMNS, boxes.T, strict=True)), score=rng.random(len(rows))), truth


def entries(frame: pd.DataFrame) -> Iterator[dict]:
    category = {name: c for c, name in enumerate(DIOR_CLASSES)}
    for number, row in enumerate(frame.itertuples(index=False), start=1):
        width, height = row.xmax - row.xmin, row.ymax - row.ymin
        entry = {
            "id": number, "image_id": int(row.image_id), "category_id": category[row.label], "iscrowd": 0,
            "bbox": [row.xmin, row.ymin, width, height], "area": width * height,
        }  # fmt: skip
        yield entry | ({"score": row.score} if hasattr(row, "score") else {})


def prepared(
    coco: type, evaluator: type, detections: pd.DataFrame, truth: pd.DataFrame
) -> tuple[Callable[[], None], list[np.ndarray]]:
    """A call of what the package takes its time for, and where its results go: the AP of class and threshold [C, T]."""
    results: list[np.ndarray] = []
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco()
        reference.dataset = {
            "images": [{"id": int(i)} for i in range(N_IMAGES)],
            "categories": [{"id": c, "name": name} for c, name in enumerate(DIOR_CLASSES)],
            "annotations": list(entries(truth)),
        }
        reference.createIndex()
        found = reference.loadRes(list(entries(detections)))

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run = evaluator(reference, found, "bbox")
            run.params.iouThrs = np.array(IOU_THRESHOLDS)
            run.params.maxDets = [100_000]
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.evaluate()
            run.accumulate()
        results.append(run.eval["precision"][..., 0, 0].mean(axis=1).T)

    return evaluate, results


def rows() -> Iterator[harness.Row]:
    detections, truth = frames()
    like_coco = partial(average_precision, detections, truth, interpolation="coco101", classes=DIOR_CLASSES)
    ours = like_coco()["ap"].to_numpy()
    size = f"{len(truth):,} boxes, {len(detections):,} detections"
    for package, (coco, evaluator, rounds, limit) in OTHERS.items():
        evaluate, results = prepared(coco, evaluator, detections, truth)
        name = f"average precision, {size}"
        yield harness.compare(name, like_coco, package, evaluate, rounds=rounds, limit=limit, warm=False)
        np.testing.assert_allclose(ours.reshape(results[0].shape), results[0], rtol=0, atol=1e-9)
    point = partial(average_precision, detections, truth)
    resampled = partial(bootstrap_map, detections, truth, image_ids=range(N_IMAGES), n_resamples=1000)
    np.testing.assert_array_equal(resampled().ap.ravel(), point()["ap"])
    yield harness.compare(
        "1,000 half-samples of it, 11point", resampled, "average_precision", point, rounds=3, limit=5.0, warm=False
    )


if __name__ == "__main__":
    harness.main(rows, __doc__)
