from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, maps_of
from surgerylib.study.floors import N_BINS, check_floor_percentiles, floor_values

GRID = (3, 5)


class Stored:
    """Similarities [n, L, 2, C, 1 + h * w], a file each, as a computed store has them."""

    def __init__(self, folder: Path, shards: list[np.ndarray], grid: tuple[int, int] = GRID) -> None:
        self.paths, self.grid, self.sizes = [folder / f"{number}.npy" for number in range(len(shards))], grid, []
        for path, similarities in zip(self.paths, shards, strict=True):
            np.save(path, similarities)
            self.sizes.append(len(similarities))

    def blocks(self, most: int) -> list[tuple[int, int]]:
        ends = np.cumsum([0, *self.sizes]).tolist()
        return list(pairwise(ends))

    def maps(self, setting: Setting, start: int, stop: int) -> np.ndarray:
        path = self.paths[self.blocks(64).index((start, stop))]
        stored = torch.from_numpy(np.load(path)[:, -setting.layers :])
        return maps_of(stored, self.grid, setting.kind, similarity=setting.similarity).numpy()


def all_values(store: Stored, source: Setting) -> np.ndarray:
    return np.concatenate([store.maps(source, *block).ravel() for block in store.blocks(64)]).astype(np.float64)


PERCENTILES = [0.01, 30, 50, 80, 90, 95, 97, 99, 99.99]


def similarities(seed: int, n_images: int, n_classes: int = 4) -> np.ndarray:
    shape = (n_images, 2, 2, n_classes, 1 + GRID[0] * GRID[1])
    return np.random.default_rng(seed).normal(0.2, 0.05, shape).astype(np.float32)


def assert_percentiles(found: dict[float, float], values: np.ndarray) -> None:
    """Within half a bin of the histogram, and float64's rounding."""
    allowed = 0.5 * np.ptp(values) / N_BINS + 1e-12 * np.abs(values).max()
    np.testing.assert_allclose(list(found.values()), np.percentile(values, list(found)), rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "source", [Setting(), Setting("standard"), Setting("vv_mixed", "surgery"), Setting("vv_qk", "cosine", 2)]
)
def test_floors_are_percentiles_of_all_values(tmp_path, source):
    store = Stored(tmp_path, [similarities(seed, n_images) for seed, n_images in enumerate((7, 7, 2))])
    found = floor_values(store, source, PERCENTILES)
    assert list(found) == PERCENTILES
    assert all(type(value) is float for value in found.values())
    assert_percentiles(found, all_values(store, source))


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
def test_values_of_any_range(tmp_path, change):
    store = Stored(tmp_path, [change(similarities(seed, 6)).astype(np.float32) for seed in range(2)])
    assert_percentiles(floor_values(store, Setting(), PERCENTILES), all_values(store, Setting()))


def test_two_values_and_a_single_one(tmp_path):
    pair = np.zeros((1, 1, 2, 1, 3), np.float32)
    pair[..., 2] = 1
    store = Stored(tmp_path, [pair], grid=(1, 2))
    assert_percentiles(floor_values(store, Setting(), [25, 50, 90]), np.array([0.0, 1.0]))
    store = Stored(tmp_path, [np.full((2, 1, 2, 3, 5), 0.25, np.float32)], grid=(2, 2))
    assert floor_values(store, Setting(), [80, 99.0]) == {80: 0.25, 99.0: 0.25}


def test_no_images_no_percentiles_and_no_file(tmp_path):
    assert floor_values(Stored(tmp_path, []), Setting(), PERCENTILES) == {}
    store = Stored(tmp_path, [similarities(0, 3)])
    assert floor_values(store, Setting(), []) == {}


def test_memory_holds_a_shard_at_a_time(tmp_path):
    store = Stored(tmp_path, [similarities(seed, 64, n_classes=20)[:, 1:] for seed in range(120)])
    tracemalloc.start()
    found = floor_values(store, Setting(), PERCENTILES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    values = all_values(store, Setting())
    assert_percentiles(found, values)
    assert peak < 4e6 < 4 * values.size / 2  # bytes; half of all values in float32 would not fit in


BAD_PERCENTILES = [
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
]


@pytest.mark.parametrize(("bad", "message"), BAD_PERCENTILES)
def test_percentiles_that_cannot_be(bad, message):
    with pytest.raises(ParameterError, match=message) as error:
        check_floor_percentiles(bad)
    assert "\n" not in str(error.value)
