"""From a folder of JPEGs to detections.parquet, against the bare CLIP forward over as many images.

    python benchmarks/end_to_end.py [--images 256] [--rounds 2] [--model ViT-B-32]

800 x 800 pictures in DIOR's layout, random weights, 20 classes, 4 kinds, percentile 75. Ours is all of it: reading the
annotations, decoding, both paths, the maps on disk, boxes in worker processes, the parquet file; but the classes' names
are encoded before, once a model. The reference is stock `encode_image` over as many images that lie ready in memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import harness
import numpy as np
import pandas as pd
import torch
from pictures import SIDE, write_pictures

from surgerylib import DIOR_CLASSES, DetectionSettings, detect, extract_boxes, load_clip, load_dataset, read_image
from surgerylib.engine.evaluate import image_heatmaps
from surgerylib.words import prompt_names
from surgerylib.workbook.run_files import write_frames

BATCH, DIFFERENT, BOXES = 16, 64, 8


def rows(n_images: int, rounds: int, model: str) -> Iterator[harness.Row]:
    clip = load_clip(model, "random", device="cpu")
    pixels = torch.randn(BATCH, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    settings = DetectionSettings()
    clip.encode_text(prompt_names(DIOR_CLASSES), settings.templates)  # once a model, however many images there are

    @torch.no_grad()
    def forward() -> None:
        for start in range(0, n_images, BATCH):
            clip.model.encode_image(pixels[: n_images - start])

    with tempfile.TemporaryDirectory() as folder:
        root, numbers = Path(folder) / "data", count()
        write_dataset(root, n_images)

        def pipeline() -> None:
            out = Path(folder) / f"out-{next(numbers)}"
            data = load_dataset(root, "test")
            frame = detect(clip, data, settings, cache_dir=out / "cache", batch_size=BATCH)
            write_frames(out, {"detections.parquet": frame})

        yield harness.compare(
            f"{n_images:,} JPEGs to detections.parquet, {model}", pipeline, "stock encode_image of as many", forward,
            rounds=rounds, limit=1.15, warm=False,
        )  # fmt: skip
        _check(clip, root, Path(folder) / "out-0/detections.parquet", settings)


def write_dataset(root: Path, n_images: int) -> None:
    """Pictures and annotations in DIOR's layout; a few different pictures under many names."""
    images, boxes, splits = (
        root / name for name in ("JPEGImages-test", "Annotations/Horizontal Bounding Boxes", "ImageSets/Main")
    )
    for path in (images, boxes, splits):
        path.mkdir(parents=True)
    first = write_pictures(images, min(n_images, DIFFERENT))
    for number in range(len(first), n_images):
        os.link(first[number % DIFFERENT], images / f"{number:05d}.jpg")
    rng = np.random.default_rng(0)
    for number in range(n_images):
        low = rng.integers(0, 600, (BOXES, 2))
        xyxy = np.hstack([low, low + rng.integers(20, 200, low.shape)])
        objects = "".join(
            f"<object><name>{DIOR_CLASSES[rng.integers(20)]}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for a, b, c, d in xyxy
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        (boxes / f"{number:05d}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (splits / "test.txt").write_text("\n".join(f"{number:05d}" for number in range(n_images)))


def _check(clip, root: Path, path: Path, settings: DetectionSettings) -> None:
    """The boxes of two images are those of the single calls, up to what another batch changes in the last bits."""
    frame = pd.read_parquet(path)
    text = clip.encode_text(prompt_names(DIOR_CLASSES), settings.templates)
    for image_id in (frame["image_id"].iloc[0], frame["image_id"].iloc[-1]):
        image = read_image(root / f"JPEGImages-test/{image_id}.jpg")
        maps = image_heatmaps(clip, image, text, settings)
        alone = [extract_boxes(one, (SIDE, SIDE)) for kind in settings.kinds for one in maps[kind]]
        found = frame[frame["image_id"] == image_id][["xmin", "ymin", "xmax", "ymax", "score"]].to_numpy()
        assert abs(len(found) - sum(map(len, alone))) <= 0.02 * len(found) + 2, (len(found), sum(map(len, alone)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32")
    known, rest = parser.parse_known_args()
    harness.main(partial(rows, known.images, known.rounds, known.model), __doc__, rest)
