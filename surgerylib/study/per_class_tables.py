"""The per-class analysis as tables, cards and plain values.

`ap_by_class` is notebook 01's frame, `figures` that of `per_class.class_figures`, `gaps` that of
`per_class.response_gaps`, `gains` that of `error_types.mean_gains`; AP is shown of one kind at some IoU thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..intervals import counted, number
from .per_class import CAUSES, LEAST_GAIN, PROTOCOL, Failure, fates_text, gains_of
from .tables import cells, plain, texts

ERROR_MEANINGS = {
    "classification": "on an object of another class (IoU ≥ t)",
    "localisation": "on an object of its class, too loosely (IoU t/5 to t)",
    "both": "on an object of another class, too loosely",
    "duplicate": "on an object that has a better-scored box already",
    "background": "on nothing (IoU ≤ t/5 with every object)",
    "missed": "objects that no box comes near",
}


def card_thresholds(iou_thresholds: Sequence[float]) -> list[float]:
    """Up to three IoU thresholds for a card: 0.05, 0.15 and 0.5 where the report has them, else low, middle, high."""
    known = sorted(iou_thresholds)
    if {0.05, 0.15, 0.5} <= set(known):
        return [0.05, 0.15, 0.5]
    return list(dict.fromkeys([known[0], known[(len(known) - 1) // 2], known[-1]]))


def failing_table(
    failures: Sequence[Failure], ap_by_class: pd.DataFrame, thresholds: Sequence[float], kind: str
) -> pd.DataFrame:
    """The failing classes (`per_class.failing_classes`), worst first: boxes, AP, cause, what mending it gives back."""
    of = pd.DataFrame(failures).set_index("label").rename_axis(None)
    shown = texts(of, {"boxes": ("n_boxes", "{:,}"), "mean AP": ("mean_ap", "{:.3f}")})
    shown = shown.join(_ap_cells(ap_by_class, kind, thresholds)).assign(**{"what fails": of["cause_name"]})
    return shown.join(texts(of, {"mending it gives back": ("gain", "{:+.3f}")}))


def overview(
    figures: pd.DataFrame, ap_by_class: pd.DataFrame, thresholds: Sequence[float], kind: str
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """All classes side by side as text, and the numbers to sort some columns by: for `sortable.sortable_table`."""
    gains = gains_of(figures)
    frame = figures.assign(mending=gains.max(axis=1))
    columns = {
        "boxes": ("n_boxes", "{:,}"),
        "images": ("n_images", "{:,}"),
        "size, px": ("side", "{:.0f}"),
        "size, patches": ("patches", "{:.1f}"),
        "mean AP": ("mean_ap", "{:.3f}"),
    }
    for threshold in thresholds:
        name = f"AP@{threshold:.2f}"
        own = _of(ap_by_class, kind, threshold)[["ap", "low", "high"]]
        frame = frame.join(own.set_axis([name, f"{name}_low", f"{name}_high"], axis=1))
        columns[name] = (name, "interval")
    columns |= {
        "inside − outside": ("gap", "interval"),
        "inverted": ("inverted", "{:.2f}"),
        "right name first": ("right_first", "{:.2f}"),
    }
    if figures["oracle"].notna().any():
        columns |= {"head, best cell": ("oracle", "interval"), "head, CAM's peak": ("cam_peak", "{:.3f}")}
    columns["mending it"] = ("mending", "{:+.3f}")
    # a class with boxes may still not have been measured: its boxes cover the image, or no head was asked for it
    shown = texts(frame, columns, np.where(figures["n_boxes"] > 0, "–", "no boxes"))
    mistaken = [
        f"{other} ({100 * share:.0f} %)" if isinstance(other, str) else "–"
        for other, share in figures[["confused_with", "confused_share"]].itertuples(index=False)
    ]
    shown.insert(shown.columns.get_loc("right name first") + 1, "mistaken for", mistaken)
    costliest = gains.fillna(-1).idxmax(axis=1).where(frame["mending"] >= LEAST_GAIN, "–")
    shown.insert(shown.shape[1] - 1, "costliest error", costliest.where(frame["mending"].notna(), "no boxes"))
    return shown, {title: frame[name].astype(float).tolist() for title, (name, _) in columns.items()}


def error_table(gains: pd.DataFrame) -> pd.DataFrame:
    """What mending each type of error alone gives back in mAP: a row a type, a column an IoU threshold."""
    rows = {"mAP as it is": {"": ""}} | {error: {"": meaning} for error, meaning in ERROR_MEANINGS.items()}
    for error, iou, count, as_is, gain in gains[["error", "foreground_iou", "count", "map", "gain"]].to_numpy(object):
        column, unknown = f"t = {iou:.2f}", math.isnan(as_is)
        rows["mAP as it is"][column] = "no boxes" if unknown else number(as_is)
        rows[error][column] = f"{'no boxes' if unknown else number(gain, sign=True)} ({count:,})"
    return pd.DataFrame.from_dict(rows, orient="index")


def errors_finding(gains: pd.DataFrame) -> str:
    """Which type of error costs most at the lowest and at the highest IoU."""
    if gains["gain"].isna().all():
        return "No box to be found: nothing can be decomposed."
    worst = gains.loc[gains.groupby("foreground_iou")["gain"].idxmax()].set_index("foreground_iou")
    parts = []
    for iou, of in worst.iloc[:: max(len(worst) - 1, 1)].iterrows():  # the first and the last
        cost = f"{of['error']} ({of['gain']:+.3f} on {of['map']:.3f})"
        none = f"none, by {LEAST_GAIN} or more on {of['map']:.3f}"
        parts.append(f"at IoU {iou:.2f} {cost if of['gain'] >= LEAST_GAIN else none}")
    return f"The type of error whose mending alone gives back most mAP: {', '.join(parts)}."


def costliest_finding(figures: pd.DataFrame) -> str:
    """Which type of error costs most in most classes."""
    gains = gains_of(figures)
    gains = gains[gains.max(axis=1) >= LEAST_GAIN]
    if gains.empty:
        return "No error whose mending alone would give something back"
    most = gains.idxmax(axis=1).value_counts()
    return f"Errors of the type {most.index[0]} cost most in {most.iloc[0]} of {len(gains)} classes"


def recall_finding(curves: pd.DataFrame, classes: Sequence[str], kind: str) -> str:
    """In how many classes some threshold finds half of the objects; `curves` of `per_class.precision_recall`."""
    most = curves.groupby("label")["recall"].max().reindex(list(classes)).fillna(0)
    n_found = (most >= 0.5).sum()
    return f"All boxes of {kind} together find half of the objects or more in {n_found} of {len(most)} classes"


def size_finding(figures: pd.DataFrame) -> str:
    """Whether classes of larger objects score higher: Spearman's rank correlation over the classes."""
    known = figures.dropna(subset=["mean_ap", "side"])
    if len(known) < 4:
        return "Too few classes to relate AP to size"
    rho = known["mean_ap"].rank().corr(known["side"].rank())
    if math.isnan(rho):
        return "Mean AP, or size, is the same in all classes"
    return f"Rank correlation of mean AP and object size over {len(known)} classes: {rho:+.2f}".replace("-", "−")


def gaps_finding(gaps: pd.DataFrame) -> str:
    """In how many classes each kind's maps are higher inside the boxes."""
    known = gaps.dropna(subset="gap_low").groupby("kind", sort=False)["gap_low"]
    parts = [f"{kind} in {(lows > 0).sum()} of {len(lows)}" for kind, lows in known]
    if gaps["gap"].isna().all():
        return "No map could be held against a box"
    if not parts:
        return "Response inside minus outside; too few images for intervals"
    return f"Interval above 0: {', '.join(parts)} classes"


def card_table(
    label: str, ap_by_class: pd.DataFrame, gaps: pd.DataFrame, kinds: Mapping[str, str], thresholds: Sequence[float]
) -> pd.DataFrame:
    """A class's card: a row a kind with its AP and its response inside against outside.

    `kinds`: name (kinds with the same maps joined), the same as in `gaps` -> one of its kinds.
    """
    of = gaps[gaps["label"] == label].set_index("kind")
    responses = pd.DataFrame({"inside − outside": cells(of, "gap"), "inverted": cells(of, "inverted")})
    ap = {name: _ap_cells(ap_by_class, kind, thresholds).loc[label] for name, kind in kinds.items()}
    return pd.DataFrame(ap).T.join(responses)


def card_text(row: pd.Series, lowest_iou: float, kind: str) -> str:
    """What a class's card says in words, as Markdown lists it; `row` of `figures`."""
    sizes = f"median size {row['side']:.0f} px, {row['patches']:.1f} patches"
    lines = [f"{counted(int(row['n_boxes']), 'box')} on {counted(int(row['n_images']), 'image')}; {sizes}"]
    if not math.isnan(row["oracle"]):
        oracle = cells(row.to_frame().T, "oracle").iloc[0]
        lines.append(
            f"told the class, the head: mean IoU {oracle} in the best cell, {row['cam_peak']:.3f} at the CAM's peak"
        )
    naming = f"right name first in {100 * row['right_first']:.0f} % of its boxes ({kind})"
    if isinstance(row["confused_with"], str):
        naming += f", most often mistaken for {row['confused_with']} ({100 * row['confused_share']:.0f} %)"
    lines.append(naming)
    if isinstance(row["lies_on"], str):
        lines.append(
            f"{int(row['count_classification']):,} of its boxes lie on objects of other classes, of the best-scored "
            f"{100 * row['lies_on_share']:.0f} % on {row['lies_on']}"
        )
    gains = gains_of(row.to_frame().T).iloc[0].sort_values(ascending=False, kind="stable")
    worth = [f"{error} {gain:+.3f}" for error, gain in gains.items() if gain >= 0.0005]
    lines.append(f"mending one type of error gives back, in mean AP: {', '.join(worth) or 'nothing'}")
    lines.append(f"its boxes at IoU {lowest_iou:.2f}: {fates_text(row)}")
    return "\n".join(f"- {line}" for line in lines).replace(" %", "\u00a0%")


def per_class_results(
    finding: str,
    failures: Sequence[Failure],
    figures: pd.DataFrame,
    gains: pd.DataFrame,
    decomposition: pd.DataFrame,
    **more: Any,
) -> dict[str, Any]:
    """`per_class_results.json`: every number of notebook 05 as plain values, classes by name; NaN becomes None.

    `decomposition` is of `error_types.error_decomposition`; `more`: what else belongs into the file.
    """
    return {
        "finding": finding,
        "failing": plain(pd.DataFrame(failures, columns=Failure._fields).drop(columns="n_boxes")),
        "classes": plain(figures.to_dict("index")),
        "errors": plain(gains),
        "errors_by_class": plain(decomposition),
        "causes": {cause: meaning for cause, (_, meaning) in CAUSES.items()},
        **more,
    }


def _of(ap_by_class: pd.DataFrame, kind: str, threshold: float) -> pd.DataFrame:
    """One kind's AP at one threshold under the protocol shown, by class."""
    own = ap_by_class[(ap_by_class["protocol"] == PROTOCOL) & (ap_by_class["kind"] == kind)]
    return own[np.isclose(own["iou_threshold"], threshold)].set_index("label")


def _ap_cells(ap_by_class: pd.DataFrame, kind: str, thresholds: Sequence[float]) -> pd.DataFrame:
    """AP with its interval as text: a row a class, a column a threshold."""
    return pd.DataFrame({f"AP@{t:.2f}": cells(_of(ap_by_class, kind, t), "ap") for t in thresholds})
