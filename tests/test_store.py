"""A data set through the model once: what is stored, what a disturbance leaves of it, and for whom it is."""

from __future__ import annotations

import shutil
import tracemalloc
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
from disturbed import killed_at, stop
from filelock import FileLock
from refusals import each_refused, refused
from tiny_models import TINY_CONFIG, TINY_VISION, load_tiny, shards_of, write_config, write_model

from surgerylib.clip import SurgeryCLIP
from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.engine.evaluation import EVALUATION_VERSION, evaluate
from surgerylib.engine.store import STORE_VERSION, HeatmapStore, check_disk
from surgerylib.errors import CacheError, CheckpointError, ImageReadError, OutputError, ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, SIMILARITIES, Setting, heatmaps
from surgerylib.words import prompt_names

N_IMAGES, SHARD_IMAGES = 5, 2  # three shards, the last of one image
usage = namedtuple("usage", "total used free")


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with shards_of(SHARD_IMAGES):
        yield


@pytest.fixture(scope="module")
def data(training_root) -> Dataset:
    return load_dataset(training_root, "train", limit=N_IMAGES)


@pytest.fixture(scope="module")
def store(tiny, data, tmp_path_factory, small_shards) -> HeatmapStore:
    """Alone in its cache folder, computed an image at a time; for reading only."""
    return HeatmapStore(tiny, data, tmp_path_factory.mktemp("kept")).compute(batch_size=1)


@pytest.fixture
def copied(store, tmp_path) -> HeatmapStore:
    """The same store in a folder that a test may damage."""
    shutil.copytree(store.folder.parent, tmp_path / "copied")
    return HeatmapStore(store.clip, store.dataset, tmp_path / "copied")


@pytest.fixture
def forwards(tiny, monkeypatch) -> list[int]:
    """Sizes of the batches that the model is given."""
    sizes, encode = [], tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda images, *args: sizes.append(len(images)) or encode(images, *args))
    return sizes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def with_image(data: Dataset, position: int, path: Path, content: bytes | None = None) -> Dataset:
    """Another file in the place of an image."""
    if content is not None:
        path.write_bytes(content)
    paths = data.images["path"].tolist()
    return replace(data, images=data.images.assign(path=[*paths[:position], str(path), *paths[position + 1 :]]))


# ------------------------------------------------------------------------------------------------ what is stored


def test_no_images(tiny, data, tmp_path):
    none = replace(data, images=data.images.iloc[:0], boxes=data.boxes.iloc[:0])
    store = HeatmapStore(tiny, none, tmp_path).compute()
    assert (store.nbytes, store.blocks(4), list(store.shards())) == (0, [], [])
    assert not list(tmp_path.rglob("*.npy"))


def test_stored_maps_are_those_of_the_tokens(store, tiny, data):
    text = tiny.encode_text(prompt_names(data.classes))
    pixels = [tiny.preprocess(read_image(path)).unsqueeze(0) for path in data.images["path"]]
    for layers in (1, 2, 3):
        tokens = [tiny.encode_image(image, layers) for image in pixels]
        for kind in HEATMAP_KINDS:
            for similarity in SIMILARITIES:
                setting = Setting(kind, similarity, layers)
                stored = np.concatenate([store.maps(setting, *block) for block in store.blocks(2)])
                expected = [heatmaps(of, text, kind, similarity=similarity)[0].numpy() for of in tokens]
                assert stored.dtype == np.float32
                np.testing.assert_allclose(stored, expected, atol=1e-6)
                np.testing.assert_array_equal(store.maps(setting, 3)[0], stored[3])
                assert np.ptp(stored, axis=(2, 3)).min() > 1e-4  # maps, not constants


def test_batch_size_and_reading_threads_do_not_change_the_maps(store, tiny, data, tmp_path):
    other = HeatmapStore(tiny, data, tmp_path).compute(batch_size=3, workers=1)
    for mine, theirs in zip(store.shards(), other.shards(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_store_tells_how_much_is_there_what_of_it_was_found_and_what_lies_beside_it(copied, data, tmp_path):
    assert "heatmaps of 5 of 5 images, 3 layers" in copied.describe()
    assert "there already" not in copied.describe()
    described = copied.compute().describe()
    assert f"3 of 3 files were there already, made of {copied.clip.name}, weights " in described
    copied.path(0).unlink()
    assert "3 of 5 images" in copied.describe()
    other = load_tiny(write_model(tmp_path / "other", seed=8))
    beside = HeatmapStore(other, data.sample(1), copied.folder.parent).compute().folder
    for name, text in (("heatmaps-1", "[]"), ("heatmaps-2", "{")):
        (copied.folder.parent / name).mkdir()
        (copied.folder.parent / name / "identity.json").write_text(text)
    assert copied.describe().endswith(f"not used, of other weights: {beside.name}")


def test_only_what_is_asked_for_of_a_shard_is_read(tiny, data, tmp_path):
    store = HeatmapStore(tiny, data, tmp_path)
    n, shape = 50_000, (3, 2, 20, 17)  # 400 MB, almost all of it a hole in the file
    store.folder.mkdir(parents=True)
    stored = np.lib.format.open_memmap(store.path(0), mode="w+", dtype=np.float32, shape=(n, *shape))
    stored[1] = row = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stored.flush()
    del stored
    tracemalloc.start()
    maps = store.maps(Setting("vv_vv", layers=3), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(maps, row[:, 1, :, 1:].mean(axis=0).reshape(1, 20, 4, 4), atol=1e-6)
    assert peak < 1_000_000  # NumPy's arrays are counted, a mapped file is not


# ------------------------------------------------------------------------------------------------------- golden


@pytest.fixture
def drawn(tmp_path) -> Dataset:
    """Three images of noise over a slope, whose pixels nothing else decides, and a box or two on each."""
    rng, rows = np.random.default_rng(5), []
    for number in range(3):
        image = rng.integers(0, 128, (40, 60, 3)) + np.linspace(0, 120, 60).astype(int)[None, :, None]
        cv2.imwrite(str(tmp_path / f"{number}.png"), image.astype(np.uint8))
        rows.append((str(number), str(tmp_path / f"{number}.png"), 60, 40))
    images = pd.DataFrame(rows, columns=["image_id", "path", "width", "height"])
    boxes = pd.DataFrame(
        [("0", "ship", 2, 2, 30, 30), ("0", "dam", 20, 5, 58, 38), ("1", "ship", 0, 0, 60, 40),
         ("2", "dam", 9, 9, 50, 30)],
        columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"],
    ).astype(dict.fromkeys(["xmin", "ymin", "xmax", "ymax"], "float64"))  # fmt: skip
    return Dataset("drawn", tmp_path, "test", "VOC", images, boxes, ("ship", "dam", "bridge"), pd.DataFrame())


GOLDEN_STORE = {
    "mean": [0.044310715, -0.0292532, 0.109884433, 0.019831643, 0.201545313, -0.015571034],
    "row": [0.107114539, 0.145533055, -0.119747221, -0.128503397, 0.075806126],
    "last": [0.277420998, -0.112668522, -0.224120364],
}  # fmt: skip
GOLDEN_FIGURES = {
    "one": [0.924242424, 0.75, 0.75, 0.75, 0.337662338, 0.272727273, 16.363636364, 7.0, 7.0, 7.0, 7.0, 0.085440609,
        0.550175439, 0.339610778, 0.400122672, 1.0, 2.6],
    "other": [0.586363636, 0.45, 0.268181818, 0.234848485, 0.234848485, 0.122727273, 23.939393939, 6.0, 6.0, 5.0,
        5.666666667, 0.108235601, 0.525387786, 0.395650386, 0.250050932, 1.0, 2.0],
}  # fmt: skip


def assert_golden(found: dict, golden: dict) -> None:
    """Where numbers have changed, raise the version, so that what was kept is not taken for new; write them here."""
    assert found == {name: pytest.approx(expected, rel=0, abs=1e-6) for name, expected in golden.items()}


def test_golden_numbers_of_a_store_change_with_its_version(tiny, drawn, tmp_path):
    store = HeatmapStore(tiny, drawn, tmp_path / "cache").compute()
    whole = np.concatenate([np.array(shard) for shard in store.shards()])
    found = {
        "mean": whole.mean(axis=(0, 3, 4)).ravel().tolist(),
        "row": whole[1, 2, 1, 0, :5].tolist(),
        "last": whole[2, 0, 0, 2, -3:].tolist(),
    }
    assert STORE_VERSION == 2
    assert_golden(found, GOLDEN_STORE)


def test_golden_figures_of_an_evaluation_change_with_its_version(tiny, drawn, tmp_path):
    store = HeatmapStore(tiny, drawn, tmp_path / "cache").compute()
    settings, found = {"one": Setting(percentile=60), "other": Setting("standard", "surgery", 3)}, {}
    for (name, protocol), of in evaluate(store, settings, n_resamples=5, workers=1).figures.items():
        if protocol == "all":
            found[name] = [*of.ap.map, of.ap.map_samples.sum(), *of.n_detections, *of.measures.values()]
    assert EVALUATION_VERSION == 1
    assert_golden(found, GOLDEN_FIGURES)


# ------------------------------------------------------------------------------------------------ going on again


def test_a_rerun_computes_nothing(store, forwards):
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert store.compute(batch_size=4) is store
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
    assert forwards == []


def compute(clip: SurgeryCLIP | Path, data: Dataset, cache: Path) -> None:
    clip = load_tiny(clip) if isinstance(clip, Path) else clip
    with shards_of(SHARD_IMAGES):
        HeatmapStore(clip, data, cache).compute(batch_size=1)


@pytest.mark.parametrize(
    ("place", "number"),  # in the middle of the second shard; when that is written but has no name yet
    [
        ("Ctrl-C", 4),
        pytest.param("surgerylib.clip:SurgeryCLIP.encode_image", 4, marks=pytest.mark.slow),
        pytest.param("os:fsync", 5, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_interrupted_or_killed_goes_on_behind_the_last_whole_shard(
    store, tiny_folder, tmp_path, forwards, place, number
):
    if place == "Ctrl-C":
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, store.clip, "encode_image", number)
            with pytest.raises(KeyboardInterrupt):
                compute(store.clip, store.dataset, tmp_path)
        forwards.clear()
    else:
        killed_at(place, number, compute, tiny_folder, store.dataset, tmp_path)
    (folder,) = tmp_path.iterdir()
    (whole,) = folder.glob("heatmaps-*.npy")
    before = whole.stat().st_mtime_ns
    assert whole.name == "heatmaps-00000.npy"
    assert len(list(folder.glob(".heatmaps-*.part"))) == (place != "Ctrl-C")
    again = HeatmapStore(store.clip, store.dataset, tmp_path).compute(batch_size=1)
    assert again.folder == folder
    assert sum(forwards) == N_IMAGES - SHARD_IMAGES
    assert whole.stat().st_mtime_ns == before
    assert contents(folder) == contents(store.folder)
    assert not list(folder.glob(".heatmaps-*.part"))


def test_only_a_lost_shard_is_computed_again_and_needs_room(copied, forwards, monkeypatch):
    before = copied.path(2).read_bytes()
    copied.path(2).unlink()
    copied.path(2).with_name(f".{copied.path(2).name}.abc.part").write_bytes(before)  # is never a shard
    refused(lambda: copied.maps(Setting(), 2), CacheError, "compute the store first")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 2 * copied.nbytes // N_IMAGES))
    copied.compute(batch_size=1)
    assert forwards == [1, 1]
    assert copied.path(2).read_bytes() == before


def test_a_damaged_image_leaves_the_shards_before_it_and_a_missing_one_is_named_before_any_work(tiny, data, tmp_path):
    content = Path(data.images["path"].iloc[3]).read_bytes()
    damaged = with_image(data, 3, tmp_path / "x.jpg", content[: len(content) // 2])
    store = HeatmapStore(tiny, damaged, tmp_path)
    refused(lambda: store.compute(batch_size=1), ImageReadError, r"x\.jpg")
    assert sorted(contents(store.folder)) == ["hashes.json", "heatmaps-00000.npy", "identity.json"]
    gone = with_image(data, 3, tmp_path / "gone.jpg")
    refused(lambda: HeatmapStore(tiny, gone, tmp_path), ImageReadError, r"gone\.jpg")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path, whole: path.write_bytes(path.read_bytes()[:-100]), "is not a shard"),
        (lambda path, whole: path.write_bytes(b""), "is not a shard"),
        (lambda path, whole: np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True), "is not a shard"),
        (lambda path, whole: np.save(path, whole[:1]), r"holds float32 \[1, 3, 2, 20, 17\], float32 \[2, 3, 2, 20, 17"),
        (lambda path, whole: np.save(path, whole.astype(np.float64)), "holds float64"),
        (lambda path, whole: np.save(path, np.nextafter(whole, 1)), r"heatmaps-00001\.npy is not as it was written"),
        (lambda path, whole: path.with_name("hashes.json").write_text("["), "does not parse"),
    ],
)
def test_a_damaged_shard_is_named_and_left(copied, damage, match):
    path = copied.path(2)
    damage(path, np.load(path))
    refused(copied.compute, CacheError, match)
    assert path.is_file()  # nothing is deleted behind the user's back
    if match == "is not a shard":
        refused(lambda: evaluate(copied, workers=1), CacheError, rf"{path.name} is not a shard")


def test_two_processes_do_not_compute_the_same_store(copied):
    copied.path(0).unlink()
    with FileLock(copied.folder / ".lock"):
        refused(copied.compute, OutputError, "another process")


def test_a_disk_that_is_too_small_is_one_line_before_any_work(tiny, data, tmp_path, monkeypatch, forwards):
    stores = [HeatmapStore(tiny, data, tmp_path / "a" / "b", templates=(template,)) for template in ("{}", "a {}")]
    one = stores[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, one.nbytes * 2 - 1))
    check_disk([one])
    refused(lambda: check_disk(stores), OutputError, rf"GB in {one.folder.parent}, .* GB are free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, one.nbytes - 1))
    refused(one.compute, OutputError, "GB are free")
    assert forwards == list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_shard_and_a_file_is_no_folder(tiny, data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    refused(HeatmapStore(tiny, data, tmp_path / "file").compute, OutputError, "cannot be written")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", Mock(side_effect=full))
    refused(HeatmapStore(tiny, data, tmp_path / "cache").compute, OutputError, "No space left")
    assert not list(tmp_path.rglob("*heatmaps-0*.npy"))


# ---------------------------------------------------------------------------------------- for whom a store is


def test_another_model_image_class_or_prompt_is_another_store(store, tiny, tiny_folder, data, tmp_path):
    make = partial(HeatmapStore, cache_dir=store.folder.parent)
    others = [
        make(load_tiny(write_model(tmp_path / "other", seed=8)), data),
        make(load_tiny(tiny_folder, depth=2), data),
        make(load_tiny(tiny_folder, image_size=48), data),
        make(tiny, replace(data, classes=data.classes[::-1])),
        make(tiny, data.sample(3)),
        make(tiny, with_image(data, 0, tmp_path / "image.jpg", b"another")),
        make(tiny, data, templates=("{}",)),
    ]
    assert len({other.folder for other in [*others, store]}) == len(others) + 1
    assert make(tiny, data).folder == store.folder
    without = replace(data, boxes=data.boxes.iloc[:0])
    assert make(tiny, without).folder == store.folder  # annotations change no map


def test_bug_a_model_of_another_configuration_took_the_maps_of_one_with_the_same_weights(data, tmp_path):
    folder, folders = write_model(tmp_path / "model"), set()
    for change, preprocessing in (
        ({}, {}), ({"vision_cfg": {**TINY_VISION, "head_width": 32}}, {}), ({}, {"mean": [0.5] * 3}),
        ({"quick_gelu": True}, {}),
    ):  # fmt: skip
        write_config(folder, TINY_CONFIG | change, preprocessing)
        folders.add(HeatmapStore(load_tiny(folder), data, tmp_path / "cache").folder)
    assert len(folders) == 4


def test_layers_that_are_stored(tiny_folder, data, tmp_path):
    one = replace(data, images=data.images.iloc[:1])
    for depth, layers, stored in ((1, 1, 1), (4, 2, 3), (4, 4, 4)):
        assert HeatmapStore(load_tiny(tiny_folder, depth), one, tmp_path, layers=layers).layers == stored


def test_what_cannot_be_asked_of_a_store(store, tiny, data, tmp_path, monkeypatch):
    ship = replace(data, classes=("ship",), images=data.images.iloc[:2], boxes=data.boxes.iloc[:0])
    one, surgery = HeatmapStore(tiny, ship, tmp_path / "ship").compute(), Setting(similarity="surgery")
    assert one.maps(Setting(), 0, 2).shape == (2, 1, *tiny.grid)
    each_refused(
        (lambda: one.maps(surgery, 0), ParameterError, "at least two classes, got 1"),
        (lambda: evaluate(one, {"": surgery}), ParameterError, "at least two classes, got 1"),
        (lambda: store.maps(Setting(layers=4), 0), ParameterError, "at most 3, which are stored, got 4"),
        (lambda: HeatmapStore(tiny, data, tmp_path, layers=4), ParameterError, r"must lie in 1\.\.3"),
    )
    for name in ("batch_size", "workers"):
        refused(partial(store.compute, **{name: 0}), ParameterError, f"{name} must be a whole number of at least 1")
    encode = tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda *a: replace(encode(*a), qk=encode(*a).qk * float("nan")))
    refused(HeatmapStore(tiny, data, tmp_path / "nan").compute, CheckpointError, "NaN or infinite values")
    assert not list((tmp_path / "nan").rglob("*.npy"))
