"""Boxes of images under many settings against the CLIP forward of these images; both use all cores.

    python benchmarks/extraction.py [--model ViT-B-32] [--images 32] [--rounds 4]

20 classes asked on every image, 4 kinds, 5 percentiles; random weights, smooth random images. Boxes are first compared
with `extract_boxes` called one by one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch

from surgerylib import DIOR_CLASSES, HEATMAP_KINDS, extract_boxes, load_clip, prompt_names
from surgerylib.engine.finding import MapShard, boxes_of
from surgerylib.heatmaps import Setting

PERCENTILES = (50.0, 70.0, 75.0, 80.0, 90.0)
SIZE_WH = (800, 800)


def rows(model: str, n_images: int, rounds: int) -> Iterator[harness.Row]:
    clip = load_clip(model, "random", device="cpu")
    coarse = torch.randn(n_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(clip.image_size,) * 2, mode="bicubic")
    text = clip.encode_text(prompt_names(DIOR_CLASSES))
    settings = [Setting(percentile=percentile) for percentile in PERCENTILES]

    @torch.no_grad()
    def forward() -> None:
        for batch in images.split(8):
            clip.model.encode_image(batch)

    with tempfile.TemporaryDirectory() as folder:
        shard = _store(clip, images, text, Path(folder))
        for similarity, limit in (("cosine", 0.5), ("surgery", None)):
            sources = [Setting(kind, similarity) for kind in HEATMAP_KINDS]
            distinct = list({source.key: source for source in sources}.values())
            _check(shard, distinct[-1], settings)
            # worker processes are started by the call that warms up, as a data set of any size does once
            yield harness.compare(
                f"boxes of 20 classes, 4 kinds ({len(distinct)} maps, {similarity}), 5 percentiles",
                partial(boxes_of, [shard], distinct, settings), "CLIP forward of the images", forward,
                rounds=rounds, limit=limit,
            )  # fmt: skip


def _store(clip, images: torch.Tensor, text: torch.Tensor, folder: Path) -> MapShard:
    tokens = clip.encode_image(images)
    both = torch.stack([tokens.qk, tokens.vv]) @ text.T
    path = folder / "maps.npy"
    np.save(path, both.permute(2, 1, 0, 4, 3).contiguous().numpy())
    return MapShard(str(path), clip.grid, 0, (SIZE_WH,) * len(images))


def _check(shard: MapShard, source: Setting, settings: list[Setting]) -> None:
    maps = shard.maps(source)
    tables = boxes_of([shard], [source], settings, workers=1)[source]
    for setting, table in zip(settings, tables, strict=True):
        for image, label in ((0, 0), (len(maps) - 1, 19)):
            alone = extract_boxes(maps[image, label], SIZE_WH, percentile=setting.percentile)
            np.testing.assert_array_equal(table.boxes[(table.image == image) & (table.label == label)], alone)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    known, rest = parser.parse_known_args()
    harness.main(partial(rows, known.model, known.images, known.rounds), __doc__, rest)
