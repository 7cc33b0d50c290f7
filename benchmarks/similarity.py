"""CLIP Surgery's feature surgery on unit features against its published elementwise form.

    python benchmarks/similarity.py

8 images of 2,500 patches, 20 classes, width 512. The published form holds a product for each image, patch, class and
channel, here 0.8 GB (`clip_feature_surgery` of the CLIP Surgery code; Li et al. 2023, arXiv:2304.05653, section 3.3,
says the same in a formula); written here from the formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import harness
import torch
from torch.nn import functional as F

from surgerylib import ImageTokens, heatmaps

BATCH, SIDE, CLASSES, WIDTH = 8, 50, 20, 512


@torch.no_grad()
def elementwise(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """[B, 1+N, D] and [C, D] -> [B, N, C], channel by channel."""
    weights = torch.softmax(2 * tokens[:, 0] @ text.T, dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)  # [B, C]
    products = tokens[:, 1:, None, :] * text  # [B, N, C, D]
    products = products * weights[:, None, :, None]
    redundant = products.mean(dim=2, keepdim=True)
    return (products - redundant).sum(dim=-1)


def rows() -> Iterator[harness.Row]:
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(BATCH, 1 + SIDE**2, WIDTH, generator=generator), dim=-1)
    text = F.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=-1)
    of_image = ImageTokens(tokens[None], tokens[None], torch.empty(0), (SIDE, SIDE))
    ours = partial(heatmaps, of_image, text, "standard", similarity="surgery")
    theirs = partial(elementwise, tokens, text)
    expected = theirs().transpose(1, 2).reshape(BATCH, CLASSES, SIDE, SIDE)
    torch.testing.assert_close(ours(), expected, rtol=1e-4, atol=1e-6)
    del expected
    name = f"surgery similarity, B={BATCH}, N={SIDE**2}, C={CLASSES}, D={WIDTH}"
    yield harness.compare(name, ours, "the elementwise form", theirs, rounds=5, limit=1 / 50)


if __name__ == "__main__":
    harness.main(rows, __doc__)
