"""The GT-class evaluation: is classification the problem, or localisation? The rule, tables and sentences for a report.

`summary` is a frame of `localizer_training.summarise`; `groups` and `classes` are those of `head_evaluation.by_group`
(with a column `grouping`) and `by_class`; `seed` is that of the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ..engine import BASELINES
from ..words import METHOD_NAMES
from .tables import cells, plain, plain_methods, texts, wide

CLASSIFICATION = "classification is the problem"
LOCALISATION = "localisation is the problem"
NOT_DECIDED = "not decided"
ABOVE, BELOW = 0.7, 0.5  # of the share of boxes found at IoU > 0.5
SHARE = "share>0.50"
_GROUP_COLUMNS = {
    "oracle mean": "mean IoU, best cell",
    "oracle median": "median",
    f"oracle {SHARE}": "share > 0.5",
    "cam_peak mean": "mean IoU, CAM's peak",
}


@dataclass(frozen=True)
class Verdict:
    """What the share of boxes that the head finds, told their class, says."""

    outcome: str  # one of `CLASSIFICATION`, `LOCALISATION` and `NOT_DECIDED`
    sentence: str  # the outcome with the figures behind it
    share: float  # of boxes with IoU > 0.5 in the best cell
    low: float  # of its 95 % interval; NaN: not available
    high: float


def outcome(share: float, low: float, high: float) -> str:
    """The rule: the whole interval above 0.7, the whole interval below 0.5, or not decided.

    Without an interval (fewer than two images) nothing is decided.
    """
    if share > ABOVE and low > ABOVE:
        return CLASSIFICATION
    if share < BELOW and high < BELOW:
        return LOCALISATION
    return NOT_DECIDED


def verdict(summary: pd.DataFrame) -> Verdict:
    """The verdict on boxes whose class was given."""
    of = summary[summary["figure"] == SHARE].set_index("method")
    share, low, high = oracle = tuple(float(of.loc["oracle", name]) for name in ("value", "low", "high"))
    if math.isnan(share):
        return Verdict(NOT_DECIDED, "Not decided: no image here holds a box of the classes asked for.", *oracle)
    decided = outcome(*oracle)
    n_boxes, n_images = (int(of[name].iloc[0]) for name in ("n_boxes", "n_images"))
    guesses, untrained = of.loc[list(BASELINES)], of.loc["untrained_oracle"]
    best = guesses["value"].idxmax()
    sentence = (
        f"{decided[0].upper()}{decided[1:]}: told its class, the head has a box with IoU > 0.5 in some cell for "
        f"{_percent(*oracle)} of {n_boxes:,} boxes on {n_images:,} image{'' if n_images == 1 else 's'}, "
        f"{_reason(*oracle)}; without that oracle, at the CAM's peak, for "
        f"{_percent(*of.loc['cam_peak', ['value', 'low', 'high']])}; the best guess that needs no learning "
        f"({METHOD_NAMES[best]}) for {of.loc[best, 'value']:.1%}, the untrained head for {untrained['value']:.1%}."
    )
    if guesses["low"].max() > high:
        sentence += " The guess does better than the head: the share says nothing of what the head knows."
    elif guesses["high"].max() >= low:
        sentence += " The guess's interval overlaps the head's: the share says little of what the head knows."
    if untrained["high"] >= low:
        sentence += " The untrained head's interval reaches the trained one's: choosing among many cells may do it all."
    return Verdict(decided, sentence.replace("%", " %"), *oracle)


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


def _oracle_means(breakdown: pd.DataFrame) -> pd.DataFrame:
    return breakdown[(breakdown["method"] == "oracle") & (breakdown["figure"] == "mean")]


def _reason(share: float, low: float, high: float) -> str:
    if math.isnan(low):
        return "and one image gives no interval to decide by"
    if low > ABOVE:
        return f"above the {ABOVE:.0%} from which the place counts as found"
    if high < BELOW:
        return f"below the {BELOW:.0%} under which the place counts as not found"
    if BELOW <= share <= ABOVE:
        return f"between {BELOW:.0%} and {ABOVE:.0%}"
    line = f"above {ABOVE:.0%}" if share > ABOVE else f"below {BELOW:.0%}"
    return f"{line}, but the interval crosses that line"


def _percent(share: float, low: float, high: float) -> str:
    interval = "interval not available" if math.isnan(low) else f"{100 * low:.1f}, {100 * high:.1f}"
    return f"{share:.1%} [{interval}]"
