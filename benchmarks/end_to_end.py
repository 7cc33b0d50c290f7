"""From a folder of JPEGs to boxes and mAP with intervals, against the bare CLIP forward over as many images.

    python benchmarks/end_to_end.py

800 x 800 pictures in DIOR's layout, random weights, 20 classes, 4 kinds, percentile 75. Ours is all of it: reading the
annotations, decoding, both paths, the maps on disk, boxes in worker processes, average precision with 1,000
half-samples under both protocols, the parquet file; but the classes' names are encoded before, once a model. The
reference is stock `encode_image` over as many images that lie ready in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import harness
import pandas as pd
import torch
from pictures import SIDE, write_dataset

from surgerylib import (
    DIOR_CLASSES,
    HEATMAP_KINDS,
    HeatmapStore,
    Setting,
    SurgeryCLIP,
    evaluate,
    extract_boxes,
    heatmaps,
    load_clip,
    load_dataset,
    prompt_names,
    read_image,
)  # fmt: skip

MODEL, IMAGES, BATCH = "ViT-B-32", 256, 16


def rows() -> Iterator[harness.Row]:
    clip = load_clip(MODEL, "random", device="cpu")
    pixels = torch.randn(BATCH, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    clip.encode_text(prompt_names(DIOR_CLASSES))  # once a model, however many images there are

    @torch.no_grad()
    def forward() -> None:
        for start in range(0, IMAGES, BATCH):
            clip.model.encode_image(pixels[: IMAGES - start])

    with tempfile.TemporaryDirectory() as folder:
        root, numbers = write_dataset(Path(folder) / "data", IMAGES), count()

        def pipeline() -> None:
            out = Path(folder) / f"out-{next(numbers)}"
            store = HeatmapStore(clip, load_dataset(root, "test"), out).compute(batch_size=BATCH)
            result = evaluate(store, {kind: Setting(kind) for kind in HEATMAP_KINDS})
            result.detections.to_parquet(out / "detections.parquet", index=False)

        yield harness.compare(
            f"{IMAGES:,} JPEGs to detections.parquet and mAP, {MODEL}", pipeline, "stock encode_image of as many",
            forward, rounds=2, limit=1.5, warm=False,
        )  # fmt: skip
        check(clip, root, pd.read_parquet(Path(folder) / "out-0/detections.parquet"))


def check(clip: SurgeryCLIP, root: Path, frame: pd.DataFrame) -> None:
    """The boxes of two images are those of the single calls, up to what another batch changes in the last bits."""
    text = clip.encode_text(prompt_names(DIOR_CLASSES))
    for image_id in (frame["image_id"].iloc[0], frame["image_id"].iloc[-1]):
        tokens = clip.encode_image(clip.preprocess(read_image(root / f"JPEGImages-test/{image_id}.jpg"))[None])
        maps = [one for kind in HEATMAP_KINDS for one in heatmaps(tokens, text, kind)[0]]
        alone = sum(len(extract_boxes(one, (SIDE, SIDE))) for one in maps)
        found = (frame["image_id"] == image_id).sum()
        assert abs(found - alone) <= 0.02 * found + 2, (found, alone)


if __name__ == "__main__":
    harness.main(rows, __doc__)
