"""Training on frozen features against stock `encode_image` of the same images.

    python benchmarks/training.py

Random weights, 800 x 800 JPEGs, 20 classes, 8 boxes an image on average: one training step of the head from the cache
(read, forward, loss, backward, optimiser), and building the cache, decoding included. The cache must hold what the
model gives for its images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import harness
import numpy as np
import torch
from pictures import write_dataset

from surgerylib import FeatureCache, SurgeryCLIP, load_clip, load_dataset, read_image
from surgerylib.engine import LocalizerSettings, LocalizerTask

MODEL, IMAGES, BATCH = "ViT-B-32", 32, 8
REFERENCE = "stock encode_image"


def rows() -> Iterator[harness.Row]:
    clip = load_clip(MODEL, "random", device="cpu")
    pixels = torch.randn(BATCH, 3, clip.image_size, clip.image_size)

    @torch.no_grad()
    def stock(n_images: int) -> None:
        for start in range(0, n_images, BATCH):
            clip.model.encode_image(pixels[: n_images - start])

    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "data", IMAGES, "train")
        all_ids = (root / "ImageSets/Main/train.txt").read_text().split()
        for split, ids in (("train", all_ids[BATCH:]), ("val", all_ids[:BATCH])):
            (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids))
        numbers = count()
        train, val = (load_dataset(root, split) for split in ("train", "val"))

        def cache_of(data) -> FeatureCache:
            return FeatureCache(clip, data, Path(folder) / f"cache-{next(numbers)}").compute(batch_size=BATCH)

        caches = [cache_of(data) for data in (train, val)]
        check(clip, caches[1])
        task = LocalizerTask(*caches, LocalizerSettings())
        optimizer = torch.optim.AdamW(task.model.parameters(), 1e-4)

        def step() -> None:
            batch = task.reader.batch(np.arange(BATCH), np.arange(BATCH) % 8)
            task.model.train()
            optimizer.zero_grad()
            task.loss(batch)[0].backward()
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            optimizer.step()

        name = f"training step from the cache, batch {BATCH}"
        one_batch = partial(stock, BATCH)
        yield harness.compare(name, step, REFERENCE, one_batch, rounds=10, limit=0.25)
        name, all_images = f"feature cache of {len(train.images)} JPEGs", partial(stock, len(train.images))
        yield harness.compare(name, partial(cache_of, train), REFERENCE, all_images, rounds=2)


def check(clip: SurgeryCLIP, cache: FeatureCache) -> None:
    """The record of the first image holds what the model gives for it, in half precision."""
    image = clip.preprocess(read_image(cache.dataset.images["path"].iloc[0]))[None]
    features = clip.encode_image(image, cache.layers).features[:, 0].numpy()
    stored = cache.read([0])[0]["features"].astype(np.float32)
    np.testing.assert_allclose(stored.reshape(features.shape), features, rtol=2e-3, atol=2e-3)


if __name__ == "__main__":
    harness.main(rows, __doc__)
