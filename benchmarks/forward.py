"""Both paths of one forward, and the maps from them, against stock `encode_image`.

    python benchmarks/forward.py [--model ViT-B-32] [--batch 8] [--rounds 10]

Random weights: the time does not depend on their values. Both sides must give the same image embedding first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import harness
import torch

from surgerylib import HEATMAP_KINDS, heatmaps, load_clip


def rows(model: str, batch: int, rounds: int) -> Iterator[harness.Row]:
    clip = load_clip(model, "random", device="cpu")
    images = torch.randn(batch, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
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
        yield harness.compare(f"{name}, {model}, batch {batch}", call, reference, stock, rounds=rounds, limit=limit)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    known, rest = parser.parse_known_args()
    harness.main(partial(rows, known.model, known.batch, known.rounds), __doc__, rest)
