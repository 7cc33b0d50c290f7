"""Procedural scenes: the same from the same seed, boxes that fit, DIOR's layout, and folders left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from defusedxml.ElementTree import parse

from surgerylib.datasets import load_dataset
from surgerylib.embedded import scenes
from surgerylib.embedded.canvas import Canvas, Frame
from surgerylib.embedded.objects import DRAWERS
from surgerylib.embedded.scenes import CLASSES, STREAMS, render_scene, scene_rng, write_scenes
from surgerylib.errors import OutputError, ParameterError
from surgerylib.files import aside_prefix
from surgerylib.words import DIOR_CLASSES

SMALL = {"num_train": 3, "num_val": 1, "num_test": 2, "size": 128}


@pytest.fixture(scope="module")
def sample():
    return [render_scene(scene_rng(5, "train", index), 160) for index in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", **SMALL)


def test_registry_is_dior():
    assert CLASSES == DIOR_CLASSES


def test_same_seed_same_scene_bit_for_bit():
    for seed in (1, 2):
        a, b = render_scene(seed, 192), render_scene(np.random.default_rng(seed), 192)
        assert a.image.tobytes() == b.image.tobytes()
        assert a.boxes_xyxy.tobytes() == b.boxes_xyxy.tobytes()
        assert a.labels == b.labels
    assert render_scene(1, 192).image.tobytes() != render_scene(2, 192).image.tobytes()


def test_threads_do_not_change_a_scene():
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = render_scene(3, 448).image.tobytes()
    finally:
        cv2.setNumThreads(threads)
    assert render_scene(3, 448).image.tobytes() == alone


def test_streams_share_no_scene():
    images = {render_scene(scene_rng(0, stream, 0), 96).image.tobytes() for stream in STREAMS}
    assert len(images) == len(STREAMS)


def test_boxes_lie_inside_and_are_no_slivers(sample):
    for scene in sample:
        assert scene.image.shape == (160, 160, 3)
        assert scene.image.dtype == np.uint8
        assert scene.boxes_xyxy.shape == (len(scene.labels), 4)
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy <= 160).all()
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 2).all()


def test_every_class_appears_soon_and_scenes_are_mixed(sample):
    assert {label for scene in sample for label in scene.labels} == set(DIOR_CLASSES)
    assert np.mean([len(set(scene.labels)) for scene in sample]) > 2
    assert min(len(scene.labels) for scene in sample) >= 1


@pytest.mark.parametrize("name", DIOR_CLASSES)
def test_box_is_tight_around_the_drawn_object(name):
    canvas = Canvas(448, sun=(0.5, 0.3), shade=1.0)  # shade 1: shadows leave no trace
    canvas.image[:] = (255, 0, 255)
    frame = Frame(canvas, 224, 224, 0.6, 60)
    DRAWERS[name](frame, np.random.default_rng(4))
    drawn = np.abs(canvas.image.astype(int) - (255, 0, 255)).sum(-1) > 40
    points = np.concatenate(frame.extent)
    low, high = np.floor(points.min(0)), np.ceil(points.max(0))
    x0, y0, x1, y1 = *low.astype(int), *high.astype(int)
    for side in (
        drawn[y0 : y0 + 3, x0:x1],
        drawn[y1 - 3 : y1, x0:x1],
        drawn[y0:y1, x0 : x0 + 3],
        drawn[y0:y1, x1 - 3 : x1],
    ):
        assert side.any()


def test_size_too_small():
    with pytest.raises(ParameterError, match="at least 64"):
        render_scene(0, 32)


def test_layout_is_dior(folder):
    ids = {split: (folder / f"ImageSets/Main/{split}.txt").read_text().split() for split in ("train", "val", "test")}
    assert ids == {"train": ["00001", "00002", "00003"], "val": ["00004"], "test": ["00005", "00006"]}
    assert sorted(path.name for path in (folder / "JPEGImages-test").iterdir()) == ["00005.jpg", "00006.jpg"]
    assert len(list((folder / "JPEGImages-trainval").iterdir())) == 4
    root = parse(folder / "Annotations/Horizontal Bounding Boxes/00005.xml").getroot()
    scene = render_scene(scene_rng(0, "test", 0), 128)
    assert root.findtext("filename") == "00005.jpg"
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == ["128", "128", "3"]
    assert [o.findtext("name") for o in root.iter("object")] == list(scene.labels)
    boxes = [[float(b.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")] for b in root.iter("bndbox")]
    assert np.array_equal(np.array(boxes).reshape(-1, 4), scene.boxes_xyxy)
    image = cv2.imread(str(folder / "JPEGImages-test/00005.jpg"))[..., ::-1]
    assert np.abs(image.astype(int) - scene.image).mean() < 6  # RGB was not mixed up on the way


def test_our_own_reader_takes_it(folder):
    dataset = load_dataset(folder, "test")
    assert len(dataset.images) == 2
    assert dataset.n_clipped == dataset.n_dropped == 0


def test_second_call_returns_at_once(folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(scenes, "render_scene", None)
    assert write_scenes(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_replace_what_was_written_here(tmp_path):
    write_scenes(tmp_path / "s", num_train=2, num_val=0, num_test=0, size=96)
    write_scenes(tmp_path / "s", num_train=1, num_val=0, num_test=0, size=96)
    assert (tmp_path / "s/ImageSets/Main/train.txt").read_text() == "00001\n"
    assert len(list((tmp_path / "s/JPEGImages-trainval").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("manifest", [None, "not JSON", json.dumps({"generator": "another"})])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, manifest):
    (tmp_path / "thesis.txt").write_text("mine")
    if manifest is not None:
        (tmp_path / "scenes.json").write_text(manifest)
    with pytest.raises(OutputError, match="not generated scenes"):
        write_scenes(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_generated_folder_with_a_file_of_the_user_is_refused(tmp_path):
    write_scenes(tmp_path / "s", num_train=1, num_val=0, num_test=0, size=96)
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not generated scenes"):
        write_scenes(tmp_path / "s", **SMALL)


def test_empty_folder_is_taken(tmp_path):
    assert write_scenes(tmp_path, num_train=0, num_val=0, num_test=1, size=96) == tmp_path
    assert (tmp_path / "scenes.json").is_file()


def test_interrupted_writing_leaves_no_folder(tmp_path, monkeypatch):
    real, calls = render_scene, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(scenes, "render_scene", stops)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "s", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_killed_while_it_replaces_a_folder_no_half_of_it_is_taken_for_whole(tmp_path, monkeypatch):
    """The former folder was deleted piece by piece under its name; half gone, it passed for the scenes it had been."""
    former = {"num_train": 2, "num_val": 0, "num_test": 0, "size": 96}
    write_scenes(tmp_path / "s", **former)

    class KilledError(BaseException):
        pass

    def killed(folder, **_):
        for path in sorted(folder.rglob("*.jpg"))[:1]:
            path.unlink()
        raise KilledError

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledError):
        write_scenes(tmp_path / "s", **{**former, "num_train": 3})
    monkeypatch.undo()
    write_scenes(tmp_path / "s", **former)
    assert len(list((tmp_path / "s/JPEGImages-trainval").iterdir())) == 2


def test_what_a_killed_drawing_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = f"{aside_prefix('s')}abcd_123.partial"
    (tmp_path / living.replace(f"-{os.getpid()}-", f"-{gone.pid}-") / "fresh").mkdir(parents=True)
    (tmp_path / living).mkdir()
    write_scenes(tmp_path / "s", num_train=1, num_val=0, num_test=0, size=96)
    assert {path.name for path in tmp_path.iterdir()} == {"s", living}


def test_two_that_draw_the_same_scenes_at_once_both_have_them(tmp_path, monkeypatch):
    """Two first runs at once: the slower one failed, as the folder was not empty any more."""
    settings = {"num_train": 1, "num_val": 0, "num_test": 0, "size": 96}
    draw, calls = scenes._write_all, []

    def overtaken(*arguments):
        calls.append(1)
        if len(calls) == 1:
            write_scenes(tmp_path / "s", **settings)
        return draw(*arguments)

    monkeypatch.setattr(scenes, "_write_all", overtaken)
    assert write_scenes(tmp_path / "s", **settings) == tmp_path / "s"
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_scenes(tmp_path / "file" / "scenes", **SMALL)
    with pytest.raises(ParameterError, match="negative"):
        write_scenes(tmp_path / "s", num_train=-1)
