from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from refusals import each_refused
from tiny_models import shards_of

from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.engine.features import BatchReader, FeatureCache, turn, turn_boxes
from surgerylib.engine.recipes import features
from surgerylib.engine.tasks import N_SYMMETRIES
from surgerylib.errors import CacheError, CheckpointError, ParameterError
from surgerylib.heatmaps import Setting, heatmaps
from surgerylib.words import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names

N_IMAGES, SHARD_IMAGES, PICTURE = 7, 3, 24


@pytest.fixture(scope="module")
def data(training_root) -> Dataset:
    return load_dataset(training_root, "train", limit=N_IMAGES)


@pytest.fixture(scope="module")
def cache(tiny, data, tmp_path_factory) -> FeatureCache:
    with shards_of(SHARD_IMAGES):
        return FeatureCache(tiny, data, tmp_path_factory.mktemp("kept"), picture_size=PICTURE).compute(batch_size=2)


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
    reader, boxes = BatchReader(cache), data.boxes
    assert data.images["image_id"].iloc[reader.image].tolist() == boxes["image_id"].tolist()
    assert [data.classes[label] for label in reader.label] == boxes["label"].tolist()
    corners = boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy()
    np.testing.assert_allclose(reader.boxes_xyxy * 96, corners, atol=1e-4)
    assert len(reader.rows) == N_IMAGES
    assert np.concatenate(reader.rows).tolist() == list(range(len(boxes)))


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


def test_what_cannot_be_kept_or_is_not_there(tiny, data, tmp_path, monkeypatch):
    large, encode = FeatureCache(tiny, data, tmp_path, picture_size=PICTURE), tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda *a: replace(encode(*a), features=encode(*a).features * 1e6))
    each_refused(
        (large.compute, CheckpointError, "16 bits do not hold them"),
        (lambda: large.read([0]), CacheError, "compute the store first"),
        (lambda: FeatureCache(tiny, data, tmp_path, picture_size=4), ParameterError, "picture_size"),
    )


def test_no_images_and_no_boxes(tiny, data, tmp_path):
    none = replace(data, images=data.images.iloc[:0], boxes=data.boxes.iloc[:0])
    assert FeatureCache(tiny, none, tmp_path).compute().nbytes == 0
    without = FeatureCache(tiny, replace(data, boxes=data.boxes.iloc[:0]), tmp_path, picture_size=PICTURE).compute()
    reader = BatchReader(without)
    assert len(reader.usable) == 0
    assert reader.batch([0, 1]).boxes[0].shape == (0, 4)


# ------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("symmetry", range(N_SYMMETRIES))
def test_picture_maps_features_and_boxes_turn_alike(cache, symmetry):
    """All parts of an image in one batch are the plain ones under the same symmetry, patch by patch; and a light
    rectangle, turned, has its bounding box where the turned box is."""
    picture = np.zeros((3, 20, 20))
    picture[:, 2:6, 8:18] = 1  # rows 2 to 6, columns 8 to 18
    rows, columns = np.nonzero(turn(picture, symmetry)[0])
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 20
    np.testing.assert_allclose(turn_boxes(np.array([[0.4, 0.1, 0.9, 0.3]]), symmetry), [found], atol=1e-12)
    reader = BatchReader(cache)
    plain, turned = reader.batch([2, 5]), reader.batch([2, 5], [symmetry, symmetry])
    for name in ("pictures", "cam"):
        np.testing.assert_array_equal(getattr(turned, name), turn(getattr(plain, name).numpy(), symmetry))
    patches, others = (b.features.numpy().reshape(2, 3, *cache.clip.grid, -1) for b in (plain, turned))
    for channel in range(0, patches.shape[-1], 13):
        np.testing.assert_array_equal(others[..., channel], turn(patches[..., channel], symmetry))
    for k in range(2):
        np.testing.assert_allclose(turned.boxes[k], turn_boxes(plain.boxes[k].numpy(), symmetry), atol=1e-7)
        assert torch.equal(turned.labels[k], plain.labels[k])


def test_records_are_views_that_do_not_pile_up(cache):
    """What was read is given back to the system: no file stays mapped behind the records."""
    records = cache.read(range(N_IMAGES))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert maps.read_text().count("features-0000") == 3
    del records
    assert "features-0000" not in maps.read_text()
