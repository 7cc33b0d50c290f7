"""The frozen-feature cache: what a head is trained on, computed once, so that CLIP runs in no training step.

A record is an image: its class maps, the layers' features, and the small raw picture. Ground truth lies beside them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..checks import whole_number
from ..clip import SurgeryCLIP
from ..datasets.dataset import Dataset, read_image
from ..errors import CacheError, CheckpointError
from ..files import atomic_write
from ..frames import BOX_COLUMNS
from ..heatmaps import heatmaps
from ..words import PROMPT_TEMPLATES, prompt_names
from .image_shards import ImageShards
from .map_shards import MapSource, check_classes_suffice, open_shard
from .measures import truth_codes

SHARD_IMAGES = 256
_TARGETS = "targets.npy"
_LARGEST = float(np.finfo(np.float16).max)
_TARGET = np.dtype([("image", "<i8"), ("label", "<i8"), ("box", "<f4", (4,))])


@dataclass(frozen=True)
class Targets:
    """Ground truth of a data set, flat; rows in the order of its boxes frame.

    Attributes:
        image: int64 [G] place of the image in the data set.
        label: int64 [G] place of the class in the class list.
        boxes_xyxy: float32 [G, 4] in [0, 1] of the image.
        n_images: images, with boxes or without.
    """

    image: np.ndarray
    label: np.ndarray
    boxes_xyxy: np.ndarray
    n_images: int

    def rows_by_image(self) -> list[np.ndarray]:
        """The rows of each image's boxes."""
        order = np.argsort(self.image, kind="stable")
        return np.split(order, np.searchsorted(self.image[order], np.arange(1, self.n_images)))


class _Input(NamedTuple):
    pixels: Tensor  # float32 [3, S, S] for CLIP
    picture: np.ndarray  # uint8 [3, s, s] for the head's own encoder


class FeatureCache(ImageShards):
    """Frozen features of a data set in shards on disk. Attributes as in `ImageShards`.

    A shard is an npy file of records, `record.names`:

    - `cam` float32 [C, h, w]: the class maps of one kind, mean over the last `layers` layers, of the whole class list.
    - `features` float16 [L, N, W]: those layers' patch tokens of the QK path, before any norm.
    - `picture` uint8 [3, s, s]: the image, RGB, squashed to s x s by means over areas.

    `targets.npy` holds every box: image, label, xyxy in [0, 1].
    """

    what = "features"
    code = (
        "attention", "weights", "words", "clip", "engine.features", "heatmaps", "engine.image_shards",
        "datasets.images", "kinds",
    )  # fmt: skip

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int = 3,
        kind: str = "vv_mixed",
        similarity: str = "cosine",
        picture_size: int = 128,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        folder: str | Path | None = None,
    ) -> None:
        """Find or prepare the cache of a model and a data set; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its whole class list is asked for, in its order.
            cache_dir: folder of caches, one subfolder each.
            layers: L, number of last layers.
            kind: heatmap kind of the class maps.
            similarity: of the class maps.
            picture_size: side s of the small picture in pixels.
            templates: prompts.
            folder: this very cache, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError: the cache in the folder was made of something else; the message says of what.
            ParameterError: more layers than the value-value path has, unknown kind or similarity, a size below 8,
                `surgery` with one class.
            ImageReadError: an image file is missing.
        """
        picture_size = whole_number("picture_size", picture_size, 8)
        self.source = MapSource(kind, similarity, layers)
        check_classes_suffice([self.source], len(dataset.classes))
        self.picture_size = picture_size
        rows, columns = clip.grid
        record = np.dtype(
            [
                ("cam", "<f4", (len(dataset.classes), rows, columns)),
                ("features", "<f2", (layers, rows * columns, clip.feature_dim)),
                ("picture", "u1", (3, picture_size, picture_size)),
            ]
        )
        super().__init__(
            clip,
            dataset,
            cache_dir,
            layers=layers,
            templates=templates,
            details={
                "kind": kind,
                "similarity": similarity,
                "picture_size": picture_size,
                "annotations_sha256": dataset.fingerprint(),
            },
            record=record,
            shard_images=SHARD_IMAGES,
            folder=folder,
        )

    @property
    def targets(self) -> Targets:
        """The ground truth as it lies in the cache.

        Raises:
            CacheError: the cache has not been computed, or the file is damaged.
        """
        stored = open_shard(self.folder / _TARGETS, self.what)
        if stored.dtype != _TARGET or stored.ndim != 1:
            raise CacheError(f"{self.folder / _TARGETS} holds {stored.dtype}, not targets; delete it")
        return Targets(
            np.array(stored["image"]), np.array(stored["label"]), np.array(stored["box"]), len(self.dataset.images)
        )

    def compute(self, *, batch_size: int = 16, workers: int | None = None) -> FeatureCache:
        """As `ImageShards.compute`, with the ground truth.

        Raises:
            CheckpointError: a feature is too large for 16 bits.
        """
        super().compute(batch_size=batch_size, workers=workers)
        if len(self.dataset.images) and not (self.folder / _TARGETS).is_file():
            buffer = io.BytesIO()
            np.save(buffer, _targets(self.dataset))
            atomic_write(self.folder / _TARGETS, buffer.getvalue())
        return self

    def _read(self, path: str) -> _Input:
        image = read_image(path)
        side = self.picture_size
        picture = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        return _Input(self.clip.preprocess(image), picture.transpose(2, 0, 1))

    def _records(self, images: list[_Input], first: int) -> np.ndarray:
        text = self.clip.encode_text(prompt_names(self.dataset.classes), self.templates)
        tokens = self.clip.encode_image(torch.stack([image.pixels for image in images]), self.layers)
        records = np.empty(len(images), dtype=self.record)
        records["cam"] = heatmaps(tokens, text, self.source.kind, similarity=self.source.similarity).cpu().numpy()
        features = tokens.features.transpose(0, 1)  # [B, L, N, W]
        if not np.isfinite(records["cam"]).all() or not features.isfinite().all():
            raise self._not_finite(first)
        if (largest := float(features.abs().max())) > _LARGEST:
            raise CheckpointError(
                f"{self.clip.name} gives features of up to {largest:.3g} on images of {self.path(first).name}; the "
                "cache holds 16-bit numbers up to 65,504: use another checkpoint"
            )
        records["features"] = features.half().cpu().numpy()
        records["picture"] = np.stack([image.picture for image in images])
        return records


def _targets(dataset: Dataset) -> np.ndarray:
    image, label = truth_codes(dataset)
    sides = dataset.images[["width", "height", "width", "height"]].to_numpy(np.float64)[image]
    targets = np.empty(len(image), dtype=_TARGET)
    targets["image"], targets["label"] = image, label
    targets["box"] = dataset.boxes[BOX_COLUMNS].to_numpy(np.float64) / sides
    return targets
