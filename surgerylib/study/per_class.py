"""Everything that is known of each class side by side, and what its failing comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..datasets import Dataset
from ..engine import NO_BOXES, Boxes, best_overlaps, truth_codes
from ..heatmaps import Setting
from ..intervals import basic_interval, counted, resampled_means, share_interval
from ..matching import BOX_COLUMNS, match
from ..words import ERROR_TYPES
from .box_groups import areas_in_patches, box_sides
from .classification import Classification, main_confusions
from .error_types import FATES, ErrorTypes, fates_by_class

PROTOCOL = "all"
LEAST_GAIN = 0.01  # of mean AP: what gives back less is no cause
# the error type in a reader's words: a short name, and what it means
CAUSES = {
    "classification": ("the name", "boxes of it lie on objects of other classes, and boxes of others on its own"),
    "localisation": ("the place", "its boxes touch the object without covering it well enough"),
    "both": ("name and place", "boxes of it touch objects of other classes, without covering them either"),
    "duplicate": ("repeated boxes", "one object gets several boxes"),
    "background": ("the background", "boxes of it lie where nothing annotated is"),
    "missed": ("missed objects", "no box comes near enough to be mended"),
}
NO_CAUSE = "no single cause"
# what bears on a cause, the strongest first
_EVIDENCE = {
    "classification": ("mistaken", "naming"),
    "both": ("mistaken", "size"),
    "localisation": ("size", "head"),
    "duplicate": ("size", "response"),
    "background": ("response", "naming"),
    "missed": ("size", "response"),
}


class Failure(NamedTuple):
    """Why a class fails; AP and gain are means over the IoU thresholds."""

    label: str
    n_boxes: int
    mean_ap: float
    cause: str  # the error type whose mending would give back most, or `NO_CAUSE`
    cause_name: str  # in a reader's words
    gain: float  # what it would give back
    sentence: str  # the cause in words, with the figures behind it


def class_figures(
    named: Classification,
    source: Setting,
    grid: tuple[int, int],
    *,
    ap_by_class: pd.DataFrame,
    gaps: pd.DataFrame,
    decomposition: pd.DataFrame,
    errors: ErrorTypes,
    evaluation: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """One row a class, with every number that its card and the tables need; NaN where there is none.

    Args:
        named: CLIP's own classification of the data set's boxes.
        source: the maps of the kind shown.
        grid: the model's patches (rows, columns).
        ap_by_class: of notebook 01: protocol, kind, label, iou_threshold, ap, low, high.
        gaps, decomposition, errors: of `response_gaps`, `error_types.error_decomposition` and, at the lowest IoU,
            `error_types.detection_errors`, of the kind shown.
        evaluation: `evaluation_results.json` of notebook 04; None where it has not run.

    Returns:
        Frame indexed by class: n_boxes, n_images, side (median of √area in pixels), patches (median area in patches),
        ap@<IoU> (protocol `all`), mean_ap, gap, gap_low, gap_high (inside minus outside), inverted, right_first,
        confused_with, confused_share, oracle, oracle_low, oracle_high, cam_peak, gain_<error>, count_<error>,
        fate_<fate>.
    """
    names = list(named.dataset.classes)
    own = ap_by_class[(ap_by_class["protocol"] == PROTOCOL) & (ap_by_class["kind"] == source.kind)]
    ap = own.pivot_table(index="label", columns="iou_threshold", values="ap", dropna=False)
    confusions = main_confusions(named.confusion(source)).set_index("label")
    parts = [
        _box_figures(named.dataset, grid, named.ranks(source) == 0),
        ap.rename(columns="ap@{:.2f}".format).assign(mean_ap=ap.mean(axis=1)),
        gaps.set_index("label")[["gap", "gap_low", "gap_high", "inverted"]],
        confusions[["other", "share"]].set_axis(["confused_with", "confused_share"], axis=1),
        _head_figures(evaluation, names),
        _error_figures(decomposition, names),
        _lies_on(errors)[["other", "share"]].set_axis(["lies_on", "lies_on_share"], axis=1),
    ]
    frame = pd.concat([part.reindex(names) for part in parts], axis=1).rename_axis("label")
    return frame.join(fates_by_class(errors, names).add_prefix("fate_"))


def gains_of(figures: pd.DataFrame) -> pd.DataFrame:
    """What mending each type of error gives back: the `gain_<error>` of `class_figures`, a column an error."""
    return figures[[f"gain_{error}" for error in ERROR_TYPES]].set_axis(list(ERROR_TYPES), axis=1)


def response_gaps(pairs: Mapping[str, pd.DataFrame], classes: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """How much more a class's map responds inside its boxes than outside, by class and kind, with 95 % intervals.

    `pairs`: kind -> frame of `quality.map_quality`; `seed` of the resamples of the images.

    Returns:
        Frame label, kind, gap, gap_low, gap_high (mean response inside minus outside), inverted, inverted_low,
        inverted_high (share of the images with the class in which it is below 0), n_images; NaN for a class whose maps
        were not measured.
    """
    rows = []
    for kind, frame in pairs.items():
        for label in classes:
            own = frame[frame["label"] == label].dropna(subset="outside_mean")
            gaps = (own["inside_mean"] - own["outside_mean"]).to_numpy(np.float64)
            values = np.column_stack([gaps, gaps < 0])
            mean, samples, n_images = resampled_means(values, own["image_id"], 1000, seed)
            low, high = basic_interval(mean, samples, n_images)
            share = np.concatenate(share_interval(mean[1:], samples[:, 1:], len(own), n_images))
            rows.append((label, kind, mean[0], low[0], high[0], mean[1], *share, n_images))
    columns = ["gap", "gap_low", "gap_high", "inverted", "inverted_low", "inverted_high", "n_images"]
    return pd.DataFrame(rows, columns=["label", "kind", *columns])


def failing_classes(
    figures: pd.DataFrame, iou_thresholds: Sequence[float], *, kind: str, count: int = 3
) -> list[Failure]:
    """The `count` classes with the lowest mean AP, worst first, each with what its failing comes from.

    A class that lacks less than `LEAST_GAIN` does not fail. `figures` of `class_figures`, of the kind shown.
    """
    failing = figures[figures["mean_ap"] <= 1 - LEAST_GAIN].sort_index()
    failing = failing.sort_values(["mean_ap", "n_boxes"], ascending=[True, False], kind="stable")
    return [_failure(row, iou_thresholds, kind) for _, row in failing.head(count).iterrows()]


def failing_finding(failures: Sequence[Failure], *, any_boxes: bool = True) -> str:
    """One sentence that names the failing classes, their AP and their causes."""
    if not failures and any_boxes:
        return "No class fails: every class with boxes is found."
    if not failures:
        return "No image of this split holds a box of the class list: no class can be judged."
    *parts, last = (
        f"{of.label} (mean AP {of.mean_ap:.3f} on {counted(of.n_boxes, 'box')}: {of.cause_name})" for of in failures
    )
    if not parts:
        return f"The class that fails most: {last}."
    return f"The classes that fail most: {', '.join(parts)} and {last}."


def precision_recall(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    iou_threshold: float,
    interpolation: str = "11point",
    classes: Sequence[str] | None = None,
    most_points: int = 200,
) -> pd.DataFrame:
    """The corners of each class's precision-recall curve: behind each true positive.

    Arguments and errors are those of `average_precision`; `interpolation` decides the matching. Of a class with more
    true positives than `most_points` so many are taken, evenly spaced in recall, first and last too.

    Returns:
        Frame label, recall, precision, score (from which on), in the order of the ranking. A class without ground truth
        or without a true positive has no row.
    """
    run = match(detections, ground_truth, (iou_threshold,), interpolation, classes=classes)
    # the order of `Matches`
    scores = detections["score"].to_numpy(np.float64)
    ranked = scores[np.lexsort((-scores, pd.Index(run.classes).get_indexer(detections["label"])))]
    parts = [pd.DataFrame(columns=["label", "recall", "precision", "score"])]
    for label, (low, high), n_truth in zip(run.classes, pairwise(run.class_bounds), run.n_ground_truth, strict=True):
        places = np.flatnonzero(run.is_tp[0, low:high])
        if len(places):
            found = np.arange(1, len(places) + 1)
            rows = {"recall": found / n_truth, "precision": found / (places + 1), "score": ranked[low + places]}
            kept = np.linspace(0, len(places) - 1, min(most_points, len(places))).round().astype(int)
            parts.append(pd.DataFrame(rows).iloc[np.unique(kept)].assign(label=label))
    return pd.concat(parts[1:] or parts, ignore_index=True)[list(parts[0])]


def best_detection_iou(detections: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """For each ground truth box of a data set the IoU of the detection of its class that overlaps it most: [G]."""
    image, label = truth_codes(replace(dataset, boxes=detections))
    table = Boxes(image, label, detections[BOX_COLUMNS].to_numpy(np.float64), NO_BOXES.activated)
    return best_overlaps(table, dataset, np.ones(len(image), dtype=bool))[1]


def pick_images(best_iou: np.ndarray, dataset: Dataset, count: int) -> dict[str, tuple[list[str], list[str]]]:
    """For each class the images in which its boxes are met best and worst: label -> (good, bad) image ids.

    `best_iou` of `best_detection_iou`; of each so many, none in both; with few images the good ones come first.
    """
    means = dataset.boxes.assign(iou=best_iou).groupby(["label", "image_id"])["iou"].mean().reset_index()
    picked = {}
    for label, own in means.sort_values(["iou", "image_id"], ascending=[False, True]).groupby("label"):
        ids = own["image_id"].tolist()
        good = ids[: min(count, -(-len(ids) // 2))]
        picked[label] = (good, ids[len(good) :][::-1][:count])
    return picked


def _box_figures(dataset: Dataset, grid: tuple[int, int], is_right: np.ndarray) -> pd.DataFrame:
    """n_boxes, n_images, side, patches, right_first of each class with boxes or without."""
    by_label = dataset.boxes.assign(
        side=np.sqrt(box_sides(dataset.boxes).prod(axis=1)), patches=areas_in_patches(dataset, grid), is_right=is_right
    ).groupby("label")
    counts = pd.DataFrame({"n_boxes": by_label.size(), "n_images": by_label["image_id"].nunique()})
    rest = by_label[["side", "patches"]].median().assign(right_first=by_label["is_right"].mean())
    return pd.concat([counts.reindex(dataset.classes, fill_value=0), rest.reindex(dataset.classes)], axis=1)


def _head_figures(evaluation: Mapping[str, Any] | None, names: Sequence[str]) -> pd.DataFrame:
    """oracle, oracle_low, oracle_high, cam_peak: mean IoU of a class's boxes in notebook 04."""
    rows = {}
    for name, of_class in (evaluation or {"by_class": {}})["by_class"].items():
        if of_class["methods"]:
            oracle, peak = (of_class["methods"][method]["mean"] for method in ("oracle", "cam_peak"))
            rows[name] = [oracle["value"], oracle["low"], oracle["high"], peak["value"]]
    columns = ["oracle", "oracle_low", "oracle_high", "cam_peak"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=np.float64).reindex(names)


def _error_figures(decomposition: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """gain_<error>, mean over the IoU thresholds, and count_<error>, at the lowest."""
    gains = decomposition.pivot_table(index="label", columns="error", values="gain", dropna=False)
    lowest = decomposition[decomposition["foreground_iou"] == decomposition["foreground_iou"].min()]
    counts = lowest.pivot_table(index="label", columns="error", values="count", aggfunc="first", dropna=False)
    gains, counts = (of.reindex(index=names, columns=list(ERROR_TYPES)) for of in (gains, counts))
    return pd.concat([gains.add_prefix("gain_"), counts.fillna(0).astype(int).add_prefix("count_")], axis=1)


def _lies_on(errors: ErrorTypes) -> pd.DataFrame:
    """For each class of detection the other class on whose objects its misnamed ones lie most: other, share.

    Looked at are those of highest score, as many as the class has boxes: what ranks below all objects costs nothing.
    """
    wrong, truth_labels = errors.of_detection == "classification", errors.ground_truth["label"]
    pairs = errors.detections.loc[wrong, ["label", "score"]].astype({"label": object})
    pairs["other"] = truth_labels.to_numpy(object)[errors.truth_row[wrong]]
    pairs = pairs.sort_values("score", ascending=False, kind="stable")
    pairs = pairs[pairs.groupby("label").cumcount() < pairs["label"].map(truth_labels.value_counts()).fillna(0)]
    counts = pairs.value_counts(["label", "other"]).reset_index(name="count")
    counts = counts.sort_values(["count", "other"], ascending=[False, True], kind="stable")
    most = counts.drop_duplicates("label").set_index("label")
    return most.assign(share=most["count"] / counts.groupby("label")["count"].sum())


def _failure(row: pd.Series, iou_thresholds: Sequence[float], kind: str) -> Failure:
    label, mean_ap, n_boxes = str(row.name), float(row["mean_ap"]), int(row["n_boxes"])
    ranked = gains_of(row.to_frame().T).iloc[0].astype(float).sort_values(ascending=False, kind="stable")
    (cause, gain), (following, next_gain) = ranked.iloc[:2].items()
    boxes, few = counted(n_boxes, "box"), " (too few to be sure of)" if n_boxes < 10 else ""
    if gain >= LEAST_GAIN:
        name, meaning = CAUSES[cause]
        second = f" (next: {CAUSES[following][0]}, +{next_gain:.3f})" if next_gain >= LEAST_GAIN else ""
        said = (
            f"{name} above all: {meaning}. Mending this type of error alone, in all classes, would give back "
            f"{gain:.3f}{second}"
        )
    else:
        cause = name = NO_CAUSE
        said = (
            f"no single kind of error explains it, for mending any one alone gives back less than {LEAST_GAIN}; "
            f"of its {boxes.split()[1]} at IoU {min(iou_thresholds):.2f}: {fates_text(row)}"
        )
    sentence = f"{label}, {boxes}{few}, mean AP {mean_ap:.3f}: {said}. {_evidence(row, cause, kind)}"
    return Failure(label, n_boxes, mean_ap, cause, name, gain, sentence)


def fates_text(row: pd.Series) -> str:
    """What became of a class's boxes, of a row of `class_figures`: `18 found, 2 missed`."""
    return ", ".join(f"{int(row[f'fate_{fate}']):,} {fate}" for fate in FATES if row[f"fate_{fate}"])


def _evidence(row: pd.Series, cause: str, kind: str) -> str:
    """What else is known of the class, the facts that bear on the cause first."""
    naming = f"CLIP's {kind} maps put its name first in {100 * row['right_first']:.0f} % of its boxes"
    if isinstance(row["confused_with"], str):
        naming += f", {row['confused_with']} in {100 * row['confused_share']:.0f} %"
    facts = {
        "naming": naming,
        "mistaken": "none of its own boxes is counted as misnamed at the lowest IoU",
        "size": f"its median box covers {row['patches']:.1f} patches",
    }
    if isinstance(row["lies_on"], str):
        share = f"{100 * row['lies_on_share']:.0f} %"
        facts["mistaken"] = f"of its best-scored boxes on other objects {share} lie on {row['lies_on']}"
    if not math.isnan(row["gap"]):
        side = "higher" if row["gap"] >= 0 else "lower"
        facts["response"] = (
            f"its map is {side} inside its boxes than outside by {abs(row['gap']):.3f} on average, inverted in "
            f"{100 * row['inverted']:.0f} % of its images"
        )
    if not math.isnan(row["oracle"]):
        facts["head"] = (
            f"told the class, a trained head reaches mean IoU {row['oracle']:.2f} in its best cell (an oracle; "
            f"{row['cam_peak']:.2f} at the CAM's peak)"
        )
    order = dict.fromkeys((*_EVIDENCE.get(cause, ("naming", "size")), "head"))
    text = "; ".join(facts[name] for name in order if name in facts)
    return f"{text[0].upper()}{text[1:]}."
