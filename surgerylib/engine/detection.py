"""A whole dataset through the frozen model: images -> heatmaps -> a detections frame, resumable.

Every class of the list is asked for on every image (the `all` protocol); `summary.present_only` keeps what the
`present` protocol would have asked for.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ..clip import SurgeryCLIP
from ..datasets.dataset import Dataset
from ..extraction import BoxSettings, Threshold
from ..heatmaps import heatmaps
from ..kinds import HEATMAP_KINDS, check_kinds
from ..words import PROMPT_TEMPLATES
from .map_shards import NO_BOXES, BoxesAhead, BoxTable, MapSource, box_workers, check_classes_suffice
from .store import HeatmapStore

DETECTION_COLUMNS = ("image_id", "label", "xmin", "ymin", "xmax", "ymax", "score", "kind")


@dataclass(frozen=True)
class DetectionSettings:
    """How boxes are made from images; together with model, data and class list it identifies a result.

    Attributes:
        kinds: heatmap kinds.
        similarity, last_layers: as in `heatmaps.heatmaps`.
        percentile, working_size, min_side, max_side, box_score, nms_iou, floor: as in `extraction.BoxSettings`
            (where `box_score` is `score`).
        templates: prompts.
    """

    kinds: tuple[str, ...] = HEATMAP_KINDS
    similarity: str = "cosine"
    percentile: Threshold = 75.0
    last_layers: int = 1
    working_size: int = 224
    min_side: int = 5
    max_side: int | None = None
    box_score: str = "mean"
    nms_iou: float | None = None
    floor: float | None = None
    templates: tuple[str, ...] = PROMPT_TEMPLATES

    def __post_init__(self) -> None:
        check_kinds(self.kinds)
        _ = self.boxes, self.sources  # both check their values

    @property
    def boxes(self) -> BoxSettings:
        """How boxes are cut out of a map."""
        return BoxSettings(
            self.percentile, self.working_size, self.min_side, self.max_side, self.box_score, self.nms_iou, self.floor
        )

    @property
    def sources(self) -> dict[str, MapSource]:
        """kind -> its maps."""
        return {kind: MapSource(kind, self.similarity, self.last_layers) for kind in self.kinds}


def detect(
    clip: SurgeryCLIP,
    dataset: Dataset,
    settings: DetectionSettings | None = None,
    *,
    cache_dir: str | Path | None = None,
    batch_size: int = 16,
    workers: int | None = None,
) -> pd.DataFrame:
    """Boxes of every class on every image, for each heatmap kind.

    With a cache folder, the heatmaps of finished images are kept as the work goes on (`store.HeatmapStore`): after a
    crash or a kill a rerun with the same model and data continues behind the last whole shard, and gives the same
    frame; another threshold or kind doesn't need the model again.

    Args:
        clip: the frozen model.
        dataset: its whole class list is asked for, in its order.
        settings: kinds, similarity, percentile...; the defaults when None.
        cache_dir: where the heatmaps are kept; None keeps nothing.
        batch_size: images a forward.
        workers: threads that read images, and processes that extract boxes; None takes the CPU's cores.

    Returns:
        frame with the columns `DETECTION_COLUMNS`; xyxy in pixels of the original image; a row a box and kind.

    Raises:
        ImageReadError: a damaged image (the shards finished before it stay).
        ParameterError: more layers than the value-value path has, or `surgery` with one class.
    """
    settings = settings or DetectionSettings()
    check_classes_suffice(settings.sources.values(), len(dataset.classes))
    with tempfile.TemporaryDirectory() if cache_dir is None else nullcontext(cache_dir) as folder:
        store = HeatmapStore(clip, dataset, folder, layers=settings.last_layers, templates=settings.templates)
        # kinds with the same maps have the same boxes: found once, listed under each name
        distinct = {source.key: source for source in settings.sources.values()}
        n_workers = box_workers(store.shards, workers)
        with BoxesAhead(list(distinct.values()), [settings.boxes], workers=n_workers) as ahead:
            store.compute(
                batch_size=batch_size, workers=workers, after_shard=lambda first: ahead.add(store.shard(first))
            )
            tables = ahead.tables(store.shards)
    # image by image, the kinds in their order; sorted as numbers, for millions of names would be held several times
    parts = [tables[distinct[source.key]][0] for source in settings.sources.values()]
    order = np.argsort(np.concatenate([part.image for part in parts]), kind="stable")
    image, label, boxes = (np.concatenate([part[column] for part in parts])[order] for column in range(3))
    kind = np.repeat(np.array(list(settings.sources), dtype=object), [len(part.image) for part in parts])[order]
    del tables, parts, order
    frame = detections_frame(BoxTable(image, label, boxes, NO_BOXES.activated), dataset)
    return frame.assign(kind=pd.Series(kind, dtype="str"))


def detections_frame(table: BoxTable, dataset: Dataset) -> pd.DataFrame:
    """A detections frame without kind: image_id, label, xmin, ymin, xmax, ymax, score."""
    columns = dict(zip(DETECTION_COLUMNS[2:7], table.boxes.T, strict=True))
    image_ids, classes = dataset.images["image_id"].to_numpy(), np.array(dataset.classes, dtype=object)
    frame = pd.DataFrame({"image_id": image_ids[table.image], "label": classes[table.label], **columns})
    return frame.astype({"image_id": "str", "label": "str"})


def image_heatmaps(
    clip: SurgeryCLIP, image: np.ndarray, text: Tensor, settings: DetectionSettings
) -> dict[str, Tensor]:
    """The raw maps of one image for each kind: kind -> float32 [C, h, w] on the CPU.

    Args:
        clip: the frozen model.
        image: uint8 RGB [H, W, 3].
        text: [C, D] unit rows.
        settings: its kinds, similarity and number of layers are used.
    """
    tokens = clip.encode_image(clip.preprocess(image).unsqueeze(0), settings.last_layers)
    return {kind: heatmaps(tokens, text, kind, similarity=settings.similarity)[0].cpu() for kind in settings.kinds}
