"""Before and after an adapter, as tables, sentences and plain values for a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ..engine import Training
from ..intervals import number, with_interval
from ..words import ALL, PROTOCOLS, SEEN, STATES, UNSEEN
from .adaptation import FIGURES, KEYS, Adaptation, Variant
from .summary import INTERVAL_NOTE, average_precision_text
from .tables import plain

_SHOWN = (0.05, 0.15, 0.5)  # IoU thresholds of the answer, as far as they were measured
_ANSWERED = ("false_box_rate", "pointing")  # figures of the answer
_DIFFERENCES = {"before": "after − before", "floor": "after − floor alone"}  # after, and what it is held against
Cell = tuple[float, float, float]  # value, low, high


def groups_of(found: Adaptation) -> list[str]:
    """The groups of classes in the order of a report: seen, unseen, all."""
    return [group for group in (SEEN, UNSEEN, ALL) if group in found.groups]


def finding(found: Adaptation, kind: str) -> str:
    """One sentence that says what the adapter of a kind changes, with its figures."""
    group, ends = _judged(found), _ends(found)
    before, after = (_cells(found, group, kind, state) for state in ("before", "after"))
    before_all, after_all = (_cells(found, ALL, kind, state) for state in ("before", "after"))
    if math.isnan(before["all", ends[0]][0]):
        any_box = not math.isnan(before_all["all", ends[0]][0])
        what = "the classes that were trained on" if any_box else "the class list"
        return f"No image of this split holds a box of {what}: nothing can be measured{' of them' if any_box else ''}."
    gain = _gains(found, group, kind)
    of_group = [
        f"mAP@{t:.2f} {after['all', t][0]:.3f} against {before['all', t][0]:.3f} (difference {gain[t]})" for t in ends
    ]
    parts = [f"{_verdict(found, kind)}: under the all protocol {', '.join(of_group)} for {kind} and {group}"]
    if UNSEEN in found.groups and not math.isnan(_cells(found, UNSEEN, kind)["all", ends[0]][0]):
        words = " and ".join(f"{text} at {t:.2f}" for t, text in _gains(found, UNSEEN, kind).items())
        parts.append(f"{UNSEEN}, whose boxes were never trained on: difference {words}")
    false_before, false_after = (100 * of["false_box_rate"][0] for of in (before_all, after_all))
    if not math.isnan(false_before):
        parts.append(
            f"a class that is not in an image gets a box in {false_after:.1f} % of the cases, "
            f"before in {false_before:.1f} %"
        )
    if "floor" in found.settings[kind]:
        gain = _gains(found, group, kind, "floor")[ends[0]]
        parts.append(f"against a floor alone, without training: mAP@{ends[0]:.2f} difference {gain}")
    return "; ".join(parts) + "."


def title(found: Adaptation, kind: str) -> str:
    """The finding as the title of a figure."""
    group, threshold = _judged(found), min(_thresholds(found))
    before, after = (_cells(found, group, kind, state)["all", threshold][0] for state in ("before", "after"))
    if math.isnan(before):
        return f"No box{'' if group == ALL else f' of the {group}'} to measure on"
    return f"{_verdict(found, kind)}: mAP@{threshold:.2f} of {kind} {before:.3f} before, {after:.3f} after ({group})"


def answer_table(found: Adaptation, kind: str) -> pd.DataFrame:
    """Before and after for one kind: rows by group of classes and state, then the paired differences."""
    thresholds = _shown(found)
    columns = {f"mAP@{t:.2f}": ("all", t) for t in thresholds}
    columns |= {f"mAP@{t:.2f}, present": ("present", t) for t in thresholds[:1]}
    columns |= {FIGURES[name]: name for name in _ANSWERED}
    parts = {f"{group} ({len(found.groups[group])})": (group, kind) for group in groups_of(found)}
    return _before_and_after(found, parts, columns, _DIFFERENCES).rename_axis(["classes", kind])


def kinds_table(found: Adaptation, group: str, protocol: str) -> pd.DataFrame:
    """mAP of all kinds at all IoU thresholds, before and after, and the paired difference."""
    parts = {kind: (group, kind) for kind in found.settings}
    columns = {f"mAP@{t:.2f}": (protocol, t) for t in _thresholds(found)}
    return _before_and_after(found, parts, columns, ["before"]).rename_axis([group, protocol])


def figures_table(found: Adaptation, group: str) -> pd.DataFrame:
    """What boxes and maps of all kinds are like, before and after, and the paired difference."""
    parts = {kind: (group, kind) for kind in found.settings}
    columns = {text: name for name, text in FIGURES.items()}
    return _before_and_after(found, parts, columns, ["before"]).rename_axis([group, "maps"])


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

    def of_kind(group: str, kind: str) -> dict[str, Any]:
        states = found.settings[kind]
        differences = {f"after - {of}": _plain(found, group, kind, "after", of) for of in _DIFFERENCES if of in states}
        return {state: _plain(found, group, kind, state) for state in states} | differences

    groups = {
        group: {"classes": list(labels), "kinds": {kind: of_kind(group, kind) for kind in found.settings}}
        for group, labels in found.groups.items()
    }
    settings = {
        kind: {state: setting.parameters() | {"description": setting.describe()} for state, setting in states.items()}
        for kind, states in found.settings.items()
    }
    return {
        "groups": groups,
        "settings": settings,
        "interpolation": found.interpolation,
        "n_images": found.n_images,
        "iou_thresholds": _thresholds(found),
    }


def variant_table(variants: Mapping[str, Variant], kind: str) -> pd.DataFrame:
    """Short trainings side by side: a row a variant, figures on the split of the choice."""
    rows = {}
    for name, variant in variants.items():
        found, rate = variant.found, "false_box_rate"
        rows[name] = {"patch AP": f"{variant.patch_ap:.3f}"}
        for group in [group for group in groups_of(found) if group != ALL] or [ALL]:
            cells = _cells(found, group, kind)
            rows[name] |= {f"mAP@{t:.2f}, {group.split()[0]}": with_interval(*cells["all", t]) for t in _shown(found)}
        rows[name][FIGURES[rate]] = _text(_cells(found, ALL, kind)[rate], rate)
    return pd.DataFrame.from_dict(rows, orient="index")


def variants_finding(variants: Mapping[str, Variant], kind: str) -> str:
    """Which of the short trainings come out best for the classes that are trained on: by mAP over all thresholds."""
    group = _judged(next(iter(variants.values())).found)
    maps = {name: _rows(variant.found, group, kind, "after")[0] for name, variant in variants.items()}
    means = pd.Series({name: of.loc[of["protocol"] == "all", "value"].to_numpy().mean() for name, of in maps.items()})
    means = means.dropna().sort_values(ascending=False, kind="stable")
    if means.empty:
        return "No box to compare on."
    best, *others = [f"{name} ({mean:.3f})" for name, mean in means.items()]
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
            name: {"patch_ap": variant.patch_ap}
            | {group: _plain(variant.found, group, kind) for group in variant.found.groups}
            for name, variant in variants.items()
        },
        **more,
    }


def histories(trainings: Mapping[str, Training]) -> pd.DataFrame:
    """The histories of all adapters in one frame, with a column `kind`."""
    return pd.concat([training.history.assign(kind=kind) for kind, training in trainings.items()], ignore_index=True)


def _judged(found: Adaptation) -> str:
    """The group that the adapter is judged by: the classes that were trained on."""
    return SEEN if SEEN in found.groups else ALL


def _thresholds(found: Adaptation) -> list[float]:
    return list(dict.fromkeys(found.maps["iou_threshold"]))


def _ends(found: Adaptation) -> list[float]:
    """The lowest and the highest IoU threshold; one where there is but one."""
    return sorted({min(_thresholds(found)), max(_thresholds(found))})


def _shown(found: Adaptation) -> list[float]:
    """The IoU thresholds of the answer: some of those measured, or all of them where none of these was."""
    return [value for value in _SHOWN if value in _thresholds(found)] or _thresholds(found)


def _rows(found: Adaptation, group: str, kind: str, state: str, minus: str = "") -> list[pd.DataFrame]:
    """What a group has in a state, or its difference to another one: the rows of `maps`, and of `figures`."""
    keys, at = list(KEYS), [group, kind, state, minus]
    return [of[(of[keys] == at).all(axis=1)].drop(columns=keys) for of in (found.maps, found.figures)]


def _cells(
    found: Adaptation, group: str, kind: str, state: str = "after", minus: str = ""
) -> dict[str | tuple[str, float], Cell]:
    """`_rows` by figure, and by protocol and IoU threshold."""
    maps, figures = _rows(found, group, kind, state, minus)
    of_maps = {(protocol, iou): tuple(cell) for protocol, iou, *cell in maps.itertuples(index=False)}
    return of_maps | {figure: tuple(cell) for figure, *cell in figures.itertuples(index=False)}


def _gains(found: Adaptation, group: str, kind: str, minus: str = "before") -> dict[float, str]:
    """Differences of mAP under `all` as text, at the ends of the IoU thresholds."""
    cells = _cells(found, group, kind, minus=minus)
    return {t: with_interval(*cells["all", t], sign=True) for t in _ends(found)}


def _verdict(found: Adaptation, kind: str) -> str:
    """By the paired differences at both ends of the IoU thresholds, of the classes that were trained on."""
    cells = _cells(found, _judged(found), kind, minus="before")
    more, less = (any(cells["all", t][1] > 0 for t in _ends(found)), any(cells["all", t][2] < 0 for t in _ends(found)))
    if more and less:
        return "The adapter finds more at one end of the IoU thresholds and less at the other"
    if more:
        return "The adapter finds more"
    return "The adapter finds less" if less else "The adapter is not told apart from the maps as they were"


def _before_and_after(
    found: Adaptation, parts: Mapping[str, tuple[str, str]], columns: Mapping[str, Any], references: Iterable[str]
) -> pd.DataFrame:
    """A row for each state, and for each difference of after to one of the references that there are, of each part.

    `parts`: name -> group, kind; `columns`: title -> key in `_cells`.
    """
    rows = {}
    for part, (group, kind) in parts.items():
        states = found.settings[kind]
        wanted = {title: (state, "") for state, title in STATES.items() if state in states}
        wanted |= {_DIFFERENCES[of]: ("after", of) for of in references if of in states}
        for row, at in wanted.items():
            cells = _cells(found, group, kind, *at)
            rows[part, row] = [_text(cells[key], key, sign=bool(at[1])) for key in columns.values()]
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows), list(columns))


def _text(cell: Cell, key: str | tuple[str, float], *, sign: bool = False) -> str:
    if key == "max_iou" and not math.isnan(cell[0]):  # one box decides it: there is no interval
        return number(cell[0], sign=sign)
    if key == "false_box_rate" and math.isnan(cell[0]):
        return "no absent class"  # "no boxes" would say that absent classes get none
    return with_interval(*cell, sign=sign)


def _plain(found: Adaptation, group: str, kind: str, state: str = "after", minus: str = "") -> dict[str, Any]:
    """`_rows` as plain values."""
    maps, figures = _rows(found, group, kind, state, minus)
    maps = maps.rename(columns={"value": "difference" if minus else "map"}).set_index("protocol")
    figures = figures.rename(columns={"value": "difference" if minus else "value"}).set_index("figure")
    return {
        "protocols": {protocol: plain(maps.loc[[protocol]]) for protocol in PROTOCOLS},
        "figures": plain(figures.to_dict("index")),
    }
