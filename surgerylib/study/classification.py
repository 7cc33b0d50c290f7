"""What the frozen CLIP says of the class, by itself: inside each ground truth box, and of the image as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..datasets import Dataset
from ..engine.measures import present_pairs, truth_codes
from ..heatmaps import PATHS, Setting, maps_of
from ..matching import BOX_COLUMNS
from ..metrics import BootstrapResult, bootstrap_map
from .responses import accuracy_summary, box_responses, confusion_matrix, response_ranks


@dataclass(frozen=True)
class Classification:
    """Responses of a data set under one way to put the classes into words; G boxes, C classes, n images.

    Attributes:
        dataset: whose boxes and images.
        responses: source -> float64 [G, C], mean of each class's map inside each box.
        image_scores: path -> float32 [n, C], similarity of the image's CLS token (last layer) to each class.
    """

    dataset: Dataset
    responses: dict[Setting, np.ndarray]
    image_scores: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """[G] places of the boxes' classes."""
        return truth_codes(self.dataset)[1]

    def ranks(self, source: Setting) -> np.ndarray:
        """[G] `response_ranks` under a source."""
        return response_ranks(self.responses[source], self.labels)

    def accuracy(self, source: Setting, *, seed: int = 0) -> pd.DataFrame:
        """`accuracy_summary` under a source."""
        return accuracy_summary(self.ranks(source), self.labels, self.dataset.boxes["image_id"], seed=seed)

    def confusion(self, source: Setting) -> pd.DataFrame:
        """Boxes of the class of a row in which the class of a column responds most."""
        names = list(self.dataset.classes)
        return pd.DataFrame(confusion_matrix(self.responses[source], self.labels), names, names)

    def image_level(self, path: str, *, interpolation: str, n_resamples: int = 1000, seed: int = 0) -> BootstrapResult:
        """Multi-label average precision of the images: for each class they are ranked by its CLS score (VOC).

        An image is a box that every image has: then detection's average precision is classification's.

        Args:
            path: whose CLS token: one of `map_shards.PATHS`.
            interpolation: as in `average_precision`.
            n_resamples: of `bootstrap_map`.
            seed: of the resamples.
        """
        ids, classes = self.dataset.images["image_id"].to_numpy(object), np.array(self.dataset.classes, dtype=object)
        image, label = np.nonzero(present_pairs(self.dataset))
        truth = _whole_images(ids[image], classes[label])
        scores = self.image_scores[path].astype(np.float64)
        asked = _whole_images(np.repeat(ids, len(classes)), np.tile(classes, len(ids))).assign(score=scores.ravel())
        return bootstrap_map(
            asked, truth, image_ids=ids, iou_thresholds=[0.5], interpolation=interpolation, classes=list(classes),
            n_resamples=n_resamples, seed=seed,
        )  # fmt: skip


def classify(
    similarities: Iterable[np.ndarray], dataset: Dataset, grid: tuple[int, int], sources: Sequence[Setting]
) -> Classification:
    """What CLIP says of each box and image, from stored similarities.

    Args:
        similarities: shard by shard in the data set's order, as `Store.shards` gives them.
        dataset: the one that they were computed of.
        grid: the model's patches (h, w).
        sources: those with the same maps are looked at once.
    """
    image, _ = truth_codes(dataset)
    order = np.argsort(image, kind="stable")
    rows_of = np.split(order, np.searchsorted(image[order], np.arange(1, len(dataset.images))))
    boxes = dataset.boxes[BOX_COLUMNS].to_numpy(np.float64)
    sizes = dataset.images[["width", "height"]].to_numpy().tolist()
    distinct = {source.maps_key: source for source in sources}
    found = {key: np.zeros((len(boxes), len(dataset.classes))) for key in distinct}
    scores = {path: np.zeros((len(dataset.images), len(dataset.classes)), np.float32) for path in PATHS}
    position = 0
    with tqdm(total=len(sizes), desc="responses inside the boxes", unit="image", delay=2, leave=False) as progress:
        for shard in similarities:
            stop = position + len(shard)
            for place, path in enumerate(PATHS):
                scores[path][position:stop] = shard[:, -1, place, :, 0]
            for key, source in distinct.items():
                stored = torch.from_numpy(np.array(shard[:, -source.layers :]))
                of_shard = maps_of(stored, grid, source.kind, similarity=source.similarity).numpy()
                for offset, maps in enumerate(of_shard):
                    rows = rows_of[position + offset]
                    found[key][rows] = box_responses(maps, boxes[rows], sizes[position + offset])
            progress.update(len(shard))
            position = stop
    return Classification(dataset, {source: found[source.maps_key] for source in sources}, scores)


def _whole_images(ids: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Boxes that cover the unit square: one of each image and class named."""
    frame = pd.DataFrame({"image_id": ids, "label": labels}).astype("str")
    return frame.assign(xmin=0.0, ymin=0.0, xmax=1.0, ymax=1.0)
