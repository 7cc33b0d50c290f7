"""The localiser's figures as tables and sentences for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .clip import SurgeryCLIP
from .datasets import Dataset
from .features import FeatureCache
from .frames import BOX_COLUMNS
from .localization import BASELINES, localization_difference
from .localizer import GTClassLocalizer
from .localizer_training import METHODS, summarise
from .summary import with_interval
from .training import Training

METHOD_NAMES = {
    "oracle": "head, best cell (oracle)",
    "cam_peak": "head, cell of the CAM's peak",
    "whole_image": "whole image",
    "centre_box": "centre box",
    "class_mean": "class's mean box",
}
# by area in pixels of the original image, as COCO does
SIZE_LIMITS = {"small": 32**2, "medium": 96**2, "large": math.inf}
_FIGURES = {"mean": "mean IoU", "share>0.30": "share > 0.3", "share>0.50": "share > 0.5", "share>0.70": "share > 0.7"}


def answer_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A row a method, `value [low, high]`; `summary` as of `localizer_training.summarise`."""
    cells = summary.assign(cell=[with_interval(*row) for row in summary[["value", "low", "high"]].to_numpy()])
    table = cells.pivot_table(index="method", columns="figure", values="cell", aggfunc="first", sort=False)
    known = [method for method in METHODS if method in table.index]
    table = table.loc[known, list(_FIGURES)].rename(index=METHOD_NAMES, columns=_FIGURES)
    return table.rename_axis(index=None, columns=None)


def finding(summary: pd.DataFrame) -> str:
    """One sentence that answers the notebook's question with its figures."""
    means = summary[summary["figure"] == "mean"].set_index("method")
    if means["value"].isna().all():
        return "No image of this split holds a box of the class list: nothing can be measured."

    def cell(method: str) -> str:
        return with_interval(*means.loc[method, ["value", "low", "high"]])

    best = means.loc[list(BASELINES), "value"].idxmax()
    highest = means.loc[list(BASELINES), "high"].max()
    beats = {method: bool(means.loc[method, "low"] > highest) for method in ("oracle", "cam_peak")}
    if all(beats.values()):
        verdict = "The trained head finds boxes that no guess without learning finds"
    elif beats["oracle"]:
        verdict = "Some cell of the trained head finds the box, but the CAM's peak does not tell which one"
    else:
        verdict = "The trained head is not told apart from guesses without learning"
    return (
        f"{verdict}: the class being given, mean IoU {cell('oracle')} in the best cell (an oracle) and "
        f"{cell('cam_peak')} at the CAM's peak, against {cell(best)} for the best guess ({METHOD_NAMES[best]})."
    )


def seen_table(ious: pd.DataFrame, seen: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Mean IoU apart for the classes that were trained on and the others; `ious` as of `localize`."""
    is_seen = ious["label"].isin(seen)
    rows = {}
    for title, part in (("seen classes", ious[is_seen]), ("unseen classes", ious[~is_seen])):
        means = summarise(part, seed=seed)
        means = means[means["figure"] == "mean"].set_index("method")
        cells = {
            METHOD_NAMES[method]: with_interval(*row) for method, row in means[["value", "low", "high"]].iterrows()
        }
        rows[title] = {"boxes": f"{len(part):,}", **cells}
    return pd.DataFrame.from_dict(rows, orient="index")


def parts_table(clip: SurgeryCLIP, model: GTClassLocalizer) -> pd.DataFrame:
    """What is frozen and what is trained, in parameters."""

    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    rows = {f"{clip.name}: image and text tower": ("frozen", count(clip.model))}
    if hasattr(model, "encoder"):
        rows["raw-image encoder"] = ("trained", count(model.encoder))
    trained = count(model) - (count(model.encoder) if hasattr(model, "encoder") else 0)
    rows["head: maps, features, boxes"] = ("trained", trained)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["state", "parameters"])
    return table.assign(parameters=table["parameters"].map("{:,}".format))


def cache_table(caches: Mapping[str, FeatureCache]) -> pd.DataFrame:
    """What the caches hold and take on disk."""
    rows = {
        f"{role} ({cache.dataset.split})": (
            f"{len(cache.dataset.images):,}",
            f"{len(cache.dataset.boxes):,}",
            f"{cache.record.itemsize / 1000:,.0f} kB",
            f"{cache.nbytes / 1e6:,.1f} MB",
        )
        for role, cache in caches.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["images", "boxes", "an image", "all"])


def variants_table(
    ious: Mapping[str, pd.DataFrame], names: Sequence[str], reference: str, *, seed: int = 0
) -> pd.DataFrame:
    """Heads side by side on the same boxes, with the paired difference of each to one of them.

    Args:
        ious: variant -> frame of `localize`, all on the same boxes.
        names: variants, in the order of the rows.
        reference: the one that differences are taken to.
        seed: of the resamples.
    """
    rows = {}
    for name in names:
        figures = summarise(ious[name], seed=seed).set_index(["method", "figure"])
        row = {}
        for method, title in (("oracle", "best cell"), ("cam_peak", "CAM's peak")):
            row[f"mean IoU, {title}"] = with_interval(*figures.loc[(method, "mean"), ["value", "low", "high"]])
        difference = localization_difference(
            ious[name][["oracle", "cam_peak"]], ious[reference][["oracle", "cam_peak"]], ious[name]["image_id"],
            seed=seed,
        ).set_index(["method", "figure"])  # fmt: skip
        for method, title in (("oracle", "best cell"), ("cam_peak", "CAM's peak")):
            cell = with_interval(*difference.loc[(method, "mean"), ["difference", "low", "high"]])
            row[f"minus {reference}, {title}"] = "–" if name == reference else cell
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def box_sizes(dataset: Dataset) -> np.ndarray:
    """`small`, `medium` or `large` for each box of the data set: by area in pixels, as COCO (32², 96²)."""
    xyxy = dataset.boxes[BOX_COLUMNS].to_numpy(float).reshape(-1, 4)
    area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    names = np.array(list(SIZE_LIMITS), dtype=object)
    return names[np.digitize(area, list(SIZE_LIMITS.values())[:-1])]


def positives_table(
    ever_positive: Mapping[str, np.ndarray], sizes: np.ndarray, ious: Mapping[str, pd.DataFrame], data: Dataset
) -> pd.DataFrame:
    """What the assigner does to boxes of each size.

    Args:
        ever_positive: assigner -> bool [G], whether each training box ever had a positive cell.
        sizes: [G] `box_sizes` of the training images.
        ious: assigner -> frame of `localize` on `data`.
        data: where the IoU is measured.
    """
    of_data = box_sizes(data)
    rows = []
    for size in SIZE_LIMITS:
        here, there = sizes == size, of_data == size
        row: dict[str, Any] = {"boxes trained on": f"{here.sum():,}"}
        for name, ever in ever_positive.items():
            row[f"ever a positive, {name}"] = f"{ever[here].mean():.3f}" if here.any() else "no boxes"
        for name, frame in ious.items():
            values = frame.loc[there[frame["box_row"].to_numpy(int)], "oracle"]
            row[f"mean IoU, {name}"] = f"{values.mean():.3f}" if len(values) else "no boxes"
        rows.append(row)
    below = [
        f"{size} (below {limit**0.5:.0f}² px)" if limit < math.inf else size for size, limit in SIZE_LIMITS.items()
    ]
    return pd.DataFrame(rows, index=below)


def training_results(
    summary: pd.DataFrame,
    training: Training,
    variants: pd.DataFrame | None,
    positives: pd.DataFrame | None,
    **more: Any,
) -> dict[str, Any]:
    """`training_results.json`: every number of the answer as plain values; NaN becomes null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    methods = {
        method: {
            row.figure: {"value": plain(row.value), "low": plain(row.low), "high": plain(row.high)}
            for row in rows.itertuples()
        }
        for method, rows in summary.groupby("method", sort=False)
    }
    history = [{name: plain(value) for name, value in row.items()} for row in training.history.to_dict("records")]
    return {
        "finding": finding(summary),
        "n_boxes": int(summary["n_boxes"].max()),
        "n_images": int(summary["n_images"].max()),
        "methods": methods,
        "best_epoch": training.best_epoch,
        "stopped_early": training.stopped_early,
        "history": history,
        "variants": {} if variants is None else variants.to_dict("index"),
        "positives_by_size": {} if positives is None else positives.to_dict("index"),
        **more,
    }
