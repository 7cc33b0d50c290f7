"""Boxes of one setting against the ground truth, in worker processes, which need not load torch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import pandas as pd

from ..checks import worker_count
from ..datasets.dataset import Dataset
from ..kinds import PROTOCOLS
from ..matching import BOX_COLUMNS
from ..metrics import BootstrapResult, bootstrap_map
from .map_shards import BoxTable
from .measures import measure_boxes, present_pairs, truth_codes
from .parallel import in_processes

_AT_ONCE = 4  # tables that are evaluated together: each takes memory of its own
Table = TypeVar("Table")
Found = TypeVar("Found")


class BoxEvaluation:
    """The figures of one setting's boxes under both protocols."""

    def __init__(
        self, dataset: Dataset, iou_thresholds: Sequence[float], interpolation: str, n_resamples: int, seed: int
    ) -> None:
        """See `average_precision`; the resamples are half-samples of the images, in the order of their ids."""
        self.dataset = dataset
        self.present = present_pairs(dataset)
        # whole numbers in place of names take a fraction of their time and memory; images are numbered in the order
        # of their ids, by which the resamples are drawn
        ids = pd.Index(dataset.images["image_id"])
        self.number_of_image = ids.sort_values().get_indexer(ids)
        place, label = truth_codes(dataset)
        self.truth = dataset.boxes[BOX_COLUMNS].assign(image_id=self.number_of_image[place], label=label)
        self.options = {
            "image_ids": range(len(ids)),
            "classes": range(len(dataset.classes)),
            "iou_thresholds": iou_thresholds,
            "interpolation": interpolation,
            "n_resamples": n_resamples,
            "seed": seed,
        }

    def figures(self, table: BoxTable) -> dict[str, tuple[BootstrapResult, dict[str, float]]]:
        """Protocol -> mAP, without the classes' own, and `measure_boxes`."""
        return {
            protocol: (
                self.bootstrap(table, self.asked(protocol)[table.image, table.label]).without_classes(),
                measure_boxes(table, self.dataset, self.asked(protocol)),
            )
            for protocol in PROTOCOLS
        }

    def by_protocol(self, table: BoxTable) -> dict[str, BootstrapResult]:
        """Protocol -> AP of every class."""
        return {
            protocol: self.bootstrap(table, self.asked(protocol)[table.image, table.label]) for protocol in PROTOCOLS
        }

    def asked(self, protocol: str) -> np.ndarray:
        """Bool [images, classes]: the pairs that a protocol asks for."""
        return self.present if protocol == "present" else np.ones_like(self.present)

    def bootstrap(self, table: BoxTable, rows: np.ndarray) -> BootstrapResult:
        """AP of some rows of a table; images and classes by number, images in the order of their ids."""
        detections = pd.DataFrame(table.boxes[rows], columns=[*BOX_COLUMNS, "score"])
        detections["image_id"] = self.number_of_image[table.image[rows]]
        detections["label"] = table.label[rows].astype(np.int64)
        return bootstrap_map(detections, self.truth, **self.options)


def evaluate(
    function: Callable[[Table], Found], tables: Iterable[Table], *, workers: int | None = None
) -> Iterator[Found]:
    """`function` of each table in order, some at a time in the processes that have found the boxes.

    Args:
        function: picklable, with what it is bound to.
        tables: asked for as they are needed.
        workers: how many processes have found the boxes; None takes the CPU's cores.
    """
    tables, at_once = iter(tables), min(worker_count(workers), _AT_ONCE)
    while some := list(islice(tables, at_once)):
        yield from in_processes(
            function, some, workers=workers, description="evaluation", all_workers=True, progress=lambda _: None
        )
