"""A frozen open_clip ViT seen through two paths: the stock one (QK) and CLIP Surgery's value-value one (VV).

The wrapped model is never rewired nor written to. Its weights are read block by block, so that one forward gives both
paths and every layer asked for; a self-check at load proves that the QK path is the stock model.

Images enter as RGB uint8 [H, W, 3] through `SurgeryCLIP.preprocess`, and from there on as normalised float
[B, 3, S, S]; boxes and heatmaps know nothing of this size.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import attention
from .errors import ParameterError, SurgeryError, UnsupportedModelError, whole_number
from .weights import Weights, build_model, load_weights, open_clip
from .words import PATHS, PROMPT_TEMPLATES, spoken

SELF_CHECK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ImageTokens:
    """What one forward gives of a batch of B images, for the last L layers (deepest layer last).

    Attributes:
        qk: [L, B, 1+N, D] tokens of the QK path after `ln_post` and `proj`, unit rows, CLS first.
        vv: [L, B, 1+N, D] the same of the VV path.
        features: [L, B, N, W] patch tokens of the QK path as the block left them: no norm, no projection.
        grid: (h, w) with h * w = N.
        qk_attention: [B, heads, 1+N, 1+N] weights of the last block, only on request.
        vv_attention: the same of the VV path.
    """

    qk: Tensor
    vv: Tensor
    features: Tensor
    grid: tuple[int, int]
    qk_attention: Tensor | None = None
    vv_attention: Tensor | None = None

    def last(self, layers: int) -> ImageTokens:
        """The deepest `layers` of these, as a forward that was asked for so many gives them."""
        return replace(self, qk=self.qk[-layers:], vv=self.vv[-layers:], features=self.features[-layers:])

    def image(self, place: int) -> ImageTokens:
        """Those of one image of the batch, as a batch of 1."""
        one = slice(place, place + 1)
        return replace(self, qk=self.qk[:, one], vv=self.vv[:, one], features=self.features[:, one])

    def with_patches(self, path: str, patches: Tensor) -> ImageTokens:
        """With other patch tokens [L, B, N, D] on a path, `qk` or `vv`; its CLS token stays."""
        return replace(self, **{path: torch.cat([getattr(self, path)[:, :, :1], patches], dim=2)})

    def similarities(self, text: Tensor) -> Tensor:
        """Similarity of every token, CLS first, to texts [C, D] of unit rows: [B, L, 2, C, 1+N], paths as `PATHS`."""
        if text.ndim != 2 or text.shape[1] != self.qk.shape[-1]:
            raise ParameterError(f"text must be [C, {self.qk.shape[-1]}] for these tokens, got {list(text.shape)}")
        both = torch.stack([getattr(self, path) for path in PATHS])  # [2, L, B, 1+N, D]
        return (both @ text.to(both.dtype).T).permute(2, 1, 0, 4, 3)


class SurgeryCLIP:
    """A frozen CLIP with a dual-path image forward. Made by `load_clip`.

    Attributes:
        model: the open_clip model, in eval mode, without gradients.
        name, weights: what was loaded and from where; `weights.sha256` identifies the parameters.
        image_size: side S in pixels that `preprocess` brings every image to.
        depth: number of last blocks in which the VV path runs, at most all of them.
        self_check_error: relative difference between the QK path's tokens (CLS and patches, the larger of the two) and
            those of the stock model, measured at load.
    """

    def __init__(self, model: nn.Module, tokenizer, weights: Weights, *, name: str, device: torch.device,
                 image_size: int | None, depth: int) -> None:  # fmt: skip
        visual = model.visual
        attention.require_plain_vit(visual, name)
        self.model = model.eval().requires_grad_(False).to(device)
        self.name = name
        self.weights = weights
        self.device = device
        self.patch_size: int = visual.patch_size[0]
        self.image_size: int = visual.image_size[0] if image_size is None else whole_number("image_size", image_size)
        self.embed_dim: int = visual.proj.shape[1]
        self.feature_dim: int = visual.proj.shape[0]
        self.num_layers = len(visual.transformer.resblocks)
        self.depth = min(whole_number("depth", depth), self.num_layers)
        self._tokenizer = tokenizer
        self._text_cache: dict[tuple, Tensor] = {}  # by names and templates
        config = open_clip.get_model_preprocess_cfg(model)
        self._mean = _pixel_statistics("mean", config.get("mean") or open_clip.OPENAI_DATASET_MEAN)
        self._std = _pixel_statistics("std", config.get("std") or open_clip.OPENAI_DATASET_STD)
        self._check_size((self.image_size, self.image_size))
        self.self_check_error = self._self_check()

    @property
    def identity(self) -> dict:
        """What decides tokens and text embeddings, beside images and prompts: plain values.

        The weights alone don't: with other heads, activations or pixel statistics the same ones give other tokens.
        """
        towers = (self.model.visual.transformer, getattr(self.model, "transformer", None))
        heads = [block.attn.num_heads for tower in towers if tower is not None for block in tower.resblocks]
        architecture = f"{self.model!r} heads {heads}"
        return {
            "model": self.name,
            "weights_sha256": self.weights.sha256,
            "architecture_sha256": hashlib.sha256(architecture.encode()).hexdigest(),
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "depth": self.depth,
            "image_size": self.image_size,
            "device": self.device.type,
        }

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of a preprocessed image."""
        side = self.image_size // self.patch_size
        return side, side

    def preprocess(self, image: np.ndarray, image_size: int | None = None) -> Tensor:
        """Bring an image to the model: the whole image, squashed to a square, bicubic with antialiasing, no crop.

        Args:
            image: uint8 RGB [H, W, 3], any size.
            image_size: another side S for this image, a multiple of the patch; None takes the `image_size` of the CLIP.

        Returns:
            float32 [3, S, S], normalised with the model's mean and standard deviation, on the CPU.

        Raises:
            ParameterError: not a uint8 array of three channels, or a size the model cannot take.
        """
        array = isinstance(image, np.ndarray)
        if not array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            seen = f"{image.dtype} {list(image.shape)}" if array else type(image).__name__
            raise ParameterError(f"image must be a NumPy array, uint8 [H, W, 3] in RGB, got {seen}")
        usable = np.require(image, requirements=("C", "W"))  # a copy where it is not contiguous, or is read-only
        pixels = torch.from_numpy(usable).permute(2, 0, 1).unsqueeze(0)  # [H, W, 3] -> [1, 3, H, W]
        size = (self.image_size if image_size is None else whole_number("image_size", image_size),) * 2
        self._check_size(size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (pixels[0].float() / 255 - self._mean) / self._std

    @torch.no_grad()
    def encode_text(self, names: Sequence[str], templates: Sequence[str] = PROMPT_TEMPLATES) -> Tensor:
        """Text embeddings of class names: the mean over the templates' unit embeddings, renormalised.

        The result is kept, so that asking for the same names again costs nothing.

        Args:
            names: C names in words ("golf course"); DIOR's own spellings ("golffield") are put into words.
            templates: prompts, each with one `{}` for the name.

        Returns:
            float32 [C, D], unit rows, on the model's device.
        """
        if isinstance(names, str) or isinstance(templates, str):
            raise ParameterError("names and templates must be lists of text, got one text: put it in a list")
        if not templates or any("{}" not in template for template in templates):
            raise ParameterError(f"every template needs a {{}} for the class name, got {list(templates)!r}")
        key = (tuple(names), tuple(templates))
        if key not in self._text_cache:
            prompts = [template.format(spoken(name)) for name in names for template in templates]
            rows = [self._encode_prompts(prompts[i : i + 256]) for i in range(0, len(prompts), 256)]
            flat = torch.cat(rows) if rows else torch.empty(0, self.embed_dim, device=self.device)
            mean = flat.view(len(names), len(templates), self.embed_dim).mean(dim=1)
            self._text_cache[key] = F.normalize(mean, dim=-1)
        return self._text_cache[key].clone()  # the caller's own: changing it leaves the kept one alone

    @torch.no_grad()
    def encode_image(self, images: Tensor, last_layers: int = 1, *, return_attention: bool = False) -> ImageTokens:
        """Both paths of a batch in one forward.

        Args:
            images: [B, 3, H, W] as `preprocess` gives them; sides may differ from `image_size` (multiples of the
                patch): the position embedding is interpolated for this call.
            last_layers: L, how many of the last layers to return; at most `depth`.
            return_attention: also return the last block's attention weights of both paths.

        Raises:
            ParameterError: a shape or size the model cannot take.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ParameterError(f"images must be [B, 3, H, W], got {list(images.shape)}")
        self._check_size(images.shape[-2:])
        if not 1 <= last_layers <= self.depth:
            raise ParameterError(f"last_layers must lie in 1..{self.depth} (the VV path's depth), got {last_layers}")
        with self._autocast():
            streams, weights = self._dual_path(images.to(self.device), last_layers, return_attention)
            qk, vv = (torch.stack([self._project(x) for x in path]) for path in zip(*streams, strict=True))
        features = torch.stack([x[:, 1:] for x, _ in streams]).float()
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return ImageTokens(F.normalize(qk.float(), dim=-1), F.normalize(vv.float(), dim=-1), features, grid, *weights)

    def _dual_path(self, images: Tensor, last_layers: int, return_attention: bool = False):
        """[B, 3, H, W] -> (QK, VV) streams [B, 1+N, W] behind the last layers; weights of the last block, if asked."""
        x = self._embed(images)  # [B, 1+N, W]
        streams: list[tuple[Tensor, Tensor]] = []
        weights: tuple[Tensor, ...] = ()
        for index, block in enumerate(self.model.visual.transformer.resblocks):
            heads = block.attn.num_heads
            qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
            q, k, v = (attention.split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
            if index == self.num_layers - self.depth:
                vv = x
            if index >= self.num_layers - self.depth:
                vv = vv + block.ls_1(block.attn.out_proj(attention.merge_heads(attention.attend(v, v, v))))
            if return_attention and index == self.num_layers - 1:
                weights = (attention.attention_weights(q, k).float(), attention.attention_weights(v, v).float())
            x = x + block.ls_1(block.attn.out_proj(attention.merge_heads(attention.attend(q, k, v))))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            if index >= self.num_layers - last_layers:
                streams.append((x, vv))
        return streams, weights

    def _embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens with class and position embedding, before the first block: [B, 1+N, W]."""
        visual = self.model.visual
        patches = visual.conv1(images)  # [B, W, h, w]
        positions = interpolate_positions(visual.positional_embedding, visual.grid_size, tuple(patches.shape[-2:]))
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, W]
        cls = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return visual.ln_pre(torch.cat([cls, patches], dim=1) + positions.to(patches.dtype))

    def _project(self, x: Tensor) -> Tensor:
        return self.model.visual.ln_post(x) @ self.model.visual.proj

    def _encode_prompts(self, prompts: list[str]) -> Tensor:
        model, tokens = self.model, self._tokenizer(prompts).to(self.device)
        # CLIP's own text tower: no word sees those after it, the end token stands for the text
        causal = (
            isinstance(model, open_clip.CLIP)
            and model.attn_mask is not None
            and model.text_pool_type == "argmax"
            and isinstance(model.text_projection, nn.Parameter)
        )
        with self._autocast():
            embedding = self._encode_causal(tokens) if causal else model.encode_text(tokens)
        return F.normalize(embedding.float(), dim=-1)

    def _encode_causal(self, tokens: Tensor) -> Tensor:
        """`model.encode_text` without the padding behind the longest text, which no end token sees: a fifth of it."""
        model, end = self.model, tokens.argmax(dim=-1)  # the end token has the highest number
        length = int(end.max()) + 1
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(tokens[:, :length]).to(dtype) + model.positional_embedding[:length].to(dtype)
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))  # [B, length, W]
        return x[torch.arange(len(x), device=x.device), end] @ model.text_projection

    def _autocast(self):
        if self.device.type != "cuda":
            return nullcontext()
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)

    def _check_size(self, size_hw: Sequence[int]) -> None:
        if any(side < self.patch_size or side % self.patch_size for side in size_hw):
            height, width = size_hw
            below = max(width // self.patch_size, 1) * self.patch_size
            raise ParameterError(
                f"image size must be a multiple of the patch ({self.patch_size} pixels for {self.name}), "
                f"got {width} x {height}: use {below} or {below + self.patch_size}"
            )

    @torch.no_grad()
    def _self_check(self) -> float:
        """Relative difference of the QK path's tokens to the stock model's on one random image, in fp32."""
        size = self.model.visual.image_size
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(self.device)
        ((stream, _),), _ = self._dual_path(image, 1)
        ours = self._project(stream)
        stock_cls = self.model.encode_image(image)
        # open_clip's own way to the patch tokens behind ln_post
        stock = self.model.visual.forward_intermediates(image, 1, normalize_intermediates=True, output_fmt="NLC")
        stock_patches = stock["image_intermediates"][0] @ self.model.visual.proj
        pairs = ((ours[:, 0], stock_cls), (ours[:, 1:], stock_patches))
        error = max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs)
        if not error <= SELF_CHECK_TOLERANCE:  # also catches NaN
            raise UnsupportedModelError(
                f"{self.name}: the QK path differs from stock open_clip by {error:.2g} (relative; at most "
                f"{SELF_CHECK_TOLERANCE:g} allowed): this architecture is not a plain CLIP ViT, use one that is"
            )
        return error


def interpolate_positions(positions: Tensor, grid_from: tuple[int, int], grid_to: tuple[int, int]) -> Tensor:
    """Position embedding [1 + h*w, W], CLS first, for another grid [1 + h'*w', W]; itself when the grids agree.

    Bicubic with antialiasing in float32; the input is not changed.
    """
    if tuple(grid_from) == tuple(grid_to):
        return positions
    cls, patches = positions[:1].float(), positions[1:].float()
    image = patches.view(1, *grid_from, -1).permute(0, 3, 1, 2)  # [1, W, h, w]
    image = F.interpolate(image, size=grid_to, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, image.permute(0, 2, 3, 1).reshape(grid_to[0] * grid_to[1], -1)])


def load_clip(
    model: str = "ViT-B-32",
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    image_size: int | None = None,
    depth: int = 6,
) -> SurgeryCLIP:
    """Load a frozen CLIP ViT and prove at once that its QK path is the stock model.

    Args:
        model: a name that open_clip knows (built in, added with `open_clip.add_model_config`, or
            `local-dir:/folder`), or `embedded` for the small model that ships with this project.
        checkpoint: weights: a local file (state dict, `{"state_dict": ...}`, `module.` prefix, safetensors), an
            open_clip pretrained tag, `hf:owner/repo/file`, or `random` (seeded). None takes the shipped weights
            for `embedded`, and random ones, with a warning, for every other model.
        device: `auto` takes CUDA, then MPS, then the CPU; else a torch device. Autocast is used on CUDA.
        image_size: side in pixels that images are brought to; None takes the model's own.
        depth: number of last blocks in which the value-value path runs; all, when the model has fewer.

    Raises:
        CheckpointError: weights missing, damaged, unsafe, or of another architecture.
        UnsupportedModelError: not a plain ViT, or the self-check failed.
        ParameterError: unknown model, device, size or depth.
    """
    target = pick_device(device)
    bare, tokenizer = build_model(model)
    weights, bare = load_weights(bare, model, checkpoint)
    try:
        clip = SurgeryCLIP(bare, tokenizer, weights, name=model, device=target, image_size=image_size, depth=depth)
        if ":" in model:
            clip.encode_text(["a word"])
        return clip
    except Exception as error:
        if ":" not in model or isinstance(error, SurgeryError | MemoryError | torch.OutOfMemoryError):
            raise
        raise UnsupportedModelError(
            f"{model} can be built but does not run ({type(error).__name__}: {error}): mend its open_clip_config.json"
        ) from error


def pick_device(device: str) -> torch.device:
    """The torch device that `load_clip`'s argument means; a `ParameterError` when it cannot be used here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        return chosen
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(f"device {device!r} cannot be used ({reason}): use auto, cuda, mps or cpu") from error


def _pixel_statistics(name: str, values: Sequence[float]) -> Tensor:
    """Mean or standard deviation of the pixels a model was trained with, [3, 1, 1]."""
    numbers = isinstance(values, list | tuple) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    if not numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
        needed = "three numbers above 0" if name == "std" else "three numbers"
        raise UnsupportedModelError(f"the model's configuration has the {name} {values!r}; {needed} are needed")
    return torch.tensor([float(value) for value in values]).view(3, 1, 1)
