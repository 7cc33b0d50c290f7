"""The per-class analysis as tables, cards and plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..intervals import number
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
        of.label: {
            "boxes": f"{of.n_boxes:,}",
            "mean AP": f"{of.mean_ap:.3f}",
            **ap.loc[of.label],
            "what fails": of.cause_name,
            "mending it gives back": f"{of.gain:+.3f}",
        }
        for of in failures
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
    costliest = gains.fillna(-1).idxmax(axis=1).where(largest >= LEAST_GAIN, "–")
    texts["costliest error"] = costliest.where(largest.notna(), "no boxes").tolist()
    add("mending it", largest, "{:+.3f}")
    return pd.DataFrame(texts, index=figures.index), numbers


def error_table(gains: pd.DataFrame) -> pd.DataFrame:
    """What mending each type of error alone gives back in mAP: a row a type, a column an IoU threshold.

    Args:
        gains: of `error_types.mean_gains`.
    """
    rows = {"mAP as it is": {"": ""}} | {error: {"": meaning} for error, meaning in ERROR_MEANINGS.items()}
    for error, iou, count, as_is, gain in gains[["error", "foreground_iou", "count", "map", "gain"]].to_numpy(object):
        column, unknown = f"t = {iou:.2f}", math.isnan(as_is)
        rows["mAP as it is"][column] = "no boxes" if unknown else number(as_is)
        rows[error][column] = f"{'no boxes' if unknown else number(gain, sign=True)} ({count:,})"
    return table(rows)


def errors_finding(gains: pd.DataFrame) -> str:
    """Which type of error costs most at the lowest and at the highest IoU; `gains` of `error_types.mean_gains`."""
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
    return f"Rank correlation of mean AP and object size over {len(known)} classes: {rho:+.2f}".replace("-", "−")


def gaps_finding(gaps: pd.DataFrame) -> str:
    """In how many classes each kind's maps are higher inside the boxes; `gaps` of `per_class.response_gaps`."""
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

    Args:
        label: the class.
        ap_by_class: of notebook 01.
        gaps: of `per_class.response_gaps`, by the same names of kinds.
        kinds: name (kinds with the same maps joined) -> one of its kinds.
        thresholds: IoU thresholds whose AP is shown.
    """
    of = gaps[gaps["label"] == label].set_index("kind")
    responses = pd.DataFrame({"inside − outside": cells(of, "gap"), "inverted": cells(of, "inverted")})
    ap = table({name: _ap_cells(ap_by_class, kind, thresholds).loc[label] for name, kind in kinds.items()})
    return ap.join(responses)


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
            {name: value for name, value in failure._asdict().items() if name != "n_boxes"} for failure in failures
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
