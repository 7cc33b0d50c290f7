"""From a sweep to one recommended setting: chosen on one split, confirmed on another, told in tables and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import yaml

from ..engine import Evaluation
from ..heatmaps import Setting
from ..intervals import counted, with_interval
from ..words import PROTOCOLS
from .settings import Criterion, sweep_frame
from .summary import FEW_IMAGES
from .sweep_tables import map_by_percentile
from .tables import joined, plain

FEWEST_IMAGES = 10  # below, an interval over images says too little for a verdict


@dataclass(frozen=True)
class Recommendation:
    """A setting chosen on one split, its figures on another, and what a reader is told of both."""

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

    def answer_table(self) -> pd.DataFrame:
        """mAP of the default and the recommended setting on the reporting split, and their paired difference.

        A row for each IoU threshold and one for their mean; columns `default (present)`, and so on.
        """
        values = {"default": self._values()["default"]} if self.is_default else self._values()
        columns = {
            f"{name} ({protocol})": [
                with_interval(*value, sign="difference" in name) for value in of[protocol].values()
            ]
            for protocol in PROTOCOLS
            for name, of in values.items()
        }
        return pd.DataFrame(columns, [Criterion(iou_threshold=iou).name for iou in (*self.report.iou_thresholds, None)])

    def finding(self) -> str:
        """One sentence: what was chosen from how many, and what it is worth on the other split."""
        choice, report, criterion, where = self.choice, self.report, self.criterion, self.criterion.where
        if math.isnan(choice.value(self.chosen, *where)[0]):
            return f"No image of {self.choice_split} holds a box of the class list: nothing can be chosen."
        value = report.value(self.chosen, *where)
        if math.isnan(value[0]):
            return f"No image of {self.report_split} holds a box of the class list: nothing can be confirmed."
        alike = len(choice.not_told_apart(self.chosen, *where))
        tried = f"best of {len(choice.distinct):,} different settings on {self.choice_split}"
        tried += f" (at least {alike:,} other{'s' if alike > 1 else ''} can't be told apart from it)" if alike else ""
        worth = f"{tried}; on {self.report_split} {criterion.name} {with_interval(*value)}"
        if self.is_default:
            return f"The default ({self.default.describe()}) stays: {worth} under {criterion.protocol}."
        difference = report.difference(self.chosen, self.default, *where)
        if report.n_images < FEWEST_IMAGES:
            verdict = f"on {report.n_images} images, too few to confirm or contradict it"
        elif difference[1] > 0:
            verdict = "which confirms it"
        else:
            verdict = "which contradicts it" if difference[2] < 0 else "not told apart from the default"
        return (
            f"Recommended: {self.chosen.describe()}: {worth} against {report.value(self.default, *where)[0]:.3f} of "
            f"the default under {criterion.protocol}, paired difference {with_interval(*difference, sign=True)}, "
            f"{verdict}."
        )

    def false_boxes(self) -> str:
        """One sentence: how often a class that is not in an image gets a box on the other split; "" without such."""
        figures = self.report.figures
        own, default = (figures[of, "all"].measures["false_box_rate"] for of in (self.chosen, self.default))
        if math.isnan(own):
            return ""
        text = f"Absent classes with a box on {self.report_split}: {100 * own:.1f} %"
        return f"{text}." if self.is_default else f"{text}; under the default {100 * default:.1f} %."

    def notes(self) -> list[str]:
        """What a reader must know about the choice: few images, or that it stands at the border of what was tried."""
        best, n_images, found = self.plain.percentile, self.choice.n_images, []
        if n_images < FEW_IMAGES:
            images = counted(n_images, "image")
            found.append(f"Chosen on only {images} (fewer than {FEW_IMAGES}): other images may give another setting.")
        tried = sorted({of.percentile for of in self.choice.settings if isinstance(of.percentile, float)})
        if len(tried) > 1 and best in (tried[0], tried[-1]):
            end = f"The best percentile, {best:g}, is the {'highest' if best == tried[-1] else 'lowest'} tried"
            found.append(f"{end}: the optimum may lie beyond; extend percentiles.")
        return found

    def frame(self) -> pd.DataFrame:
        """`sweep.parquet`: the frames of both splits, with the columns `split` and `role` (choice or report) first."""
        of = {(self.choice_split, "choice"): self.choice, (self.report_split, "report"): self.report}
        return joined({role: sweep_frame(found) for role, found in of.items()}, "split", "role")

    def results(self, notes: Sequence[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
        """What `multi_iou_results.json` holds: plain values, None where there is no number."""
        choice, report, criterion = self.choice, self.report, self.criterion
        of_kind = {setting.kind: replace(self.plain, kind=setting.kind) for setting in choice.settings}
        by_percentile: dict[str, dict] = {protocol: {} for protocol in PROTOCOLS}
        for protocol, (kind, of) in product(PROTOCOLS, of_kind.items()):
            values = map_by_percentile(choice, of, protocol).rename(index="{:g}".format, columns="{:g}".format)
            by_percentile[protocol][kind] = plain(values.to_dict("index"))
        default, recommended, difference = (
            {
                protocol: [
                    {"iou_threshold": iou, **plain(dict(zip((column, "low", "high"), value, strict=True)))}
                    for iou, value in of.items()
                ]
                for protocol, of in of_setting.items()
            }
            for column, of_setting in zip(("map", "map", "difference"), self._values().values(), strict=True)
        )
        told = [{"description": of.describe(), "parameters": of.parameters()} for of in (self.default, self.chosen)]
        return {
            "finding": self.finding(),
            "choice": {
                "split": self.choice_split,
                "n_images": choice.n_images,
                "protocol": criterion.protocol,
                "iou_threshold": criterion.iou_threshold,
                "n_settings": len(choice.settings),
                "n_distinct_settings": len(choice.distinct),
                "default_stays": self.is_default,
                "not_told_apart": [of.parameters() for of in choice.not_told_apart(self.chosen, *criterion.where)],
                "by_percentile": by_percentile,
            },
            "report": {
                "split": self.report_split,
                "n_images": report.n_images,
                "iou_thresholds": list(report.iou_thresholds),
                "default": told[0] | {"protocols": default},
                "recommended": told[1] | {"protocols": recommended},
                "difference": difference,
            },
            "warnings": list(notes),
            "provenance": dict(provenance),
        }

    def as_yaml(self, parameters: Mapping[str, Any]) -> str:
        """`recommended.yaml`: parameters for the notebooks, those given too, with what they are worth as comments."""
        criterion = self.criterion
        own, default = (with_interval(*self.report.value(of, *criterion.where)) for of in (self.chosen, self.default))
        lines = [
            f"# {self.chosen.describe()}",
            f"# best of {len(self.choice.distinct)} different settings on {self.choice_split}",
            f"# on {self.report_split}: {criterion.name} {own} under {criterion.protocol}; the default {default}",
        ]
        text = yaml.safe_dump({**parameters, **self.chosen.parameters()}, sort_keys=False, allow_unicode=True)
        return "\n".join(lines) + "\n" + text

    def _values(self) -> dict[str, dict[str, dict[float | None, tuple[float, float, float]]]]:
        """mAP with its interval on the other split: what -> protocol -> IoU threshold (None: the mean over all)."""
        value, ious = self.report.value, (*self.report.iou_thresholds, None)
        return {
            name: {protocol: {iou: of(*settings, protocol, iou) for iou in ious} for protocol in PROTOCOLS}
            for name, of, settings in (
                ("default", value, (self.default,)),
                ("recommended", value, (self.chosen,)),
                ("paired difference", self.report.difference, (self.chosen, self.default)),
            )
        }


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
