"""Attention of one transformer block as pure functions of (q, k, v).

All tensors are batch first; heads are split out explicitly, so that no layout is ever guessed from the shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, W] -> [B, heads, T, W / heads]."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, T, d] -> [B, T, heads * d]."""
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * head_dim)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention `softmax(s * q k^T) v` with `s = head_dim ** -0.5`.

    `attend(q, k, v)` is the stock attention; `attend(v, v, v)` is the value-value attention of CLIP Surgery
    (Li et al. 2023, arXiv:2304.05653, section 3.2). V enters as it is: normalising it and then scaling would flatten
    the softmax to almost uniform weights.

    Args:
        q: [B, heads, T, d]; k and v likewise.

    Returns:
        [B, heads, T, d]
    """
    return F.scaled_dot_product_attention(q, k, v)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """The weights that `attend` applies: [B, heads, T, T], each row sums to one."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
