"""The quality of raw heatmaps over a whole store: how they respond inside and outside the ground truth, by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ..engine.parallel import in_processes
from ..heatmaps import Setting
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
    """Some images: what a worker takes at a time."""

    maps: list[np.ndarray]  # [n, C, h, w] of each setting
    boxes: tuple[np.ndarray, ...]  # [G, 4] of each image
    labels: tuple[np.ndarray, ...]  # [G] of each image
    sizes_wh: list[tuple[int, int]]


def map_quality(
    store: HeatmapStore, settings: Mapping[str, Setting], *, cam_thresholds: int = 100, workers: int | None = None
) -> dict[str, pd.DataFrame]:
    """Every annotated (image, class) pair of a computed store under each setting's maps, see `quality.image_quality`.

    Args:
        store: computed.
        settings: name -> setting; those with the same maps are measured once.
        cam_thresholds: of MaxBoxAccV2, most of the work: 1 where it is not asked for.
        workers: processes; None takes the CPU's cores.

    Returns:
        name -> frame of `quality.QUALITY_COLUMNS`, a row a pair; the same object for the same maps.
    """
    data = store.dataset
    label = pd.Index(data.classes).get_indexer(data.boxes["label"])
    rows = data.boxes.assign(label=label).groupby("image_id", sort=False)
    by_image = {image_id: (own[BOX_COLUMNS].to_numpy(float), own["label"].to_numpy()) for image_id, own in rows}
    nothing = (np.empty((0, 4)), np.empty(0, np.int64))
    images = data.images[["image_id", "width", "height"]].itertuples(index=False, name=None)
    truth = [(*by_image.get(image_id, nothing), (width, height)) for image_id, width, height in images]
    distinct = {setting.maps_key: setting for setting in settings.values()}
    found: dict[tuple, list[list[PairQuality]]] = {key: [] for key in distinct}
    blocks = store.blocks(_PIECE)
    tasks = (
        _Task([store.maps(setting, *block) for setting in distinct.values()], *zip(*truth[slice(*block)], strict=True))
        for block in blocks
    )
    for of_settings in in_processes(
        partial(_quality_of_piece, cam_thresholds=cam_thresholds), tasks, workers=workers,
        sizes=[stop - start for start, stop in blocks], description="heatmap quality",
    ):  # fmt: skip
        for key, of_images in zip(distinct, of_settings, strict=True):
            found[key] += of_images
    image_ids = data.images["image_id"].tolist()
    frames = {key: quality_frame(image_ids, of_images, data.classes) for key, of_images in found.items()}
    return {name: frames[setting.maps_key] for name, setting in settings.items()}


def quality_by_kind(pairs: Mapping[str, pd.DataFrame], *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`quality.quality_summary` of each kind, with a column `kind`; kinds that share a frame are summarised once."""
    summaries: dict[int, pd.DataFrame] = {}
    parts = []
    for kind, frame in pairs.items():
        if id(frame) not in summaries:
            summaries[id(frame)] = quality_summary(frame, n_resamples=n_resamples, seed=seed)
        parts.append(summaries[id(frame)].assign(kind=kind))
    return pd.concat(parts, ignore_index=True)


def joint_pairs(pairs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
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


def _quality_of_piece(task: _Task, cam_thresholds: int) -> list[list[list[PairQuality]]]:
    """[setting][image][pair]."""
    return [
        [
            image_quality(of_image, boxes, labels, size_wh, cam_thresholds=cam_thresholds)
            for of_image, boxes, labels, size_wh in zip(maps, task.boxes, task.labels, task.sizes_wh, strict=True)
        ]
        for maps in task.maps
    ]
