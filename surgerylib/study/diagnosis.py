"""The quality of raw heatmaps over a whole store: how they respond inside and outside the ground truth, by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ..engine.map_shards import MapShard, MapSource
from ..engine.parallel import in_processes
from ..intervals import number, with_interval
from ..matching import BOX_COLUMNS
from .quality import PairQuality, image_quality, quality_difference, quality_frame, quality_summary

if TYPE_CHECKING:  # a worker process has no need of torch
    from ..engine.store import HeatmapStore

# rows of the quality table whose paired difference says something
_COMPARED = {
    "mean inside (± sd)": "inside_mean",
    "mean outside (± sd)": "outside_mean",
    "maximum inside (± sd)": "inside_max",
    "inverted": "inverted",
    "pointing": "pointing",
    "energy inside": "energy",
    "MaxBoxAccV2": "max_box_acc_v2",
}
_PIECE = 16  # images a worker takes at a time


class _Task(NamedTuple):
    shard: MapShard
    boxes: tuple[np.ndarray, ...]  # [G, 4] of each image
    labels: tuple[np.ndarray, ...]  # [G] of each image


def map_quality(
    store: HeatmapStore, sources: Sequence[MapSource], *, cam_thresholds: int = 100, workers: int | None = None
) -> dict[MapSource, pd.DataFrame]:
    """Every annotated (image, class) pair of a computed store under each source, see `quality.image_quality`.

    Args:
        store: computed.
        sources: those with the same maps are measured once.
        cam_thresholds: of MaxBoxAccV2, most of the work: 1 where it is not asked for.
        workers: processes; None takes the CPU's cores.

    Returns:
        source -> frame of `quality.QUALITY_COLUMNS`, a row a pair.
    """
    data = store.dataset
    label = pd.Index(data.classes).get_indexer(data.boxes["label"])
    rows = data.boxes.assign(label=label).groupby("image_id", sort=False)
    by_image = {image_id: (own[BOX_COLUMNS].to_numpy(float), own["label"].to_numpy()) for image_id, own in rows}
    nothing = (np.empty((0, 4)), np.empty(0, np.int64))
    image_ids = data.images["image_id"].tolist()
    tasks = []
    for piece in (piece for shard in store.shards for piece in shard.pieces(_PIECE)):
        ids = image_ids[piece.first : piece.first + len(piece.sizes_wh)]
        boxes, labels = zip(*(by_image.get(image_id, nothing) for image_id in ids), strict=True)
        tasks.append(_Task(piece, boxes, labels))
    distinct = {source.key: source for source in sources}
    found: dict[tuple, list[list[PairQuality]]] = {key: [] for key in distinct}
    work = partial(_quality_of_piece, sources=tuple(distinct.values()), cam_thresholds=cam_thresholds)
    sizes = [len(task.boxes) for task in tasks]
    for of_sources in in_processes(
        work, tasks, workers=workers, description="heatmap quality", unit="image", sizes=sizes
    ):  # fmt: skip
        for key, of_images in zip(distinct, of_sources, strict=True):
            found[key] += of_images
    frames = {key: quality_frame(image_ids, of_images, data.classes) for key, of_images in found.items()}
    return {source: frames[source.key] for source in sources}


def quality_by_kind(pairs: Mapping[str, pd.DataFrame], *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`quality.quality_summary` of each kind, with a column `kind`; kinds that share a frame are summarised once."""
    summaries: dict[int, pd.DataFrame] = {}
    parts = []
    for kind, frame in pairs.items():
        if id(frame) not in summaries:
            summaries[id(frame)] = quality_summary(frame, n_resamples=n_resamples, seed=seed)
        parts.append(summaries[id(frame)].assign(kind=kind))
    return pd.concat(parts, ignore_index=True)


def joint_names(pairs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Kinds that share a frame, because they have the same maps, under one name: `standard = vv_qk`."""
    names: dict[int, list[str]] = {}
    for kind, frame in pairs.items():
        names.setdefault(id(frame), []).append(kind)
    return {" = ".join(kinds): pairs[kinds[0]] for kinds in names.values()}


def quality_table(quality: pd.DataFrame) -> pd.DataFrame:
    """`quality_by_kind` for a reader: a column a kind, a row a figure with what it needs (sd, interval, range).

    Kinds with the same figures stand in one column.
    """
    columns: dict[tuple, list[str]] = {}
    for kind, frame in quality.groupby("kind", sort=False):
        of = frame.set_index("figure")
        columns.setdefault(tuple(_quality_row(of).items()), []).append(str(kind))
    return pd.DataFrame({" = ".join(kinds): dict(cells) for cells, kinds in columns.items()})


def difference_column(pairs_a: pd.DataFrame, pairs_b: pd.DataFrame, *, seed: int = 0) -> pd.Series:
    """One kind's figures minus another's on the same images, for `quality_table`: `difference [low, high]` by row."""
    of = quality_difference(pairs_a, pairs_b, seed=seed).set_index("figure")
    cells = {
        row: with_interval(*of.loc[figure, ["difference", "low", "high"]], sign=True)
        for row, figure in _COMPARED.items()
        if not math.isnan(of.loc[figure, "difference"])
    }
    return pd.Series(cells, dtype=object)


def _quality_row(of: pd.DataFrame) -> dict[str, str]:
    """`of`: one kind's figures by name."""

    def spread(figure: str) -> str:
        value, sd = of.loc[figure, ["value", "sd"]]
        return number(value) if math.isnan(sd) else f"{number(value)} ± {number(sd)}"

    def share(figure: str) -> str:
        value, low, high = of.loc[figure, ["value", "low", "high"]]
        return "no such pair" if math.isnan(value) else with_interval(value, low, high)

    return {
        "pairs": f"{of.loc['inside_mean', 'n_pairs']:,}",
        "mean inside (± sd)": spread("inside_mean"),
        "mean outside (± sd)": spread("outside_mean"),
        "maximum inside (± sd)": spread("inside_max"),
        "similarity range": f"{number(of.loc['map_min', 'minimum'])} to {number(of.loc['map_max', 'maximum'])}",
        "inverted": share("inverted"),
        "pointing": share("pointing"),
        "energy inside": share("energy"),
        "area inside": f"{of.loc['area', 'value']:.3f}",
        "MaxBoxAccV2": share("max_box_acc_v2"),
    }


def _quality_of_piece(task: _Task, sources: Sequence[MapSource], cam_thresholds: int) -> list[list[list[PairQuality]]]:
    """[source][image][pair]."""
    per_image = list(zip(task.boxes, task.labels, task.shard.sizes_wh, strict=True))
    return [
        [
            image_quality(maps, boxes, labels, size_wh, cam_thresholds=cam_thresholds)
            for maps, (boxes, labels, size_wh) in zip(task.shard.maps(source), per_image, strict=True)
        ]
        for source in sources
    ]
