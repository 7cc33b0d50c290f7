"""Both paths of one forward, and the maps from them, against stock `encode_image`.

    python benchmarks/forward.py

Random weights: the time does not depend on their values. Both sides must give the same image embedding first.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import harness
import torch

from surgerylib import HEATMAP_KINDS, heatmaps, load_clip

MODEL, BATCH = "ViT-B-32", 8


def rows() -> Iterator[harness.Row]:
    clip = load_clip(MODEL, "random", device="cpu")
    images = torch.randn(BATCH, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    text = torch.nn.functional.normalize(torch.randn(20, clip.embed_dim), dim=-1)

    @torch.no_grad()
    def stock() -> torch.Tensor:
        return clip.model.encode_image(images)

    def maps() -> None:
        tokens = clip.encode_image(images)
        for kind in HEATMAP_KINDS:
            heatmaps(tokens, text, kind)

    expected = torch.nn.functional.normalize(stock(), dim=-1)
    torch.testing.assert_close(clip.encode_image(images).qk[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    reference = "stock encode_image"
    several = partial(clip.encode_image, images, last_layers=3)
    for name, call, limit in (
        ("both paths, 4 kinds of maps of 20 classes", maps, 1.10),
        ("both paths of 3 layers with features", several, 1.15),
    ):
        yield harness.compare(f"{name}, {MODEL}, batch {BATCH}", call, reference, stock, rounds=10, limit=limit)


if __name__ == "__main__":
    harness.main(rows, __doc__)
