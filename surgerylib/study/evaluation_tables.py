"""The GT-class evaluation and CLIP's own classification as tables and sentences for a report.

`summary` is a frame of `localizer_training.summarise`; `groups` and `classes` are those of `head_evaluation.by_group`
(with a column `grouping`) and `by_class`; `seed` is that of the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..engine import BASELINES
from ..heatmaps import Setting, joint_names
from ..intervals import basic_interval, resampled_means, with_interval
from ..metrics import BootstrapResult, paired_difference
from .classification import TOP, Classification
from .tables import cells, plain, plain_methods, texts, wide
from .verdicts import SHARE, Verdict, verdict

PATH_NAMES = {"qk": "CLS of the stock model (QK path)", "vv": "CLS of the value-value path"}
_ACCURACIES = {
    "top1": "right class first",
    f"top{TOP}": f"among the first {TOP}",
    "class_mean": "first, mean over classes",
}
_GROUP_COLUMNS = {
    "oracle mean": "mean IoU, best cell",
    "oracle median": "median",
    f"oracle {SHARE}": "share > 0.5",
    "cam_peak mean": "mean IoU, CAM's peak",
}


def spread_finding(summary: pd.DataFrame) -> str:
    """How many boxes the head finds, for the title of a figure."""
    share = summary[summary["figure"] == SHARE].set_index("method")["value"]
    guess = share[list(BASELINES)].max()
    return (
        f"IoU > 0.5: {100 * share['oracle']:.0f} % of the boxes in the best cell, {100 * share['cam_peak']:.0f} % at "
        f"the CAM's peak, at most {100 * guess:.0f} % by a guess"
    )


def groups_table(breakdown: pd.DataFrame) -> pd.DataFrame:
    """A row a group: boxes, images, mean IoU of best cell and CAM's peak, share > 0.5, and the best guess.

    `breakdown`: `groups` or `classes`.
    """
    keys = [name for name in ("grouping", "group") if name in breakdown.columns]
    of = breakdown.assign(column=breakdown["method"] + " " + breakdown["figure"])
    first = of.groupby(keys, sort=False)[["n_boxes", "n_images"]].first()
    guesses = of[of["method"].isin(BASELINES) & (of["figure"] == "mean")]
    first["guess"] = guesses.groupby(keys, sort=False)["value"].max()
    shown = wide(of, keys, "column")[list(_GROUP_COLUMNS)]
    counts = texts(first, {"boxes": ("n_boxes", "{:,}"), "images": ("n_images", "{:,}")})
    best = texts(first, {"best guess": ("guess", "{:.3f}")})
    shown = counts.join(shown.rename(columns=_GROUP_COLUMNS)).join(best)
    return shown.rename_axis(index=[""] * 2 if len(keys) == 2 else None)


def groups_finding(breakdown: pd.DataFrame) -> str:
    """Which group of which grouping is found least, of those with an interval; `breakdown`: `groups`."""
    known = _oracle_means(breakdown).dropna(subset=["value", "low"])
    if known.empty:
        return "Too few images to compare groups of boxes."
    spread = known.groupby("grouping", sort=False)["value"].agg(lambda values: values.max() - values.min())
    of = known[known["grouping"] == spread.idxmax()]
    if len(of) < 2:
        return "No grouping has two groups with an interval."
    low, high = of.loc[of["value"].idxmin()], of.loc[of["value"].idxmax()]
    text = cells(of)
    apart = "" if low["high"] < high["low"] else "; the intervals overlap"
    return (
        f"Mean IoU of the best cell differs most by {low['grouping']}: {text[low.name]} ({low['group']}) against "
        f"{text[high.name]} ({high['group']}){apart}."
    )


def accuracy_table(found: Classification, sources: Mapping[str, Setting], *, seed: int = 0) -> pd.DataFrame:
    """A row a kind: how often the right class responds most in a ground truth box; the last rows need no map."""
    rows = {}
    joint = joint_names(sources)
    for name, source in tqdm(joint.items(), desc="boxes named rightly", unit="kind", delay=2, leave=False):
        rows[name] = cells(found.accuracy(source, seed=seed).set_index("figure"))[list(_ACCURACIES)].tolist()
    n_classes = len(found.dataset.classes)
    chance = (1 / n_classes, min(TOP, n_classes) / n_classes, 1 / n_classes)
    rows["any class at random"] = [f"{share:.3f}" for share in chance]
    counts = found.dataset.boxes["label"].value_counts()
    if len(counts):
        rows[f"always {counts.index[0]}"] = [f"{counts.iloc[0] / counts.sum():.3f}", "", f"{1 / len(counts):.3f}"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(_ACCURACIES.values()))


def image_level_table(results: Mapping[str, BootstrapResult], found: Classification) -> pd.DataFrame:
    """A row a CLS token: mean over classes of the average precision with which a class's images are ranked."""
    rows = {PATH_NAMES[path]: cells(result.summary(), "map").iloc[0] for path, result in results.items()}
    pairs = found.dataset.boxes.drop_duplicates(["image_id", "label"])["label"].value_counts()
    share = (pairs / max(len(found.dataset.images), 1)).mean()
    in_any_order = "share of images with the class, mean (an AP in any order is somewhat higher)"
    rows[in_any_order] = "no boxes" if math.isnan(share) else f"{share:.3f}"
    return pd.DataFrame({"mean average precision": rows})


def prompt_figures(
    by_prompts: Mapping[str, Classification], source: Setting, *, reference: str, interpolation: str, seed: int = 0
) -> pd.DataFrame:
    """What several ways to put the classes into words (`by_prompts`: prompt set -> classification) are worth.

    All on the same images: `source` gives the maps that name the boxes, and `reference` is the prompt set that paired
    differences are taken to.

    Returns:
        Frame prompts, figure, value, low, high: the figures of `Classification.accuracy`, `image_map`, the
        image-level mAP of the stock CLS, and the paired differences to the reference (not for the reference itself):
        `top1_difference` of the share named rightly, `difference` of the image-level mAP.
    """
    bar = {"unit": "wording", "delay": 2, "leave": False}
    levels = {
        name: found.image_level("qk", interpolation=interpolation, seed=seed)
        for name, found in tqdm(by_prompts.items(), desc="images ranked by class", **bar)
    }
    parts = []
    for name, found in tqdm(by_prompts.items(), desc="boxes named rightly", **bar):
        level = levels[name].summary().rename(columns={"map": "value"})
        rows = [found.accuracy(source, seed=seed), level.assign(figure="image_map")]
        if name != reference and reference in by_prompts:
            right, theirs = (of.ranks(source) == 0 for of in (found, by_prompts[reference]))
            gained = (right.astype(np.float64) - theirs)[:, None]
            mean, samples, n_images = resampled_means(gained, found.dataset.boxes["image_id"], 1000, seed)
            low, high = basic_interval(mean, samples, n_images)
            rows.append(pd.DataFrame({"figure": "top1_difference", "value": mean, "low": low, "high": high}))
            difference = paired_difference(levels[name], levels[reference]).summary()
            rows.append(difference.rename(columns={"difference": "value"}).assign(figure="difference"))
        parts.append(pd.concat(rows).assign(prompts=name))
    return pd.concat(parts, ignore_index=True)[["prompts", "figure", "value", "low", "high"]]


def prompts_table(figures: pd.DataFrame, *, reference: str) -> pd.DataFrame:
    """`prompt_figures` for a reader: a row a prompt set."""
    minus = f"minus {reference} (paired)"
    titles = {"top1": _ACCURACIES["top1"], "top1_difference": f"right first, {minus}"}
    titles |= {**_ACCURACIES, "image_map": "image-level mAP", "difference": f"image-level, {minus}"}
    signed = figures["figure"].str.contains("difference")
    shown = figures.assign(cell=cells(figures, sign=True).where(signed, cells(figures)))
    found = shown.pivot_table(index="prompts", columns="figure", values="cell", aggfunc="first", sort=False)
    found = found[[figure for figure in titles if figure in found]].rename(columns=titles).fillna("–")
    return found.rename_axis(index=None, columns=None)


def main_confusions(confusion: pd.DataFrame) -> pd.DataFrame:
    """For each class the other class that responds most in most of its boxes; of equal ones the first by name.

    Args:
        confusion: rows the class, columns the class that responds most; counts.

    Returns:
        Frame label, other (None for none), boxes, share (NaN for a class without boxes).
    """
    rows = []
    for label, counts in confusion[sorted(confusion.columns)].iterrows():
        total, others = int(counts.sum()), counts.drop(label)
        most = int(others.max()) if len(others) else 0
        rows.append((label, str(others.idxmax()) if most else None, most, most / total if total else math.nan))
    return pd.DataFrame(rows, columns=["label", "other", "boxes", "share"])


def _oracle_means(breakdown: pd.DataFrame) -> pd.DataFrame:
    return breakdown[(breakdown["method"] == "oracle") & (breakdown["figure"] == "mean")]


def confusion_finding(confusion: pd.DataFrame) -> str:
    """The share of boxes named rightly, and the confusion of most boxes."""
    total = confusion.to_numpy().sum()
    if total == 0:
        return "No boxes to name"
    right = np.diag(confusion.to_numpy()).sum() / total
    said = f"The right class responds most in {100 * right:.0f} % of the boxes"
    worst = main_confusions(confusion).sort_values(["boxes", "label"], ascending=[False, True]).iloc[0]
    if isinstance(worst["other"], str):
        said += f"; mistaken most: {worst['label']} for {worst['other']} ({worst['boxes']:,} boxes)"
    return said


def classification_sentence(found: Classification, source: Setting, kind: str, *, seed: int = 0) -> str:
    """What CLIP's maps know of the class of a box, in one sentence, to stand beside the verdict."""
    figures = found.accuracy(source, seed=seed).set_index("figure")
    value, low, high = figures.loc["top1", ["value", "low", "high"]]
    if math.isnan(value):
        return "No box to name."
    top = figures.loc[f"top{TOP}", "value"]
    return (
        f"Asked for the class of a box instead ({kind} maps, all {len(found.dataset.classes)} classes), the frozen "
        f"CLIP puts the right one first in {with_interval(value, low, high)} of the {len(found.dataset.boxes):,} boxes "
        f"of all classes, among the first {TOP} in {top:.3f}."
    )


def classification_results(
    found: Classification, sources: Mapping[str, Setting], image_level: Mapping[str, BootstrapResult], *, seed: int
) -> dict[str, Any]:
    """CLIP's own classification as plain values for `evaluation_results.json`.

    `sources`: kind -> its maps; `image_level`: path -> its multi-label average precision.
    """
    # kinds with the same maps name the boxes alike: counted once
    of_key = {}
    for source in joint_names(sources).values():
        named = {label: plain(row[row > 0]) for label, row in found.confusion(source).iterrows()}
        accuracy = found.accuracy(source, seed=seed).set_index("figure")
        of_key[source.maps_key] = {"accuracy": plain(accuracy.to_dict("index")), "confusion": named}
    levels = {}
    for path, result in image_level.items():
        by_class = result.class_summary().set_index("label")[["ap", "low", "high"]]
        (level,) = plain(result.summary()[["map", "low", "high"]])
        levels[path] = level | {"by_class": plain(by_class.to_dict("index"))}
    return {
        "classification": {kind: of_key[source.maps_key] for kind, source in sources.items()},
        "image_level_map": levels,
    }


def evaluation_results(
    said: Verdict,
    summary: pd.DataFrame,
    *,
    classes: pd.DataFrame,
    groups: pd.DataFrame,
    seen: Mapping[str, pd.DataFrame],
    **more: Any,
) -> dict[str, Any]:
    """`evaluation_results.json`: every number of notebook 04 as plain values, classes by name; NaN becomes None.

    `seen` is of `localizer_tables.by_seen`; `more`: what else belongs into the file, such as `classification_results`
    and the figures of the prompts.
    """
    return {
        "finding": said.sentence,
        "verdict": plain(asdict(said)),
        **plain(summary[["n_boxes", "n_images"]].max()),
        "methods": plain_methods(summary),
        "by_class": _by_group(classes),
        "by_group": {grouping: _by_group(of) for grouping, of in groups.groupby("grouping", sort=False)},
        "by_seen": {name: _part(part) | {"verdict": plain(asdict(verdict(part)))} for name, part in seen.items()},
        **more,
    }


def _by_group(breakdown: pd.DataFrame) -> dict[str, Any]:
    return {name: _part(part) for name, part in breakdown.groupby("group", sort=False)}


def _part(part: pd.DataFrame) -> dict[str, Any]:
    counts = plain(part[["n_boxes", "n_images"]].iloc[0])
    return counts | {"methods": plain_methods(part) if counts["n_boxes"] else None}


def verdicts_table(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdict of each part of the classes: a row a part, the share with its interval."""
    rows = {name: asdict(verdict(of)) | {"n_boxes": of["n_boxes"].max()} for name, of in parts.items()}
    of = pd.DataFrame.from_dict(rows, orient="index")
    shown = texts(of, {"boxes": ("n_boxes", "{:,}"), "share > 0.5, best cell": ("share", "interval")})
    return shown.assign(verdict=of["outcome"].where(of["share"].notna(), "no boxes"))


def classes_finding(classes: pd.DataFrame) -> str:
    """The classes that are found most and least."""
    means = _oracle_means(classes).dropna(subset="value")
    if means.empty:
        return "No class has boxes"
    best, worst = means.loc[means["value"].idxmax()], means.loc[means["value"].idxmin()]
    if len(means) == 1:
        return f"{best['group']}: mean IoU of the best cell {best['value']:.2f}"
    if best["value"] == worst["value"]:
        return f"Mean IoU of the best cell is {best['value']:.2f} in every class with boxes"
    return (
        f"Highest mean IoU of the best cell: {best['group']} ({best['value']:.2f}, {best['n_boxes']:,} boxes); lowest: "
        f"{worst['group']} ({worst['value']:.2f}, {worst['n_boxes']:,} boxes)"
    )
