"""Maps of a whole data set -> boxes, in worker processes, which have no need of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..boxes import FoundBoxes, extract_many
from ..errors import ParameterError
from ..heatmaps import Setting
from .parallel import in_processes

if TYPE_CHECKING:
    from .store import HeatmapStore

_PIECE = 4  # images a worker takes at a time
Maps = Callable[[int, int], np.ndarray]  # (start, stop) -> float32 [n, C, h, w]
Cut = Callable[[np.ndarray, tuple[int, int]], np.ndarray]  # map [h, w], size (w, h) -> [K, 5] xyxy, score


class Boxes(NamedTuple):
    """Boxes of some images under one setting; rows by image, then class, then score."""

    image: np.ndarray  # int32 [K] place in the data set
    label: np.ndarray  # int16 [K] place in the class list
    boxes: np.ndarray  # float64 [K, 5] xyxy in original pixels, score
    activated: np.ndarray  # float32 [n, C] share of each map in the mask


NO_BOXES = Boxes(np.empty(0, np.int32), np.empty(0, np.int16), np.empty((0, 5)), np.empty((0, 0), np.float32))


def find_boxes(
    store: HeatmapStore,
    settings: Sequence[Setting],
    maps: Maps | None = None,
    boxes: Cut | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Boxes]:
    """Boxes of every image and class under settings that share their maps, in worker processes.

    Args:
        store, boxes, workers: as for `evaluate`.
        settings: of one `maps_key`.
        maps: where they come from; None takes the store's.
        progress: called with numbers of images, of `len(settings)` times all of them; None shows a bar.
    """
    maps = maps or partial(store.maps, settings[0])
    sizes_wh = list(store.dataset.images[["width", "height"]].itertuples(index=False, name=None))
    blocks = store.blocks(_PIECE)
    tasks = ((start, maps(start, stop), sizes_wh[start:stop]) for start, stop in blocks)
    counts = [(stop - start) * len(settings) for start, stop in blocks]
    work = partial(_cut_images, settings=list(settings), boxes=boxes)
    found = list(in_processes(work, tasks, sizes=counts, workers=workers, description="boxes", progress=progress))
    if not found:
        return [NO_BOXES] * len(settings)
    return [Boxes(*map(np.concatenate, zip(*of_setting, strict=True))) for of_setting in zip(*found, strict=True)]


def _cut_images(
    task: tuple[int, np.ndarray, list[tuple[int, int]]], settings: list[Setting], boxes: Cut | None
) -> list[Boxes]:
    """The boxes of some images: a table for each setting."""
    first, maps, sizes_wh = task

    def cut(heatmap: np.ndarray, size_wh: tuple[int, int]) -> Sequence[FoundBoxes]:
        if boxes is None:
            return extract_many(heatmap, size_wh, settings)
        return [_own_boxes(boxes, heatmap, size_wh)] * len(settings)

    found = [cut(heatmap, size_wh) for of_image, size_wh in zip(maps, sizes_wh, strict=True) for heatmap in of_image]
    tables = []
    for of_setting in zip(*found, strict=True):  # by image and class
        counts = [len(of_class.boxes) for of_class in of_setting]
        image, label = np.divmod(np.repeat(np.arange(len(counts)), counts), maps.shape[1])
        rows = np.concatenate([of_class.boxes for of_class in of_setting])
        activated = np.array([of_class.activated for of_class in of_setting], np.float32).reshape(maps.shape[:2])
        tables.append(Boxes((image + first).astype(np.int32), label.astype(np.int16), rows, activated))
    return tables


def _own_boxes(boxes: Cut, heatmap: np.ndarray, size_wh: tuple[int, int]) -> FoundBoxes:
    found = boxes(heatmap, size_wh)
    try:
        found = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise ParameterError(f"boxes= must give [K, 5] (xyxy in pixels, score), got {type(found).__name__}") from None
    found = found if found.size else np.empty((0, 5))
    if found.ndim != 2 or found.shape[1] != 5 or not np.isfinite(found).all():
        raise ParameterError(
            f"boxes= must give finite [K, 5] (xyxy in pixels, score), got {list(found.shape)}; one row a box"
        )
    return FoundBoxes(found[np.argsort(-found[:, 4], kind="stable")], float("nan"))
