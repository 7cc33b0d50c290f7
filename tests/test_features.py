from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from refusals import refused
from tiny_models import shards_of

from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.feature_batches import N_SYMMETRIES, BatchReader, turn, turn_boxes
from surgerylib.engine.recipes import features
from surgerylib.errors import CacheError, CheckpointError, ParameterError
from surgerylib.heatmaps import Setting, heatmaps
from surgerylib.words import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names

N_IMAGES, SHARD_IMAGES, PICTURE = 7, 3, 24


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=N_IMAGES, num_val=2, num_test=1, size=96)


@pytest.fixture
def data(root) -> Dataset:
    return load_dataset(root, "train")


@pytest.fixture(scope="module")
def cache(tiny, root, tmp_path_factory) -> FeatureCache:
    folder = tmp_path_factory.mktemp("kept")
    with shards_of(SHARD_IMAGES):
        return FeatureCache(tiny, load_dataset(root, "train"), folder, picture_size=PICTURE).compute(batch_size=2)


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
    assert len(targets.image) == len(data.boxes)
    for row, box in enumerate(data.boxes.itertuples()):
        assert data.images["image_id"].iloc[targets.image[row]] == box.image_id
        assert data.classes[targets.label[row]] == box.label
        np.testing.assert_allclose(targets.boxes_xyxy[row] * 96, [box.xmin, box.ymin, box.xmax, box.ymax], atol=1e-4)
    rows = BatchReader(cache).rows
    assert len(rows) == N_IMAGES
    assert np.concatenate(rows).tolist() == list(range(len(data.boxes)))


def test_its_size_is_known_before_it_is_written(cache):
    files = [path for path in cache.folder.iterdir() if path.name.startswith("features-")]
    assert len(files) == 3
    on_disk = sum(path.stat().st_size for path in files)
    assert cache.nbytes <= on_disk <= cache.nbytes + 512 * len(files)  # the heads of the files
    assert "features of 7 of 7 images" in cache.describe()


def test_the_size_for_dior_and_a_real_model():
    """The figure that the documentation states: ViT-B/32 on the 11,725 trainval images of DIOR."""
    clip = SimpleNamespace(grid=(7, 7), feature_dim=768)
    size = features(clip, DIOR_CLASSES, Setting(layers=3), 128, PROMPT_TEMPLATES).record.itemsize
    assert size == 20 * 49 * 4 + 3 * 49 * 768 * 2 + 3 * 128 * 128 == 278_864
    assert round(size * 11_725 / 1e9, 2) == 3.27


def test_another_question_is_another_cache(tiny, data, tmp_path):
    others = (
        {}, {"setting": Setting("standard", layers=3)}, {"setting": Setting(similarity="surgery", layers=3)},
        {"setting": Setting(layers=2)}, {"picture_size": 32}, {"templates": ["{}"]},
    )  # fmt: skip
    caches = [FeatureCache(tiny, data, tmp_path, **{"picture_size": PICTURE, **other}) for other in others]
    assert len({cache.folder for cache in caches}) == 6


def test_features_too_large_for_16_bits(tiny, data, tmp_path, monkeypatch):
    encode = tiny.encode_image
    monkeypatch.setattr(
        tiny, "encode_image", lambda *args: replace(encode(*args), features=encode(*args).features * 1e6)
    )
    large = FeatureCache(tiny, data, tmp_path, picture_size=PICTURE)
    refused(large.compute, CheckpointError, "16 bits do not hold them")


def test_a_picture_that_cannot_be_and_a_cache_that_is_not_there(tiny, data, tmp_path):
    refused(lambda: FeatureCache(tiny, data, tmp_path, picture_size=4), ParameterError, "picture_size")
    refused(lambda: FeatureCache(tiny, data, tmp_path).read([0]), CacheError, "compute the store first")


def test_no_images_and_no_boxes(tiny, data, tmp_path):
    none = replace(data, images=data.images.iloc[:0], boxes=data.boxes.iloc[:0])
    assert FeatureCache(tiny, none, tmp_path).compute().nbytes == 0
    without = FeatureCache(tiny, replace(data, boxes=data.boxes.iloc[:0]), tmp_path, picture_size=PICTURE).compute()
    reader = BatchReader(without)
    assert len(reader.usable) == reader.steps(4) == 0
    assert list(reader.epoch(1, batch_size=4, seed=0, augment=True)) == list(reader.in_order(4)) == []
    assert reader.batch([0, 1]).boxes[0].shape == (0, 4)


# ------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("symmetry", range(N_SYMMETRIES))
def test_boxes_turn_with_the_picture(symmetry):
    """A light rectangle, turned, has its bounding box where the turned box is."""
    picture = np.zeros((3, 20, 20))
    picture[:, 2:6, 8:18] = 1  # rows 2 to 6, columns 8 to 18
    rows, columns = np.nonzero(turn(picture, symmetry)[0])
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 20
    np.testing.assert_allclose(turn_boxes(np.array([[0.4, 0.1, 0.9, 0.3]]), symmetry), [found], atol=1e-12)


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
