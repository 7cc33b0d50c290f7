"""What the localiser is trained on: computed once, so that CLIP runs in no training step; and batches of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..errors import whole_number
from ..heatmaps import Setting
from ..localizer import clip_and_maps
from ..words import PROMPT_TEMPLATES
from .measures import truth_codes, unit_boxes
from .recipes import features
from .store import Store


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


class Batch(NamedTuple):
    """Some images of a cache and their ground truth."""

    positions: np.ndarray  # [B] places in the data set
    pictures: Tensor  # uint8 [B, 3, s, s]
    cam: Tensor  # float32 [B, C, h, w]
    features: Tensor  # float16 [B, L, N, W]
    boxes: list[Tensor]  # for each image float32 [G_i, 4] xyxy in [0, 1]
    labels: list[Tensor]  # for each image int64 [G_i]
    rows: np.ndarray  # int64 [G], the rows of the boxes in the data set's


class BatchReader:
    """Forms batches of a computed cache.

    Attributes:
        cache: the cache.
        image, label, boxes_xyxy: of all boxes of the data set: places of image and class, float32 [G, 4] in [0, 1].
        rows: for each image of the data set, the rows of its boxes that are looked at.
        usable: places of the images with such boxes.
    """

    def __init__(self, cache: FeatureCache, labels: Sequence[int] | None = None) -> None:
        """Args:
        cache: computed.
        labels: places of the classes whose boxes are looked at; None takes all.
        """
        self.cache = cache
        self.image, self.label = truth_codes(cache.dataset)
        self.boxes_xyxy = unit_boxes(cache.dataset).astype(np.float32)
        rows = np.argsort(self.image, kind="stable")
        rows = rows if labels is None else rows[np.isin(self.label[rows], labels)]
        self.rows = np.split(rows, np.searchsorted(self.image[rows], np.arange(1, len(cache.dataset.images))))
        self.usable = np.flatnonzero([len(rows) > 0 for rows in self.rows])

    def batch(
        self, positions: Sequence[int] | np.ndarray, symmetries: Sequence[int] | np.ndarray | None = None
    ) -> Batch:
        """Images by their places in the data set, each under its symmetry of the square (see `turn`)."""
        positions = np.asarray(positions, dtype=np.int64)
        symmetries = np.zeros(len(positions), np.int64) if symmetries is None else symmetries
        fields, shape, grid = self.cache.record, len(positions), self.cache.clip.grid
        cam, features, pictures = (
            np.empty((shape, *fields[name].shape), fields[name].base) for name in ("cam", "features", "picture")
        )
        boxes, labels = [], []
        for k, (record, symmetry) in enumerate(zip(self.cache.read(positions), symmetries, strict=True)):
            cam[k], pictures[k] = turn(record["cam"], symmetry), turn(record["picture"], symmetry)
            patches, target = (part.reshape(part.shape[0], *grid, -1) for part in (record["features"], features[k]))
            target[...] = turn(patches, symmetry, axes=(1, 2))  # [L, h, w, W], a view of features[k]
            rows = self.rows[positions[k]]
            boxes.append(torch.from_numpy(turn_boxes(self.boxes_xyxy[rows], symmetry)))
            labels.append(torch.from_numpy(self.label[rows]))
        inputs = (torch.from_numpy(part) for part in (pictures, cam, features))
        return Batch(positions, *inputs, boxes, labels, np.concatenate([self.rows[p] for p in positions]))


def turn(array: np.ndarray, symmetry: int, axes: tuple[int, int] = (-2, -1)) -> np.ndarray:
    """A view of an array, square along `axes` (rows, columns), under a symmetry of the square.

    Symmetry 0 to 7: so many quarter turns against the clock (modulo 4), after a mirroring left to right from 4 on.
    """
    mirrored = np.flip(array, axes[1]) if symmetry >= 4 else array
    return np.rot90(mirrored, symmetry % 4, axes)


def turn_boxes(boxes_xyxy: np.ndarray, symmetry: int) -> np.ndarray:
    """Boxes [G, 4] in [0, 1] of an image under the same symmetry as its pixels under `turn`."""
    x0, y0, x1, y1 = boxes_xyxy.T
    if symmetry >= 4:
        x0, x1 = 1 - x1, 1 - x0
    for _ in range(symmetry % 4):  # a quarter against the clock: what was right is up
        x0, y0, x1, y1 = y0, 1 - x1, y1, 1 - x0
    return np.stack([x0, y0, x1, y1], axis=1)
