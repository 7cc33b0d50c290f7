"""Similarities under several ways to put the classes into words, from one forward an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import SurgeryCLIP
from ..datasets.dataset import Dataset, read_image
from ..prompts import PROMPT_SETS, Prompts, check_prompts
from .image_shards import ImageShards
from .map_shards import PATHS, open_shard


class PromptStore(ImageShards):
    """As `store.HeatmapStore`, but of several prompt sets. Attributes as in `ImageShards`.

    A record is float32 [P, L, 2, C, 1+N]: for each prompt set what `HeatmapStore` holds.
    """

    what = "prompts"
    code = (
        "attention", "weights", "words", "clip", "engine.image_shards", "datasets.images", 
        "engine.prompt_store", "prompts",
    )  # fmt: skip

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        prompts: Sequence[str],
        layers: int = 1,
        folder: str | Path | None = None,
    ) -> None:
        """Find or prepare the store; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its whole class list is stored, in its order.
            cache_dir: folder of stores, one subfolder each.
            prompts: names of `PROMPT_SETS`.
            layers: so many of the last layers are kept.
            folder: this very store, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError, ParameterError, ImageReadError: as `HeatmapStore`; an unknown prompt set.
        """
        check_prompts(prompts)
        self.prompts = tuple(prompts)
        n_tokens = 1 + clip.grid[0] * clip.grid[1]
        super().__init__(
            clip,
            dataset,
            cache_dir,
            layers=layers,
            templates=(),
            details={"prompts": {name: PROMPT_SETS[name].plain() for name in prompts}},
            record=np.dtype((np.float32, (len(prompts), layers, len(PATHS), len(dataset.classes), n_tokens))),
            shard_images=64,
            folder=folder,
        )

    def similarities(self, name: str) -> Iterator[np.ndarray]:
        """Those of one prompt set, shard by shard, mapped from disk: float32 [n, L, 2, C, 1+N]."""
        place = self.prompts.index(name)
        for first in self._firsts():
            yield open_shard(self.path(first), self.what)[:, place]

    def _read(self, path: str) -> Tensor:
        return self.clip.preprocess(read_image(path))

    def _prepare(self) -> None:
        for name in self.prompts:
            encode_prompts(self.clip, self.dataset.classes, PROMPT_SETS[name])

    def _records(self, images: list[Tensor], first: int) -> np.ndarray:
        texts = [encode_prompts(self.clip, self.dataset.classes, PROMPT_SETS[name]) for name in self.prompts]
        tokens = self.clip.encode_image(torch.stack(images), self.layers)
        both = torch.stack([getattr(tokens, path) for path in PATHS])  # [2, L, B, 1+N, D]
        of_sets = torch.stack([both @ text.T for text in texts])  # [P, 2, L, B, 1+N, C]
        similarities = of_sets.permute(3, 0, 2, 1, 5, 4).contiguous().cpu().numpy()
        if not np.isfinite(similarities).all():
            raise self._not_finite(first)
        return similarities


def encode_prompts(clip: SurgeryCLIP, classes: Sequence[str], prompts: Prompts) -> Tensor:
    """Text embeddings of a class list, unit rows [C, D]: the renormalised mean over its words' embeddings.

    A word's embedding is the renormalised mean over the templates.
    """
    names = prompts.names(classes)
    each = clip.encode_text([word for words in names for word in words], prompts.templates)
    means = [part.mean(dim=0) for part in each.split([len(words) for words in names])] if names else []
    return F.normalize(torch.stack(means), dim=-1) if means else each
