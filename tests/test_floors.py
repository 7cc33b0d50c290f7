from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from surgerylib.engine.finding import MapShard
from surgerylib.errors import CacheError, ParameterError
from surgerylib.heatmaps import Setting
from surgerylib.study.floors import N_BINS, check_floor_percentiles, floor_values
from surgerylib.workbook.check import check_values
from surgerylib.workbook.parameters import apply_overrides, find_notebooks, known_parameters, load_config, validate

GRID = (3, 5)
PERCENTILES = [0.01, 30, 50, 80, 90, 95, 97, 99, 99.99]


def stored(folder, shards: list[np.ndarray], grid: tuple[int, int] = GRID) -> SimpleNamespace:
    """Similarities [n, L, 2, C, 1 + h * w], a file each, as a computed store has them."""
    found, first = [], 0
    for number, similarities in enumerate(shards):
        path = folder / f"{number}.npy"
        np.save(path, similarities)
        found.append(MapShard(str(path), grid, first, ((90, 60),) * len(similarities)))
        first += len(similarities)
    return SimpleNamespace(shards=found)


def similarities(seed: int, n_images: int, n_classes: int = 4) -> np.ndarray:
    shape = (n_images, 2, 2, n_classes, 1 + GRID[0] * GRID[1])
    return np.random.default_rng(seed).normal(0.2, 0.05, shape).astype(np.float32)


def all_values(store: SimpleNamespace, source: Setting) -> np.ndarray:
    return np.concatenate([shard.maps(source).ravel() for shard in store.shards]).astype(np.float64)


def assert_percentiles(found: dict[float, float], values: np.ndarray) -> None:
    """Within half a bin of the histogram, and float64's rounding."""
    allowed = 0.5 * np.ptp(values) / N_BINS + 1e-12 * np.abs(values).max()
    np.testing.assert_allclose(list(found.values()), np.percentile(values, list(found)), rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "source", [Setting(), Setting("standard"), Setting("vv_mixed", "surgery"), Setting("vv_qk", "cosine", 2)]
)
def test_floors_are_percentiles_of_all_values(tmp_path, source):
    store = stored(tmp_path, [similarities(seed, n_images) for seed, n_images in enumerate((7, 7, 2))])
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
    store = stored(tmp_path, [change(similarities(seed, 6)).astype(np.float32) for seed in range(2)])
    assert_percentiles(floor_values(store, Setting(), PERCENTILES), all_values(store, Setting()))


def test_two_values_and_a_single_one(tmp_path):
    pair = np.zeros((1, 1, 2, 1, 3), np.float32)
    pair[..., 2] = 1
    store = stored(tmp_path, [pair], grid=(1, 2))
    assert_percentiles(floor_values(store, Setting(), [25, 50, 90]), np.array([0.0, 1.0]))
    store = stored(tmp_path, [np.full((2, 1, 2, 3, 5), 0.25, np.float32)], grid=(2, 2))
    assert floor_values(store, Setting(), [80, 99.0]) == {80: 0.25, 99.0: 0.25}


def test_no_images_no_percentiles_and_no_file(tmp_path):
    assert floor_values(stored(tmp_path, []), Setting(), PERCENTILES) == {}
    store = stored(tmp_path, [similarities(0, 3)])
    assert floor_values(store, Setting(), []) == {}
    with pytest.raises(ParameterError, match="last_layers must be at most 2"):
        floor_values(store, Setting(last_layers=3), PERCENTILES)
    (tmp_path / "0.npy").unlink()
    with pytest.raises(CacheError, match="compute the store first"):
        floor_values(store, Setting(), PERCENTILES)


def test_memory_holds_a_shard_at_a_time(tmp_path):
    store = stored(tmp_path, [similarities(seed, 64, n_classes=20)[:, 1:] for seed in range(120)])
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
    ([[80, 90]], "between 0 and 100"),
    ([float("nan")], "got nan"),
    ([90, 90.0], "names one value twice"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_PERCENTILES)
def test_percentiles_that_cannot_be(bad, message):
    with pytest.raises(ParameterError, match=message) as error:
        check_floor_percentiles(bad)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def known() -> dict:
    return known_parameters(find_notebooks())


def checked(config: dict, known: dict) -> dict:
    settings = {name: parameter.default for name, parameter in known.items()} | validate(config, known)
    check_values(settings)
    return settings


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("0", 0), ("0.25", 0.25), ("-1", -1), ("1e-3", 0.001), ("5.0e-05", 5e-05), ("2", 2)],
)
def test_a_floor_in_a_configuration_and_on_the_command_line(tmp_path, known, text, value):
    path = tmp_path / "config.yaml"
    path.write_text(f"floor: {text}\nnms_iou: 5e-1\nfloor_percentiles: []\n")
    assert checked(load_config(path), known)["floor"] == value
    assert checked(load_config(path), known)["nms_iou"] == 0.5  # YAML takes it for text
    assert checked(apply_overrides({}, [f"floor={text}"], known), known)["floor"] == value


@pytest.mark.parametrize("bad", ["high", True, [0.25], float("nan"), ".inf", {"value": 1}])
def test_a_floor_that_cannot_be_is_found_before_the_run(known, bad):
    with pytest.raises(ParameterError, match="the floor must be a finite number"):
        checked({"floor": bad}, known)


@pytest.mark.parametrize("bad", [[0], [90, 90], ["otsu"]])
def test_floors_to_try_are_checked_before_the_run(known, bad):
    with pytest.raises(ParameterError, match="floor_percentiles"):
        checked({"floor_percentiles": bad}, known)
