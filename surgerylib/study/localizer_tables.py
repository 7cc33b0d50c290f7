"""The localiser's figures as tables and sentences for a report.

`ious` is a frame of `localizer_training.localize`, or by name several on the same boxes; `summary` is one of
`localizer_training.summarise`; `seed` is that of the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..engine import (
    BASELINES,
    METHODS,
    UNTRAINED,
    FeatureCache,
    LocalizerTask,
    Training,
    localization_difference,
    summarise,
)
from ..localizer import GTClassLocalizer
from ..words import METHOD_NAMES
from .box_groups import SIZE_LIMITS, box_sizes
from .tables import cells, plain, plain_methods, texts, wide

FIGURES = {
    "mean": "mean IoU",
    "median": "median",
    "sd": "sd",
    "share>0.30": "share > 0.3",
    "share>0.50": "share > 0.5",
    "share>0.70": "share > 0.7",
}


def answer_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A row a method, `value [low, high]`."""
    of = wide(summary, "method", "figure").loc[list(METHODS), list(FIGURES)]
    return of.rename(index=METHOD_NAMES, columns=FIGURES).rename_axis(None).rename_axis(columns=None)


def finding(ious: pd.DataFrame, summary: pd.DataFrame, *, seed: int = 0) -> str:
    """One sentence that answers the notebook's question with its figures.

    Learned is what lies above every guess (intervals that don't overlap) and above the untrained head (paired): `ious`
    has both.
    """
    if ious.empty:
        return "No image of this split holds a box of the class list: nothing can be measured."
    means = _means(summary)
    cell = cells(means)
    best = means.loc[list(BASELINES), "value"].idxmax()
    highest = means.loc[list(BASELINES), "high"].max()
    untrained = ious[list(UNTRAINED.values())].set_axis(list(UNTRAINED), axis=1)
    gains = _means(localization_difference(ious[list(UNTRAINED)], untrained, ious["image_id"], seed=seed))["low"]
    beats = {method: bool(means.loc[method, "low"] > highest and gains[method] > 0) for method in UNTRAINED}
    if all(beats.values()):
        verdict = "The trained head finds boxes that neither a guess nor the untrained head finds"
    elif beats["oracle"]:
        verdict = "Some cell of the trained head finds the box, but the CAM's peak does not tell which one"
    else:
        verdict = "The trained head is not told apart from what needs no learning"
    return (
        f"{verdict}: the class being given, mean IoU {cell['oracle']} in the best cell (an oracle; untrained "
        f"{means.loc['untrained_oracle', 'value']:.3f}) and {cell['cam_peak']} at the CAM's peak (untrained "
        f"{means.loc['untrained_peak', 'value']:.3f}), against {cell[best]} for the best guess ({METHOD_NAMES[best]})."
    )


def by_seen(ious: pd.DataFrame, seen: Sequence[str], *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """`summarise` apart for the classes that were trained on and the others."""
    is_seen = ious["label"].isin(seen)
    parts = {"seen classes": ious[is_seen], "unseen classes": ious[~is_seen]}
    return {name: summarise(part, seed=seed) for name, part in parts.items()}


def seen_table(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean IoU of each part of `by_seen`: a row a method, a column a part."""
    columns = {}
    for name, summary in parts.items():
        means = _means(summary).rename(index=METHOD_NAMES)
        columns[f"{name} ({int(summary['n_boxes'].max()):,} boxes)"] = cells(means)
    return pd.DataFrame(columns)


def parts_table(clip: SurgeryCLIP, model: GTClassLocalizer) -> pd.DataFrame:
    """What is frozen and what is trained, in parameters."""
    encoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("encoder."))
    rows = {
        f"{clip.name}: image and text tower": ("frozen", sum(p.numel() for p in clip.model.parameters())),
        "raw-image encoder": ("trained", encoder),
        "head: maps, features, boxes": ("trained", sum(p.numel() for p in model.parameters()) - encoder),
    }
    shown = [(name, state, f"{n:,}") for name, (state, n) in rows.items() if n]
    return pd.DataFrame(shown, columns=["", "state", "parameters"]).set_index("").rename_axis(None)


def cache_table(caches: Mapping[str, FeatureCache]) -> pd.DataFrame:
    """What the caches hold and take on disk."""
    rows = {
        f"{role} ({cache.dataset.split})": {
            "images": f"{len(cache.dataset.images):,}",
            "boxes": f"{len(cache.dataset.boxes):,}",
            "an image": f"{cache.record.itemsize / 1000:,.0f} kB",
            "all": f"{cache.nbytes / 1e6:,.1f} MB",
        }
        for role, cache in caches.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def variant_figures(ious: Mapping[str, pd.DataFrame], reference: str, *, seed: int = 0) -> pd.DataFrame:
    """Heads (variant -> `ious`) side by side, with the paired difference of each to one of them, the `reference`.

    Returns:
        Frame variant, method (`oracle`, `cam_peak`), value, low, high: mean IoU; difference, difference_low,
        difference_high: variant minus reference.
    """
    methods, parts = list(UNTRAINED), []
    for name, frame in ious.items():
        figures = summarise(frame[["image_id", *methods]], seed=seed)
        differences = localization_difference(frame[methods], ious[reference][methods], frame["image_id"], seed=seed)
        names = {"low": "difference_low", "high": "difference_high"}
        both = figures.merge(differences.rename(columns=names), on=["method", "figure"])
        parts.append(both[both["figure"] == "mean"].assign(variant=name))
    columns = ["variant", "method", "value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.concat(parts, ignore_index=True)[columns]


def variants_table(figures: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`variant_figures` for a reader: a row a variant."""
    of = figures.assign(method=figures["method"].map({"oracle": "best cell", "cam_peak": "CAM's peak"}))
    means = wide(of, "variant", "method").add_prefix("mean IoU, ")
    differences = wide(of, "variant", "method", "difference", sign=True).add_prefix(f"minus {reference}, ")
    differences.loc[reference] = "–"
    return means.join(differences).rename_axis(None).rename_axis(columns=None)


def variants_finding(figures: pd.DataFrame, reference: str) -> str:
    """What CLIP adds to the raw image, in a sentence, of `variant_figures`."""
    oracle = figures[figures["method"] == "oracle"].set_index("variant")
    if oracle["value"].isna().all():
        return "No box to compare on."
    row = oracle.loc["image only"]
    low, high = row["difference_low"], row["difference_high"]
    if math.isnan(low):
        verdict = "too few images tell whether CLIP's maps and features add to it"
    elif high < 0:
        verdict = f"less than {reference}: CLIP's maps and features add to it"
    elif low > 0:
        verdict = f"more than {reference}: CLIP's maps and features add nothing here"
    else:
        verdict = f"not told apart from {reference}: what CLIP adds does not show here"
    best = oracle["value"].idxmax()
    value, difference = cells(oracle)["image only"], cells(oracle, "difference", sign=True)["image only"]
    return (
        f"The raw image alone reaches {value} in the best cell, {verdict} (difference {difference}). "
        f"Highest: {best}, {oracle.loc[best, 'value']:.3f}."
    )


def positive_figures(
    tasks: Mapping[str, LocalizerTask], ious: Mapping[str, pd.DataFrame], data: Dataset
) -> pd.DataFrame:
    """What the assigner does to boxes of each size, of the classes that are trained on.

    `tasks`: assigner -> what was trained with it, on the same images; `ious`: assigner -> the same on `data`.

    Returns:
        Frame size, assigner, n_boxes (trained on), ever_positive (share of them), n_measured, mean_iou (best cell).
    """
    rows = []
    of_data = box_sizes(data.boxes)
    for size in SIZE_LIMITS:
        for name, task in tasks.items():
            trained = task.is_trained_on & (box_sizes(task.train.dataset.boxes) == size)
            ever = pd.Series(task.ever_positive.numpy()[trained], dtype=float)
            measured = ious[name].loc[of_data[ious[name]["box_row"].to_numpy(int)] == size, "oracle"]
            rows.append((size, name, len(ever), ever.mean(), len(measured), measured.mean()))
    return pd.DataFrame(rows, columns=["size", "assigner", "n_boxes", "ever_positive", "n_measured", "mean_iou"])


def positives_table(figures: pd.DataFrame) -> pd.DataFrame:
    """`positive_figures` for a reader: a row a size."""
    limits = {size: f" (below {limit**0.5:.0f}² px)" for size, limit in SIZE_LIMITS.items() if limit < math.inf}
    of = figures.assign(size=figures["size"] + figures["size"].map(limits).fillna(""))
    counts = texts(of, {"boxes trained on": ("n_boxes", "{:,}")}).groupby(of["size"], sort=False).first()
    columns = {"ever a positive": ("ever_positive", "{:.3f}"), "mean IoU": ("mean_iou", "{:.3f}")}
    shares = texts(of, columns).pivot_table(
        index=of["size"], columns=of["assigner"], values=list(columns), aggfunc="first", sort=False
    )
    return counts.join(shares.set_axis(shares.columns.map(", ".join), axis=1)).rename_axis(None)


def training_results(
    sentence: str,
    summary: pd.DataFrame,
    training: Training,
    *,
    seen: Mapping[str, pd.DataFrame],
    variants: pd.DataFrame | None,
    positives: pd.DataFrame | None,
    **more: Any,
) -> dict[str, Any]:
    """`training_results.json`: every number of the notebook as plain values; NaN becomes null."""
    return {
        "finding": sentence,
        **plain(summary[["n_boxes", "n_images"]].max()),
        "methods": plain_methods(summary),
        "by_seen": {name: plain_methods(part) for name, part in seen.items()},
        "best_epoch": training.best_epoch,
        "stopped_early": training.stopped_early,
        "history": plain(training.history),
        "variants": [] if variants is None else plain(variants),
        "positives_by_size": [] if positives is None else plain(positives),
        **more,
    }


def _means(figures: pd.DataFrame) -> pd.DataFrame:
    """The rows of mean IoU, by method."""
    return figures[figures["figure"] == "mean"].set_index("method")
