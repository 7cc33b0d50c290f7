from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from surgerylib.boxes import extract_boxes
from surgerylib.datasets import load_dataset, read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import store as store_module
from surgerylib.engine.evaluate import DETECTION_COLUMNS, DetectionSettings, detect, image_heatmaps
from surgerylib.errors import ImageReadError, ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS
from surgerylib.words import prompt_names


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, num_train=1, num_val=1, num_test=5, size=96)


@pytest.fixture
def data(scenes):
    return load_dataset(scenes, "test")


def test_detections_are_extract_boxes_of_every_class_kind_and_image(tiny, data):
    settings = DetectionSettings(similarity="surgery", last_layers=2, percentile=80)
    found = detect(tiny, data, settings, batch_size=2)
    assert tuple(found.columns) == DETECTION_COLUMNS
    text = tiny.encode_text(prompt_names(data.classes), settings.templates)
    for row in data.images.itertuples():
        maps = image_heatmaps(tiny, read_image(row.path), text, settings)
        for kind in HEATMAP_KINDS:
            for index in (0, 7, 19):
                expected = extract_boxes(maps[kind][index], (row.width, row.height), percentile=80)
                same = found.query("image_id == @row.image_id and kind == @kind and label == @data.classes[@index]")
                # a batch of another size may round a similarity differently in the last bit
                np.testing.assert_allclose(same[list(DETECTION_COLUMNS[2:7])], expected, atol=1e-4)


def test_a_floor_leaves_maps_below_it_without_a_box(tiny, data):
    plain = detect(tiny, data)
    floor = float(plain["score"].quantile(0.9))
    found = detect(tiny, data, DetectionSettings(floor=floor))
    pairs = [frame.groupby(["kind", "image_id", "label"]).ngroups for frame in (found, plain)]
    assert 0 < pairs[0] < pairs[1]
    text = tiny.encode_text(prompt_names(data.classes))
    image = data.images.iloc[0]
    maps = image_heatmaps(tiny, read_image(image["path"]), text, DetectionSettings())["vv_mixed"]
    for index in range(len(data.classes)):
        expected = extract_boxes(maps[index], (image["width"], image["height"]), floor=floor)
        same = found.query("image_id == @image.image_id and kind == 'vv_mixed' and label == @data.classes[@index]")
        np.testing.assert_allclose(same[list(DETECTION_COLUMNS[2:7])], expected, atol=1e-4)


def test_kinds_of_one_source_share_their_boxes(tiny, data):
    found = detect(tiny, data)
    by_kind = {kind: frame.drop(columns="kind").reset_index(drop=True) for kind, frame in found.groupby("kind")}
    pd.testing.assert_frame_equal(by_kind["standard"], by_kind["vv_qk"])
    pd.testing.assert_frame_equal(by_kind["vv_vv"], by_kind["vv_mixed"])
    assert not by_kind["standard"].equals(by_kind["vv_vv"])


def test_a_rerun_continues_behind_the_last_whole_shard(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_IMAGES", 2)
    undisturbed = detect(tiny, data, batch_size=2)
    encode, calls = tiny.encode_image, []

    def killed_once_at_the_last_batch(*args, **kwargs):
        calls.append(len(args[0]))  # several at once: those before it may begin after it
        if len(args[0]) == 1 and calls.count(1) == 1:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(tiny, "encode_image", killed_once_at_the_last_batch)
    with pytest.raises(KeyboardInterrupt):
        detect(tiny, data, cache_dir=tmp_path, batch_size=2)
    assert sorted(calls) == [1, 2, 2]
    continued = detect(tiny, data, cache_dir=tmp_path, batch_size=2)
    assert calls[3:] == [1]  # the two whole shards were not computed again
    pd.testing.assert_frame_equal(continued, undisturbed)
    pd.testing.assert_frame_equal(detect(tiny, data, cache_dir=tmp_path, batch_size=2), undisturbed)
    assert len(calls) == 4
    assert not list(tmp_path.rglob("*.part"))


def test_another_setting_or_another_image_is_not_taken_from_the_cache(tiny, scenes, data, tmp_path):
    detect(tiny, data, cache_dir=tmp_path)
    detect(tiny, data, DetectionSettings(templates=("{}",)), cache_dir=tmp_path)
    assert len(list(tmp_path.glob("heatmaps-*"))) == 2
    path = Path(data.images["path"].iloc[0])
    before = path.read_bytes()
    try:
        cv2.imwrite(str(path), np.zeros((96, 96, 3), np.uint8))
        detect(tiny, load_dataset(scenes, "test"), cache_dir=tmp_path)
    finally:
        path.write_bytes(before)
    assert len(list(tmp_path.glob("heatmaps-*"))) == 3


def test_batch_size_and_workers_do_not_change_the_result(tiny, data):
    one = detect(tiny, data, batch_size=1, workers=1)
    many = detect(tiny, data, batch_size=5, workers=4)
    assert one[["image_id", "label", "kind"]].equals(many[["image_id", "label", "kind"]])
    np.testing.assert_allclose(one[["xmin", "ymin", "xmax", "ymax"]], many[["xmin", "ymin", "xmax", "ymax"]])
    np.testing.assert_allclose(one["score"], many["score"], atol=1e-5)


def test_a_damaged_image_stops_the_run_by_name(tiny, scenes, data):
    path = Path(data.images["path"].iloc[2])
    before = path.read_bytes()
    try:
        path.write_bytes(before[: len(before) // 2])
        with pytest.raises(ImageReadError, match=path.name):
            detect(tiny, data)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "bad", [{"kinds": ("vv",)}, {"kinds": ()}, {"similarity": "dot"}, {"percentile": 100}, {"floor": "x"}]
)
def test_settings_are_checked_before_any_work(bad):
    with pytest.raises(ParameterError):
        DetectionSettings(**bad)


def test_batch_size_zero(tiny, data):
    with pytest.raises(ParameterError, match="batch_size"):
        detect(tiny, data, batch_size=0)


def test_no_images(tiny, data):
    none = data.images.iloc[:0]
    empty = type(data)(**{**data.__dict__, "images": none, "boxes": data.boxes.iloc[:0]})
    found = detect(tiny, empty)
    assert tuple(found.columns) == DETECTION_COLUMNS
    assert found.empty
    assert torch.is_tensor(tiny.encode_text(["ship"]))
