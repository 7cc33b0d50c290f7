"""The per-class analysis as tables, cards and plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..words import ERROR_TYPES
from .per_class import CAUSES, LEAST_GAIN, PROTOCOL, Failure, fates_text, gains_of
from .tables import cells, plain, table

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
    """The failing classes, worst first: boxes, AP, cause, and what mending it would give back.

    Args:
        failures: of `per_class.failing_classes`.
        ap_by_class: of notebook 01.
        thresholds: IoU thresholds whose AP is shown.
        kind: the kind shown.
    """
    ap = _ap_cells(ap_by_class, kind, thresholds)
    rows = {
        failure.label: {
            "boxes": f"{failure.n_boxes:,}",
            "mean AP": f"{failure.mean_ap:.3f}",
            **ap.loc[failure.label],
            "what fails": failure.cause_name,
            "mending it gives back": f"{failure.gain:+.3f}",
        }
        for failure in failures
    }
    return table(rows)


def overview(
    figures: pd.DataFrame, ap_by_class: pd.DataFrame, thresholds: Sequence[float], kind: str
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """All classes side by side as text, and the numbers to sort some columns by.

    Args:
        figures: of `per_class.class_figures`.
        ap_by_class: of notebook 01.
        thresholds: IoU thresholds whose AP is shown.
        kind: the kind shown.

    Returns:
        For `sortable.sortable_table`: the frame and `sort_values`.
    """
    texts: dict[str, Sequence[str]] = {}
    numbers: dict[str, list[float]] = {}
    # a class with boxes may still not have been measured: its boxes cover the image, or no head was asked for it
    unmeasured = np.where(figures["n_boxes"] > 0, "–", "no boxes")

    def add(name: str, values: pd.Series, form: str | pd.Series) -> None:
        numbers[name] = values.astype(float).tolist()
        text = values.map(form.format) if isinstance(form, str) else form
        texts[name] = text.str.replace("-", "−").where(values.notna(), unmeasured).tolist()

    add("boxes", figures["n_boxes"], "{:,}")
    add("images", figures["n_images"], "{:,}")
    add("size, px", figures["side"], "{:.0f}")
    add("size, patches", figures["patches"], "{:.1f}")
    add("mean AP", figures["mean_ap"], "{:.3f}")
    for threshold in thresholds:
        own = _of(ap_by_class, kind, threshold).reindex(figures.index)
        add(f"AP@{threshold:.2f}", own["ap"], cells(own, "ap"))
    add("inside − outside", figures["gap"], cells(figures, "gap"))
    add("inverted", figures["inverted"], "{:.2f}")
    add("right name first", figures["right_first"], "{:.2f}")
    texts["mistaken for"] = [
        f"{other} ({100 * share:.0f} %)" if isinstance(other, str) else "–"
        for other, share in figures[["confused_with", "confused_share"]].itertuples(index=False)
    ]
    if figures["oracle"].notna().any():
        add("head, best cell", figures["oracle"], cells(figures, "oracle"))
        add("head, CAM's peak", figures["cam_peak"], "{:.3f}")
    gains = gains_of(figures)
    largest = gains.max(axis=1)
    texts["costliest error"] = [
        "no boxes" if math.isnan(gain) else str(gains.loc[label].idxmax()) if gain >= LEAST_GAIN else "–"
        for label, gain in largest.items()
    ]
    add("mending it", largest, "{:+.3f}")
    return pd.DataFrame(texts, index=figures.index), numbers


def error_table(gains: pd.DataFrame) -> pd.DataFrame:
    """What mending each type of error alone gives back in mAP: a row a type, a column an IoU threshold.

    Args:
        gains: of `error_types.mean_gains`.
    """
    thresholds = list(dict.fromkeys(gains["foreground_iou"]))
    of = gains.set_index(["error", "foreground_iou"])
    rows = {"mAP as it is": {"": "", **{t: _number(of.loc[("missed", t), "map"], "{:.3f}") for t in thresholds}}}
    for error in ERROR_TYPES:
        row = {"": ERROR_MEANINGS[error]}
        for threshold in thresholds:
            gain, count = of.loc[(error, threshold), ["gain", "count"]]
            row[threshold] = f"{_number(gain, '{:+.3f}')} ({int(count):,})"
        rows[error] = row
    return table(rows).rename(columns={threshold: f"t = {threshold:.2f}" for threshold in thresholds})


def errors_finding(gains: pd.DataFrame) -> str:
    """Which type of error costs most at the lowest and at the highest IoU; `gains` of `error_types.mean_gains`."""
    if gains["gain"].isna().all():
        return "No box to be found: nothing can be decomposed."
    parts = []
    for threshold in dict.fromkeys([gains["foreground_iou"].min(), gains["foreground_iou"].max()]):
        own = gains[gains["foreground_iou"] == threshold]
        worst = own.loc[own["gain"].idxmax()]
        if worst["gain"] < LEAST_GAIN:
            parts.append(f"at IoU {threshold:.2f} none, by {LEAST_GAIN} or more on {worst['map']:.3f}")
        else:
            parts.append(f"at IoU {threshold:.2f} {worst['error']} ({worst['gain']:+.3f} on {worst['map']:.3f})")
    return f"The type of error whose mending alone gives back most mAP: {', '.join(parts)}."


def costliest_finding(figures: pd.DataFrame) -> str:
    """Which type of error costs most in most classes; `figures` of `per_class.class_figures`."""
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
    return f"Rank correlation of mean AP and object size over {len(known)} classes: {_number(rho, '{:+.2f}')}"


def gaps_finding(gaps: pd.DataFrame) -> str:
    """In how many classes each kind's maps are higher inside the boxes; `gaps` of `per_class.response_gaps`."""
    parts = []
    for kind, own in gaps.dropna(subset="gap_low").groupby("kind", sort=False):
        sure = int((own["gap_low"] > 0).sum())
        parts.append(f"{kind} in {sure} of {len(own)}")
    if gaps["gap"].isna().all():
        return "No map could be held against a box"
    if not parts:
        return "Response inside minus outside; too few images for intervals"
    return f"Interval above 0: {', '.join(parts)} classes"


def card_table(
    label: str, ap_by_class: pd.DataFrame, gaps: pd.DataFrame, kinds: Mapping[str, str], thresholds: Sequence[float]
) -> pd.DataFrame:
    """A class's card: a row a kind with its AP and its response inside against outside.

    Args:
        label: the class.
        ap_by_class: of notebook 01.
        gaps: of `per_class.response_gaps`, by the same names of kinds.
        kinds: name (kinds with the same maps joined) -> one of its kinds.
        thresholds: IoU thresholds whose AP is shown.
    """
    responses = gaps[gaps["label"] == label].set_index("kind")
    titles = {"inside − outside": cells(responses, "gap"), "inverted": cells(responses, "inverted")}
    rows = {
        name: {**_ap_cells(ap_by_class, kind, thresholds).loc[label], **{t: of[name] for t, of in titles.items()}}
        for name, kind in kinds.items()
    }
    return table(rows)


def card_text(row: pd.Series, lowest_iou: float, kind: str) -> str:
    """What a class's card says in words, as Markdown lists it."""
    lines = [
        f"{int(row['n_boxes']):,} box{'' if row['n_boxes'] == 1 else 'es'} on {int(row['n_images']):,} "
        f"image{'' if row['n_images'] == 1 else 's'}; median size {row['side']:.0f} px, {row['patches']:.1f} patches"
    ]
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
    gains = {error: row[f"gain_{error}"] for error in ERROR_TYPES}
    worth = [
        f"{error} {gain:+.3f}" for error, gain in sorted(gains.items(), key=lambda item: -item[1]) if gain >= 0.0005
    ]
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

    Args:
        finding: the notebook's sentence.
        failures: the failing classes.
        figures: of `per_class.class_figures`.
        gains: of `error_types.mean_gains`.
        decomposition: of `error_types.error_decomposition`.
        **more: what else belongs into the file.
    """
    return {
        "finding": finding,
        "failing": [
            {name: getattr(failure, name) for name in ("label", "mean_ap", "cause", "cause_name", "gain", "sentence")}
            for failure in failures
        ],
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


def _number(value: float, form: str) -> str:
    return "no boxes" if math.isnan(value) else form.format(value).replace("-", "−")
