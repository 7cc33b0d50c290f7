"""What small modules are trained on, computed once, so that CLIP runs in no training step, and the ground truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..boxes import patch_coverage
from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..errors import whole_number
from ..heatmaps import Setting
from ..localizer import clip_and_maps
from ..matching import BOX_COLUMNS
from ..words import PATHS, PROMPT_TEMPLATES
from .measures import truth_codes
from .recipes import features, patch_tokens
from .store import Store

_READ_IMAGES = 64  # images whose tokens are in memory at a time where all are gone through


class Targets(NamedTuple):
    """Ground truth of a data set, flat; rows in the order of its boxes frame."""

    image: np.ndarray  # int64 [G] place of the image in the data set
    label: np.ndarray  # int64 [G] place of the class in the class list
    boxes_xyxy: np.ndarray  # float32 [G, 4] in [0, 1] of the image


class FeatureCache(Store):
    """What the localiser is trained on, see `recipes.features`. Attributes as in `Store`.

    Attributes:
        setting: of the class maps; its layers are those whose features are kept.
        picture_size: side of the small picture in pixels.
        templates: prompts.
    """

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        setting: Setting | None = None,
        picture_size: int = 128,
        templates: Sequence[str] = PROMPT_TEMPLATES,
    ) -> None:
        """Find or prepare the cache; nothing is computed yet.

        Args:
            clip, dataset, cache_dir: as of `HeatmapStore`.
            setting: maps and layers; None takes the paper's kind on 3 layers.
            picture_size, templates: as above.

        Raises:
            ParameterError: more layers than the value-value path has, a size below 8, `surgery` with one class.
            ImageReadError: an image file is missing.
        """
        self.setting = setting or Setting(layers=3)
        self.picture_size, self.templates = whole_number("picture_size", picture_size, 8), tuple(templates)
        recipe = features(clip, dataset.classes, self.setting, self.picture_size, self.templates)
        super().__init__(clip, dataset, cache_dir, recipe)

    @property
    def belongs_to(self) -> dict[str, Any]:
        """What a head trained on it belongs to, for `load_localizer`."""
        return clip_and_maps(
            self.clip, self.dataset.classes, layers=self.layers, kind=self.setting.kind,
            similarity=self.setting.similarity, templates=list(self.templates), picture_size=self.picture_size,
        )  # fmt: skip

    @property
    def targets(self) -> Targets:
        """The ground truth."""
        image, label, boxes = _unit_boxes(self.dataset)
        return Targets(image, label, boxes.astype(np.float32))


class TokenCache(Store):
    """What a heatmap adapter is trained on, see `recipes.patch_tokens`. Attributes as in `Store`."""

    def __init__(self, clip: SurgeryCLIP, dataset: Dataset, cache_dir: str | Path, *, layers: int = 3) -> None:
        """Find or prepare the cache; nothing is computed yet. Arguments and errors as of `FeatureCache`."""
        super().__init__(clip, dataset, cache_dir, patch_tokens(clip, layers))

    def tokens(self, positions: Sequence[int] | np.ndarray, path: str) -> Tensor:
        """Tokens of some images by their places in the data set, of one path (`qk` or `vv`): float32 [L, B, N, D]."""
        tokens = np.empty((self.layers, len(positions), *self.record.shape[2:]), dtype=np.float32)
        for place, record in enumerate(self.read(positions)):
            tokens[:, place] = record[PATHS.index(path)]
        return torch.from_numpy(tokens)

    def in_order(self, path: str) -> Iterator[Tensor]:
        """Tokens of all images in order, [L, B, N, D] at a time."""
        n_images = len(self.dataset.images)
        for first in range(0, n_images, _READ_IMAGES):
            yield self.tokens(range(first, min(first + _READ_IMAGES, n_images)), path)


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
        image, label, boxes = _unit_boxes(dataset)
        groups = pd.DataFrame({"image": image, "label": label}).groupby(["image", "label"]).indices
        # by image: (place of the class, [h, w]); most pairs of image and class hold no box
        self._by_image: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for (of_image, of_label), rows in groups.items():
            if of_label in place_of:
                covered = patch_coverage(boxes[rows], grid).astype(np.float32)
                self._by_image[of_image].append((place_of[of_label], covered))

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


def _unit_boxes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place of the image and of the class of each box, and float64 [G, 4] xyxy in [0, 1] of its image."""
    image, label = truth_codes(dataset)
    sides = dataset.images[["width", "height", "width", "height"]].to_numpy(np.float64)[image]
    return image, label, dataset.boxes[BOX_COLUMNS].to_numpy(np.float64) / sides
