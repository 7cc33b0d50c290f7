"""Training on frozen features against stock `encode_image` of the same batch, alternating in one run.

    python benchmarks/training.py [--model ViT-B-32] [--batch 8] [--rounds 20] [--images 96] [--epoch 0] [--dir DIR]

Random weights, random 800 x 800 JPEGs, 20 classes, 8 boxes an image. Printed are the median ratio and its quartiles of

- one training step from the cache: read, forward, loss, backward, optimiser;
- the loss alone, in milliseconds, with and without its gradient;
- building the cache, decoding of the JPEGs included, against the bare forward over the same images.

With `--epoch N` also: the time of an epoch over a synthetic cache of N images, and the peak memory in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from alternating import ratio

from surgerylib import DIOR_CLASSES, load_clip
from surgerylib.datasets import Dataset
from surgerylib.features import FeatureCache
from surgerylib.files import file_sha256
from surgerylib.image_shards import write_shard_head
from surgerylib.localizer_training import LocalizerSettings, LocalizerTask, predict
from surgerylib.losses import gt_class_localization_loss
from surgerylib.training import Schedule, optimizer_of, train_step

BOXES = 8
SIDE = 800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epoch", type=int, default=0, metavar="N")
    parser.add_argument("--dir", type=Path, help="for the synthetic cache; needs 0.28 GB a thousand images")
    options = parser.parse_args()

    clip = load_clip(options.model, "random", device="cpu")
    print(f"{options.model}, batch {options.batch}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        data = _dataset(Path(folder), options.images)
        _cache(clip, data, Path(folder), options)
        few = options.batch  # to validate on, as a training needs them
        caches = [
            FeatureCache(clip, _part(data, rows), Path(folder) / "caches").compute()
            for rows in (slice(few, None), slice(few))
        ]
        _step(clip, *caches, options)
        if options.epoch:
            _epoch(clip, data, caches[1], Path(folder), options)


def _dataset(folder: Path, n_images: int) -> Dataset:
    """Smooth random pictures as JPEG, with random boxes."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(n_images):
        coarse = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index:05d}.jpg"
        cv2.imwrite(str(path), noisy, [cv2.IMWRITE_JPEG_QUALITY, 92])
        rows.append((path.stem, str(path), SIDE, SIDE))
    images = pd.DataFrame(rows, columns=["image_id", "path", "width", "height"])
    return _with_boxes(folder, images, rng)


def _part(data: Dataset, rows: slice) -> Dataset:
    images = data.images.iloc[rows].reset_index(drop=True)
    boxes = data.boxes[data.boxes["image_id"].isin(images["image_id"])].reset_index(drop=True)
    return replace(data, images=images, boxes=boxes)


def _with_boxes(folder: Path, images: pd.DataFrame, rng: np.random.Generator) -> Dataset:
    low = rng.uniform(0, 600, (len(images) * BOXES, 2))
    boxes = pd.DataFrame(
        np.hstack([low, low + rng.uniform(20, 200, low.shape)]), columns=["xmin", "ymin", "xmax", "ymax"]
    )
    boxes.insert(0, "image_id", np.repeat(images["image_id"].to_numpy(object), BOXES))
    boxes.insert(1, "label", np.array(DIOR_CLASSES, dtype=object)[rng.integers(0, 20, len(boxes))])
    nothing = pd.DataFrame(columns=["image_id", "label", "repair"])
    return Dataset("random", folder, "train", "DIOR", images, boxes, DIOR_CLASSES, nothing)


def _cache(clip, data: Dataset, folder: Path, options: argparse.Namespace) -> None:
    pixels = torch.randn(options.batch, 3, clip.image_size, clip.image_size)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(0, len(data.images), options.batch):
            clip.model.encode_image(pixels)

    built = iter(range(1000))

    def build() -> None:
        FeatureCache(clip, data, folder / f"built-{next(built)}").compute(batch_size=options.batch)

    rounds = max(3, options.rounds // 4)
    median, low, high = ratio(forward, build, rounds)
    print(f"cache of {len(data.images)} images: {median:.3f} x the bare forward (quartiles {low:.3f} to {high:.3f})")


def _step(clip, cache: FeatureCache, validation: FeatureCache, options: argparse.Namespace) -> None:
    task = LocalizerTask(cache, validation, LocalizerSettings(batch_size=options.batch))
    optimizer = optimizer_of(task.model, Schedule())
    images = torch.randn(options.batch, 3, clip.image_size, clip.image_size)

    @torch.no_grad()
    def stock() -> None:
        clip.model.encode_image(images)

    def step() -> None:
        batch = task.reader.batch(np.arange(options.batch), np.arange(options.batch) % 8)
        train_step(task, optimizer, batch, clip=1.0)

    median, low, high = ratio(stock, step, options.rounds)
    print(f"training step from the cache: {median:.3f} x stock encode_image (quartiles {low:.3f} to {high:.3f})")
    batch = task.reader.batch(np.arange(options.batch))
    pred = predict(task.model, batch).detach().requires_grad_()

    def loss(backward: bool) -> None:
        terms = gt_class_localization_loss(pred, batch.boxes, batch.labels, assign="best_iou_or_center")
        if backward:
            terms.total.backward()

    for name, backward in (("loss alone", False), ("loss and its gradient", True)):
        seconds = []
        for _ in range(5 * options.rounds):
            start = time.perf_counter()
            loss(backward)
            seconds.append(time.perf_counter() - start)
        print(f"{name}, {options.batch * BOXES} boxes: {1000 * statistics.median(seconds):.2f} ms")


def _epoch(clip, data: Dataset, validation: FeatureCache, folder: Path, options: argparse.Namespace) -> None:
    """An epoch over a cache of random records, written as `FeatureCache.compute` would."""
    images = pd.concat([data.images] * (options.epoch // len(data.images) + 1), ignore_index=True)[: options.epoch]
    images["image_id"] = [f"{k:06d}" for k in range(options.epoch)]
    large = _with_boxes(folder, images, np.random.default_rng(1))
    cache = FeatureCache(clip, large, folder / "synthetic")
    rng = np.random.default_rng(2)
    records = np.zeros(16, cache.record)
    records["cam"] = rng.random(records["cam"].shape, dtype=np.float32)
    records["features"] = rng.standard_normal(records["features"].shape, dtype=np.float32)
    records["picture"] = rng.integers(0, 256, records["picture"].shape, dtype=np.uint8)
    cache.folder.mkdir(parents=True)
    hashes = {}
    for first in range(0, options.epoch, cache.shard_images):
        size = min(cache.shard_images, options.epoch - first)
        with cache.path(first).open("wb") as file:
            write_shard_head(file, cache.record, size)
            for start in range(0, size, len(records)):
                file.write(records[: size - start].data)
        hashes[cache.path(first).name] = file_sha256(cache.path(first))
    (cache.folder / "hashes.json").write_text(json.dumps(hashes))
    cache.compute()  # adds the targets; every shard is there
    task = LocalizerTask(cache, validation, LocalizerSettings(batch_size=options.batch))
    optimizer = optimizer_of(task.model, Schedule())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on (Linux)
    start = time.perf_counter()
    for batch in task.batches(1, 0):
        train_step(task, optimizer, batch, clip=1.0)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(
        f"epoch over {options.epoch:,} images ({cache.nbytes / 1e9:.2f} GB): {seconds:.0f} s, {task.steps} steps, "
        f"peak memory of the process, CLIP included, {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
