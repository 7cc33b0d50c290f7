"""Boxes of images under many settings against the CLIP forward of these images; both use all cores.

    python benchmarks/extraction.py

20 classes asked on every image, 4 kinds, 5 percentiles; random weights. Boxes are first compared with `extract_boxes`
called one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import torch
from pictures import SIDE, write_dataset

from surgerylib import DIOR_CLASSES, HEATMAP_KINDS, HeatmapStore, Setting, extract_boxes, load_clip, load_dataset
from surgerylib.engine import find_boxes

MODEL, IMAGES = "ViT-B-32", 32
PERCENTILES = (50.0, 70.0, 75.0, 80.0, 90.0)


def rows() -> Iterator[harness.Row]:
    clip = load_clip(MODEL, "random", device="cpu")
    pixels = torch.randn(IMAGES, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward() -> None:
        for batch in pixels.split(8):
            clip.model.encode_image(batch)

    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset(write_dataset(Path(folder) / "data", IMAGES), "test")
        store = HeatmapStore(clip, data, folder).compute()
        for similarity, limit in (("cosine", 0.6), ("surgery", None)):
            maps = {setting.maps_key: setting for setting in (Setting(kind, similarity) for kind in HEATMAP_KINDS)}
            groups = [[Setting(m.kind, similarity, percentile=p) for p in PERCENTILES] for m in maps.values()]
            check(store, groups[-1])
            # worker processes are started by the call that warms up, as a data set of any size does once
            yield harness.compare(
                f"boxes of {len(DIOR_CLASSES)} classes, 4 kinds ({len(maps)} maps, {similarity}), 5 percentiles",
                lambda groups=groups: [find_boxes(store, group) for group in groups], "CLIP forward of the images",
                forward, rounds=4, limit=limit,
            )  # fmt: skip


def check(store: HeatmapStore, settings: list[Setting]) -> None:
    for setting, table in zip(settings, find_boxes(store, settings, workers=1), strict=True):
        for image, label in ((0, 0), (len(store.dataset.images) - 1, 19)):
            alone = extract_boxes(store.maps(setting, image)[0, label], (SIDE, SIDE), percentile=setting.percentile)
            np.testing.assert_array_equal(table.boxes[(table.image == image) & (table.label == label)], alone)


if __name__ == "__main__":
    harness.main(rows, __doc__)
