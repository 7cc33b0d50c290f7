"""Floors to try: least values of a pixel that suit a model's maps, read off the values of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ParameterError
from ..heatmaps import OTSU, Setting

if TYPE_CHECKING:  # a store brings torch, which checking percentiles needs none of
    from ..engine import HeatmapStore

N_BINS = 2**16
_BLOCK = 64  # images whose maps are in memory at a time


def floor_values(store: HeatmapStore, setting: Setting, percentiles: Sequence[float]) -> dict[float, float]:
    """Percentiles (between 0 and 100) of the raw values of all maps: every image, class and patch counts alike.

    Raw values differ from model to model, similarity to similarity and training to training; their percentiles are
    asked for in one way everywhere. Some images are held at a time, and of all values a histogram alone.

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
    try:
        Setting(percentile=percentiles or 75.0)
    except ParameterError as error:
        raise ParameterError(f"floor_percentiles: {error}") from error
