from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from refusals import refused

from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, maps_of
from surgerylib.study.floors import N_BINS, check_floor_percentiles, floor_values

GRID = (3, 5)
PERCENTILES = [0.01, 30, 50, 80, 90, 95, 97, 99, 99.99]


class Stored:
    """As a computed store: similarities [n, L, 2, C, 1 + h * w] by the number of a shard, read anew for each call."""

    def __init__(self, n_shards: int, shard: Callable[[int], np.ndarray], grid: tuple[int, int] = GRID) -> None:
        self.n_shards, self.shard, self.grid = n_shards, shard, grid

    def blocks(self, most: int) -> list[tuple[int, int]]:
        return [(number, number + 1) for number in range(self.n_shards)]

    def maps(self, setting: Setting, start: int, stop: int) -> np.ndarray:
        stored = torch.from_numpy(self.shard(start)[:, -setting.layers :])
        return maps_of(stored, self.grid, setting.kind, similarity=setting.similarity).numpy()


def similarities(seed: int, n_images: int = 6, n_layers: int = 2, n_classes: int = 4) -> np.ndarray:
    shape = (n_images, n_layers, 2, n_classes, 1 + GRID[0] * GRID[1])
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05) + np.float32(0.2)


def assert_percentiles(store: Stored, source: Setting, percentiles: list[float] = PERCENTILES) -> None:
    """Within half a bin of the histogram, and float64's rounding."""
    found = floor_values(store, source, percentiles)
    assert list(found) == percentiles
    assert all(type(value) is float for value in found.values())
    values = np.concatenate([store.maps(source, *block).ravel() for block in store.blocks(64)]).astype(np.float64)
    allowed = 0.5 * np.ptp(values) / N_BINS + 1e-12 * np.abs(values).max()
    np.testing.assert_allclose(list(found.values()), np.percentile(values, percentiles), rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "source", [Setting(), Setting("standard"), Setting("vv_mixed", "surgery"), Setting("vv_qk", "cosine", 2)]
)
def test_floors_are_percentiles_of_all_values(source):
    assert_percentiles(Stored(3, lambda number: similarities(number, (7, 7, 2)[number])), source)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values * 1e-6 + 0.2,  # a range of a few units in the last place of float32
        lambda values: np.float32(1e4) * values - 3e3,
        lambda values: np.rint(values * 20) / 20,  # ties
        lambda values: np.where(values > 0.32, 50.0, values),  # a few values far above all others
        lambda values: np.sign(values - 0.2),
    ],
)
def test_values_of_any_range(change):
    assert_percentiles(Stored(2, lambda number: change(similarities(number)).astype(np.float32)), Setting())


def test_two_values_a_single_one_no_image_and_no_percentile():
    pair = np.array([0, 0, 1], np.float32) * np.ones((1, 1, 2, 1, 1), np.float32)
    assert_percentiles(Stored(1, lambda _: pair, (1, 2)), Setting(), [25, 50, 90])
    constant = Stored(1, lambda _: np.full((2, 1, 2, 3, 5), 0.25, np.float32), (2, 2))
    assert floor_values(constant, Setting(), [80, 99.0]) == {80: 0.25, 99.0: 0.25}
    assert floor_values(constant, Setting(), []) == floor_values(Stored(0, similarities), Setting(), PERCENTILES) == {}


def test_memory_holds_a_shard_at_a_time():
    store = Stored(120, lambda number: similarities(number, 64, 1, 20))
    tracemalloc.start()
    floor_values(store, Setting(), PERCENTILES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = 120 * store.maps(Setting(), 0, 1).nbytes
    assert peak < 4e6 < size / 2  # bytes; half of all values would not fit in
    assert_percentiles(store, Setting())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (90, "floor_percentiles is 90"),
        (None, "floor_percentiles is None"),
        ("otsu", "floor_percentiles is 'otsu'"),
        ([0], r"floor_percentiles: .*between 0 and 100.*got 0"),
        ([90, 100], "got 100"),
        ([True], "got True"),
        ([None], "got None"),
        (["90"], "got '90'"),
        (["otsu"], "floor_percentiles holds 'otsu'"),
        ([[80, 90]], "between 0 and 100"),
        ([float("nan")], "got nan"),
        ([90, 90.0], "names one value twice"),
    ],
)
def test_percentiles_that_cannot_be(bad, message):
    refused(lambda: check_floor_percentiles(bad), ParameterError, message)
