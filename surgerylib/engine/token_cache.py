"""The token cache: the patch tokens that a heatmap adapter is trained on, computed once.

Beside the feature cache and not in it: the localiser needs features before any projection, the maps and the picture,
the adapter the projected tokens of both paths; whoever trains one doesn't pay for the other. Nothing here depends on
the class list: the same tokens serve any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..boxes import patch_coverage
from ..clip import SurgeryCLIP
from ..datasets.dataset import Dataset, read_image
from ..frames import BOX_COLUMNS
from .image_shards import ImageShards
from .map_shards import PATHS
from .measures import truth_codes

SHARD_IMAGES = 256
_READ_IMAGES = 64  # images whose tokens are in memory at a time where all are gone through


class TokenCache(ImageShards):
    """Patch tokens of a data set in shards on disk. Attributes as in `ImageShards`.

    A shard is an npy file, float16 [n, 2, L, N, D]: unit patch tokens of the QK and the VV path behind `ln_post` and
    `proj`, of the last L layers, the deepest last. 16 bits round a similarity by less than 0.001.
    """

    what = "tokens"
    code = (
        "attention",
        "weights",
        "clip",
        "engine.image_shards",
        "datasets.images",
        "engine.token_cache",
    )

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int = 3,
        folder: str | Path | None = None,
    ) -> None:
        """Find or prepare the cache of a model and a data set; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its images.
            cache_dir: folder of caches, one subfolder each.
            layers: L, number of last layers.
            folder: this very cache, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError: the cache in the folder was made of something else; the message says of what.
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        rows, columns = clip.grid
        super().__init__(
            clip,
            dataset,
            cache_dir,
            layers=layers,
            templates=None,
            details={"paths": list(PATHS)},
            record=np.dtype((np.float16, (len(PATHS), layers, rows * columns, clip.embed_dim))),
            shard_images=SHARD_IMAGES,
            folder=folder,
        )

    def tokens(self, positions: Sequence[int] | np.ndarray, path: str) -> Tensor:
        """Tokens of some images by their places in the data set, of one path (`qk` or `vv`): float32 [L, B, N, D].

        Raises:
            CacheError: the cache has not been computed, or a file is damaged.
        """
        tokens = np.empty((self.layers, len(positions), *self.record.shape[2:]), dtype=np.float32)
        for place, record in enumerate(self.read(positions)):
            tokens[:, place] = record[PATHS.index(path)]
        return torch.from_numpy(tokens)

    def in_order(self, path: str) -> Iterator[Tensor]:
        """Tokens of all images in order, [L, B, N, D] at a time."""
        n_images = len(self.dataset.images)
        for first in range(0, n_images, _READ_IMAGES):
            yield self.tokens(range(first, min(first + _READ_IMAGES, n_images)), path)

    def _read(self, path: str) -> Tensor:
        return self.clip.preprocess(read_image(path))

    def _records(self, images: list[Tensor], first: int) -> np.ndarray:
        tokens = self.clip.encode_image(torch.stack(images), self.layers)
        both = torch.stack([getattr(tokens, path)[:, :, 1:] for path in PATHS])  # [2, L, B, N, D]
        if not both.isfinite().all():
            raise self._not_finite(first)
        return both.permute(2, 0, 1, 3, 4).half().contiguous().cpu().numpy()


class CoverageTargets:
    """How much of each patch the boxes of each class cover, on every image of a data set.

    Attributes:
        classes: C names, in the order of the maps.
    """

    def __init__(self, dataset: Dataset, classes: Sequence[str], grid: tuple[int, int]) -> None:
        """Args:
        dataset: with the ground truth.
        classes: those asked for; boxes of others are not looked at.
        grid: (rows h, columns w) of patches.
        """
        self.classes, self._grid = tuple(classes), grid
        place_of = {dataset.classes.index(name): place for place, name in enumerate(classes)}
        image, label = truth_codes(dataset)
        sides = dataset.images[["width", "height", "width", "height"]].to_numpy(np.float64)[image]
        boxes = dataset.boxes[BOX_COLUMNS].to_numpy(np.float64) / sides
        pairs, pair = np.unique(image * len(dataset.classes) + label, return_inverse=True)
        order = np.argsort(pair, kind="stable")
        # by image: (place of the class, [h, w]); most pairs of image and class hold no box
        self._by_image: dict[int, list[tuple[int, np.ndarray]]] = {}
        for number, rows in zip(
            pairs, np.split(order, np.searchsorted(pair[order], np.arange(1, len(pairs)))), strict=False
        ):  # fmt: skip
            of_image, of_label = divmod(int(number), len(dataset.classes))
            if of_label in place_of:
                covered = patch_coverage(boxes[rows], grid).astype(np.float32)
                self._by_image.setdefault(of_image, []).append((place_of[of_label], covered))

    def read(self, positions: Sequence[int] | np.ndarray) -> Tensor:
        """Of some images by their places in the data set: float32 [B, C, h, w] in [0, 1]."""
        coverage = torch.zeros(len(positions), len(self.classes), *self._grid)
        for place, position in enumerate(positions):
            for label, covered in self._by_image.get(int(position), ()):
                coverage[place, label] = torch.from_numpy(covered)
        return coverage

    def __len__(self) -> int:
        """Pairs of an image and a class with boxes."""
        return sum(map(len, self._by_image.values()))
