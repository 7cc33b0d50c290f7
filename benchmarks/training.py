"""Training on frozen features against stock `encode_image` of the same batch.

    python benchmarks/training.py [--model ViT-B-32] [--batch 8] [--rounds 10] [--images 32] [--epoch 0] [--dir DIR]

Random weights, random 800 x 800 JPEGs, 20 classes, 8 boxes an image: one training step from the cache (read, forward,
loss, backward, optimiser), and building the cache (decoding included) against the bare forward over its images. The
cache must hold what the model gives for its images.

With `--epoch N` also: the time of an epoch over a synthetic cache of N images, and the peak memory in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import harness
import numpy as np
import pandas as pd
import torch
from pictures import dataset_of, with_boxes, write_pictures

from surgerylib import load_clip, read_image
from surgerylib.datasets import Dataset
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.localizer_training import LocalizerSettings, LocalizerTask
from surgerylib.engine.store import write_shard_head
from surgerylib.engine.training import Schedule, backward, optimizer_of
from surgerylib.files import file_sha256

REFERENCE = "stock encode_image"


def rows(options: argparse.Namespace) -> Iterator[harness.Row]:
    clip = load_clip(options.model, "random", device="cpu")
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        data = dataset_of(Path(folder), write_pictures(Path(folder), options.images))
        few = options.batch  # to validate on, as a training needs them
        caches = [
            FeatureCache(clip, _part(data, images), Path(folder) / "caches").compute()
            for images in (slice(few, None), slice(few))
        ]
        _check(clip, data, caches[1])
        yield _step(clip, *caches, options)
        yield _cache(clip, data, Path(folder), options)
        if options.epoch:
            _epoch(clip, data, caches[1], Path(folder), options)


def _part(data: Dataset, rows: slice) -> Dataset:
    images = data.images.iloc[rows].reset_index(drop=True)
    boxes = data.boxes[data.boxes["image_id"].isin(images["image_id"])].reset_index(drop=True)
    return replace(data, images=images, boxes=boxes)


def _check(clip, data: Dataset, cache: FeatureCache) -> None:
    """The record of the first image holds what the model gives for it, in half precision."""
    image = clip.preprocess(read_image(data.images["path"].iloc[0]))[None]
    features = clip.encode_image(image, cache.layers).features[:, 0].numpy()
    stored = cache.read([0])[0]["features"].astype(np.float32)
    np.testing.assert_allclose(stored.reshape(features.shape), features, rtol=2e-3, atol=2e-3)


def _cache(clip, data: Dataset, folder: Path, options: argparse.Namespace) -> harness.Row:
    pixels = torch.randn(options.batch, 3, clip.image_size, clip.image_size)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(0, len(data.images), options.batch):
            clip.model.encode_image(pixels)

    built = count()

    def build() -> None:
        FeatureCache(clip, data, folder / f"built-{next(built)}").compute(batch_size=options.batch)

    rounds = max(2, options.rounds // 5)
    return harness.compare(f"feature cache of {len(data.images)} JPEGs", build, REFERENCE, forward, rounds=rounds)


def _step(clip, cache: FeatureCache, validation: FeatureCache, options: argparse.Namespace) -> harness.Row:
    task = LocalizerTask(cache, validation, LocalizerSettings(training_batch_size=options.batch))
    optimizer = optimizer_of(task.model, Schedule())
    images = torch.randn(options.batch, 3, clip.image_size, clip.image_size)

    @torch.no_grad()
    def stock() -> None:
        clip.model.encode_image(images)

    def step() -> None:
        batch = task.reader.batch(np.arange(options.batch), np.arange(options.batch) % 8)
        backward(task, batch, clip=1.0)
        optimizer.step()

    name = f"training step from the cache, batch {options.batch}"
    reference = f"{REFERENCE}, batch {options.batch}"
    return harness.compare(name, step, reference, stock, rounds=options.rounds, limit=0.20)


def _epoch(clip, data: Dataset, validation: FeatureCache, folder: Path, options: argparse.Namespace) -> None:
    """An epoch over a cache of random records, written as `FeatureCache.compute` would."""
    images = pd.concat([data.images] * (options.epoch // len(data.images) + 1), ignore_index=True)[: options.epoch]
    images["image_id"] = [f"{k:06d}" for k in range(options.epoch)]
    large = with_boxes(folder, images, np.random.default_rng(1))
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
    task = LocalizerTask(cache, validation, LocalizerSettings(training_batch_size=options.batch))
    optimizer = optimizer_of(task.model, Schedule())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on (Linux)
    start = time.perf_counter()
    for batch in task.batches(1, 0):
        backward(task, batch, clip=1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(
        f"epoch over {options.epoch:,} images ({cache.nbytes / 1e9:.2f} GB): {seconds:.0f} s, {task.steps} steps, "
        f"peak memory of the process, CLIP included, {peak:.0f} MB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epoch", type=int, default=0, metavar="N")
    parser.add_argument("--dir", type=Path, help="for the synthetic cache; needs 0.28 GB a thousand images")
    known, rest = parser.parse_known_args()
    harness.main(partial(rows, known), __doc__, rest)
