from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from tiny_models import write_model

from surgerylib.boxes import extract_many
from surgerylib.clip import ImageTokens, load_clip
from surgerylib.datasets import load_dataset, read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import image_shards as image_shards_module
from surgerylib.engine import map_shards as map_shards_module
from surgerylib.engine import store as store_module
from surgerylib.engine.evaluate import DetectionSettings, detect
from surgerylib.engine.finding import BoxesAhead, MapShard, boxes_of, shard_boxes
from surgerylib.engine.parallel import in_processes
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CacheError, ImageReadError, OutputError, ParameterError, UnknownClassError
from surgerylib.heatmaps import HEATMAP_KINDS, SIMILARITIES, Setting, heatmaps
from surgerylib.words import prompt_names

N_IMAGES = 7
SHARD_IMAGES = 2  # four shards, the last of one image

# computes a store and kills itself: in a forward in the middle of the second shard, or when the third is written
# aside but does not have its name yet
KILLED = f"""
import os, signal, sys, time
from pathlib import Path
from surgerylib import files
from surgerylib.engine import store
from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset

model, data, cache, place = sys.argv[1:]
store.SHARD_IMAGES = {SHARD_IMAGES}
clip = load_clip(f"local-dir:{{model}}", str(Path(model) / "model.safetensors"), device="cpu", depth=3)
target, name, at = {{"forward": (clip, "encode_image", 4), "write": (files.os, "fsync", 7)}}[place]
function, calls = getattr(target, name), []

def killed(*args, **kwargs):
    calls.append(None)
    if len(calls) == at:
        # a forward runs ahead of the writing
        while place == "forward" and not (any(Path(cache).rglob("[!.]*.npy")) and any(Path(cache).rglob(".*.part"))):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(target, name, killed)
store.HeatmapStore(clip, load_dataset(data, "test"), cache).compute(batch_size=1)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, num_train=1, num_val=1, num_test=N_IMAGES, size=96)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_IMAGES", SHARD_IMAGES)


@pytest.fixture
def data(root):
    return load_dataset(root, "test")


@pytest.fixture(scope="module")
def kept(tiny, root, tmp_path_factory) -> Path:
    """A cache folder with one whole store, computed an image at a time; for reading only."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_IMAGES", SHARD_IMAGES)
        HeatmapStore(tiny, load_dataset(root, "test"), folder).compute(batch_size=1)
    return folder


@pytest.fixture
def store(tiny, data, kept) -> HeatmapStore:
    return HeatmapStore(tiny, data, kept)


@pytest.fixture
def copied(tiny, data, kept, tmp_path) -> HeatmapStore:
    """The same store in a folder that a test may damage."""
    shutil.copytree(kept, tmp_path / "copied")
    return HeatmapStore(tiny, data, tmp_path / "copied")


@pytest.fixture
def no_model(tiny, monkeypatch):
    def used(*_, **__):
        raise AssertionError("the model was used")

    monkeypatch.setattr(tiny, "encode_image", used)
    monkeypatch.setattr(tiny, "encode_text", used)


def one_line(raised: pytest.ExceptionInfo) -> str:
    text = str(raised.value)
    assert text
    assert "\n" not in text
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


# ------------------------------------------------------------------------------------------------ what is stored


def test_a_store_holds_a_file_for_each_shard(store, tiny, data):
    assert [(shard.first, len(shard.sizes_wh), shard.offset) for shard in store.shards] == [
        (0, 2, 0),
        (2, 2, 0),
        (4, 2, 0),
        (6, 1, 0),
    ]
    names = [*(f"heatmaps-0000{k}.npy" for k in range(4)), "identity.json", "hashes.json"]
    assert sorted(contents(store.folder)) == sorted(names)
    arrays = [np.load(shard.path) for shard in store.shards]
    assert all(array.dtype == np.float32 for array in arrays)
    assert np.concatenate(arrays).shape == (N_IMAGES, 3, 2, len(data.classes), 17)
    assert store.nbytes == sum(array.nbytes for array in arrays)
    assert json.loads((store.folder / "identity.json").read_text()) == store.identity
    assert store.identity["weights_sha256"] == tiny.weights.sha256


@pytest.fixture(scope="module")
def tokens(tiny, root) -> dict[int, list[ImageTokens]]:
    """last_layers -> the tokens of every image, each in a forward of its own."""
    pixels = [tiny.preprocess(read_image(path)).unsqueeze(0) for path in load_dataset(root, "test").images["path"]]
    return {layers: [tiny.encode_image(image, layers) for image in pixels] for layers in (1, 2, 3)}


@pytest.mark.parametrize("kind", HEATMAP_KINDS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("last_layers", [1, 2, 3])
def test_stored_maps_are_those_of_the_tokens(store, tiny, data, tokens, kind, similarity, last_layers):
    text = tiny.encode_text(prompt_names(data.classes))
    source = Setting(kind, similarity, last_layers)
    stored = np.concatenate([shard.maps(source) for shard in store.shards])
    assert stored.dtype == np.float32
    assert stored.shape == (N_IMAGES, len(data.classes), *tiny.grid)
    for maps, of_image in zip(stored, tokens[last_layers], strict=True):
        expected = heatmaps(of_image, text, kind, similarity=similarity)[0].numpy()
        np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert np.ptp(stored, axis=(2, 3)).min() > 1e-4  # maps, not constants


def test_maps_of_one_image_by_its_place(store):
    source = Setting("vv_mixed", "surgery", 2)
    every = np.concatenate([shard.maps(source) for shard in store.shards])
    np.testing.assert_array_equal(np.stack([store.maps(place, source) for place in range(N_IMAGES)]), every)


def test_a_store_tells_how_much_is_there_and_what_lies_beside_it(copied, other_weights, data):
    assert "heatmaps of 7 of 7 images, 3 layers" in copied.describe()
    Path(copied.shards[0].path).unlink()
    assert "5 of 7 images" in copied.describe()
    assert "not used" not in copied.describe()
    beside = HeatmapStore(other_weights, data.sample(1), copied.folder.parent).compute().folder
    for name, text in (("heatmaps-1", "[]"), ("heatmaps-2", "{")):
        (copied.folder.parent / name).mkdir()
        (copied.folder.parent / name / "identity.json").write_text(text)
    assert copied.describe().endswith(f"not used, of other weights: {beside.name}")


def test_sources_of_one_key_have_the_same_maps_and_others_have_not(store):
    by_key: dict[tuple, list[np.ndarray]] = {}
    for kind in HEATMAP_KINDS:
        for similarity in SIMILARITIES:
            for layers in (1, 2):
                source = Setting(kind, similarity, layers)
                by_key.setdefault(source.key, []).append(store.shards[0].maps(source))
    assert len(by_key) == 2 * (2 + 3)
    for same in by_key.values():
        assert all(np.array_equal(maps, same[0]) for maps in same)
    firsts = [same[0] for same in by_key.values()]
    for place, maps in enumerate(firsts):
        assert not any(np.allclose(maps, other) for other in firsts[:place])


def test_batch_size_and_reading_threads_do_not_change_the_maps(store, tiny, data, tmp_path):
    other = HeatmapStore(tiny, data, tmp_path).compute(batch_size=3, workers=1)
    for mine, theirs in zip(store.shards, other.shards, strict=True):
        np.testing.assert_allclose(np.load(mine.path), np.load(theirs.path), atol=1e-6)


def test_pieces_of_a_shard_are_its_images(store):
    whole = MapShard(store.shards[1].path, (4, 4), 2, ((10, 20), (30, 40)))
    source = Setting("vv_mixed", "surgery", 2)
    assert whole.pieces(5) == [whole]
    first, second = whole.pieces(1)
    assert (first.first, first.offset, first.sizes_wh) == (2, 0, ((10, 20),))
    assert (second.first, second.offset, second.sizes_wh) == (3, 1, ((30, 40),))
    np.testing.assert_array_equal(np.concatenate([p.maps(source) for p in (first, second)]), whole.maps(source))
    long = MapShard("x.npy", (4, 4), 100, tuple((k, k) for k in range(10)))
    again = [piece for part in long.pieces(4) for piece in part.pieces(3)]  # 4 + 4 + 2 images, again in pieces
    assert [(p.first, p.offset, len(p.sizes_wh)) for p in again] == [
        (100, 0, 3),
        (103, 3, 1),
        (104, 4, 3),
        (107, 7, 1),
        (108, 8, 2),
    ]


def test_only_the_asked_rows_of_a_shard_are_read(tmp_path):
    n, shape = 100_000, (3, 2, 20, 50)  # 2.4 GB, almost all of it a hole in the file
    path = tmp_path / "heatmaps-00000.npy"
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, *shape))
    row = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stored[50_000] = row
    stored.flush()
    del stored
    shard = MapShard(str(path), (7, 7), 0, ((8, 8),) * n)
    piece = replace(shard, first=50_000, offset=50_000, sizes_wh=((8, 8),))

    tracemalloc.start()
    try:
        maps = piece.maps(Setting("vv_vv", "cosine", 3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(maps, row[:, 1, :, 1:].mean(axis=0).reshape(1, 20, 7, 7), atol=1e-6)
    assert peak < 1_000_000  # NumPy's arrays are counted, a mapped file is not


def test_no_images(tiny, data, tmp_path):
    none = replace(data, images=data.images.iloc[:0], boxes=data.boxes.iloc[:0])
    store = HeatmapStore(tiny, none, tmp_path).compute()
    assert store.shards == []
    assert store.nbytes == 0
    tables = boxes_of(store.shards, [Setting()], [Setting(), Setting(90)])
    assert [table.boxes.shape for table in tables[Setting()]] == [(0, 5)] * 2
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ going on again


@pytest.mark.usefixtures("no_model")
def test_a_rerun_computes_nothing(store):
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert store.compute(batch_size=4) is store
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before


@pytest.fixture(scope="module")
def killed(tiny_folder, root, tmp_path_factory) -> dict[str, Path]:
    """place -> cache folder of a process that killed itself there."""
    caches = {place: tmp_path_factory.mktemp(place) for place in ("forward", "write")}
    running = {
        place: subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tiny_folder), str(root), str(cache), place],
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
        )
        for place, cache in caches.items()
    }
    for process in running.values():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors.decode()
    return caches


@pytest.mark.parametrize(("place", "n_whole", "n_parts"), [("forward", 1, 1), ("write", 2, 1)])
def test_a_killed_run_goes_on_behind_the_last_whole_shard(
    killed, tiny, data, kept, monkeypatch, place, n_whole, n_parts
):
    cache = killed[place]
    (folder,) = cache.iterdir()
    whole = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("heatmaps-*.npy")}
    assert len(whole) == n_whole
    assert len(list(folder.glob(".heatmaps-*.part"))) == n_parts  # whole, but without its name

    encode, sizes = tiny.encode_image, []
    monkeypatch.setattr(tiny, "encode_image", lambda images, *args: sizes.append(len(images)) or encode(images, *args))
    store = HeatmapStore(tiny, data, cache).compute(batch_size=1)
    assert store.folder == folder
    assert sum(sizes) == N_IMAGES - n_whole * SHARD_IMAGES
    for path, (time, content) in whole.items():
        assert path.stat().st_mtime_ns == time
        assert path.read_bytes() == content
    (undisturbed,) = kept.iterdir()
    assert contents(folder) == contents(undisturbed)
    assert not list(folder.glob(".heatmaps-*.part"))


def test_a_shard_that_the_disk_damaged_is_named(copied):
    path = Path(copied.shards[1].path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # one bit
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"heatmaps-00001\.npy is not as it was written") as raised:
        copied.compute()
    one_line(raised)
    path.unlink()
    assert copied.compute(batch_size=1) is copied


def test_two_processes_do_not_compute_the_same_store(copied):
    Path(copied.shards[0].path).unlink()
    with FileLock(copied.folder / ".lock"), pytest.raises(OutputError, match="another process") as raised:
        copied.compute()
    one_line(raised)


def test_a_process_that_waited_keeps_the_hashes_of_the_one_before(copied, tiny, data, monkeypatch):
    """What another process wrote between the first look and the lock is taken as it is."""
    lost = Path(copied.shards[0].path)
    content, hashes = lost.read_bytes(), (copied.folder / "hashes.json").read_text()
    lost.unlink()
    (copied.folder / "hashes.json").write_text("{}")
    others = [Path(shard.path) for shard in copied.shards[1:]]
    kept = {path: path.read_bytes() for path in others}
    for path in others:
        path.unlink()

    @contextmanager
    def waited(*_):
        for path in others:  # the other process ends here
            path.write_bytes(kept[path])
        known = json.loads(hashes)
        del known[lost.name]
        (copied.folder / "hashes.json").write_text(json.dumps(known))
        yield

    monkeypatch.setattr(image_shards_module, "only_process", waited)
    sizes, encode = [], tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda images, *args: sizes.append(len(images)) or encode(images, *args))
    copied.compute(batch_size=1)
    assert sum(sizes) == SHARD_IMAGES
    assert lost.read_bytes() == content
    assert (copied.folder / "hashes.json").read_text() == hashes


@pytest.mark.usefixtures("no_model")
def test_a_part_file_is_never_a_shard(copied):
    first = Path(copied.shards[0].path)
    first.rename(first.with_name(f".{first.name}.abc.part"))
    with pytest.raises(AssertionError, match="the model was used"):
        copied.compute()
    with pytest.raises(CacheError, match="compute the store first") as raised:
        copied.shards[0].maps(Setting())
    one_line(raised)


def test_only_a_lost_shard_is_computed_again(copied, tiny, monkeypatch):
    lost = Path(copied.shards[2].path)
    before = lost.read_bytes()
    lost.unlink()
    encode, sizes = tiny.encode_image, []
    monkeypatch.setattr(tiny, "encode_image", lambda images, *args: sizes.append(len(images)) or encode(images, *args))
    copied.compute(batch_size=1)
    assert sizes == [1, 1]
    assert lost.read_bytes() == before


def test_a_damaged_image_leaves_the_shards_before_it(tiny, root, data, tmp_path):
    path = Path(data.images["path"].iloc[5])
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    try:
        path.write_bytes(before[: len(before) // 2])
        store = HeatmapStore(tiny, data, tmp_path)
        with pytest.raises(ImageReadError, match=path.name) as raised:
            store.compute(batch_size=1)
        one_line(raised)
        assert sorted(contents(store.folder)) == [
            "hashes.json",
            "heatmaps-00000.npy",
            "heatmaps-00001.npy",
            "identity.json",
        ]
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(time, time))


def test_a_missing_image_is_named_before_any_work(tiny, data, tmp_path):
    images = data.images.copy()
    images.loc[3, "path"] = str(tmp_path / "gone.jpg")
    with pytest.raises(ImageReadError, match=r"gone\.jpg") as raised:
        HeatmapStore(tiny, replace(data, images=images), tmp_path)
    one_line(raised)


# -------------------------------------------------------------------------------------- stores of something else


@pytest.fixture(scope="module")
def other_weights(tiny_folder, tmp_path_factory):
    other = write_model(tmp_path_factory.mktemp("other"), seed=8)
    return load_clip(f"local-dir:{tiny_folder}", str(other / "model.safetensors"), device="cpu", depth=3)


def assert_refused(clip, data, store: HeatmapStore, cache: Path, field: str, there: str, here: str) -> None:
    """Neither as the folder that was named nor under the key of what is asked for."""
    asked = HeatmapStore(clip, data, cache)
    assert asked.folder != store.folder
    asked.folder.mkdir()
    shutil.copy(store.folder / "identity.json", asked.folder)
    for folder in (store.folder, None):
        with pytest.raises(CacheError, match="were made of something else") as raised:
            HeatmapStore(clip, data, cache, folder=folder)
        message = one_line(raised)
        assert f"{field}: {there}" in message
        assert f"{here}" in message.split(f"{field}: ")[1].split("; ")[0]
        assert str(folder or asked.folder) in message


def test_a_store_of_other_weights_is_refused_by_name(store, other_weights, data, tmp_path):
    there, here = store.clip.weights.sha256, other_weights.weights.sha256
    assert there != here
    assert_refused(other_weights, data, store, tmp_path, "weights_sha256", f'"{there[:15]}', f'"{here[:15]}')


def test_a_store_of_other_classes_is_refused_by_name(store, tiny, data, tmp_path):
    fewer = replace(data, classes=("ship", "harbor"))
    assert_refused(tiny, fewer, store, tmp_path, "classes, item 1", '"airplane" there', '"ship" here')
    other_order = replace(data, classes=data.classes[::-1])
    assert_refused(tiny, other_order, store, tmp_path, "classes, item 1", '"airplane" there', '"windmill" here')
    longer = replace(data, classes=(*data.classes, "crane"))
    assert_refused(tiny, longer, store, tmp_path, "classes", "20 items there", "21 here")


def test_a_store_of_another_image_size_is_refused_by_name(store, tiny_folder, data, tmp_path):
    weights = str(tiny_folder / "model.safetensors")
    larger = load_clip(f"local-dir:{tiny_folder}", weights, device="cpu", depth=3, image_size=48)
    assert_refused(larger, data, store, tmp_path, "image_size", "32 there", "48 here")


def test_a_store_of_other_images_or_prompts_is_refused_by_name(store, tiny, data, tmp_path):
    with pytest.raises(CacheError, match="templates"):
        HeatmapStore(tiny, data, tmp_path, templates=("{}",), folder=store.folder)
    with pytest.raises(CacheError, match=f"n_images: {N_IMAGES} there, 3 here"):
        HeatmapStore(tiny, data.sample(3), tmp_path, folder=store.folder)


@pytest.mark.usefixtures("no_model")
def test_a_named_folder_is_used_wherever_it_lies(copied, tiny, data, tmp_path):
    moved = copied.folder.rename(tmp_path / "my heatmaps")
    store = HeatmapStore(tiny, data, tmp_path / "nowhere", folder=moved).compute()
    assert store.folder == moved
    assert store.shards[0].maps(Setting()).shape[0] == SHARD_IMAGES
    assert not (tmp_path / "nowhere").exists()


def test_a_named_folder_that_is_no_store(tiny, data, tmp_path):
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(CacheError, match="is no store of heatmaps") as raised:
            HeatmapStore(tiny, data, tmp_path, folder=folder)
        assert str(folder) in one_line(raised)


@pytest.mark.parametrize("text", ["{", "", "[]", "null", '"x"'])
def test_an_identity_that_is_damaged(copied, text):
    (copied.folder / "identity.json").write_text(text)
    with pytest.raises(CacheError, match=r"identity\.json") as raised:
        HeatmapStore(copied.clip, copied.dataset, copied.folder.parent)
    one_line(raised)


def damage(path: Path, how: str) -> None:
    whole = np.load(path)
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "cut in its header":
        path.write_bytes(path.read_bytes()[:50])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no npy":
        path.write_bytes(b"\x80\x04 something else")
    elif how == "objects":
        np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    elif how == "npz":
        with path.open("wb") as file:
            np.savez(file, whole)
    elif how == "fewer images":
        np.save(path, whole[:1])
    elif how == "fewer layers":
        np.save(path, whole[:, :2])
    else:
        np.save(path, whole.astype(np.float64))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("how", "match"),
    [
        *((how, "is not a shard") for how in ("cut short", "cut in its header", "empty", "no npy", "objects", "npz")),
        ("fewer images", r"holds float32 \[1, 3, 2, 20, 17\], float32 \[2, 3, 2, 20, 17\] is needed"),
        ("fewer layers", r"\[2, 2, 2, 20, 17\]"),
        ("other numbers", r"holds float64"),
    ],
)
def test_a_damaged_shard_is_named(copied, how, match):
    path = Path(copied.shards[1].path)
    damage(path, how)
    with pytest.raises(CacheError, match=match) as raised:
        copied.compute()
    assert str(path) in one_line(raised)
    assert path.is_file()  # nothing is deleted behind the user's back
    if match == "is not a shard":
        with pytest.raises(CacheError, match=match):
            boxes_of(copied.shards, [Setting()], [Setting()], workers=1)


# --------------------------------------------------------------------------------------------- values and places


@pytest.mark.usefixtures("no_model")
def test_a_disk_that_is_too_small(tiny, data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    store = HeatmapStore(tiny, data, tmp_path / "a" / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, store.nbytes - 1))
    with pytest.raises(OutputError, match="GB") as raised:
        store.compute()
    assert str(store.folder.parent) in one_line(raised)
    assert not (tmp_path / "a").exists()


def test_only_the_missing_shards_must_fit_on_the_disk(copied, monkeypatch):
    usage = namedtuple("usage", "total used free")
    lost = Path(copied.shards[3].path)
    lost.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, copied.nbytes // N_IMAGES))
    copied.compute()
    assert lost.is_file()


@pytest.mark.usefixtures("no_model")
def test_a_cache_folder_that_is_a_file(tiny, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        HeatmapStore(tiny, data, tmp_path / "file").compute()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("bad", [0, -1, True, 2.5, "4", None, float("nan")])
def test_batch_sizes_that_cannot_be(tiny, data, tmp_path, bad):
    with pytest.raises(ParameterError, match="batch_size must be a whole number of at least 1") as raised:
        HeatmapStore(tiny, data, tmp_path).compute(batch_size=bad)
    one_line(raised)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "2"])
def test_numbers_of_workers_that_cannot_be(store, copied, bad):
    Path(copied.shards[0].path).unlink()
    for call in (
        lambda: copied.compute(workers=bad),
        lambda: boxes_of(store.shards, [Setting()], [Setting()], workers=bad),
        lambda: list(in_processes(abs, [1, 2], workers=bad, description="x")),
    ):
        with pytest.raises(ParameterError, match="workers must be a whole number of at least 1") as raised:
            call()
        one_line(raised)


def test_more_layers_than_are_stored_or_there(store, tiny, data, tmp_path, no_model):
    with pytest.raises(ParameterError, match="at most 3, which are stored, got 4") as raised:
        store.shards[0].maps(Setting(last_layers=4))
    one_line(raised)
    for call in (
        lambda: HeatmapStore(tiny, data, tmp_path, layers=4),
        lambda: detect(tiny, data, DetectionSettings(last_layers=4)),  # before the model has run over all images
    ):
        with pytest.raises(ParameterError, match=r"must lie in 1\.\.3") as raised:
            call()
        one_line(raised)


@pytest.mark.parametrize(("depth", "layers", "stored"), [(1, 1, 1), (4, 2, 3), (4, 4, 4)])
def test_layers_that_are_stored(tiny_folder, data, tmp_path, depth, layers, stored):
    weights = str(tiny_folder / "model.safetensors")
    clip = load_clip(f"local-dir:{tiny_folder}", weights, device="cpu", depth=depth)
    one = replace(data, images=data.images.iloc[:1])
    store = HeatmapStore(clip, one, tmp_path, layers=layers).compute()
    assert store.layers == stored
    (shard,) = store.shards
    assert np.load(shard.path).shape[1] == stored
    assert shard.maps(Setting(last_layers=stored)).shape == (1, len(data.classes), *clip.grid)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "1", None])
def test_map_sources_that_cannot_be(bad):
    with pytest.raises(ParameterError, match="last_layers must be a whole number"):
        Setting(last_layers=bad)
    with pytest.raises(ParameterError, match="unknown heatmap kind"):
        Setting(kind=bad)
    with pytest.raises(ParameterError, match="unknown similarity"):
        Setting(similarity=bad)


def test_surgery_with_one_class(tiny, data, tmp_path):
    one = replace(data, classes=("ship",), images=data.images.iloc[:2])
    store = HeatmapStore(tiny, one, tmp_path).compute()
    for work in (
        lambda: store.shards[0].maps(Setting(similarity="surgery")),
        lambda: boxes_of(store.shards, [Setting(similarity="surgery")], [Setting()]),
    ):
        with pytest.raises(ParameterError, match="at least two classes, got 1") as raised:
            work()
        one_line(raised)
    assert store.shards[0].maps(Setting()).shape == (2, 1, *tiny.grid)


# ----------------------------------------------------------------------------------------------- boxes of shards

SOURCES = [Setting(), Setting("standard", "surgery", 2)]
CUTS = [Setting(75), Setting((60, 90), nms_iou=0.5), Setting("otsu", score="max")]


def assert_same_tables(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for source, tables in expected.items():
        for mine, theirs in zip(found[source], tables, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


def test_boxes_of_are_those_of_every_image_and_class(store, data):
    found = boxes_of(store.shards, SOURCES, CUTS, workers=1)
    sizes = list(zip(data.images["width"].tolist(), data.images["height"].tolist(), strict=True))
    for source in SOURCES:
        maps = np.concatenate([shard.maps(source) for shard in store.shards])
        for table, cut in zip(found[source], CUTS, strict=True):
            assert table.activated.shape == (N_IMAGES, len(data.classes))
            n_rows = 0
            for image, size_wh in enumerate(sizes):
                for label in range(len(data.classes)):
                    (expected,) = extract_many(maps[image, label], size_wh, [cut])
                    rows = (table.image == image) & (table.label == label)
                    np.testing.assert_array_equal(table.boxes[rows], expected.boxes)
                    assert table.activated[image, label] == np.float32(expected.activated)
                    n_rows += rows.sum()
            assert n_rows == len(table.boxes) == len(table.image) == len(table.label)
            order = np.lexsort((-table.boxes[:, 4], table.label, table.image))
            np.testing.assert_array_equal(order, np.arange(len(order)))


def test_workers_and_pieces_do_not_change_the_boxes(store, monkeypatch):
    alone = boxes_of(store.shards, SOURCES, CUTS, workers=1)
    assert_same_tables(boxes_of(store.shards, SOURCES, CUTS, workers=2), alone)
    monkeypatch.setattr(map_shards_module, "_PIECE", 1)
    assert_same_tables(boxes_of(store.shards, SOURCES, CUTS, workers=1), alone)


def test_a_source_that_is_named_twice_has_its_boxes_once(store):
    twice = boxes_of(store.shards, [SOURCES[0], SOURCES[1], SOURCES[0]], CUTS[:1], workers=1)
    assert_same_tables(twice, boxes_of(store.shards, SOURCES, CUTS[:1], workers=1))


def test_constant_maps_make_an_empty_table(tmp_path):
    np.save(tmp_path / "maps.npy", np.full((2, 1, 2, 3, 5), 0.2, np.float32))
    shard = MapShard(str(tmp_path / "maps.npy"), (2, 2), 10, ((30, 40), (50, 60)))
    (table,) = shard_boxes(shard, Setting(), [Setting()])
    assert table.boxes.shape == (0, 5)
    assert table.activated.tolist() == [[0, 0, 0]] * 2
    assert table.image.dtype == np.int32
    assert table.label.dtype == np.int16


def test_workers_load_neither_torch_nor_pandas(store, tmp_path):
    script = tmp_path / "script.py"  # without a guard: the workers must not run it again
    script.write_text(
        f"""
import sys
import threading
from surgerylib.engine.map_shards import MapShard, Setting, boxes_of, shard_boxes
from surgerylib.extraction import Setting
from surgerylib.engine.parallel import in_processes

heavy = {{"torch", "open_clip", "pandas", "matplotlib", "PIL"}}

def loaded(shard):
    shard_boxes(shard, Setting("vv_mixed", "surgery"), [Setting()])
    import os, sys
    return os.getpid(), sorted(heavy & set(sys.modules))

shards = [MapShard({store.shards[0].path!r}, (4, 4), k, ((9, 9),) * 2) for k in range(4)]
import os
found = list(in_processes(loaded, shards, workers=2, description="x"))
print([names for _, names in found], os.getpid() in [pid for pid, _ in found], sorted(heavy & set(sys.modules)))
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.stdout.strip() == "[[], [], [], []] False []", done.stderr


# ----------------------------------------------------------------------------------------------------- processes
# functions inside of functions travel by value: a worker need not import this file, and torch with it


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_come_in_the_order_of_the_tasks(workers):
    def slow_at_first(number: int) -> int:
        import time

        time.sleep(0.05 if number == 0 else 0)
        return number * number

    results = in_processes(slow_at_first, list(range(12)), workers=workers, description="squares")
    assert list(results) == [number * number for number in range(12)]


def test_one_worker_and_a_single_task_stay_in_this_process():
    def process(_: int) -> int:
        import os

        return os.getpid()

    assert set(in_processes(process, [1, 2, 3], workers=1, description="x")) == {os.getpid()}
    assert set(in_processes(process, [1], workers=2, description="x")) == {os.getpid()}
    assert os.getpid() not in set(in_processes(process, [1, 2, 3], workers=2, description="x"))
    assert list(in_processes(process, [], workers=2, description="x")) == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [ParameterError, CacheError, UnknownClassError, ZeroDivisionError])
def test_an_error_of_a_worker_arrives_as_itself(workers, error):
    def fails(number: int) -> int:
        if number == 2:
            raise error("the number is 2; take another")
        return number

    with pytest.raises(error) as raised:
        list(in_processes(fails, [0, 1, 2, 3], workers=workers, description="x"))
    assert type(raised.value) is error
    assert one_line(raised) == "the number is 2; take another"


def test_a_killed_worker_is_an_error_of_one_line_and_the_next_work_goes_on():
    def killed(number: int) -> int:
        import os
        import signal

        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(OutputError, match="a worker process died during: boxes of all maps") as raised:
        list(in_processes(killed, [0, 1, 2, 3], workers=2, description="boxes of all maps"))
    one_line(raised)
    assert list(in_processes(abs, [-1, -2, -3], workers=2, description="x")) == [1, 2, 3]


@pytest.mark.parametrize("change", ["mean", "head_width", "quick_gelu"])
def test_bug_a_model_of_another_configuration_took_the_maps_of_one_with_the_same_weights(change, data, tmp_path):
    folder = write_model(tmp_path / "model")
    load = partial(
        load_clip, f"local-dir:{folder}", str(folder / "model.safetensors"), device="cpu", depth=3
    )  # fmt: skip
    first = HeatmapStore(load(), data, tmp_path / "cache")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    if change == "mean":
        config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5]}
    elif change == "head_width":
        config["model_cfg"]["vision_cfg"]["head_width"] = 32
    else:
        config["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    assert HeatmapStore(load(), data, tmp_path / "cache").folder != first.folder


@pytest.mark.parametrize(("workers", "n_ahead"), [(2, 0), (2, 1), (2, 99), (1, 1)])
def test_boxes_begun_while_shards_are_computed_are_those_found_afterwards(store, workers, n_ahead):
    sources, settings = (
        [Setting("vv_vv"), Setting("standard"), Setting("vv_vv")],
        [Setting(), Setting(90)],
    )
    expected = boxes_of(store.shards, sources, settings, workers=1)
    with BoxesAhead(sources, settings, workers=workers) as ahead:
        for shard in store.shards[::-1][:n_ahead]:  # in any order
            ahead.add(shard)
        found = ahead.tables(store.shards)
    assert list(found) == list(expected) == sources[:2]
    for source, tables in expected.items():
        for table, other in zip(tables, found[source], strict=True):
            for column, of_other in zip(table, other, strict=True):
                np.testing.assert_array_equal(column, of_other)


def test_a_shard_is_told_of_when_it_has_its_name(tiny, data, tmp_path):
    store, told = HeatmapStore(tiny, data, tmp_path), []
    store.compute(after_shard=lambda first: told.append((first, store.path(first).is_file())))
    assert told == [(shard.first, True) for shard in store.shards]
    store.compute(after_shard=told.clear)
    assert told


def test_an_error_in_boxes_begun_ahead_is_raised_where_they_are_asked_for(store, tmp_path):
    gone = replace(store.shards[0], path=str(tmp_path / "gone.npy"))
    with BoxesAhead([Setting("vv_vv")], [Setting()], workers=2) as ahead:
        ahead.add(gone)
        with pytest.raises(CacheError, match="there are no heatmaps"):
            ahead.tables([gone])


def test_class_names_are_encoded_once_and_before_the_batches_share_the_threads(tiny, data, tmp_path, monkeypatch):
    encoded, encode = [], tiny._encode_prompts
    monkeypatch.setattr(tiny, "_text_cache", {})
    monkeypatch.setattr(
        tiny, "_encode_prompts", lambda prompts: encoded.append(threading.current_thread()) or encode(prompts)
    )
    HeatmapStore(tiny, data, tmp_path).compute(batch_size=1)
    assert set(encoded) == {threading.main_thread()}
