"""Before and after an adapter, as tables, sentences and plain values for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..engine.training import Training
from ..intervals import number, with_interval
from ..words import ALL, PROTOCOLS, SEEN, STATES, UNSEEN
from .adaptation import FIGURES, Adaptation
from .adapter_variants import Variant
from .summary import INTERVAL_NOTE, average_precision_text

_SHOWN = (0.05, 0.15, 0.5)  # IoU thresholds of the answer, as far as they were measured
_ANSWERED = ("false_box_rate", "pointing")  # figures of the answer
_DIFFERENCES = {
    ("after", "before"): "after − before",
    ("after", "floor"): "after − floor alone",
}


def groups_of(found: Adaptation) -> list[str]:
    """The groups of classes in the order of a report: seen, unseen, all."""
    return [group for group in (SEEN, UNSEEN, ALL) if group in found.groups]


def finding(found: Adaptation, kind: str) -> str:
    """One sentence that says what the adapter of a kind changes, with its figures."""
    group = SEEN if SEEN in found.groups else ALL
    ends = sorted({min(found.maps["iou_threshold"]), max(found.maps["iou_threshold"])})
    if math.isnan(_map(found, group, kind, "before", "all", ends[0])[0]):
        any_box = not math.isnan(_map(found, ALL, kind, "before", "all", ends[0])[0])
        what = "the classes that were trained on" if any_box else "the class list"
        return f"No image of this split holds a box of {what}: nothing can be measured{' of them' if any_box else ''}."
    of_group = []
    for threshold in ends:
        before, after = (_map(found, group, kind, state, "all", threshold)[0] for state in ("before", "after"))
        gain = with_interval(*_map_difference(found, group, kind, "before", "all", threshold), sign=True)
        of_group.append(f"mAP@{threshold:.2f} {after:.3f} against {before:.3f} (difference {gain})")
    parts = [f"{_verdict(found, kind)}: under the all protocol {', '.join(of_group)} for {kind} and {group}"]
    if UNSEEN in found.groups:
        gains = [_map_difference(found, UNSEEN, kind, "before", "all", threshold) for threshold in ends]
        if not math.isnan(gains[0][0]):
            words = " and ".join(
                f"{with_interval(*gain, sign=True)} at {t:.2f}" for gain, t in zip(gains, ends, strict=True)
            )
            parts.append(f"{UNSEEN}, whose boxes were never trained on: difference {words}")
    false = [_figure(found, ALL, kind, state, "false_box_rate")[0] for state in ("before", "after")]
    if not any(map(math.isnan, false)):
        parts.append(
            f"a class that is not in an image gets a box in {100 * false[1]:.1f} % of the cases, "
            f"before in {100 * false[0]:.1f} %"
        )
    if _has(found, kind, "floor"):
        gain = with_interval(*_map_difference(found, group, kind, "floor", "all", ends[0]), sign=True)
        parts.append(f"against a floor alone, without training: mAP@{ends[0]:.2f} difference {gain}")
    return "; ".join(parts) + "."


def title(found: Adaptation, kind: str) -> str:
    """The finding as the title of a figure."""
    group = SEEN if SEEN in found.groups else ALL
    threshold = min(found.maps["iou_threshold"])
    before, after = (_map(found, group, kind, state, "all", threshold)[0] for state in ("before", "after"))
    if math.isnan(before):
        return f"No box{'' if group == ALL else f' of the {group}'} to measure on"
    return f"{_verdict(found, kind)}: mAP@{threshold:.2f} of {kind} {before:.3f} before, {after:.3f} after ({group})"


def answer_table(found: Adaptation, kind: str) -> pd.DataFrame:
    """Before and after for one kind: rows by group of classes and state, then the paired differences."""
    thresholds = _shown(found)
    columns = [(f"mAP@{t:.2f}", "all", t) for t in thresholds]
    columns += [(f"mAP@{t:.2f}, present", "present", t) for t in thresholds[:1]]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for group in groups_of(found):
        name = f"{group} ({len(found.groups[group])})"
        for state, title in STATES.items():
            if _has(found, kind, state):
                cells = {column: _map(found, group, kind, state, protocol, t) for column, protocol, t in columns}
                rows[name, title] = {column: with_interval(*cell) for column, cell in cells.items()}
                rows[name, title] |= {FIGURES[f]: _cell(_figure(found, group, kind, state, f), f) for f in _ANSWERED}
        for (state, reference), title in _DIFFERENCES.items():
            if _has(found, kind, state) and _has(found, kind, reference):
                cells = {
                    column: _map_difference(found, group, kind, reference, protocol, t)
                    for column, protocol, t in columns
                }
                rows[name, title] = {column: with_interval(*cell, sign=True) for column, cell in cells.items()}
                rows[name, title] |= {
                    FIGURES[f]: _cell(_figure_difference(found, group, kind, reference, f), f, sign=True)
                    for f in _ANSWERED
                }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["classes", kind])
    return table


def kinds_table(found: Adaptation, group: str, protocol: str) -> pd.DataFrame:
    """mAP of all kinds at all IoU thresholds, before and after, and the paired difference."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    thresholds = list(dict.fromkeys(found.maps["iou_threshold"]))
    for kind in found.settings:
        for state, title in STATES.items():
            if _has(found, kind, state):
                rows[kind, title] = {
                    f"mAP@{t:.2f}": with_interval(*_map(found, group, kind, state, protocol, t)) for t in thresholds
                }
        rows[kind, _DIFFERENCES["after", "before"]] = {
            f"mAP@{t:.2f}": with_interval(*_map_difference(found, group, kind, "before", protocol, t), sign=True)
            for t in thresholds
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=[group, protocol])
    return table


def figures_table(found: Adaptation, group: str) -> pd.DataFrame:
    """What boxes and maps of all kinds are like, before and after, and the paired difference."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for kind in found.settings:
        for state, title in STATES.items():
            if _has(found, kind, state):
                rows[kind, title] = {
                    text: _cell(_figure(found, group, kind, state, figure), figure) for figure, text in FIGURES.items()
                }
        rows[kind, _DIFFERENCES["after", "before"]] = {
            text: _cell(_figure_difference(found, group, kind, "before", figure), figure, sign=True)
            for figure, text in FIGURES.items()
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=[group, "maps"])
    return table


def settings_text(found: Adaptation, kind: str) -> str:
    """The setting of each state in words."""
    return "; ".join(f"{STATES[state]}: {setting.describe()}" for state, setting in found.settings[kind].items()) + "."


def caption(found: Adaptation, kind: str) -> str:
    """What stands under the tables: the settings, the protocols and what the figures mean."""
    return (
        f"{found.n_images:,} images, mAP under all unless it says present. {settings_text(found, kind)} AP: "
        f"{average_precision_text(found.interpolation)}; in brackets the 95 % interval over images, of differences "
        f"(paired) on the same resamples. {INTERVAL_NOTE}  \n*"
        + "; ".join(PROTOCOLS.values())
        + ". Absent classes: (image, class) pairs without ground truth, under all. Inverted: pairs whose map is lower "
        "inside the boxes than outside; pointing: whose peak lies in a box. IoUs: of all boxes with the ground truth "
        "of their class, image labels given, and of all ground truth boxes with their best box; a maximum has no "
        "interval, for a single box decides it.*"
    )


def plain_results(found: Adaptation) -> dict[str, Any]:
    """Every number as plain values: group -> kind -> state or difference -> ...; NaN becomes None."""
    groups: dict[str, Any] = {}
    for group, labels in found.groups.items():
        kinds: dict[str, Any] = {}
        for kind, states in found.settings.items():
            entry: dict[str, Any] = {state: _plain(found, group, kind, state) for state in states}
            for (state, reference), _ in _DIFFERENCES.items():
                if reference in states:
                    entry[f"{state} - {reference}"] = _plain(found, group, kind, state, reference)
            kinds[kind] = entry
        groups[group] = {"classes": list(labels), "kinds": kinds}
    settings = {
        kind: {state: setting.parameters() | {"description": setting.describe()} for state, setting in states.items()}
        for kind, states in found.settings.items()
    }
    return {
        "groups": groups,
        "settings": settings,
        "interpolation": found.interpolation,
        "n_images": found.n_images,
        "iou_thresholds": list(dict.fromkeys(found.maps["iou_threshold"])),
    }


def variant_table(variants: Mapping[str, Variant], kind: str) -> pd.DataFrame:
    """Short trainings side by side: a row a variant, figures on the split of the choice."""
    rows = {}
    for name, variant in variants.items():
        found = variant.found
        thresholds = _shown(found)
        cells = {"patch AP": f"{variant.patch_ap:.3f}"}
        for group in [group for group in groups_of(found) if group != ALL] or [ALL]:
            cells |= {
                f"mAP@{t:.2f}, {group.split()[0]}": with_interval(*_map(found, group, kind, "after", "all", t))
                for t in thresholds
            }
        cells[FIGURES["false_box_rate"]] = _cell(_figure(found, ALL, kind, "after", "false_box_rate"), "false_box_rate")
        rows[name] = cells
    return pd.DataFrame.from_dict(rows, orient="index")


def variants_finding(variants: Mapping[str, Variant], kind: str) -> str:
    """Which of the short trainings come out best for the classes that are trained on."""
    group = SEEN if SEEN in next(iter(variants.values())).found.groups else ALL
    means = {name: mean_map(variant.found, group, kind) for name, variant in variants.items()}
    ranked = sorted((name for name in means if not math.isnan(means[name])), key=means.get, reverse=True)
    if not ranked:
        return "No box to compare on."
    best, *others = [f"{name} ({means[name]:.3f})" for name in ranked]
    then = f", then {others[0]}; lowest: {others[-1]}" if others else ""
    return f"Highest mean mAP under all, {group}: {best}{then}."


def results(
    found: Adaptation,
    kind: str,
    sentence: str,
    trainings: Mapping[str, Training],
    variants: Mapping[str, Variant],
    *,
    at_best: Adaptation,
    **more: Any,
) -> dict[str, Any]:
    """`adapter_results.json`: every number of the notebook as plain values; NaN becomes null."""
    return {
        "finding": sentence,
        "kind": kind,
        **plain_results(found),
        "at_best": plain_results(at_best),
        "best_epochs": {name: training.best_epoch for name, training in trainings.items()},
        "variants": {
            name: {
                "patch_ap": variant.patch_ap,
                **{
                    group: _plain(variant.found, group, kind, "after") for group in variant.found.groups
                },
            }
            for name, variant in variants.items()
        },
        **more,
    }  # fmt: skip


def histories(trainings: Mapping[str, Training]) -> pd.DataFrame:
    """The histories of all adapters in one frame, with a column `kind`."""
    return pd.concat([training.history.assign(kind=kind) for kind, training in trainings.items()], ignore_index=True)


def mean_map(found: Adaptation, group: str, kind: str, state: str = "after", protocol: str = "all") -> float:
    """mAP over all IoU thresholds: one number to choose a variant by."""
    rows = found.maps
    match = (rows["group"] == group) & (rows["kind"] == kind) & (rows["state"] == state)
    return float(rows.loc[match & (rows["protocol"] == protocol), "map"].mean())


def _verdict(found: Adaptation, kind: str) -> str:
    """By the paired differences at the lowest and the highest IoU threshold, of the classes that were trained on."""
    group = SEEN if SEEN in found.groups else ALL
    ends = sorted({min(found.maps["iou_threshold"]), max(found.maps["iou_threshold"])})
    gains = [_map_difference(found, group, kind, "before", "all", threshold) for threshold in ends]
    more, less = (any(test(gain) for gain in gains) for test in (lambda g: g[1] > 0, lambda g: g[2] < 0))
    if more and less:
        return "The adapter finds more at one end of the IoU thresholds and less at the other"
    if more:
        return "The adapter finds more"
    return "The adapter finds less" if less else "The adapter is not told apart from the maps as they were"


def _shown(found: Adaptation) -> list[float]:
    """The IoU thresholds of the answer: some of those measured, or all of them where none of these was."""
    measured = list(dict.fromkeys(found.maps["iou_threshold"]))
    return [value for value in _SHOWN if value in measured] or measured


def _has(found: Adaptation, kind: str, state: str) -> bool:
    return state in found.settings[kind]


def _row(frame: pd.DataFrame, columns: Sequence[str], **match: Any) -> tuple[float, float, float]:
    rows = np.flatnonzero(np.logical_and.reduce([frame[name].to_numpy() == value for name, value in match.items()]))
    if not len(rows):
        return (math.nan, math.nan, math.nan)
    return tuple(float(frame[column].to_numpy()[rows[0]]) for column in columns)


def _map(found: Adaptation, group: str, kind: str, state: str, protocol: str, threshold: float) -> tuple:
    match = {"group": group, "kind": kind, "state": state, "protocol": protocol, "iou_threshold": threshold}
    return _row(found.maps, ("map", "low", "high"), **match)


def _map_difference(
    found: Adaptation, group: str, kind: str, reference: str, protocol: str, threshold: float, state: str = "after"
) -> tuple:
    match = {"group": group, "kind": kind, "state": state, "reference": reference, "protocol": protocol}
    return _row(found.map_differences, ("difference", "low", "high"), **match, iou_threshold=threshold)


def _figure(found: Adaptation, group: str, kind: str, state: str, figure: str) -> tuple:
    match = {"group": group, "kind": kind, "state": state, "figure": figure}
    return _row(found.figures, ("value", "low", "high"), **match)


def _figure_difference(
    found: Adaptation, group: str, kind: str, reference: str, figure: str, state: str = "after"
) -> tuple:
    match = {"group": group, "kind": kind, "state": state, "reference": reference, "figure": figure}
    return _row(found.figure_differences, ("difference", "low", "high"), **match)


def _cell(values: tuple[float, float, float], figure: str, *, sign: bool = False) -> str:
    if figure == "max_iou" and not math.isnan(values[0]):  # one box decides it: there is no interval
        return number(values[0], sign=sign)
    if figure == "false_box_rate" and math.isnan(values[0]):
        return "no absent class"  # "no boxes" would say that absent classes get none
    return with_interval(*values, sign=sign)


def _plain(found: Adaptation, group: str, kind: str, state: str, reference: str | None = None) -> dict[str, Any]:
    value = "map" if reference is None else "difference"
    frames = (found.maps, found.figures) if reference is None else (found.map_differences, found.figure_differences)
    maps, figures = (
        frame[(frame["group"] == group) & (frame["kind"] == kind) & (frame["state"] == state)] for frame in frames
    )
    if reference is not None:
        maps, figures = (frame[frame["reference"] == reference] for frame in (maps, figures))
    of_figure = "value" if reference is None else "difference"

    def numbers(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
        return {key: None if math.isnan(row[key]) else row[key] for key in (name, "low", "high")}

    return {
        "protocols": {
            protocol: [
                {"iou_threshold": row["iou_threshold"], **numbers(row, value)}
                for row in maps[maps["protocol"] == protocol].to_dict("records")
            ]
            for protocol in PROTOCOLS
        },
        "figures": {row["figure"]: numbers(row, of_figure) for row in figures.to_dict("records")},
    }
