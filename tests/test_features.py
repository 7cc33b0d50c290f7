from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_models import write_model

from surgerylib.clip import load_clip
from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import features as features_module
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.feature_batches import N_SYMMETRIES, BatchReader, turn, turn_boxes
from surgerylib.engine.store import check_disk
from surgerylib.errors import CacheError, CheckpointError, ImageReadError, OutputError, ParameterError
from surgerylib.files import file_sha256
from surgerylib.heatmaps import heatmaps
from surgerylib.words import prompt_names

N_IMAGES, SHARD_IMAGES, PICTURE = 7, 3, 24


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", SHARD_IMAGES)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=N_IMAGES, num_val=2, num_test=1, size=96)


@pytest.fixture
def data(root) -> Dataset:
    return load_dataset(root, "train")


@pytest.fixture(scope="module")
def kept(tiny, root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "SHARD_IMAGES", SHARD_IMAGES)
        FeatureCache(tiny, load_dataset(root, "train"), folder, picture_size=PICTURE).compute(batch_size=2)
    return folder


@pytest.fixture
def cache(tiny, data, kept) -> FeatureCache:
    return FeatureCache(tiny, data, kept, picture_size=PICTURE)


@pytest.fixture
def copied(tiny, data, kept, tmp_path) -> FeatureCache:
    shutil.copytree(kept, tmp_path / "copied")
    return FeatureCache(tiny, data, tmp_path / "copied", picture_size=PICTURE)


def test_a_record_is_what_the_model_says_of_the_image(cache, tiny, data):
    text = tiny.encode_text(prompt_names(data.classes))
    for position in (0, 4, 6):
        image = read_image(data.images["path"].iloc[position])
        tokens = tiny.encode_image(tiny.preprocess(image)[None], 3)
        (record,) = cache.read([position])
        expected = heatmaps(tokens, text, "vv_mixed")[0].numpy()
        np.testing.assert_allclose(record["cam"], expected, atol=1e-6)
        np.testing.assert_allclose(record["features"], tokens.features[:, 0].numpy(), rtol=1e-3, atol=1e-3)  # 16 bits
        small = cv2.resize(image, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(record["picture"], small.transpose(2, 0, 1))


def test_the_targets_are_the_boxes_of_the_frame(cache, data):
    targets = cache.targets
    assert targets.n_images == N_IMAGES
    assert len(targets.image) == len(data.boxes)
    for row, box in enumerate(data.boxes.itertuples()):
        assert data.images["image_id"].iloc[targets.image[row]] == box.image_id
        assert data.classes[targets.label[row]] == box.label
        np.testing.assert_allclose(targets.boxes_xyxy[row] * 96, [box.xmin, box.ymin, box.xmax, box.ymax], atol=1e-4)
    rows = targets.rows_by_image()
    assert len(rows) == N_IMAGES
    assert np.concatenate(rows).tolist() == list(range(len(data.boxes)))


def test_its_size_is_known_before_it_is_written(cache):
    files = [path for path in cache.folder.iterdir() if path.name.startswith("features-")]
    assert len(files) == 3
    on_disk = sum(path.stat().st_size for path in files)
    assert cache.nbytes <= on_disk <= cache.nbytes + 512 * len(files)  # the heads of the files
    assert "features of 7 of 7 images" in cache.describe()


def test_the_size_for_dior_and_a_real_model(data, tmp_path):
    """The figure that the documentation states: ViT-B/32 on the 11,725 trainval images of DIOR."""
    clip = load_clip("ViT-B-32", "random", device="cpu")
    cache = FeatureCache(clip, data, tmp_path)
    assert cache.record.itemsize == 20 * 49 * 4 + 3 * 49 * 768 * 2 + 3 * 128 * 128 == 278_864
    assert round(cache.record.itemsize * 11_725 / 1e9, 2) == 3.27


def test_a_disk_that_is_too_small(tiny, data, tmp_path, monkeypatch):
    cache = FeatureCache(tiny, data, tmp_path, picture_size=PICTURE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, cache.nbytes - 1))
    with pytest.raises(OutputError, match="GB are free"):
        cache.compute()
    assert not list(tmp_path.iterdir())


def test_all_caches_must_fit_before_the_first_is_computed(tiny, data, tmp_path, monkeypatch):
    caches = [FeatureCache(tiny, data, tmp_path, picture_size=size) for size in (PICTURE, 2 * PICTURE)]
    usage = namedtuple("usage", "total used free")
    needed = sum(cache.nbytes for cache in caches)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    for cache in caches:
        check_disk([cache])
    with pytest.raises(OutputError, match="GB are free"):
        check_disk(caches)
    caches[0].compute()
    check_disk(caches)  # what is there already needs no room


def test_a_full_disk_leaves_no_shard(tiny, data, tmp_path, monkeypatch):
    cache = FeatureCache(tiny, data, tmp_path, picture_size=PICTURE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        cache.compute()
    assert not [path for path in tmp_path.rglob("*features-*") if path.is_file()]


@pytest.mark.parametrize(
    "other",
    [{"kind": "standard"}, {"similarity": "surgery"}, {"layers": 2}, {"picture_size": 32}, {"templates": ["{}"]}],
)
def test_another_question_is_another_cache(cache, tiny, data, kept, other):
    found = FeatureCache(tiny, data, kept, **{"picture_size": PICTURE, **other})
    assert found.folder != cache.folder
    with pytest.raises(CacheError, match=next(iter(other))):
        FeatureCache(tiny, data, kept, folder=cache.folder, **{"picture_size": PICTURE, **other})


def test_a_cache_of_other_weights_classes_or_boxes_is_refused(cache, tiny, data, kept, tmp_path):
    other = write_model(tmp_path / "other", seed=8)
    model = load_clip(f"local-dir:{other}", str(other / "model.safetensors"), device="cpu", depth=3)
    boxes = data.boxes.copy()
    boxes.loc[0, "xmin"] -= 1
    for what, clip, dataset in (
        ("weights_sha256", model, data),
        ("annotations_sha256", tiny, replace(data, boxes=boxes)),
        ("classes", tiny, replace(data, classes=(*data.classes[:-1], "mill"))),
    ):
        with pytest.raises(CacheError, match=what) as raised:
            FeatureCache(clip, dataset, kept, picture_size=PICTURE, folder=cache.folder)
        assert "\n" not in str(raised.value)


def test_features_too_large_for_16_bits(tiny, data, tmp_path, monkeypatch):
    encode = tiny.encode_image
    monkeypatch.setattr(
        tiny, "encode_image", lambda *args: replace(encode(*args), features=encode(*args).features * 1e6)
    )
    with pytest.raises(CheckpointError, match="16-bit"):
        FeatureCache(tiny, data, tmp_path, picture_size=PICTURE).compute()


def test_arguments_that_cannot_be(tiny, data, tmp_path):
    for options, message in (
        ({"picture_size": 4}, "picture_size"),
        ({"layers": 9}, "layers"),
        ({"kind": "vv"}, "kind"),
        ({"similarity": "dot"}, "similarity"),
    ):
        with pytest.raises(ParameterError, match=message):
            FeatureCache(tiny, data, tmp_path, **options)
    images = data.images.assign(path="gone.jpg")
    with pytest.raises(ImageReadError, match="gone"):
        FeatureCache(tiny, replace(data, images=images), tmp_path)
    with pytest.raises(CacheError, match="compute the store first"):
        FeatureCache(tiny, data, tmp_path).read([0])


def test_no_images_and_no_boxes(tiny, data, tmp_path):
    none = replace(data, images=data.images.iloc[:0], boxes=data.boxes.iloc[:0])
    assert FeatureCache(tiny, none, tmp_path).compute().nbytes == 0
    without = FeatureCache(tiny, replace(data, boxes=data.boxes.iloc[:0]), tmp_path, picture_size=PICTURE).compute()
    reader = BatchReader(without)
    assert len(reader.usable) == reader.steps(4) == 0
    assert list(reader.epoch(1, batch_size=4, seed=0, augment=True)) == list(reader.in_order(4)) == []
    assert reader.batch([0, 1]).boxes[0].shape == (0, 4)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from surgerylib.engine import features
from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset
features.SHARD_IMAGES = 3
clip = load_clip(f"local-dir:{sys.argv[1]}", sys.argv[1] + "/model.safetensors", device="cpu", depth=3)
encode, calls = clip.encode_image, []
def killing(*args):
    calls.append(0)
    if len(calls) == 4:  # it runs ahead of the writing
        while not (any(Path(sys.argv[3]).rglob("features-*.npy")) and any(Path(sys.argv[3]).rglob(".features-*.part"))):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*args)
clip.encode_image = killing
features.FeatureCache(clip, load_dataset(sys.argv[2], "train"), sys.argv[3], picture_size=24).compute(batch_size=2)
"""


def test_a_killed_run_goes_on_behind_the_last_whole_shard(tiny, tiny_folder, root, data, kept, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(tiny_folder), str(root), str(tmp_path)]
    process = subprocess.run(arguments, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    (folder,) = tmp_path.iterdir()
    whole = {path.name: path.stat().st_mtime_ns for path in folder.glob("features-*.npy")}
    assert list(whole) == ["features-00000.npy"]
    assert len(list(folder.glob(".features-*.part"))) == 1
    cache = FeatureCache(tiny, data, tmp_path, picture_size=PICTURE).compute(batch_size=2)
    assert (folder / "features-00000.npy").stat().st_mtime_ns == whole["features-00000.npy"]
    (undisturbed,) = kept.iterdir()
    for path in undisturbed.glob("*.npy"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert cache.folder == folder
    assert not list(folder.glob("*.part"))


def test_a_damaged_shard_is_named(copied):
    path = copied.path(3)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CacheError, match=r"features-00001\.npy"):
        copied.compute()
    with pytest.raises(CacheError, match=r"features-00001\.npy"):
        copied.read([3])


def test_the_hashes_are_those_of_the_files(copied):
    hashes = json.loads((copied.folder / "hashes.json").read_text())
    assert hashes == {path.name: file_sha256(path) for path in copied.folder.glob("features-*.npy")}
    path = copied.path(0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    with pytest.raises(CacheError, match="is not as it was written"):
        copied.compute()
    (copied.folder / "hashes.json").write_text("[")
    with pytest.raises(CacheError, match="does not parse"):
        copied.compute()


# ------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("symmetry", range(N_SYMMETRIES))
def test_boxes_turn_with_the_picture(symmetry):
    """A light rectangle, turned, has its bounding box where the turned box is."""
    picture = np.zeros((3, 20, 20))
    picture[:, 2:6, 8:18] = 1  # rows 2 to 6, columns 8 to 18
    rows, columns = np.nonzero(turn(picture, symmetry)[0])
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 20
    np.testing.assert_allclose(turn_boxes(np.array([[0.4, 0.1, 0.9, 0.3]]), symmetry), [found], atol=1e-12)


def test_the_symmetries_are_eight_different_ones():
    picture = np.arange(9).reshape(3, 3)
    assert len({turn(picture, symmetry).tobytes() for symmetry in range(N_SYMMETRIES)}) == N_SYMMETRIES


@pytest.mark.parametrize("symmetry", range(N_SYMMETRIES))
def test_picture_maps_features_and_boxes_turn_alike(cache, symmetry):
    """All parts of an image in one batch are the plain ones under the same symmetry, patch by patch."""
    reader = BatchReader(cache)
    plain, turned = reader.batch([2, 5]), reader.batch([2, 5], [symmetry, symmetry])
    h, w = cache.clip.grid
    for k in range(2):
        np.testing.assert_array_equal(turned.pictures[k], turn(plain.pictures[k].numpy(), symmetry))
        np.testing.assert_array_equal(turned.cam[k], turn(plain.cam[k].numpy(), symmetry))
        patches, others = (b.features[k].numpy().reshape(3, h, w, -1) for b in (plain, turned))
        for channel in range(0, patches.shape[-1], 13):
            np.testing.assert_array_equal(others[..., channel], turn(patches[..., channel], symmetry))
        np.testing.assert_allclose(turned.boxes[k], turn_boxes(plain.boxes[k].numpy(), symmetry), atol=1e-7)
        assert torch.equal(turned.labels[k], plain.labels[k])


def test_an_epoch_shows_each_image_once_and_can_be_taken_up_anywhere(cache):
    reader = BatchReader(cache)
    options = {"batch_size": 2, "seed": 5, "augment": True}
    whole = list(reader.epoch(3, **options))
    assert reader.steps(2) == len(whole) == 4
    assert sorted(np.concatenate([batch.positions for batch in whole])) == reader.usable.tolist()
    for first in range(5):
        rest = list(reader.epoch(3, first=first, **options))
        assert len(rest) == len(whole) - first
        for mine, theirs in zip(rest, whole[first:], strict=True):
            assert torch.equal(mine.pictures, theirs.pictures)
            assert torch.equal(mine.features, theirs.features)
            assert all(torch.equal(a, b) for a, b in zip(mine.boxes, theirs.boxes, strict=True))
    other = np.concatenate([batch.positions for batch in reader.epoch(4, **options)])
    assert other.tolist() != np.concatenate([batch.positions for batch in whole]).tolist()


def test_only_the_boxes_of_some_classes(cache):
    targets = cache.targets
    label = int(targets.label[0])
    reader = BatchReader(cache, [label])
    assert set(reader.usable) == set(targets.image[targets.label == label])
    for batch in reader.in_order(2):
        assert all((labels == label).all() and len(labels) for labels in batch.labels)
        assert (targets.label[batch.rows] == label).all()


def test_records_are_views_that_do_not_pile_up(cache):
    """What was read is given back to the system: no file stays mapped behind the records."""
    records = cache.read(range(N_IMAGES))
    assert all(record["features"].base is not None for record in records)

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("features-0000")

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    assert mapped() == 3
    del records
    assert mapped() == 0
