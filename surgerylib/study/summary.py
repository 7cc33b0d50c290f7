"""From detections of several heatmap kinds to the tables, the sentence and the files of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from tqdm import tqdm

from ..intervals import with_interval
from ..kinds import HEATMAP_KINDS, PROTOCOLS
from ..metrics import IOU_THRESHOLDS, BootstrapResult, bootstrap_map, paired_difference

FEW_IMAGES = 50
# stands under every table of intervals: the reader of a page alone has no other place to learn it
INTERVAL_NOTE = (
    "An interval says what other sets of as many images would give on average; average precision of few images reads "
    "high against that of very many."
)


@dataclass(frozen=True)
class KindEvaluation:
    """Average precision of each kind under both protocols, with 95 % intervals over images.

    Attributes:
        summary: protocol, kind, iou_threshold, map, low, high.
        by_class: protocol, kind, label, iou_threshold, ap, low, high, n_ground_truth, n_detections.
        differences: protocol, iou_threshold, difference, low, high, excludes_zero of `compared`; no rows when one of
            the two kinds is missing.
        compared: the two kinds whose paired difference (first minus second) is listed.
        interpolation: of the average precision.
        n_images: images evaluated, with boxes or without.
    """

    summary: pd.DataFrame
    by_class: pd.DataFrame
    differences: pd.DataFrame
    compared: tuple[str, str]
    interpolation: str
    n_images: int

    def value(self, protocol: str, kind: str, iou_threshold: float) -> pd.Series:
        """map, low and high of one cell."""
        rows = self.summary.set_index(["protocol", "kind", "iou_threshold"]).sort_index()
        return rows.loc[(protocol, kind, iou_threshold)]


def present_only(detections: pd.DataFrame, ground_truth: pd.DataFrame) -> pd.DataFrame:
    """Detections of classes that are annotated in their image: the `present` protocol, image labels given."""
    asked = pd.MultiIndex.from_frame(ground_truth[["image_id", "label"]].drop_duplicates())
    return detections[pd.MultiIndex.from_frame(detections[["image_id", "label"]]).isin(asked)].reset_index(drop=True)


def evaluate_kinds(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    image_ids: Sequence[str],
    classes: Sequence[str],
    kinds: Sequence[str] = HEATMAP_KINDS,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: str = "11point",
    compared: tuple[str, str] = ("vv_mixed", "standard"),
    n_resamples: int = 1000,
    seed: int = 0,
) -> KindEvaluation:
    """Evaluate every kind in a detections frame on the same images and the same resamples.

    Args:
        detections: frame with a `kind` column, made under the `all` protocol.
        ground_truth: frame of boxes.
        image_ids: all images evaluated, those without boxes too.
        classes: the whole class list.
        kinds: those that were asked for; one without a single box scores 0.
        iou_thresholds: each in (0, 1].
        interpolation: as in `average_precision`.
        compared: kinds whose paired difference is taken.
        n_resamples: half-samples of the images.
        seed: of the half-samples.
    """
    summaries, by_class, differences = [], [], []
    progress = tqdm(total=len(PROTOCOLS) * len(kinds), desc="mAP and intervals", unit="kind", delay=2, leave=False)
    for protocol in PROTOCOLS:
        results: dict[str, BootstrapResult] = {}
        seen: list[tuple[pd.DataFrame, BootstrapResult]] = []
        for kind in kinds:
            boxes = detections[detections["kind"] == kind].drop(columns="kind").reset_index(drop=True)
            if protocol == "present":
                boxes = present_only(boxes, ground_truth)
            # two kinds with the same maps have the same boxes: evaluated once
            result = next((known for frame, known in seen if frame.equals(boxes)), None)
            if result is None:
                result = bootstrap_map(
                    boxes,
                    ground_truth,
                    image_ids=image_ids,
                    iou_thresholds=iou_thresholds,
                    interpolation=interpolation,
                    classes=classes,
                    n_resamples=n_resamples,
                    seed=seed,
                )
                seen.append((boxes, result))
            results[kind] = result
            summaries.append(result.summary().assign(protocol=protocol, kind=kind))
            by_class.append(_class_rows(result, boxes, ground_truth).assign(protocol=protocol, kind=kind))
            progress.update()
        if all(kind in results for kind in compared):
            difference = paired_difference(results[compared[0]], results[compared[1]]).summary()
            differences.append(difference.assign(protocol=protocol))
    progress.close()
    return KindEvaluation(
        summary=_joined(summaries, ["protocol", "kind", "iou_threshold", "map", "low", "high"]),
        by_class=_joined(
            by_class,
            ["protocol", "kind", "label", "iou_threshold", "ap", "low", "high", "n_ground_truth", "n_detections"],
        ),
        differences=_joined(differences, ["protocol", "iou_threshold", "difference", "low", "high", "excludes_zero"]),
        compared=compared,
        interpolation=interpolation,
        n_images=len(image_ids),
    )


def _class_rows(result: BootstrapResult, boxes: pd.DataFrame, ground_truth: pd.DataFrame) -> pd.DataFrame:
    """AP by class with the numbers of boxes; no interval for a class with boxes in fewer than two images."""
    rows = result.class_summary()
    n_images = rows["label"].map(ground_truth.groupby("label")["image_id"].nunique()).fillna(0)
    # resampling one image tells nothing of how much the next one would differ
    rows.loc[n_images < 2, ["low", "high"]] = math.nan
    rows["n_ground_truth"] = rows["label"].map(ground_truth["label"].value_counts()).fillna(0).astype(int)
    rows["n_detections"] = rows["label"].map(boxes["label"].value_counts()).fillna(0).astype(int)
    return rows


def map_table(evaluation: KindEvaluation) -> pd.DataFrame:
    """The answer table: a row for each protocol and kind, a column for each IoU threshold, `value [low, high]`."""
    cells = evaluation.summary.copy()
    cells["cell"] = [with_interval(*row) for row in cells[["map", "low", "high"]].itertuples(index=False, name=None)]
    cells["column"] = [f"mAP@{threshold:.2f}" for threshold in cells["iou_threshold"]]
    table = cells.pivot_table(index=["protocol", "kind"], columns="column", values="cell", aggfunc="first", sort=False)
    return table.rename_axis(columns=None)


def difference_table(evaluation: KindEvaluation) -> pd.DataFrame:
    """The paired difference of the compared kinds: a row for each IoU threshold, a column for each protocol."""
    cells = evaluation.differences
    cells = cells.assign(
        cell=[
            with_interval(*row, sign=True)
            for row in cells[["difference", "low", "high"]].itertuples(index=False, name=None)
        ]
    )
    table = cells.pivot_table(index="iou_threshold", columns="protocol", values="cell", aggfunc="first", sort=False)
    return table.rename_axis(
        index="IoU threshold", columns=f"mAP of {evaluation.compared[0]} − {evaluation.compared[1]}"
    )


def class_table(evaluation: KindEvaluation, kind: str, iou_threshold: float) -> pd.DataFrame:
    """AP of one kind by class: number of boxes, and `value [low, high]` under each protocol."""
    rows = evaluation.by_class
    rows = rows[(rows["kind"] == kind) & (rows["iou_threshold"] == iou_threshold)]
    cells = rows.assign(
        cell=[with_interval(*row) for row in rows[["ap", "low", "high"]].itertuples(index=False, name=None)]
    )
    table = cells.pivot_table(index="label", columns="protocol", values="cell", aggfunc="first")[list(PROTOCOLS)]
    table.insert(0, "boxes", rows.groupby("label")["n_ground_truth"].first())
    return table.rename_axis(index=None, columns=f"AP@{iou_threshold:.2f} of {kind}")


def finding(evaluation: KindEvaluation) -> str:
    """One sentence that answers the notebook's question with its figures."""
    threshold = float(evaluation.summary["iou_threshold"].min())
    at_first = evaluation.summary[evaluation.summary["iou_threshold"] == threshold]
    if at_first["map"].isna().all():
        return "No image of this split holds a box of the class list: nothing can be measured."
    a, b = evaluation.compared
    if evaluation.differences.empty:
        best = at_first[at_first["protocol"] == "all"].sort_values("map", kind="stable").iloc[-1]
        cell = with_interval(best["map"], best["low"], best["high"])
        return f"The best of the kinds asked for is {best['kind']}: mAP@{threshold:.2f} {cell} under the all protocol."
    decided = evaluation.differences[evaluation.differences["iou_threshold"] == threshold].set_index("protocol")
    parts = []
    for protocol in PROTOCOLS:
        pair = [evaluation.value(protocol, kind, threshold)["map"] for kind in (a, b)]
        difference = with_interval(*decided.loc[protocol, ["difference", "low", "high"]], sign=True)
        parts.append(f"{pair[0]:.3f} against {pair[1]:.3f} under {protocol} (difference {difference})")
    better = [protocol for protocol in PROTOCOLS if decided.loc[protocol, "low"] > 0]
    worse = [protocol for protocol in PROTOCOLS if decided.loc[protocol, "high"] < 0]
    if len(better) == len(PROTOCOLS):
        verdict = f"{a} scores higher than {b}"
    elif len(worse) == len(PROTOCOLS):
        verdict = f"{a} scores lower than {b}"
    elif better or worse:
        words = [f"higher under {p}" for p in better] + [f"lower under {p}" for p in worse]
        verdict = f"{a} against {b}: {' and '.join(words)}, not told apart otherwise"
    else:
        verdict = f"{a} and {b} cannot be told apart on these images"
    return f"{verdict}: mAP@{threshold:.2f} " + ", ".join(parts) + "."


def warnings_for(*, n_images: int, saw_dior: bool, random_weights: bool) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    if random_weights:
        notes.append("The weights are random: these figures describe the machinery, not a model.")
    if saw_dior:
        notes.append(
            "RemoteCLIP's pre-training data holds DIOR: these weights have seen its images, which flatters them."
        )
    if n_images < FEW_IMAGES:
        images = "1 image" if n_images == 1 else f"{n_images} images"
        notes.append(f"Only {images} (fewer than {FEW_IMAGES}): intervals are wide, and less exact than their name.")
    return notes


def skipped_note(split: str, skipped: str) -> str:
    """That images of a split were left out as damaged, so that no number speaks of them."""
    return f"{skipped} of {split} left out: they count nowhere below. The provenance lists each with its reason."


def map_results(
    evaluation: KindEvaluation,
    *,
    settings: Mapping,
    counts: Mapping[str, int],
    notes: Sequence[str],
    files: Mapping[str, str],
    provenance: Mapping,
) -> dict:
    """What `map_results.json` holds: plain values, None where there is no number; `files`: name -> sha256."""
    kinds = list(dict.fromkeys(evaluation.summary["kind"]))
    protocols = {
        protocol: {
            kind: _records(evaluation.summary, ["iou_threshold", "map", "low", "high"], protocol=protocol, kind=kind)
            for kind in kinds
        }
        for protocol in PROTOCOLS
    }
    columns = ["iou_threshold", "difference", "low", "high"]
    paired = {protocol: _records(evaluation.differences, columns, protocol=protocol) for protocol in PROTOCOLS}
    return {
        "finding": finding(evaluation),
        "kinds": kinds,
        "iou_thresholds": list(dict.fromkeys(evaluation.summary["iou_threshold"])),
        "protocols": protocols,
        "paired_difference": {"a": evaluation.compared[0], "b": evaluation.compared[1], "protocols": paired},
        "interpolation": evaluation.interpolation,
        **settings,
        **counts,
        "warnings": list(notes),
        "files": dict(files),
        "provenance": dict(provenance),
    }


def markdown_report(results: Mapping) -> str:
    """`evaluation_report.md`: the answer for a reader of plain text, made from `map_results` alone."""
    provenance = results["provenance"]
    lines = [
        "# Do CLIP's class heatmaps localise objects?",
        "",
        results["finding"],
        "",
        *(f"> {note}" for note in results["warnings"]),
        *([""] if results["warnings"] else []),
        f"Model {provenance['model']} ({provenance['weights']}), {provenance['image_size']} pixels; data "
        f"{provenance['dataset']}, split {provenance['split']}: {results['n_images']:,} images, "
        f"{results['n_boxes']:,} boxes, {results['n_classes']} classes.",
        f"Boxes by {results['description']}, the other kinds likewise; average precision {results['interpolation']}, "
        "mean over the classes with ground truth; in brackets the 95 % "
        f"interval over images. {INTERVAL_NOTE}",
        "",
    ]
    for protocol, title in PROTOCOLS.items():
        lines += [f"## Protocol {title}", ""]
        lines.append("| kind | " + " | ".join(f"mAP@{value:.2f}" for value in results["iou_thresholds"]) + " |")
        lines.append("|---|" + "---:|" * len(results["iou_thresholds"]))
        for kind, cells in results["protocols"][protocol].items():
            lines.append(f"| {kind} | " + " | ".join(_cell(cell, "map") for cell in cells) + " |")
        paired = results["paired_difference"]
        if paired["protocols"][protocol]:
            cells = " | ".join(_cell(cell, "difference") for cell in paired["protocols"][protocol])
            lines.append(f"| {paired['a']} − {paired['b']} (paired) | {cells} |")
        lines.append("")
    if results["similarity"] == "cosine":
        lines.append("Under cosine similarity vv_vv and vv_mixed have the same maps; vv_qk equals standard always.")
    else:
        lines.append("vv_qk equals standard by construction; vv_vv and vv_mixed differ in the CLS token.")
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping, name: str) -> str:
    figures = (math.nan if cell[key] is None else cell[key] for key in (name, "low", "high"))
    return with_interval(*figures, sign=name == "difference")


def _records(frame: pd.DataFrame, columns: list[str], **match: str) -> list[dict]:
    for column, value in match.items():
        frame = frame[frame[column] == value]
    records = frame[columns].to_dict("records")
    return [{key: None if math.isnan(value) else value for key, value in record.items()} for record in records]


def _joined(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def average_precision_text(interpolation: str) -> str:
    """How the average precision of a table is defined, for its caption."""
    return {
        "11point": "average precision at 11 recall points (VOC 2007), VOC matching",
        "area": "average precision as the area under the curve (VOC 2010), VOC matching",
        "coco101": "average precision at 101 recall points, COCO matching",
    }[interpolation]
