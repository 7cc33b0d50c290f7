"""Both paths of one forward against stock `encode_image`, alternating in one run.

    python benchmarks/forward.py [--model ViT-B-32] [--batch 8] [--rounds 20]

Random weights: the time does not depend on their values. Prints the median ratio and its spread, and checks first that
both sides computed the same.
"""

from __future__ import annotations

import argparse

import torch
from alternating import ratio

from surgerylib import HEATMAP_KINDS, heatmaps, load_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()

    clip = load_clip(options.model, "random", device="cpu")
    images = torch.randn(options.batch, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    text = torch.nn.functional.normalize(torch.randn(20, clip.embed_dim), dim=-1)

    @torch.no_grad()
    def stock() -> torch.Tensor:
        return clip.model.encode_image(images)

    def maps() -> None:
        tokens = clip.encode_image(images)
        for kind in HEATMAP_KINDS:
            heatmaps(tokens, text, kind)

    ours = {
        "both paths": lambda: clip.encode_image(images),
        "both paths, 4 kinds of maps for 20 classes": maps,
        "both paths of 3 layers with features": lambda: clip.encode_image(images, last_layers=3),
    }
    expected = torch.nn.functional.normalize(stock(), dim=-1)
    torch.testing.assert_close(clip.encode_image(images).qk[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    print(f"{options.model}, batch {options.batch}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for name, call in ours.items():
        median, low, high = ratio(stock, call, options.rounds)
        print(f"{name:45s} {median:.3f} x stock encode_image (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
