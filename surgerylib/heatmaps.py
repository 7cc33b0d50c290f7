"""Tokens and text -> class heatmaps of the four kinds.

Maps are always computed against the whole class list: under `surgery` similarity each class's map depends on the
others, so the list is part of a result's identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import ImageTokens
from .errors import ParameterError
from .kinds import HEATMAP_KINDS, KIND_PATHS, SIMILARITIES, check_kinds, check_similarity, map_source

if TYPE_CHECKING:
    from .adapter import HeatmapAdapter

__all__ = [
    "HEATMAP_KINDS",
    "SIMILARITIES",
    "check_kinds",
    "check_similarity",
    "heatmaps",
    "map_source",
    "upsample",
]


def heatmaps(
    tokens: ImageTokens,
    text: Tensor,
    kind: str = "vv_mixed",
    *,
    similarity: str = "cosine",
    redundant: Tensor | None = None,
    adapter: HeatmapAdapter | None = None,
) -> Tensor:
    """Similarity of every patch to every class, averaged over the layers of `tokens`.

    `cosine`: unit patches times unit text. The CLS token plays no part, so `vv_vv` and `vv_mixed` agree.
    `surgery` (Li et al. 2023, arXiv:2304.05653, section 3.3): with S = patches·textᵀ, p = softmax(2·cls·textᵀ) over
    the classes and w = p / mean(p): `w·S - mean over classes of w·S`, for each image and layer. With `redundant`
    given: `patches·(text - redundant)ᵀ`.
    With an adapter its tokens take the place of the patches, and the similarities become its logits.

    Args:
        tokens: of B images and L layers.
        text: [C, D] unit rows, the whole class list.
        kind: one of `HEATMAP_KINDS`.
        similarity: `cosine` or `surgery`.
        redundant: [D] or [1, D], the feature to subtract (such as the text of an empty prompt); `surgery` only.
        adapter: trained on the patch tokens of this kind, of as many layers, and on `cosine` maps.

    Returns:
        float32 [B, C, h, w], raw: no min-max, comparable across images.

    Raises:
        ParameterError: unknown kind or similarity, sizes that do not fit, or `surgery` with one class and no
            `redundant`, which would be exactly zero everywhere; an adapter of another width or number of layers.
    """
    cls, patches = _tokens_of(tokens, kind)
    check_similarity(similarity)
    if text.ndim != 2 or text.shape[1] != patches.shape[-1]:
        raise ParameterError(f"text must be [C, {patches.shape[-1]}] for these tokens, got {list(text.shape)}")
    if redundant is not None and similarity != "surgery":
        raise ParameterError('redundant is used by similarity="surgery" only: leave it out or change the similarity')
    if redundant is not None and redundant.shape not in ((text.shape[1],), (1, text.shape[1])):
        raise ParameterError(f"redundant must be [{text.shape[1]}], one feature, got {list(redundant.shape)}")
    text = text.to(patches.dtype)
    if adapter is not None:
        patches = adapter.tokens(patches)
    if similarity == "cosine":
        maps = patches.mean(dim=0) @ text.T  # the mean over layers of a linear map is the map of the mean: [B, N, C]
    elif redundant is not None:
        maps = patches.mean(dim=0) @ (text - redundant.reshape(1, -1)).T
    else:
        maps = _surgery(cls, patches, text)
    if adapter is not None:
        maps = adapter.logits(maps)
    return maps.transpose(1, 2).reshape(maps.shape[0], len(text), *tokens.grid)


def upsample(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of [B, C, h, w] to [B, C, H, W], half-pixel centres (as `boxes.extract_boxes` does)."""
    return F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)


def _surgery(cls: Tensor, patches: Tensor, text: Tensor) -> Tensor:
    """[L, B, D] and [L, B, N, D] -> [B, N, C]."""
    if len(text) < 2:
        raise ParameterError(
            f"surgery similarity needs at least two classes, got {len(text)}: pass the whole class list, or "
            "redundant= (the text embedding of an empty prompt)"
        )
    weights = torch.softmax(2 * cls @ text.T, dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)  # [L, B, C]
    weighted_text = weights.unsqueeze(-1) * text  # [L, B, C, D]: scales C rows instead of N x C products
    centred = weighted_text - weighted_text.mean(dim=2, keepdim=True)
    return torch.einsum("lbnd,lbcd->bnc", patches, centred) / len(patches)


def _tokens_of(tokens: ImageTokens, kind: str) -> tuple[Tensor, Tensor]:
    """CLS [L, B, D] and patch tokens [L, B, N, D] that a kind uses."""
    check_kinds([kind])
    cls_path, patch_path = KIND_PATHS[kind]
    return getattr(tokens, cls_path)[:, :, 0], getattr(tokens, patch_path)[:, :, 1:]
