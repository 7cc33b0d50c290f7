"""Average precision and its intervals at the size of DIOR's test split, against pycocotools and faster-coco-eval.

    python benchmarks/average_precision.py [--annotations DIR]

11,738 images, 124,445 boxes, 497,780 detections (four around each box, some with another name, some on nothing), 20
classes, 6 IoU thresholds, COCO's rules, area `all`, no cap of detections. With `--annotations` (a dataset's folder, its
split test) the boxes are its own; else they are drawn, as crowded as DIOR's. The others get their input as they need
it, ready made: what is timed is their `evaluate` and `accumulate`, against `average_precision` of the two frames.
Memory is what a fresh process grows by in the same calls.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import harness
import numpy as np
import pandas as pd

from surgerylib.metrics import IOU_THRESHOLDS, average_precision, bootstrap_map
from surgerylib.words import DIOR_CLASSES

N_IMAGES, N_BOXES, A_BOX, SIDE = 11_738, 124_445, 4, 800
COLUMNS = ["xmin", "ymin", "xmax", "ymax"]
OTHERS = ("faster_coco_eval", "pycocotools")
ROUNDS = {"faster_coco_eval": 3, "pycocotools": 1}
LIMITS = {"faster_coco_eval": 1 / 3, "pycocotools": 1 / 25}


def frames(annotations: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Detections and ground truth, the same at each call; image ids are whole numbers, in the order of the images."""
    rng = np.random.default_rng(0)
    if annotations:
        from surgerylib.datasets import load_dataset

        boxes = load_dataset(annotations, "test", require_images=False).boxes
        truth = boxes.assign(image_id=pd.factorize(boxes["image_id"])[0])
    else:
        truth = _drawn_truth(rng)
    xyxy, label = truth[COLUMNS].to_numpy(), truth["label"].to_numpy(object)
    rows = np.repeat(np.arange(len(truth)), A_BOX)
    spread = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)[rows]
    moved = np.where(rng.random(len(rows)) < 1 / 3, 3.0, 0.0)[:, None] * spread
    boxes = xyxy[rows] + rng.normal(0, 0.25, (len(rows), 4)) * spread + moved
    boxes = np.hstack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])])
    named = np.where(rng.random(len(rows)) < 1 / 3, rng.choice(np.array(DIOR_CLASSES, object), len(rows)), label[rows])
    found = pd.DataFrame({"image_id": truth["image_id"].to_numpy()[rows], "label": named})
    return found.assign(**dict(zip(COLUMNS, boxes.T, strict=True)), score=rng.random(len(rows))), truth


def _drawn_truth(rng: np.random.Generator) -> pd.DataFrame:
    """Boxes of a few classes an image; some images hold hundreds, as harbours and car parks do."""
    share = rng.lognormal(0, 1.2, N_IMAGES)
    counts = 1 + rng.multinomial(N_BOXES - N_IMAGES, share / share.sum())
    image = np.repeat(np.arange(N_IMAGES), counts)
    main = rng.integers(0, len(DIOR_CLASSES), N_IMAGES)
    label = np.where(rng.random(N_BOXES) < 0.2, rng.integers(0, len(DIOR_CLASSES), N_BOXES), main[image])
    side = np.exp(rng.normal(3.5, 1.0, (N_BOXES, 2))).clip(4, 600)
    low = rng.random((N_BOXES, 2)) * (SIDE - side)
    frame = pd.DataFrame({"image_id": image, "label": np.array(DIOR_CLASSES, dtype=object)[label]})
    return frame.assign(**dict(zip(COLUMNS, np.hstack([low, low + side]).T, strict=True)))


class Coco:
    """One of the two others on these frames: `evaluate` is what they take their time for."""

    def __init__(self, package: str, detections: pd.DataFrame, truth: pd.DataFrame) -> None:
        if package == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            self._evaluator = COCOeval
        else:
            from faster_coco_eval import COCO, COCOeval_faster

            self._evaluator = COCOeval_faster
        with contextlib.redirect_stdout(io.StringIO()):
            self.reference = COCO()
            self.reference.dataset = {
                "images": [{"id": int(i)} for i in range(N_IMAGES)],
                "categories": [{"id": c, "name": name} for c, name in enumerate(DIOR_CLASSES)],
                "annotations": list(self._entries(truth)),
            }
            self.reference.createIndex()
            self.found = self.reference.loadRes(list(self._entries(detections)))

    def _entries(self, frame: pd.DataFrame) -> Iterator[dict]:
        category = {name: c for c, name in enumerate(DIOR_CLASSES)}
        for number, row in enumerate(frame.itertuples(index=False), start=1):
            width, height = row.xmax - row.xmin, row.ymax - row.ymin
            entry = {
                "id": number, "image_id": int(row.image_id), "category_id": category[row.label], "iscrowd": 0,
                "bbox": [row.xmin, row.ymin, width, height], "area": width * height,
            }  # fmt: skip
            yield entry | ({"score": row.score} if hasattr(row, "score") else {})

    def evaluate(self) -> np.ndarray:
        """AP of each class at each threshold: [C, T]."""
        with contextlib.redirect_stdout(io.StringIO()):
            run = self._evaluator(self.reference, self.found, "bbox")
            run.params.iouThrs = np.array(IOU_THRESHOLDS)
            run.params.maxDets = [100_000]
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.evaluate()
            run.accumulate()
        return run.eval["precision"][..., 0, 0].mean(axis=1).T


def rows(annotations: str | None = None) -> Iterator[harness.Row]:
    for package in OTHERS:
        measured = _in_a_process(package, annotations)
        name = f"average precision, {measured['size']}"
        yield harness.row(name, package, measured["seconds"], limit=LIMITS[package])
        yield harness.row("average precision, memory", package, [measured["memory"]], limit=1 / 2, unit="MB")
    detections, truth = frames(annotations)
    point = partial(average_precision, detections, truth)
    ids = range(N_IMAGES)

    def resampled():
        return bootstrap_map(detections, truth, image_ids=ids, n_resamples=1000)

    np.testing.assert_array_equal(resampled().ap.ravel(), point()["ap"])
    yield harness.compare(
        "1,000 resamples of it, 11point", resampled, "average_precision", point, rounds=3, limit=5.0, warm=False
    )


def _in_a_process(package: str, annotations: str | None) -> dict:
    """Seconds of each round, memory and size, ours and theirs in turns, in a process that has done nothing else."""
    command = [sys.executable, __file__, "--against", package, *(["--annotations", annotations] if annotations else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _measure(package: str, annotations: str | None) -> None:
    detections, truth = frames(annotations)
    other = Coco(package, detections, truth)
    average_precision(detections[:1000], truth[:1000])  # what is loaded on first use is not counted
    found, expected = [], []

    def ours() -> None:
        found.append(average_precision(detections, truth, interpolation="coco101", classes=DIOR_CLASSES)["ap"])

    def theirs() -> None:
        expected.append(other.evaluate())

    clock: list[float] = []  # theirs takes most of a minute: its first call counts for both
    memory = (harness.extra_memory(ours), harness.extra_memory(lambda: clock.append(harness.timed(theirs))))
    seconds = [(harness.timed(ours), clock[0])]
    seconds += [(harness.timed(ours), harness.timed(theirs)) for _ in range(ROUNDS[package] - 1)]
    np.testing.assert_allclose(found[0].to_numpy().reshape(expected[0].shape), expected[0], rtol=0, atol=1e-9)
    size = f"{len(truth):,} boxes, {len(detections):,} detections"
    print(json.dumps({"seconds": seconds, "memory": memory, "size": size}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--annotations", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--against")
    known, rest = parser.parse_known_args()
    if known.against:
        _measure(known.against, known.annotations)
    else:
        harness.main(partial(rows, known.annotations), __doc__, rest)
