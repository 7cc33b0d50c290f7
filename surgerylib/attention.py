"""Attention of one transformer block as pure functions of (q, k, v), and which models have this form of it.

All tensors are batch first; heads are split out explicitly, so that no layout is ever guessed from the shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .weights import open_clip


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, W] -> [B, heads, T, W / heads]."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, T, d] -> [B, T, heads * d]."""
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * head_dim)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention `softmax(s * q k^T) v` with `s = head_dim ** -0.5`, all [B, heads, T, d].

    `attend(q, k, v)` is the stock attention; `attend(v, v, v)` is the value-value attention of CLIP Surgery
    (Li et al. 2023, arXiv:2304.05653, section 3.2). V enters as it is: normalising it and then scaling would flatten
    the softmax to almost uniform weights.
    """
    return F.scaled_dot_product_attention(q, k, v)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """The weights that `attend` applies: [B, heads, T, T], each row sums to one."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)


def require_plain_vit(visual: nn.Module, name: str) -> None:
    """Refuse what the dual path does not reproduce, before any attribute of it is missed."""
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise UnsupportedModelError(
            f"{name} has a {type(visual).__name__} image tower; a ViT of open_clip is needed, such as ViT-B-32"
        )
    if not len(visual.transformer.resblocks):
        raise UnsupportedModelError(f"{name} has an image tower without a single block; one or more are needed")
    for block in visual.transformer.resblocks:
        attn = block.attn
        plain_attention = isinstance(attn, nn.MultiheadAttention) or (
            isinstance(attn, open_clip.transformer.Attention)
            and attn.logit_scale is None
            and attn.head_scale is None
            and all(isinstance(part, nn.Identity) for part in (attn.ln_q, attn.ln_k, attn.ln_inner))
        )
        if not plain_attention or not isinstance(getattr(block, "ln_attn", nn.Identity()), nn.Identity):
            raise UnsupportedModelError(
                f"{name} modifies its attention (scaled cosine, normalised q and k, or scaled heads); "
                "value-value attention is defined for the plain form only"
            )
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        raise UnsupportedModelError(f"{name} does not pool its class token; the heatmaps need one that does")
