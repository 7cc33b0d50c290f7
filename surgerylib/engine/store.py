"""The heatmap store: the frozen model runs once over a data set, and every later question is asked of files.

What is kept is the similarity of every token to every class, for both paths and the last few layers (see
`map_shards`): all kinds, similarities and thresholds follow from it without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..clip import SurgeryCLIP
from ..datasets.dataset import Dataset, read_image
from ..words import PROMPT_TEMPLATES, prompt_names
from .adapted_store import AdaptedStore, TrainedAdapter
from .image_shards import ImageShards
from .map_shards import PATHS, MapShard, MapSource, open_shard

STORED_LAYERS = 3
SHARD_IMAGES = 64


class HeatmapStore(ImageShards):
    """Similarities of a data set's tokens to its class list, in shards on disk. Attributes as in `ImageShards`.

    With adapters their maps lie beside these, in a store of their own: `MapSource.adapter` chooses between them.
    """

    what = "heatmaps"
    code = (
        "attention",
        "weights",
        "words",
        "clip",
        "engine.image_shards",
        "datasets.images",
        "engine.store",
    )

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int = 1,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        adapters: Sequence[TrainedAdapter] = (),
        folder: str | Path | None = None,
    ) -> None:
        """Find or prepare the store of a model and a data set; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its whole class list is stored, in its order.
            cache_dir: folder of stores, one subfolder each.
            layers: at least this many of the last layers are kept, and `STORED_LAYERS` where the model has so many.
            templates: prompts.
            adapters: whose maps are wanted too, each once.
            folder: this very store, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError: the store in the folder was made of something else; the message says of what.
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        kept = layers if layers > clip.depth else min(max(layers, STORED_LAYERS), clip.depth)
        n_tokens = 1 + clip.grid[0] * clip.grid[1]
        super().__init__(
            clip,
            dataset,
            cache_dir,
            layers=kept,
            templates=templates,
            details={"paths": list(PATHS)},
            record=np.dtype((np.float32, (kept, len(PATHS), len(dataset.classes), n_tokens))),
            shard_images=SHARD_IMAGES,
            folder=folder,
        )
        self.adapted = None
        if adapters:
            self.adapted = AdaptedStore(
                clip, dataset, cache_dir, adapters, shard_images=SHARD_IMAGES, templates=templates
            )  # fmt: skip

    def compute(
        self, *, batch_size: int = 16, workers: int | None = None, after_shard: Callable[[int], object] | None = None
    ) -> HeatmapStore:
        """As `ImageShards.compute`, with the adapters' maps, which come after all shards."""
        super().compute(batch_size=batch_size, workers=workers, after_shard=after_shard)
        if self.adapted is not None:
            self.adapted.compute(batch_size=batch_size, workers=workers)
        return self

    @property
    def shards(self) -> list[MapShard]:
        """All shards, in the order of the data set; `compute` makes the files behind them."""
        return [self.shard(first) for first in self._firsts()]

    def shard(self, first: int) -> MapShard:
        """The shard whose first image has this place in the data set."""
        images = self.dataset.images.iloc[first : first + self.shard_images]
        sizes = tuple(zip(images["width"].tolist(), images["height"].tolist(), strict=True))
        return self._shard(first, sizes, offset=0)

    def similarities(self) -> Iterator[np.ndarray]:
        """What is stored, shard by shard, mapped from disk: float32 [n, L, 2, C, 1+N] (see `map_shards.MapShard`)."""
        for first in self._firsts():
            yield open_shard(self.path(first))

    def maps(self, position: int, source: MapSource) -> np.ndarray:
        """Raw heatmaps of one image, by its place in the data set: float32 [C, h, w]."""
        width, height = self.dataset.images[["width", "height"]].iloc[position].tolist()
        return self._shard(position, ((width, height),), offset=position % self.shard_images).maps(source)[0]

    def _shard(self, first: int, sizes_wh: tuple[tuple[int, int], ...], *, offset: int) -> MapShard:
        shard = MapShard(str(self.path(first)), self.clip.grid, first, sizes_wh, offset)
        if self.adapted is None:
            return shard
        keys = tuple(adapter.source(adapter.kinds[0]).key for adapter in self.adapted.adapters)
        return replace(shard, adapted=str(self.adapted.path(first)), adapters=keys)

    def _read(self, path: str) -> Tensor:
        return self.clip.preprocess(read_image(path))

    def _records(self, images: list[Tensor], first: int) -> np.ndarray:
        """float32 [B, L, 2, C, 1+N]."""
        text = self.clip.encode_text(prompt_names(self.dataset.classes), self.templates)
        tokens = self.clip.encode_image(torch.stack(images), self.layers)
        both = torch.stack([getattr(tokens, path) for path in PATHS]) @ text.T  # [2, L, B, 1+N, C]
        similarities = both.permute(2, 1, 0, 4, 3).contiguous().cpu().numpy()
        if not np.isfinite(similarities).all():
            raise self._not_finite(first)
        return similarities
