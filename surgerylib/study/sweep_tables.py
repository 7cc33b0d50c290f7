"""What a sweep says, as tables: the best settings, curves by percentile, changes of the extraction.

`criterion` is what decides between settings; `plain` is the setting of which `variants` (name -> setting) change one
thing; curves and tables by percentile are of the settings that differ from `setting` in that alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..engine import Evaluation
from ..heatmaps import Setting, threshold_text
from ..intervals import with_interval
from ..words import KIND_PREFERENCE, PROTOCOLS
from .settings import Criterion
from .tables import texts


def candidates_table(found: Evaluation, criterion: Criterion, count: int = 10) -> pd.DataFrame:
    """The best settings by the criterion, each with its paired difference to the best, a row each.

    Settings with the same boxes (such as `vv_vv` and `vv_mixed` under cosine similarity) stand in one row.
    """
    where = criterion.where
    best = found.best(*where)
    first = [alike[0] for alike in found.distinct.values()]
    ranked = sorted(first, key=lambda setting: -np.nan_to_num(found.value(setting, *where)[0], nan=-1.0))
    # the best of equals leads, as `best` has it
    ranked = [best, *(setting for setting in ranked if setting.key != best.key)][:count]
    rows = []
    for setting in ranked:
        kinds = " = ".join(dict.fromkeys(alike.kind for alike in found.distinct[setting.key]))
        difference = with_interval(*found.difference(setting, best, *where), sign=True)
        shown = setting.describe().replace(setting.kind, kinds, 1)
        rows.append((shown, with_interval(*found.value(setting, *where)), difference if len(rows) else ""))
    columns = ["setting", f"{criterion.name} ({criterion.protocol})", "difference to the best"]
    return pd.DataFrame(rows, range(1, len(rows) + 1), columns).rename_axis("rank")


def changes_table(
    found: Evaluation, plain: Setting, variants: Mapping[str, Setting], criterion: Criterion
) -> pd.DataFrame:
    """Each change of the extraction beside the plain five steps.

    Columns: name, map (`value [low, high]`), difference, low, high (paired, numbers), boxes_per_image and
    false_box_rate, the share of absent classes that get a box (of `all` always).
    """
    where = criterion.where
    rows = []
    for name, setting in {"plain five steps": plain, **variants}.items():
        difference = (math.nan,) * 3 if setting.key == plain.key else found.difference(setting, plain, *where)
        measured = found.figures[setting, criterion.protocol].measures["boxes_per_image"]
        false_boxes = found.figures[setting, "all"].measures["false_box_rate"]
        rows.append((name, with_interval(*found.value(setting, *where)), *difference, measured, false_boxes))
    columns = ["name", "map", "difference", "low", "high", "boxes_per_image", "false_box_rate"]
    return pd.DataFrame(rows, columns=columns)


def changes_title(changes: pd.DataFrame) -> str:
    """What `changes_table` says in one line: how many changes help, harm, or can't be told from none."""
    rows = changes[changes["difference"].notna()]
    helping, harming = (rows["low"] > 0).sum(), (rows["high"] < 0).sum()
    others = len(rows) - helping - harming
    return f"{helping} of {len(rows)} changes help, {harming} harm, {others} make no clear difference"


def combinations(
    found: Evaluation, plain: Setting, variants: Mapping[str, Setting], criterion: Criterion
) -> dict[str, Setting]:
    """Every combination of two or more variants that help by themselves: name -> setting.

    A change helps when its interval lies above 0; of two changes of the same argument a combination holds one.
    """
    helping: dict[str, dict[str, dict[str, Any]]] = {}  # argument -> name of the change -> what it sets
    for name, setting in variants.items():
        _, low, _ = found.difference(setting, plain, *criterion.where)
        if low > 0:
            change = {field: own for field, own in asdict(setting).items() if own != getattr(plain, field)}
            # a union of thresholds changes two arguments and counts as a change of its percentile
            argument = "percentile" if "percentile" in change else next(iter(change))
            helping.setdefault(argument, {})[name] = change
    combined = {}
    for chosen in product(*([None, *options.items()] for options in helping.values())):
        parts = dict(option for option in chosen if option is not None)
        changes = {field: value for change in parts.values() for field, value in change.items()}
        limit = changes.get("max_side", plain.max_side)
        contradicts = limit is not None and limit <= changes.get("min_side", plain.min_side)
        if len(parts) > 1 and not contradicts:
            combined[", ".join(parts)] = replace(plain, **changes)
    return combined


def best_of(settings: Mapping[str, Setting], found: Evaluation, criterion: Criterion) -> str:
    """The name of the setting with the highest value."""
    return max(settings, key=lambda name: found.value(settings[name], *criterion.where)[0])


def curve_titles(curves: pd.DataFrame) -> dict[str, str]:
    """A title for each protocol's panel of `curves`: what is best there."""
    titles = {"present": "Image labels given (present)", "all": "Every class asked (all)"}
    for protocol, rows in curves.dropna(subset="value").groupby("protocol"):
        rows = rows[rows["value"] == rows["value"].max()]
        best = rows.loc[rows["kind"].map(KIND_PREFERENCE.index).idxmin()]
        titles[protocol] += f": best {best['kind']} at {best['percentile']:g}"
    return titles


def grid_titles(tables: Mapping[str, pd.DataFrame], setting: Setting) -> dict[str, str]:
    """A title for each protocol's `map_by_percentile`: whose map it is, and which percentile is best where."""
    titles = {protocol: f"{setting.kind}, {protocol}" for protocol in tables}
    for protocol, of in tables.items():
        best = of.loc[:, of.max() > of.min()].idxmax().value_counts()
        if len(best):
            times = f"{best.iloc[0]} of {of.shape[1]}"
            titles[protocol] += f": percentile {best.index[0]:g} is best at {times} IoU thresholds"
    return titles


def curves(found: Evaluation, setting: Setting, criterion: Criterion) -> pd.DataFrame:
    """mAP by percentile for every kind, at the criterion's IoU: protocol (both), kind, percentile, value, low, high."""
    rows = [
        (protocol, own.kind, own.percentile, *found.value(own, protocol, criterion.iou_threshold))
        for protocol in PROTOCOLS
        for own in found.settings
        if differs_by_percentile(own, replace(setting, kind=own.kind))
    ]
    frame = pd.DataFrame(rows, columns=["protocol", "kind", "percentile", "value", "low", "high"])
    return frame.sort_values("percentile", kind="stable", ignore_index=True)


def marks(default: Setting, best: Setting) -> dict[str, tuple[float, str]]:
    """Points of `curves` for `best`: name -> (percentile, kind); the default where it lies on one of the curves."""
    points = {"best": (best.percentile, best.kind)}
    if differs_by_percentile(default, replace(best, kind=default.kind)):
        points = {"default": (default.percentile, default.kind), **points}
    return points


def percentile_table(found: Evaluation, setting: Setting) -> pd.DataFrame:
    """By percentile of one map: IoUs, boxes an image, activated share (`present`); boxes of absent classes (`all`)."""
    rows = {}
    for own in [own for own in found.settings if differs_by_percentile(own, setting)]:
        present, every = (found.figures[own, protocol].measures for protocol in ("present", "all"))
        of_absent = {name: every[name] for name in ("false_box_rate", "boxes_per_absent_class")}
        rows[threshold_text(own.percentile)] = present | of_absent
    return pd.DataFrame.from_dict(rows, orient="index")[list(PERCENTILE_COLUMNS)].rename_axis("percentile")


def shown_numbers(frame: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """Columns of numbers as text of as many digits as said, so that they stand aligned; a dash for NaN."""
    return frame.assign(**texts(frame, {name: (name, f"{{:,.{n}f}}") for name, n in digits.items()}, "–"))


PERCENTILE_COLUMNS = {
    "mean_iou": "mean IoU",
    "max_iou": "max IoU",
    "mean_best_iou": "mean best IoU",
    "boxes_per_image": "boxes an image",
    "activated_share": "activated share",
    "false_box_rate": "absent classes with a box",
    "boxes_per_absent_class": "boxes an absent class",
}


def map_by_percentile(found: Evaluation, setting: Setting, protocol: str) -> pd.DataFrame:
    """mAP of one map: a row for each percentile, a column for each IoU threshold."""
    rows = {
        own.percentile: found.figures[own, protocol].ap.map
        for own in found.settings
        if differs_by_percentile(own, setting)
    }
    of = pd.DataFrame.from_dict(rows, orient="index", columns=list(found.iou_thresholds))
    return of.sort_index().rename_axis(index="percentile", columns="iou_threshold")


def differs_by_percentile(setting: Setting, other: Setting) -> bool:
    """Whether two settings agree but for a plain percentile."""
    return isinstance(setting.percentile, float) and replace(setting, percentile=75.0) == replace(
        other, percentile=75.0
    )
