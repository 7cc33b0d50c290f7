"""From detections of several heatmap kinds to the tables, the sentence and the files of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ..engine import Evaluation
from ..intervals import counted, with_interval
from ..words import PROTOCOLS
from .tables import cells, plain, wide

FEW_IMAGES = 50
# stands under every table of intervals: the reader of a page alone has no other place to learn it
INTERVAL_NOTE = (
    "An interval says what other sets of as many images would give on average; average precision of few images reads "
    "high against that of very many."
)


COMPARED = ("vv_mixed", "standard")  # kinds whose paired difference is listed, first minus second


def present_only(detections: pd.DataFrame, ground_truth: pd.DataFrame) -> pd.DataFrame:
    """Detections of classes that are annotated in their image: the `present` protocol, image labels given."""
    asked = pd.MultiIndex.from_frame(ground_truth[["image_id", "label"]].drop_duplicates())
    return detections[pd.MultiIndex.from_frame(detections[["image_id", "label"]]).isin(asked)].reset_index(drop=True)


def map_table(evaluation: Evaluation) -> pd.DataFrame:
    """The answer table: a row for each protocol and kind, a column for each IoU threshold, `value [low, high]`."""
    of = wide(evaluation.summary(), ["protocol", "kind"], "iou_threshold", "map")
    return of.rename(columns="mAP@{:.2f}".format).rename_axis(columns=None)


def difference_table(evaluation: Evaluation) -> pd.DataFrame:
    """The paired difference of the compared kinds: a row for each IoU threshold, a column for each protocol."""
    of = wide(evaluation.differences(*COMPARED), "iou_threshold", "protocol", "difference", sign=True)
    return of.rename_axis(index="IoU threshold", columns=f"mAP of {COMPARED[0]} − {COMPARED[1]}")


def class_table(evaluation: Evaluation, kind: str, iou_threshold: float) -> pd.DataFrame:
    """AP of one kind by class: number of boxes, and `value [low, high]` under each protocol."""
    rows = evaluation.by_class()
    rows = rows[(rows["kind"] == kind) & (rows["iou_threshold"] == iou_threshold)].sort_values("label", kind="stable")
    of = wide(rows, "label", "protocol", "ap")[list(PROTOCOLS)]
    of.insert(0, "boxes", rows.groupby("label")["n_ground_truth"].first())
    return of.rename_axis(index=None, columns=f"AP@{iou_threshold:.2f} of {kind}")


def finding(evaluation: Evaluation) -> str:
    """One sentence that answers the notebook's question with its figures."""
    threshold = min(evaluation.iou_thresholds)
    values = {kind: evaluation.value(kind, "all", threshold) for kind in evaluation.settings}
    if all(math.isnan(value[0]) for value in values.values()):
        return "No image of this split holds a box of the class list: nothing can be measured."
    a, b = COMPARED
    if not {a, b} <= set(values):
        best = max(values, key=lambda kind: values[kind][0])
        return (
            f"The best of the kinds asked for is {best}: mAP@{threshold:.2f} {with_interval(*values[best])} under the "
            "all protocol."
        )
    decided = {protocol: evaluation.difference(a, b, protocol, threshold) for protocol in PROTOCOLS}
    parts = []
    for protocol, difference in decided.items():
        first, second = (evaluation.value(kind, protocol, threshold)[0] for kind in (a, b))
        text = with_interval(*difference, sign=True)
        parts.append(f"{first:.3f} against {second:.3f} under {protocol} (difference {text})")
    better = [f"higher under {protocol}" for protocol, (_, low, _) in decided.items() if low > 0]
    worse = [f"lower under {protocol}" for protocol, (_, _, high) in decided.items() if high < 0]
    if len(PROTOCOLS) in (len(better), len(worse)):
        verdict = f"{a} scores {'higher' if better else 'lower'} than {b}"
    elif better or worse:
        verdict = f"{a} against {b}: {' and '.join(better + worse)}, not told apart otherwise"
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
        images = counted(n_images, "image")
        notes.append(f"Only {images} (fewer than {FEW_IMAGES}): intervals are wide, and less exact than their name.")
    return notes


def skipped_note(split: str, skipped: str) -> str:
    """That images of a split were left out as damaged, so that no number speaks of them."""
    return f"{skipped} of {split} left out: they count nowhere below. The provenance lists each with its reason."


def map_results(
    evaluation: Evaluation,
    *,
    settings: Mapping,
    counts: Mapping[str, int],
    notes: Sequence[str],
    files: Mapping[str, str],
    provenance: Mapping,
) -> dict:
    """What `map_results.json` holds: plain values, None where there is no number; `files`: name -> sha256."""
    of_kinds, differences = evaluation.summary().set_index(["protocol", "kind"]), evaluation.differences(*COMPARED)
    protocols = {p: {kind: plain(of_kinds.loc[[(p, kind)]]) for kind in evaluation.settings} for p in PROTOCOLS}
    columns = ["iou_threshold", "difference", "low", "high"]
    paired = {p: plain(differences.loc[differences["protocol"] == p, columns]) for p in PROTOCOLS}
    return {
        "finding": finding(evaluation),
        "kinds": list(evaluation.settings),
        "iou_thresholds": list(evaluation.iou_thresholds),
        "protocols": protocols,
        "paired_difference": {"a": COMPARED[0], "b": COMPARED[1], "protocols": paired},
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
    paired, thresholds = results["paired_difference"], results["iou_thresholds"]
    for protocol, title in PROTOCOLS.items():
        rows = {kind: cells(pd.DataFrame(of), "map") for kind, of in results["protocols"][protocol].items()}
        if of_pair := paired["protocols"][protocol]:
            rows[f"{paired['a']} − {paired['b']} (paired)"] = cells(pd.DataFrame(of_pair), "difference", sign=True)
        lines += [f"## Protocol {title}", ""]
        lines.append("| kind | " + " | ".join(f"mAP@{value:.2f}" for value in thresholds) + " |")
        lines.append("|---|" + "---:|" * len(thresholds))
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in rows.items()] + [""]
    if results["similarity"] == "cosine":
        lines.append("Under cosine similarity vv_vv and vv_mixed have the same maps; vv_qk equals standard always.")
    else:
        lines.append("vv_qk equals standard by construction; vv_vv and vv_mixed differ in the CLS token.")
    return "\n".join(lines) + "\n"


def average_precision_text(interpolation: str) -> str:
    """How the average precision of a table is defined, for its caption."""
    return {
        "11point": "average precision at 11 recall points (VOC 2007), VOC matching",
        "area": "average precision as the area under the curve (VOC 2010), VOC matching",
        "coco101": "average precision at 101 recall points, COCO matching",
    }[interpolation]
