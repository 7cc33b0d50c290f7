"""What a sweep says, as tables: the best settings, curves by percentile, changes of the extraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..engine.settings import Criterion, Setting
from ..intervals import with_interval
from ..kinds import KIND_PREFERENCE, PROTOCOLS
from .sweep import Sweep


def candidates_table(sweep: Sweep, criterion: Criterion, count: int = 10) -> pd.DataFrame:
    """The best settings by the criterion, each with its paired difference to the best, a row each.

    Settings with the same boxes (such as `vv_vv` and `vv_mixed` under cosine similarity) stand in one row.
    """
    where = (criterion.protocol, criterion.iou_threshold)
    names: dict[tuple, list[str]] = {}
    first: dict[tuple, Setting] = {}
    for setting in sweep.settings:
        names.setdefault(setting.key, []).append(setting.source.kind)
        first.setdefault(setting.key, setting)
    best = sweep.best(*where)
    ranked = sorted(first.values(), key=lambda setting: -np.nan_to_num(sweep.value(setting, *where)[0], nan=-1.0))
    # the best of equals leads, as `best` has it
    ranked = [best, *(setting for setting in ranked if setting.key != best.key)][:count]
    rows = []
    for setting in ranked:
        own = setting.key == best.key
        kinds = " = ".join(dict.fromkeys(names[setting.key]))
        rows.append(
            {
                "setting": setting.describe().replace(setting.source.kind, kinds, 1),
                f"{criterion.name} ({criterion.protocol})": with_interval(*sweep.value(setting, *where)),
                "difference to the best": ""
                if own
                else with_interval(*sweep.difference(setting, best, *where), sign=True),
            }
        )
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))


def changes_table(sweep: Sweep, plain: Setting, variants: Mapping[str, Setting], criterion: Criterion) -> pd.DataFrame:
    """Each change of the extraction beside the plain five steps.

    Columns: name, map (`value [low, high]`), difference, low, high (paired, numbers), boxes_per_image and
    false_box_rate, the share of absent classes that get a box (of `all` always).
    """
    where = (criterion.protocol, criterion.iou_threshold)
    measured = {
        protocol: rows.drop_duplicates("setting").set_index("setting")
        for protocol, rows in sweep.frame.groupby("protocol")
    }
    number_of = {setting.key: number for number, setting in enumerate(sweep.settings)}
    rows = []
    for name, setting in {"plain five steps": plain, **variants}.items():
        difference = (math.nan,) * 3 if setting.key == plain.key else sweep.difference(setting, plain, *where)
        rows.append(
            {
                "name": name,
                "map": with_interval(*sweep.value(setting, *where)),
                **dict(zip(("difference", "low", "high"), difference, strict=True)),
                "boxes_per_image": measured[criterion.protocol].loc[number_of[setting.key], "boxes_per_image"],
                "false_box_rate": measured["all"].loc[number_of[setting.key], "false_box_rate"],
            }
        )
    return pd.DataFrame(rows)


def changes_title(changes: pd.DataFrame) -> str:
    """What `changes_table` says in one line: how many changes help, harm, or can't be told from none."""
    rows = changes[changes["difference"].notna()]
    helping, harming = (rows["low"] > 0).sum(), (rows["high"] < 0).sum()
    others = len(rows) - helping - harming
    return f"{helping} of {len(rows)} changes help, {harming} harm, {others} make no clear difference"


def combinations(
    sweep: Sweep, plain: Setting, variants: Mapping[str, Setting], criterion: Criterion
) -> dict[str, Setting]:
    """Every combination of two or more changes that help by themselves: name -> setting.

    A change helps when its interval lies above 0; of two changes of the same argument a combination holds one.
    """
    helping: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, setting in variants.items():
        _, low, _ = sweep.difference(setting, plain, criterion.protocol, criterion.iou_threshold)
        if low > 0:
            changed = [field for field, own in vars(setting.boxes).items() if own != getattr(plain.boxes, field)]
            # a union of thresholds changes two arguments and counts as a change of its percentile
            argument = "percentile" if "percentile" in changed else changed[0]
            change = {field: getattr(setting.boxes, field) for field in changed}
            helping.setdefault(argument, []).append((name, change))
    found = {}
    for chosen in product(*([None, *options] for options in helping.values())):
        parts = [option for option in chosen if option is not None]
        changes: dict[str, Any] = {}
        for _, change in parts:
            changes |= change
        limit = changes.get("max_side", plain.boxes.max_side)
        contradicts = limit is not None and limit <= changes.get("min_side", plain.boxes.min_side)
        if len(parts) > 1 and not contradicts:
            setting = replace(plain, boxes=replace(plain.boxes, **changes))
            found[", ".join(name for name, _ in parts)] = setting
    return found


def best_of(settings: Mapping[str, Setting], sweep: Sweep, criterion: Criterion) -> str:
    """The name of the setting with the highest value."""
    return max(settings, key=lambda name: sweep.value(settings[name], criterion.protocol, criterion.iou_threshold)[0])


def curve_titles(curves: pd.DataFrame) -> dict[str, str]:
    """A title for each protocol's panel of `curves`: what is best there."""
    titles = {}
    for protocol, asked in {"present": "Image labels given (present)", "all": "Every class asked (all)"}.items():
        rows = curves[(curves["protocol"] == protocol) & curves["value"].notna()]
        titles[protocol] = asked
        if len(rows):
            rows = rows[rows["value"] == rows["value"].max()]
            best = rows.loc[rows["kind"].map(KIND_PREFERENCE.index).idxmin()]
            titles[protocol] += f": best {best['kind']} at {best['percentile']:g}"
    return titles


def grid_titles(tables: Mapping[str, pd.DataFrame], setting: Setting) -> dict[str, str]:
    """A title for each protocol's `map_by_percentile`: whose map it is, and which percentile is best where."""
    titles = {}
    for protocol, table in tables.items():
        titles[protocol] = f"{setting.source.kind}, {protocol}"
        best = table.loc[:, table.max() > table.min()].idxmax().value_counts()
        if len(best):
            times = f"{best.iloc[0]} of {table.shape[1]}"
            titles[protocol] += f": percentile {best.index[0]:g} is best at {times} IoU thresholds"
    return titles


def curves(sweep: Sweep, setting: Setting, criterion: Criterion) -> pd.DataFrame:
    """The criterion's mAP by percentile for every kind: protocol, kind, percentile, value, low, high.

    Args:
        sweep: with several percentiles and kinds.
        setting: gives similarity, layers and the extraction's other arguments.
        criterion: gives the IoU threshold; both protocols are listed.
    """
    rows = []
    for protocol in PROTOCOLS:
        seen = set()
        for own in sweep.settings:
            point = (own.source.kind, own.boxes.percentile)
            alike = replace(setting, source=replace(setting.source, kind=own.source.kind))
            if point not in seen and differs_by_percentile(own, alike):
                seen.add(point)
                values = dict(
                    zip(("value", "low", "high"), sweep.value(own, protocol, criterion.iou_threshold), strict=True)
                )
                rows.append({"protocol": protocol, "kind": point[0], "percentile": point[1], **values})
    frame = pd.DataFrame(rows, columns=["protocol", "kind", "percentile", "value", "low", "high"])
    return frame.sort_values("percentile", kind="stable", ignore_index=True)


def marks(default: Setting, best: Setting) -> dict[str, tuple[float, str]]:
    """Points of `curves` for `best`: name -> (percentile, kind); the default where it lies on one of the curves."""
    points = {"best": (best.boxes.percentile, best.source.kind)}
    if differs_by_percentile(default, replace(best, source=replace(best.source, kind=default.source.kind))):
        points = {"default": (default.boxes.percentile, default.source.kind), **points}
    return points


def percentile_table(sweep: Sweep, setting: Setting, protocol: str = "present") -> pd.DataFrame:
    """Boxes by percentile for one map: mean and maximum IoU, boxes an image, activated share, false boxes.

    Args:
        sweep: with this map at several percentiles.
        setting: its map, and everything but the percentile.
        protocol: under which boxes are counted; the false boxes are those of `all` always.
    """
    rows = sweep.frame.drop_duplicates(["setting", "protocol"])
    rows = rows[[differs_by_percentile(sweep.settings[number], setting) for number in rows["setting"]]]
    own = rows[rows["protocol"] == protocol].set_index("threshold")
    every = rows[rows["protocol"] == "all"].set_index("threshold")
    table = own[["mean_iou", "max_iou", "mean_best_iou", "boxes_per_image", "activated_share"]].copy()
    table["false_box_rate"] = every["false_box_rate"]
    table["boxes_per_absent_class"] = every["boxes_per_absent_class"]
    return table.rename_axis("percentile")


def shown_numbers(table: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """Columns of numbers as text of as many digits as said, so that they stand aligned; a dash for NaN."""
    columns = {
        name: ["–" if math.isnan(value) else f"{value:,.{n}f}" for value in table[name]] for name, n in digits.items()
    }
    return table.assign(**columns)


PERCENTILE_COLUMNS = {
    "mean_iou": "mean IoU",
    "max_iou": "max IoU",
    "mean_best_iou": "mean best IoU",
    "boxes_per_image": "boxes an image",
    "activated_share": "activated share",
    "false_box_rate": "absent classes with a box",
    "boxes_per_absent_class": "boxes an absent class",
}


def map_by_percentile(sweep: Sweep, setting: Setting, protocol: str) -> pd.DataFrame:
    """mAP of one map: a row for each percentile, a column for each IoU threshold."""
    rows = sweep.frame[sweep.frame["protocol"] == protocol]
    rows = rows[[differs_by_percentile(sweep.settings[number], setting) for number in rows["setting"]]]
    return rows.pivot_table(index="percentile", columns="iou_threshold", values="map", sort=True, dropna=False)


def differs_by_percentile(setting: Setting, other: Setting) -> bool:
    """Whether two settings agree but for a plain percentile."""
    return (
        isinstance(setting.boxes.percentile, int | float)
        and setting.source == other.source
        and replace(setting.boxes, percentile=75.0) == replace(other.boxes, percentile=75.0)
    )
