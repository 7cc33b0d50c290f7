"""The trainable heatmap adapter: a small residual on the frozen patch tokens, the open vocabulary kept.

It changes what a patch says, never what is asked: the text enters as it is, so any prompt works, and a class that was
not trained on gets a map like any other. Untrained it changes nothing, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import SurgeryCLIP
from .errors import ParameterError, whole_number
from .weights import load_trained
from .words import KIND_PATHS, check_kinds

# the two scalars of the logits move so many times faster than the weights: a similarity spans 0.5, a logit 10 and more
_GAIN = 10.0


class HeatmapAdapter(nn.Module):
    """Patch tokens of a frozen CLIP -> tokens whose similarity to a text is a logit that all images share.

    For the unit patch token x of layer l of L, and any unit text t:

        x' = (1 + d_l) (x + U gelu(V x + v))        low-rank residual and weight of the layer
        logit = exp(10 s) · mean over l of x'·t + 10 b

    d, U, s and b begin at zero. The residual has `rank` channels; it sees one patch at a time and no class.
    """

    def __init__(self, embed_dim: int, num_layers: int = 3, rank: int = 32) -> None:
        """V is drawn from torch's generator; all else begins at zero.

        Args:
            embed_dim: D of the tokens (`SurgeryCLIP.embed_dim`).
            num_layers: L, number of last layers whose tokens are given.
            rank: of the residual map.

        Raises:
            ParameterError: a size below 1.
        """
        super().__init__()
        self.embed_dim = whole_number("embed_dim", embed_dim)
        self.num_layers = whole_number("num_layers", num_layers)
        self.rank = whole_number("rank", rank)
        self.layer_offsets = nn.Parameter(torch.zeros(self.num_layers))
        self.down = nn.Linear(self.embed_dim, self.rank)
        self.up = nn.Linear(self.rank, self.embed_dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(()))

    @property
    def config(self) -> dict[str, int]:
        """The arguments that make another of its kind."""
        return {"embed_dim": self.embed_dim, "num_layers": self.num_layers, "rank": self.rank}

    @property
    def scale(self) -> Tensor:
        """What a similarity is multiplied with: one over the temperature."""
        return torch.exp(_GAIN * self.log_scale)

    def tokens(self, patches: Tensor) -> Tensor:
        """Adapted patch tokens, each layer with its weight: [L, B, N, D] unit rows -> the same, not of unit length."""
        self._check(patches)
        return (patches + self.up(F.gelu(self.down(patches)))) * (1 + self.layer_offsets)[:, None, None, None]

    def logits(self, similarities: Tensor) -> Tensor:
        """Similarities of adapted tokens, of any shape -> logits: 0 is even odds, on every image."""
        return self.scale * similarities + _GAIN * self.bias

    def forward(self, patches: Tensor, text: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Logit maps of any texts.

        Args:
            patches: [L, B, N, D] unit rows, deepest layer last.
            text: [C, D] unit rows.
            grid: (h, w) with h * w = N; None for a square one.

        Returns:
            [B, C, h, w] logits.

        Raises:
            ParameterError: a shape that does not fit.
        """
        return self.maps_and_drift(patches, text, grid)[0]

    def maps_and_drift(
        self, patches: Tensor, text: Tensor, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the residual's mean squared length: [B, C, h, w] logits and one number.

        No adapted token is formed: (x + U h)·t = x·t + h·(Uᵀt) and |U h|² = h·(UᵀU)h, with the `rank` channels
        h = gelu(V x + v). All that is as wide as a token is x itself, which needs no gradient.
        """
        self._check(patches, text)
        text = text.to(patches.dtype)
        hidden = F.gelu(self.down(patches))  # [L, B, N, rank]
        similarities = F.linear(patches, text) + F.linear(hidden, text @ self.up.weight)  # [L, B, N, C]
        mean = torch.tensordot((1 + self.layer_offsets).to(similarities.dtype), similarities, dims=1) / self.num_layers
        drift = (F.linear(hidden, self.up.weight.T @ self.up.weight) * hidden).sum(dim=-1).float().mean()
        n_patches = patches.shape[2]
        rows, columns = (math.isqrt(n_patches),) * 2 if grid is None else grid
        if rows * columns != n_patches:
            raise ParameterError(f"{n_patches} patches are not a grid of {rows} x {columns}; give grid=(rows, columns)")
        return self.logits(mean).transpose(1, 2).unflatten(2, (rows, columns)), drift

    def _check(self, patches: Tensor, text: Tensor | None = None) -> None:
        if patches.ndim != 4 or patches.shape[0] != self.num_layers or patches.shape[-1] != self.embed_dim:
            raise ParameterError(
                f"this adapter takes patch tokens [{self.num_layers}, B, N, {self.embed_dim}], got "
                f"{list(patches.shape)}; use as many last layers, of the CLIP that it was trained on"
            )
        if text is not None and (text.ndim != 2 or text.shape[1] != self.embed_dim):
            raise ParameterError(f"text must be [C, {self.embed_dim}] for this adapter, got {list(text.shape)}")


def clip_and_tokens(clip: SurgeryCLIP, kind: str, layers: int) -> dict[str, Any]:
    """What a trained adapter belongs to: the CLIP, but not the device that it runs on, and the tokens of a kind.

    Kinds that take their patches from the same path have the same tokens, and share an adapter.
    """
    check_kinds([kind])
    own = {name: value for name, value in clip.identity.items() if name != "device"}
    return {**own, "patches": KIND_PATHS[kind][1], "layers": layers}


def load_adapter(
    path: str | Path, *, belongs_to: Mapping[str, Any] | None = None
) -> tuple[HeatmapAdapter, dict[str, Any]]:
    """A trained adapter out of `weights.save_trained`'s file, in eval mode on the CPU, and what was written about it.

    `belongs_to` is the CLIP and tokens that it will be used with (`clip_and_tokens`); None compares nothing.

    Raises:
        CheckpointError: no such file, a damaged one, or one that belongs to another CLIP, kind or number of layers.
    """
    model, about = load_trained(
        path, "adapter", HeatmapAdapter, belongs_to=belongs_to, name="adapter",
        command="python -m surgerylib train --stage heatmap",
    )  # fmt: skip
    return model.requires_grad_(False), about
