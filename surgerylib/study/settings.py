"""Many settings judged on the same images: which are tried, floors too, what decides between them, and changes of one.

A setting is chosen on one split and reported on another: the best of many on the very images it was chosen on flatters
itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..engine import Evaluation, HeatmapStore, evaluate
from ..errors import ParameterError
from ..heatmaps import OTSU, SCORE_NAMES, Setting, threshold_text
from ..words import PROTOCOLS

N_BINS = 2**16  # of the histogram of all values that floors are read off
_BLOCK = 64  # images whose maps are in memory at a time
_UNION_NMS_IOU = 0.5  # boxes of several thresholds lie in each other


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
    def where(self) -> tuple[str, float | None]:
        """Arguments of `Evaluation.value`, behind the name."""
        return self.protocol, self.iou_threshold

    @property
    def name(self) -> str:
        """`mAP@0.30` or `mean mAP`."""
        return "mean mAP" if self.iou_threshold is None else f"mAP@{self.iou_threshold:.2f}"


def sweep(store: HeatmapStore, settings: Sequence[Setting], **options: Any) -> Evaluation:
    """`evaluate` of many settings, each its own name, without details.

    Raises:
        ParameterError: no settings, or an argument out of range.
    """
    return evaluate(store, {setting: setting for setting in settings}, details=False, **options)


def sweep_frame(found: Evaluation) -> pd.DataFrame:
    """A row for each setting, protocol and IoU threshold.

    Columns: setting (its number), its parameters (`percentile` as a number where it is one, `threshold` as text
    always), protocol, iou_threshold, map, low, high (95 % over images), mean_map, mean_low, mean_high (over the IoU
    thresholds), n_images, and the measures of `measure_boxes`.
    """
    rows = []
    for number, setting in enumerate(found.settings):
        parameters = {**setting.parameters(), "threshold": threshold_text(setting.percentile)}
        if isinstance(parameters["percentile"], list | str):
            parameters["percentile"] = np.nan
        for protocol in PROTOCOLS:
            of = found.figures[setting, protocol]
            mean = dict(zip(("mean_map", "mean_low", "mean_high"), of.ap.mean_over_thresholds(), strict=True))
            shared = {"setting": number, **parameters, "protocol": protocol, **mean, "n_images": found.n_images}
            rows += [{**shared, **row, **of.measures} for row in of.ap.summary().to_dict("records")]
    frame = pd.DataFrame(rows)
    return frame.astype({"percentile": "float64", "max_side": "Int64", "nms_iou": "float64", "floor": "float64"})


def setting_grid(
    *,
    kinds: Sequence[str],
    similarities: Sequence[str],
    layer_counts: Sequence[int],
    percentiles: Sequence[float],
    plain: Setting | None = None,
) -> list[Setting]:
    """Every combination of map and percentile; `plain` gives the other choices, `layer_counts` are of last layers.

    Raises:
        ParameterError: a list is empty, holds one value twice or a value that cannot be.
    """
    plain = plain or Setting()
    lists = {"kinds": kinds, "similarities": similarities, "layer_counts": layer_counts, "percentiles": percentiles}
    fields = dict(zip(lists, ("kind", "similarity", "layers", "percentile"), strict=True))
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not len(values):
            raise ParameterError(f"{name} is {values!r}; give a list of one or more")
        if any(value in values[:place] for place, value in enumerate(values)):
            raise ParameterError(f"{name} names one value twice: {list(values)}; name each once")
        for value in values:
            if name == "percentiles" and isinstance(value, str | list | tuple):
                raise ParameterError(f"percentiles holds {value!r}; each must be one number between 0 and 100")
            _changed(plain, name, {fields[name]: value})
    return [replace(plain, **dict(zip(fields.values(), values, strict=True))) for values in product(*lists.values())]


def at_percentiles(setting: Setting, percentiles: Sequence[float]) -> list[Setting]:
    """The setting at each of some percentiles; none where its threshold is no plain percentile."""
    if not isinstance(setting.percentile, float):
        return []
    return [replace(setting, percentile=percentile) for percentile in percentiles]


def post_processing_variants(
    plain: Setting, tries: Mapping[str, Sequence[Any]], floors: Mapping[str, float] | None = None
) -> dict[str, Setting]:
    """One change of the extraction of `plain` at a time, Otsu's threshold among them: name of the change -> setting.

    Args:
        tries: values by the names of notebook 02's parameters: `nms_ious`, `min_sides`, `max_sides`, `box_scores`, and
            `unions`, lists of percentiles whose boxes are united and go through non-maximum suppression.
        floors: what a floor is, in words -> its value, such as `percentile 95 of all values` -> 0.25; None tries none.

    Raises:
        ParameterError: a list, or a value in it, that cannot be.
    """
    variants: dict[str, Setting] = {}
    fields = {
        "nms_ious": ("nms_iou", lambda value: f"NMS at {value:g}"),
        "min_sides": ("min_side", lambda value: f"sides > {value}"),
        "max_sides": ("max_side", lambda value: f"sides ≤ {value}"),
        "box_scores": ("box_score", lambda value: f"score {SCORE_NAMES[value]}"),
        "unions": ("percentile", lambda v: f"percentiles {threshold_text(v)}, NMS at {_UNION_NMS_IOU:g}"),
    }
    for name, (field, words) in fields.items():
        values = tries.get(name, ())
        if not isinstance(values, list | tuple) or any(value is None for value in values):
            raise ParameterError(f"{name} is {values!r}; give a list, an empty one to try none")
        for value in values:
            if name == "unions" and not isinstance(value, list | tuple):
                raise ParameterError(f"unions holds {value!r}; each must be a list of percentiles")
            change = {field: value} | ({"nms_iou": _UNION_NMS_IOU} if name == "unions" else {})
            # a least side at or above the plain setting's greatest would leave no box
            most = plain.max_side if name == "min_sides" and isinstance(value, int) else None
            if most is None or value < most:
                setting = _changed(plain, name, change)  # first: values that can't be have no words
                variants[words(value)] = setting
    for words, value in (floors or {}).items():
        variants[f"floor at {value:.3g} ({words})"] = replace(plain, floor=value)
    variants["Otsu's threshold"] = replace(plain, percentile=OTSU)
    return {name: setting for name, setting in variants.items() if setting.key != plain.key}


def floor_values(store: HeatmapStore, setting: Setting, percentiles: Sequence[float]) -> dict[float, float]:
    """Percentiles (between 0 and 100) of the raw values of all maps: every image, class and patch counts alike.

    A floor is the least raw value of a pixel in a box. Raw values differ from model to model, similarity to similarity
    and training to training; percentiles are one way to ask everywhere. Of all values only a histogram is held.

    Returns:
        percentile -> raw value, within 1/131,072 (half a bin of the histogram) of the values' range of what
        `np.percentile` gives; nothing where the store has no maps.

    Raises:
        ParameterError: percentiles that cannot be, or maps that the store cannot give.
        CacheError: the store is not computed, or damaged.
    """
    check_floor_percentiles(percentiles)
    blocks = store.blocks(_BLOCK)
    if not percentiles or not blocks:
        return {}
    low, high = math.inf, -math.inf
    for block in blocks:
        maps = store.maps(setting, *block)
        low, high = min(low, float(maps.min())), max(high, float(maps.max()))
    if low == high:
        return dict.fromkeys(percentiles, low)
    counts = np.zeros(N_BINS, np.int64)
    for block in blocks:
        # in float64: where the range is small beside the values, float32 has too few numbers for the edges
        counts += np.histogram(store.maps(setting, *block).astype(np.float64), N_BINS, (low, high))[0]
    up_to, width = np.cumsum(counts), (high - low) / N_BINS
    # as `np.percentile`: between the values at the two places around (n - 1) * p / 100; a bin stands for its middle
    places = (up_to[-1] - 1) * np.array(percentiles, np.float64) / 100
    first, last = np.floor(places), np.ceil(places)
    below, above = (low + (np.searchsorted(up_to, at, side="right") + 0.5) * width for at in (first, last))
    return dict(zip(percentiles, (below + (places - first) * (above - below)).tolist(), strict=True))


def check_floor_percentiles(percentiles: Sequence[float]) -> None:
    """Raise a `ParameterError` unless this is a list of different percentiles, each in (0, 100), or an empty one."""
    if not isinstance(percentiles, list | tuple):
        raise ParameterError(f"floor_percentiles is {percentiles!r}; give a list, an empty one to try no floor")
    if OTSU in percentiles:
        raise ParameterError(f"floor_percentiles holds {OTSU!r}; each must be a number between 0 and 100")
    _changed(Setting(), "floor_percentiles", {"percentile": percentiles or 75.0})


def _changed(plain: Setting, name: str, change: Mapping[str, Any]) -> Setting:
    """`plain` with a change; an error names the list that its value came from."""
    try:
        return replace(plain, **change)
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from error
