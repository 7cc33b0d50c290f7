"""A setting: from tokens to boxes, every choice in one value; grids of them, and changes of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from ..errors import ParameterError
from ..extraction import (
    OTSU,
    SCORE_NAMES,
    BoxSettings,
    Threshold,
    check_box_score,
    check_floor,
    check_nms_iou,
    check_percentile,
    check_working_pixels,
)
from ..kinds import PROTOCOLS
from .map_shards import MapSource


@dataclass(frozen=True)
class Setting:
    """From tokens to boxes: which map, and how boxes are cut out of it."""

    source: MapSource = field(default_factory=MapSource)
    boxes: BoxSettings = field(default_factory=BoxSettings)

    @property
    def key(self) -> tuple:
        """Equal for settings with the same boxes."""
        return (self.source.key, self.boxes)

    def parameters(self) -> dict[str, Any]:
        """The setting by the names of the notebooks' parameters; plain values."""
        percentile = self.boxes.percentile
        return {
            **asdict(self.source),
            "percentile": list(percentile) if isinstance(percentile, tuple) else percentile,
            "min_side": self.boxes.min_side,
            "max_side": self.boxes.max_side,
            "box_score": self.boxes.score,
            "nms_iou": self.boxes.nms_iou,
            "floor": self.boxes.floor,
        }

    def describe(self) -> str:
        """`vv_mixed, cosine, percentile 75`, and whatever differs from the plain five steps on the last layer."""
        source, boxes, plain = self.source, self.boxes, BoxSettings()
        threshold = "percentile " + threshold_text(boxes.percentile) if boxes.percentile != OTSU else "Otsu's threshold"
        parts = [source.kind, source.similarity, threshold]
        if source.adapter is not None:
            parts.insert(2, f"adapter on the last {source.last_layers} layers")
        elif source.last_layers > 1:
            parts.insert(2, f"mean of the last {source.last_layers} layers")
        if boxes.floor is not None:
            parts.append(f"floor {boxes.floor:.3g}")
        if boxes.nms_iou is not None:
            parts.append(f"NMS at {boxes.nms_iou:g}")
        if boxes.min_side != plain.min_side:
            parts.append(f"sides > {boxes.min_side}")
        if boxes.max_side is not None:
            parts.append(f"sides ≤ {boxes.max_side}")
        if boxes.score != plain.score:
            parts.append(f"score {SCORE_NAMES[boxes.score]}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Criterion:
    """What decides between settings: mAP under a protocol, at one IoU threshold or (None) meaned over all."""

    protocol: str = "all"
    iou_threshold: float | None = None

    def check(self, iou_thresholds: Sequence[float]) -> None:
        """Raise a `ParameterError` unless a sweep at these IoU thresholds can be decided so."""
        if self.protocol not in PROTOCOLS:
            raise ParameterError(f"choose_protocol is {self.protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
        if self.iou_threshold is not None and self.iou_threshold not in iou_thresholds:
            known = ", ".join(f"{value:g}" for value in iou_thresholds)
            raise ParameterError(
                f"choose_iou is {self.iou_threshold!r}; it must be one of the iou_thresholds ({known}), or null for "
                "the mean over all"
            )

    @property
    def name(self) -> str:
        """`mAP@0.30` or `mean mAP`."""
        return "mean mAP" if self.iou_threshold is None else f"mAP@{self.iou_threshold:.2f}"


def chosen_kind(kind: str | None, kinds: Sequence[str]) -> str:
    """The kind that a notebook shows in detail: the one named, or the last of those compared.

    Raises:
        ParameterError: it is not one of those compared.
    """
    if kind is None:
        return kinds[-1]
    if kind not in kinds:
        raise ParameterError(f"kind is {kind!r}, which is not among kinds ({', '.join(kinds)}); add it there")
    return kind


def threshold_text(percentile: Threshold) -> str:
    """`75`, `60 + 75 + 90` or `otsu`."""
    if isinstance(percentile, str):
        return percentile
    return " + ".join(f"{value:g}" for value in np.atleast_1d(percentile))


def setting_grid(
    *,
    kinds: Sequence[str],
    similarities: Sequence[str],
    layer_counts: Sequence[int],
    percentiles: Sequence[float],
    boxes: BoxSettings | None = None,
) -> list[Setting]:
    """Every combination of map and percentile.

    Args:
        kinds, similarities: of the maps.
        layer_counts: how many of the last layers a map averages.
        percentiles: thresholds.
        boxes: gives the other arguments of the extraction.

    Raises:
        ParameterError: a list is empty or holds a value that cannot be.
    """
    lists = {"kinds": kinds, "similarities": similarities, "layer_counts": layer_counts, "percentiles": percentiles}
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not len(values):
            raise ParameterError(f"{name} is {values!r}; give a list of one or more")
        if any(value in values[:place] for place, value in enumerate(values)):
            raise ParameterError(f"{name} names one value twice: {list(values)}; name each once")
    for percentile in percentiles:
        if isinstance(percentile, str | list | tuple):
            raise ParameterError(f"percentiles holds {percentile!r}; each must be one number between 0 and 100")
        _named("percentiles", check_percentile, percentile)
    for count in layer_counts:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ParameterError(f"layer_counts holds {count!r}; each must be a whole number of at least 1")
    boxes = boxes or BoxSettings()
    return [
        Setting(MapSource(kind, similarity, layers), replace(boxes, percentile=percentile))
        for kind, similarity, layers, percentile in product(kinds, similarities, layer_counts, percentiles)
    ]


def at_percentiles(setting: Setting, percentiles: Sequence[float]) -> list[Setting]:
    """The setting at each of some percentiles; none where its threshold is no plain percentile."""
    if not isinstance(setting.boxes.percentile, int | float):
        return []
    return [replace(setting, boxes=replace(setting.boxes, percentile=percentile)) for percentile in percentiles]


def post_processing_variants(
    plain: Setting,
    *,
    nms_ious: Sequence[float] = (),
    min_sides: Sequence[int] = (),
    max_sides: Sequence[int] = (),
    box_scores: Sequence[str] = (),
    unions: Sequence[Sequence[float]] = (),
    floors: Mapping[str, float] | None = None,
    union_nms_iou: float = 0.5,
    otsu: bool = True,
) -> dict[str, Setting]:
    """One change of the extraction at a time: name of the change -> setting.

    Args:
        plain: the setting that is changed.
        nms_ious, min_sides, max_sides, box_scores: values to try, as in `BoxSettings`.
        unions: lists of percentiles whose boxes are united and go through non-maximum suppression.
        floors: what a floor is, in words -> its value, such as `percentile 95 of all values` -> 0.25; None tries none.
        union_nms_iou: its threshold.
        otsu: also try Otsu's threshold in the percentile's place.

    Raises:
        ParameterError: a list, or a value in it, that cannot be.
    """
    lists = {"nms_ious": nms_ious, "min_sides": min_sides, "max_sides": max_sides, "box_scores": box_scores}
    for name, values in {**lists, "unions": unions}.items():
        if not isinstance(values, list | tuple) or any(value is None for value in values):
            raise ParameterError(f"{name} is {values!r}; give a list, an empty one to try none")
    floors = {} if floors is None else floors
    if not isinstance(floors, Mapping) or any(value is None for value in floors.values()):
        raise ParameterError(f"floors is {floors!r}; give values by their names, or None to try none")
    changes: dict[str, dict[str, Any]] = {}
    for value in nms_ious:
        _named("nms_ious", check_nms_iou, value)
        changes[f"NMS at {value:g}"] = {"nms_iou": value}
    for value in min_sides:
        check_working_pixels("each of min_sides", value, least=0)
        changes[f"sides > {value}"] = {"min_side": value}
    for value in max_sides:
        check_working_pixels("each of max_sides", value, least=plain.boxes.min_side + 1)
        changes[f"sides ≤ {value}"] = {"max_side": value}
    for value in box_scores:
        _named("box_scores", check_box_score, value)
        changes[f"score {SCORE_NAMES[value]}"] = {"score": value}
    for percentiles in unions:
        if not isinstance(percentiles, list | tuple):
            raise ParameterError(f"unions holds {percentiles!r}; each must be a list of percentiles")
        _named("unions", check_percentile, percentiles)
        name = f"percentiles {threshold_text(percentiles)}, NMS at {union_nms_iou:g}"
        changes[name] = {"percentile": tuple(percentiles), "nms_iou": union_nms_iou}
    for words, value in floors.items():
        _named("floors", check_floor, value)
        changes[f"floor at {value:.3g} ({words})"] = {"floor": value}
    if otsu:
        changes["Otsu's threshold"] = {"percentile": OTSU}
    limit = plain.boxes.max_side
    if limit is not None:  # a least side at or above the plain setting's greatest would leave no box
        changes = {name: change for name, change in changes.items() if change.get("min_side", 0) < limit}
    variants = {name: replace(plain, boxes=replace(plain.boxes, **change)) for name, change in changes.items()}
    return {name: setting for name, setting in variants.items() if setting.key != plain.key}


def _named(name: str, check: Callable[[Any], None], value: Any) -> None:
    """A check whose error names the list that the value came from."""
    try:
        check(value)
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from error
