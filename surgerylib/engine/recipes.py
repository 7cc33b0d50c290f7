"""What a store keeps of each image: a recipe each for heatmaps, training features, tokens, adapters' and own maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import ImageTokens, SurgeryCLIP
from ..errors import ParameterError
from ..heatmaps import Setting, check_classes_suffice, heatmaps
from ..words import PATHS, PROMPT_SETS, Prompts, check_prompts, prompt_names
from .adapters import TrainedAdapter


@dataclass(frozen=True)
class Recipe:
    """How records are made of images."""

    what: str  # is kept, in the plural; folders and messages begin with it
    layers: int  # how many of the last layers are looked at
    record: np.dtype  # of one image's record, perhaps with a shape
    made_of: Mapping[str, Any]  # plain values that decide the numbers, beside model and images
    # the tokens of B images, and what `beside` gave of each -> their records [B]
    records: Callable[[ImageTokens, Sequence[Any]], np.ndarray]
    # uint8 RGB [H, W, 3] -> what a record holds besides tokens; called in threads
    beside: Callable[[np.ndarray], Any] = lambda image: None
    shard_images: int = 64  # images a file


def similarities(clip: SurgeryCLIP, classes: Sequence[str], layers: int, templates: Sequence[str]) -> Recipe:
    """float32 [L, 2, C, 1+N] of `ImageTokens.similarities` to the class list."""

    def records(tokens: ImageTokens, _: Sequence[None]) -> np.ndarray:
        return tokens.similarities(_text(clip, classes, templates)).cpu().numpy()

    record = _floats(layers, len(PATHS), len(classes), _n_patches(clip) + 1)
    return Recipe("heatmaps", layers, record, {"paths": list(PATHS), **_asked(classes, templates)}, records)


def prompted(clip: SurgeryCLIP, classes: Sequence[str], layers: int, prompts: Sequence[str]) -> Recipe:
    """float32 [P, L, 2, C, 1+N]: `similarities` for each of some `PROMPT_SETS`, from one forward an image."""
    check_prompts(prompts)

    def records(tokens: ImageTokens, _: Sequence[None]) -> np.ndarray:
        of_sets = [tokens.similarities(encode_prompts(clip, classes, PROMPT_SETS[name])) for name in prompts]
        return torch.stack(of_sets, dim=1).cpu().numpy()

    record = _floats(len(prompts), layers, len(PATHS), len(classes), _n_patches(clip) + 1)
    made_of = {"prompts": {name: PROMPT_SETS[name].plain() for name in prompts}, "classes": list(classes)}
    return Recipe("prompts", layers, record, made_of, records)


def adapted_maps(
    clip: SurgeryCLIP, classes: Sequence[str], adapters: Sequence[TrainedAdapter], templates: Sequence[str]
) -> Recipe:
    """float32 [A, C, N]: logits of the patches through A adapters."""

    def records(tokens: ImageTokens, _: Sequence[None]) -> np.ndarray:
        text = _text(clip, classes, templates)
        logits = [
            heatmaps(tokens.last(adapter.model.num_layers), text, adapter.kinds[0], adapter=adapter.model).flatten(2)
            for adapter in adapters
        ]
        return torch.stack(logits, dim=1).cpu().numpy()

    layers = max(adapter.model.num_layers for adapter in adapters)
    made_of = {"adapters": [adapter.key for adapter in adapters], **_asked(classes, templates)}
    return Recipe("adapted-maps", layers, _floats(len(adapters), len(classes), _n_patches(clip)), made_of, records)


def own_maps(
    clip: SurgeryCLIP,
    classes: Sequence[str],
    layers: int,
    templates: Sequence[str],
    function: Callable[[ImageTokens, Tensor], Tensor],
    key: str,
) -> Recipe:
    """float32 [C, N]: what a function makes of the tokens of one image (`ImageTokens` of a batch of 1) and the text."""

    def records(tokens: ImageTokens, images: Sequence[None]) -> np.ndarray:
        text = _text(clip, classes, templates)
        maps = [own_map(function(tokens.image(k), text), len(classes), clip.grid) for k in range(len(images))]
        return torch.stack(maps).flatten(2).numpy()

    made_of = {"function": key, **_asked(classes, templates)}
    return Recipe("own-maps", layers, _floats(len(classes), _n_patches(clip)), made_of, records)


def own_map(found: Any, n_classes: int, grid: tuple[int, int]) -> Tensor:
    """What a function from outside of the package gave for one image, as float32 [C, h, w] on the CPU.

    Raises:
        ParameterError: neither [C, h, w] nor [C, N] (a batch of 1 is taken too), or not finite.
    """
    try:
        maps = torch.as_tensor(found).detach().float().cpu()
        shape = list(maps.shape)
    except (TypeError, ValueError, RuntimeError):
        shape = type(found).__name__
    allowed = [[n_classes, *grid], [n_classes, math.prod(grid)]]
    if shape not in [*allowed, *([1, *one] for one in allowed)]:
        raise ParameterError(f"heatmap= must give [C, h, w], here {allowed[0]}, or [C, N], {allowed[1]}; got {shape}")
    if not maps.isfinite().all():
        raise ParameterError("heatmap= gave NaN or infinite values; give finite ones")
    return maps.reshape(n_classes, *grid)


def features(
    clip: SurgeryCLIP, classes: Sequence[str], setting: Setting, picture_size: int, templates: Sequence[str]
) -> Recipe:
    """What the localiser is trained on, `record.names`:

    - `cam` float32 [C, h, w]: the class maps of the setting.
    - `features` float16 [L, N, W]: its layers' patch tokens of the QK path, before any norm.
    - `picture` uint8 [3, s, s]: the image, RGB, squashed to s x s by means over areas.
    """
    check_classes_suffice([setting.similarity], len(classes))
    layers, side = setting.layers, picture_size
    record = np.dtype([
        ("cam", "<f4", (len(classes), *clip.grid)),
        ("features", "<f2", (layers, _n_patches(clip), clip.feature_dim)),
        ("picture", "u1", (3, side, side)),
    ])  # fmt: skip

    def picture(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)

    def records(tokens: ImageTokens, pictures: Sequence[np.ndarray]) -> np.ndarray:
        found = np.empty(len(pictures), dtype=record)
        text = _text(clip, classes, templates)
        found["cam"] = heatmaps(tokens, text, setting.kind, similarity=setting.similarity).cpu().numpy()
        found["features"] = tokens.features.transpose(0, 1).half().cpu().numpy()  # [B, L, N, W]
        found["picture"] = np.stack(pictures)
        return found

    of_maps = {"kind": setting.kind, "similarity": setting.similarity, "picture_size": side}
    made_of = {**of_maps, **_asked(classes, templates)}
    return Recipe("features", layers, record, made_of, records, picture, shard_images=256)


def patch_tokens(clip: SurgeryCLIP, layers: int) -> Recipe:
    """What a heatmap adapter is trained on: float16 [2, L, N, D], unit patch tokens of both paths.

    Nothing here depends on the class list. 16 bits round a similarity by less than 0.001.
    """

    def records(tokens: ImageTokens, _: Sequence[None]) -> np.ndarray:
        both = torch.stack([getattr(tokens, path)[:, :, 1:] for path in PATHS])  # [2, L, B, N, D]
        return both.permute(2, 0, 1, 3, 4).half().cpu().numpy()

    record = np.dtype((np.float16, (len(PATHS), layers, _n_patches(clip), clip.embed_dim)))
    return Recipe("tokens", layers, record, {"paths": list(PATHS)}, records, shard_images=256)


def encode_prompts(clip: SurgeryCLIP, classes: Sequence[str], prompts: Prompts) -> Tensor:
    """Text embeddings of a class list, unit rows [C, D]: the renormalised mean over its words' embeddings.

    A word's embedding is the renormalised mean over the templates.
    """
    names = prompts.names(classes)
    each = clip.encode_text([word for words in names for word in words], prompts.templates)
    means = [part.mean(dim=0) for part in each.split([len(words) for words in names])] if names else []
    return F.normalize(torch.stack(means), dim=-1) if means else each


def _text(clip: SurgeryCLIP, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    return clip.encode_text(prompt_names(classes), templates)


def _asked(classes: Sequence[str], templates: Sequence[str]) -> dict[str, list[str]]:
    return {"classes": list(classes), "templates": list(templates)}


def _floats(*shape: int) -> np.dtype:
    return np.dtype((np.float32, shape))


def _n_patches(clip: SurgeryCLIP) -> int:
    return clip.grid[0] * clip.grid[1]
