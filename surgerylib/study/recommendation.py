"""From a sweep to one recommended setting: chosen on one split, confirmed on another, told in tables and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import yaml

from ..datasets import counted
from ..engine import Evaluation
from ..heatmaps import Setting
from ..intervals import with_interval
from ..words import PROTOCOLS
from .settings import Criterion, sweep_frame
from .summary import FEW_IMAGES
from .sweep_tables import map_by_percentile
from .tables import joined, plain

FEWEST_IMAGES = 10  # below, an interval over images says too little for a verdict


@dataclass(frozen=True)
class Recommendation:
    """A setting chosen on one split and its figures on another."""

    default: Setting  # that it is held against
    chosen: Setting  # the best by the criterion on the split of the choice
    plain: Setting  # the best of the plain five steps there, whose extraction was then changed
    criterion: Criterion  # what decided
    choice: Evaluation  # the sweep that it was chosen from
    report: Evaluation  # `default` and `chosen` on the other split
    choice_split: str
    report_split: str

    def __post_init__(self) -> None:
        where = self.criterion.where
        if self.choice.value(self.default, *where)[0] >= self.choice.value(self.chosen, *where)[0]:
            object.__setattr__(self, "chosen", self.default)  # of equals, what the user has stays

    @property
    def is_default(self) -> bool:
        """Whether nothing better than the default was found."""
        return self.chosen.key == self.default.key


def answer_table(recommendation: Recommendation) -> pd.DataFrame:
    """mAP of the default and the recommended setting on the reporting split, and their paired difference.

    A row for each IoU threshold and one for their mean; columns `default (present)`, and so on.
    """
    report, default, chosen = recommendation.report, recommendation.default, recommendation.chosen
    columns = {}
    for protocol in PROTOCOLS:
        wheres = [(protocol, iou) for iou in (*report.iou_thresholds, None)]
        columns[f"default ({protocol})"] = [with_interval(*report.value(default, *where)) for where in wheres]
        if not recommendation.is_default:
            columns[f"recommended ({protocol})"] = [with_interval(*report.value(chosen, *where)) for where in wheres]
            paired = [report.difference(chosen, default, *where) for where in wheres]
            columns[f"paired difference ({protocol})"] = [with_interval(*of, sign=True) for of in paired]
    return pd.DataFrame(columns, [Criterion(*where).name for where in wheres])


def finding(recommendation: Recommendation) -> str:
    """One sentence: what was chosen from how many, and what it is worth on the other split."""
    criterion, default, chosen = recommendation.criterion, recommendation.default, recommendation.chosen
    where = criterion.where
    choice, report = recommendation.choice, recommendation.report
    if math.isnan(choice.value(chosen, *where)[0]):
        return f"No image of {recommendation.choice_split} holds a box of the class list: nothing can be chosen."
    if math.isnan(report.value(chosen, *where)[0]):
        return f"No image of {recommendation.report_split} holds a box of the class list: nothing can be confirmed."
    alike = len(choice.not_told_apart(chosen, *where))
    tried = f"best of {len(choice.distinct):,} different settings on {recommendation.choice_split}"
    tried += f" (at least {alike:,} other{'s' if alike > 1 else ''} can't be told apart from it)" if alike else ""
    value = with_interval(*report.value(chosen, *where))
    if recommendation.is_default:
        return (
            f"The default ({default.describe()}) stays: {tried}; on {recommendation.report_split} {criterion.name} "
            f"{value} under {criterion.protocol}."
        )
    difference, low, high = report.difference(chosen, default, *where)
    before = report.value(default, *where)[0]
    n_images = report.n_images
    if n_images < FEWEST_IMAGES:
        verdict = f"on {n_images} images, too few to confirm or contradict it"
    elif low > 0:
        verdict = "which confirms it"
    else:
        verdict = "which contradicts it" if high < 0 else "not told apart from the default"
    return (
        f"Recommended: {chosen.describe()}: {tried}; on {recommendation.report_split} {criterion.name} {value} against "
        f"{before:.3f} of the default under {criterion.protocol}, paired difference "
        f"{with_interval(difference, low, high, sign=True)}, {verdict}."
    )


def false_boxes(recommendation: Recommendation) -> str:
    """One sentence: how often a class that is not in an image gets a box, on the other split.

    Empty where there is no such class.
    """
    settings, of = (recommendation.chosen, recommendation.default), recommendation.report.figures
    own, default = (of[setting, "all"].measures["false_box_rate"] for setting in settings)
    if math.isnan(own):
        return ""
    text = f"Absent classes with a box on {recommendation.report_split}: {100 * own:.1f} %"
    return f"{text}." if recommendation.is_default else f"{text}; under the default {100 * default:.1f} %."


def notes(recommendation: Recommendation) -> list[str]:
    """What a reader must know about the choice: that it stands at the border of what was tried."""
    best, n_images, found = recommendation.plain.percentile, recommendation.choice.n_images, []
    if n_images < FEW_IMAGES:
        images = counted(n_images, "image")
        found.append(f"Chosen on only {images} (fewer than {FEW_IMAGES}): other images may give another setting.")
    tried = sorted({of.percentile for of in recommendation.choice.settings if isinstance(of.percentile, float)})
    if len(tried) > 1 and best in (tried[0], tried[-1]):
        end = f"The best percentile, {best:g}, is the {'highest' if best == tried[-1] else 'lowest'} tried"
        found.append(f"{end}: the optimum may lie beyond; extend percentiles.")
    return found


def recommendation_frame(recommendation: Recommendation) -> pd.DataFrame:
    """`sweep.parquet`: the frames of both splits, with the columns `split` and `role` (choice or report) first."""
    choice, report = sweep_frame(recommendation.choice), sweep_frame(recommendation.report)
    of = {(recommendation.choice_split, "choice"): choice, (recommendation.report_split, "report"): report}
    return joined(of, "split", "role")


def quality_results(
    quality: pd.DataFrame, by_percentile: pd.DataFrame, setting: Setting, split: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What `heatmap_quality_analysis.json` holds: plain values, None where there is no number.

    `quality` is of `quality.quality_by_kind`, `by_percentile` the `sweep_tables.percentile_table` of the setting.
    """
    of_kinds = quality.set_index("figure").groupby("kind", sort=False)
    kinds = {kind: plain(rows.drop(columns="kind").to_dict("index")) for kind, rows in of_kinds}
    return {
        "split": split,
        "similarity": setting.similarity,
        "last_layers": setting.layers,
        "kinds": kinds,
        "by_percentile": {"kind": setting.kind, "rows": plain(by_percentile.rename_axis("percentile").reset_index())},
        "provenance": dict(provenance),
    }


def results(recommendation: Recommendation, notes: Sequence[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What `multi_iou_results.json` holds: plain values, None where there is no number."""
    choice, report, criterion = recommendation.choice, recommendation.report, recommendation.criterion
    chosen, default = recommendation.chosen, recommendation.default
    of_kind = {setting.kind: replace(recommendation.plain, kind=setting.kind) for setting in choice.settings}
    by_percentile: dict[str, dict] = {protocol: {} for protocol in PROTOCOLS}
    for protocol, (kind, of) in product(PROTOCOLS, of_kind.items()):
        values = map_by_percentile(choice, of, protocol).rename(index="{:g}".format, columns="{:g}".format)
        by_percentile[protocol][kind] = plain(values.to_dict("index"))
    return {
        "finding": finding(recommendation),
        "choice": {
            "split": recommendation.choice_split,
            "n_images": choice.n_images,
            "protocol": criterion.protocol,
            "iou_threshold": criterion.iou_threshold,
            "n_settings": len(choice.settings),
            "n_distinct_settings": len(choice.distinct),
            "default_stays": recommendation.is_default,
            "not_told_apart": [of.parameters() for of in choice.not_told_apart(chosen, *criterion.where)],
            "by_percentile": by_percentile,
        },
        "report": {
            "split": recommendation.report_split,
            "n_images": report.n_images,
            "iou_thresholds": list(report.iou_thresholds),
            "default": _figures(report, default),
            "recommended": _figures(report, chosen),
            "difference": _by_threshold(report, "difference", chosen, default),
        },
        "warnings": list(notes),
        "provenance": dict(provenance),
    }


def recommended_yaml(recommendation: Recommendation, parameters: Mapping[str, Any]) -> str:
    """`recommended.yaml`: parameters for the notebooks, those given too, with what they are worth as comments."""
    criterion, report, chosen = recommendation.criterion, recommendation.report, recommendation.chosen
    where = criterion.where
    lines = [
        f"# {chosen.describe()}",
        f"# best of {len(recommendation.choice.distinct)} different settings on {recommendation.choice_split}",
        f"# on {recommendation.report_split}: {criterion.name} {with_interval(*report.value(chosen, *where))} under "
        f"{criterion.protocol}; the default {with_interval(*report.value(recommendation.default, *where))}",
    ]
    text = yaml.safe_dump({**parameters, **chosen.parameters()}, sort_keys=False, allow_unicode=True)
    return "\n".join(lines) + "\n" + text


def _figures(found: Evaluation, setting: Setting) -> dict[str, Any]:
    return {
        "description": setting.describe(),
        "parameters": setting.parameters(),
        "protocols": _by_threshold(found, "map", setting),
    }


def _by_threshold(found: Evaluation, name: str, *settings: Setting) -> dict[str, list[dict[str, float | None]]]:
    """mAP of a setting, or the `difference` of two: protocol -> a row an IoU threshold, at None the mean over all."""
    of = found.difference if name == "difference" else found.value
    return {
        protocol: [
            {"iou_threshold": iou, **plain(dict(zip((name, "low", "high"), of(*settings, protocol, iou), strict=True)))}
            for iou in (*found.iou_thresholds, None)
        ]
        for protocol in PROTOCOLS
    }
