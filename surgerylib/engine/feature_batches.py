"""Batches of a feature cache for training: shuffled, flipped and turned, read ahead of the step that needs them.

Everything that is drawn comes from (seed, epoch): the batches of an epoch can be formed again from any of them on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .caches import FeatureCache
from .parallel import read_ahead

N_SYMMETRIES = 8  # of the square: quarter turns 0 to 3, then the same after a mirroring


class Batch(NamedTuple):
    """Some images of a cache and their ground truth."""

    positions: np.ndarray  # [B] places in the data set
    pictures: Tensor  # uint8 [B, 3, s, s]
    cam: Tensor  # float32 [B, C, h, w]
    features: Tensor  # float16 [B, L, N, W]
    boxes: list[Tensor]  # for each image float32 [G_i, 4] xyxy in [0, 1]
    labels: list[Tensor]  # for each image int64 [G_i]
    rows: np.ndarray  # int64 [G], the rows of the boxes in the cache's targets


class BatchReader:
    """Forms batches of a computed cache.

    Attributes:
        cache: the cache.
        rows: for each image of the data set, the rows of its boxes that are looked at.
        usable: places of the images with such boxes: what an epoch goes through.
    """

    def __init__(self, cache: FeatureCache, labels: Sequence[int] | None = None) -> None:
        """Args:
        cache: computed.
        labels: places of the classes whose boxes are looked at; None takes all.
        """
        self.cache = cache
        self._targets = cache.targets
        image, label = self._targets.image, self._targets.label
        rows = np.argsort(image, kind="stable")
        rows = rows if labels is None else rows[np.isin(label[rows], labels)]
        self.rows = np.split(rows, np.searchsorted(image[rows], np.arange(1, len(cache.dataset.images))))
        self.usable = np.flatnonzero([len(rows) > 0 for rows in self.rows])

    def batch(
        self, positions: Sequence[int] | np.ndarray, symmetries: Sequence[int] | np.ndarray | None = None
    ) -> Batch:
        """Images by their places in the data set, each under its symmetry of the square (see `turn`)."""
        positions = np.asarray(positions, dtype=np.int64)
        symmetries = np.zeros(len(positions), np.int64) if symmetries is None else symmetries
        records = self.cache.read(positions)
        fields, shape = self.cache.record, len(positions)
        cam, features, pictures = (
            np.empty((shape, *fields[name].shape), fields[name].base) for name in ("cam", "features", "picture")
        )
        grid = self.cache.clip.grid
        boxes, labels = [], []
        for k, (record, symmetry) in enumerate(zip(records, symmetries, strict=True)):
            cam[k], pictures[k] = turn(record["cam"], symmetry), turn(record["picture"], symmetry)
            patches, target = (part.reshape(part.shape[0], *grid, -1) for part in (record["features"], features[k]))
            target[...] = turn(patches, symmetry, axes=(1, 2))  # [L, h, w, W], a view of features[k]
            rows = self.rows[positions[k]]
            boxes.append(torch.from_numpy(turn_boxes(self._targets.boxes_xyxy[rows], symmetry)))
            labels.append(torch.from_numpy(self._targets.label[rows]))
        inputs = (torch.from_numpy(part) for part in (pictures, cam, features))
        return Batch(positions, *inputs, boxes, labels, np.concatenate([self.rows[p] for p in positions]))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images with boxes to look at, in the order of the data set, as they are."""
        starts = range(0, len(self.usable), batch_size)
        return read_ahead(self.batch, [self.usable[start : start + batch_size] for start in starts])

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-len(self.usable) // batch_size)

    def epoch(self, epoch: int, *, batch_size: int, seed: int, augment: bool, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, shuffled, from number `first` on.

        With `augment` each image is under one of the eight symmetries, drawn anew; `seed` is of them and of the order.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self.usable)
        symmetries = rng.integers(N_SYMMETRIES, size=len(order)) if augment else np.zeros(len(order), np.int64)
        starts = range(first * batch_size, len(order), batch_size)
        parts = [(order[s : s + batch_size], symmetries[s : s + batch_size]) for s in starts]
        return read_ahead(lambda part: self.batch(*part), parts)


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
