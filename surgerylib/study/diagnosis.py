"""The quality of raw heatmaps over a whole store: how they respond inside and outside the ground truth, by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..engine import in_processes, truth_codes
from ..heatmaps import Setting
from ..intervals import number
from ..matching import BOX_COLUMNS
from .box_groups import boxes_by_image
from .quality import PairQuality, image_quality, quality_difference, quality_frame, quality_summary
from .tables import cells

if TYPE_CHECKING:  # a worker process has no need of torch
    from ..engine import HeatmapStore

# row of the quality table -> its figure
_SPREADS = {
    "mean inside (± sd)": "inside_mean",
    "mean outside (± sd)": "outside_mean",
    "maximum inside (± sd)": "inside_max",
}
_SHARES = {
    "inverted": "inverted",
    "pointing": "pointing",
    "energy inside": "energy",
    "area inside": "area",
    "MaxBoxAccV2": "max_box_acc_v2",
}
_PIECE = 16  # images a worker takes at a time
# what a worker takes at a time, some images: maps [n, C, h, w] of each setting; boxes [G, 4], labels [G], size of each
_Task = tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]]


def map_quality(
    store: HeatmapStore, settings: Mapping[str, Setting], *, cam_thresholds: int = 100, workers: int | None = None
) -> dict[str, pd.DataFrame]:
    """Every annotated (image, class) pair of a computed store under each setting's maps, see `quality.image_quality`.

    Settings with the same maps are measured once. MaxBoxAccV2 is most of the work: `cam_thresholds` 1 where it is not
    asked for. `workers`: processes; None takes the CPU's cores.

    Returns:
        name -> frame of `quality.QUALITY_COLUMNS`, a row a pair; the same object for the same maps.
    """
    data = store.dataset
    boxes, (_, label) = data.boxes[BOX_COLUMNS].to_numpy(np.float64), truth_codes(data)
    sizes_wh = data.images[["width", "height"]].itertuples(index=False, name=None)
    truth = [(boxes[rows], label[rows], wh) for rows, wh in zip(boxes_by_image(data), sizes_wh, strict=False)]
    distinct = {setting.maps_key: setting for setting in settings.values()}
    found: dict[tuple, list[list[PairQuality]]] = {key: [] for key in distinct}
    blocks = store.blocks(_PIECE)
    tasks = (([store.maps(s, *block) for s in distinct.values()], truth[slice(*block)]) for block in blocks)
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
    summaries = {id(of): quality_summary(of, n_resamples=n_resamples, seed=seed) for of in joint_pairs(pairs).values()}
    return pd.concat([summaries[id(of)].assign(kind=kind) for kind, of in pairs.items()], ignore_index=True)


def joint_pairs(pairs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Kinds that share a frame, because they have the same maps, under one name: `standard = vv_qk`."""
    distinct = {id(frame): frame for frame in pairs.values()}
    return {" = ".join(kind for kind, own in pairs.items() if own is of): of for of in distinct.values()}


def quality_table(quality: pd.DataFrame) -> pd.DataFrame:
    """`quality_by_kind` for a reader: a column a kind, a row a figure with what it needs (sd, interval, range).

    Kinds with the same figures stand in one column.
    """
    of_kinds = quality.set_index("figure").groupby("kind", sort=False)
    columns = pd.DataFrame({kind: _quality_column(of) for kind, of in of_kinds})
    alike = columns.T.groupby(list(columns.index), sort=False).groups
    return pd.DataFrame({" = ".join(kinds): columns[kinds[0]] for kinds in alike.values()})


def difference_column(pairs_a: pd.DataFrame, pairs_b: pd.DataFrame, *, seed: int = 0) -> pd.Series:
    """One kind's figures minus another's on the same images, for `quality_table`: `difference [low, high]` by row."""
    of = quality_difference(pairs_a, pairs_b, seed=seed).set_index("figure")
    figures = pd.Series(_SPREADS | _SHARES).drop("area inside")  # which is the boxes' alone
    known = of.loc[figures].set_axis(figures.index).dropna(subset="difference")
    return cells(known, "difference", sign=True)


def _quality_column(of: pd.DataFrame) -> dict[str, str]:
    """`of`: one kind's figures by name."""
    sds = of["sd"].map(lambda sd: "" if math.isnan(sd) else f" ± {number(sd)}")
    spreads, shares = of["value"].map(number) + sds, cells(of).where(of["value"].notna(), "no such pair")
    return {
        "pairs": f"{of.loc['inside_mean', 'n_pairs']:,}",
        **{row: spreads[figure] for row, figure in _SPREADS.items()},
        "similarity range": f"{number(of.loc['map_min', 'minimum'])} to {number(of.loc['map_max', 'maximum'])}",
        **{row: shares[figure] for row, figure in _SHARES.items()},
        "area inside": f"{of.loc['area', 'value']:.3f}",
    }


def _quality_of_piece(task: _Task, cam_thresholds: int) -> list[list[list[PairQuality]]]:
    """[setting][image][pair]."""
    of_settings, truth = task
    judged = partial(image_quality, cam_thresholds=cam_thresholds)
    return [[judged(of_image, *own) for of_image, own in zip(maps, truth, strict=True)] for maps in of_settings]
