"""Procedural scenes: the same from the same seed, boxes that fit, DIOR's layout, and folders left alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from refusals import each_refused, refused

from surgerylib.datasets import load_dataset, read_image
from surgerylib.embedded import scenes
from surgerylib.embedded.canvas import Canvas, Frame
from surgerylib.embedded.rules import CLASSES, RULES
from surgerylib.embedded.scenes import render_scene, scene_rng, write_scenes
from surgerylib.errors import OutputError, ParameterError
from surgerylib.files import aside_prefix
from surgerylib.matching import BOX_COLUMNS
from surgerylib.words import DIOR_CLASSES

SMALL = {"num_train": 3, "num_val": 1, "num_test": 2, "size": 128}
ONE = {"num_train": 1, "num_val": 0, "num_test": 0, "size": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", **SMALL)


def test_a_version_of_the_scenes_draws_them_bit_for_bit():
    assert scenes.VERSION == 1, "another version: take its digests"
    for stream, index, size, digest in (
        ("train", 0, 448, "b8dfb87aca5fe7f7269a858309957ade1b351be0f3d3d9c5cb2ade4a4b783945"),
        ("val", 1, 160, "9f64a7b3ab030d7f9d3186c315e647030753dfe4782b7828f5ca09a0de2abfe7"),
        ("test", 2, 96, "a37967d2f4f96ca8bb2b0c443d96d0579b14c271c0a08405755722a1b3811a43"),
    ):
        scene = render_scene(scene_rng(0, stream, index), size)
        drawn = scene.image.tobytes() + scene.boxes_xyxy.tobytes() + ",".join(scene.labels).encode()
        assert hashlib.sha256(drawn).hexdigest() == digest


def test_scenes_hold_every_class_in_boxes_that_lie_inside_and_are_no_slivers():
    drawn = [render_scene(scene_rng(5, "train", index), 160) for index in range(40)]
    assert {label for scene in drawn for label in scene.labels} == set(CLASSES) == set(DIOR_CLASSES)
    for scene in drawn:
        assert scene.labels
        assert (scene.image.shape, scene.image.dtype) == ((160, 160, 3), np.uint8)
        assert scene.boxes_xyxy.shape == (len(scene.labels), 4)
        assert 0 <= scene.boxes_xyxy.min() <= scene.boxes_xyxy.max() <= 160
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 2).all()


@pytest.mark.parametrize("name", DIOR_CLASSES)
def test_box_is_tight_around_the_drawn_object(name):
    canvas = Canvas(448, sun=(0.5, 0.3), shade=1.0)  # shade 1: shadows leave no trace
    canvas.image[:] = (255, 0, 255)
    frame = Frame(canvas, 224, 224, 0.6, 60)
    RULES[name].draw(frame, np.random.default_rng(4))
    drawn = np.abs(canvas.image.astype(int) - (255, 0, 255)).sum(-1) > 40
    points = np.concatenate(frame.extent)
    low, high = np.floor(points.min(0)), np.ceil(points.max(0))
    x0, y0, x1, y1 = *low.astype(int), *high.astype(int)
    rows, columns = drawn[y0:y1, x0:x1].any(axis=1), drawn[y0:y1, x0:x1].any(axis=0)
    assert all(side.any() for line in (rows, columns) for side in (line[:3], line[-3:]))


def test_layout_is_dior(folder):
    ids = {split: (folder / f"ImageSets/Main/{split}.txt").read_text().split() for split in ("train", "val", "test")}
    assert ids == {"train": ["00001", "00002", "00003"], "val": ["00004"], "test": ["00005", "00006"]}
    assert sorted(path.name for path in (folder / "JPEGImages-test").iterdir()) == ["00005.jpg", "00006.jpg"]
    assert len(list((folder / "JPEGImages-trainval").iterdir())) == 4
    assert (folder / "Annotations/Horizontal Bounding Boxes/00005.xml").is_file()
    data, scene = load_dataset(folder, "test"), render_scene(scene_rng(0, "test", 0), 128)
    assert data.n_clipped == data.n_dropped == 0
    own = data.boxes[data.boxes["image_id"] == "00005"]
    assert own["label"].tolist() == list(scene.labels)
    assert np.array_equal(own[BOX_COLUMNS], scene.boxes_xyxy)
    image = read_image(data.images["path"][0])
    assert np.abs(image.astype(int) - scene.image).mean() < 6  # RGB was not mixed up on the way


def test_second_call_returns_at_once(folder, monkeypatch):
    # so it was called before this module moved: folders drawn then stay valid
    assert json.loads((folder / "scenes.json").read_text())["generator"] == "surgerylib.scenes"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(scenes, "render_scene", None)
    assert write_scenes(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("manifest", [None, "not JSON", json.dumps({"generator": "another"})])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, manifest):
    (tmp_path / "thesis.txt").write_text("mine")
    if manifest is not None:
        (tmp_path / "scenes.json").write_text(manifest)
    drawn = write_scenes(tmp_path / "s", **ONE)
    (drawn / "thesis.txt").write_text("mine")  # among scenes too
    for mine in (tmp_path, drawn):
        refused(lambda mine=mine: write_scenes(mine, **SMALL), OutputError, "not generated scenes")
        assert (mine / "thesis.txt").read_text() == "mine"


def test_killed_while_it_replaces_a_folder_no_half_of_it_is_taken_for_whole(tmp_path, monkeypatch):
    """The former folder was deleted piece by piece under its name; half gone, it passed for the scenes it had been."""
    former = ONE | {"num_train": 2}
    write_scenes(tmp_path / "s", **former)

    def killed(folder, **_):
        for path in sorted(folder.rglob("*.jpg"))[:1]:
            path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "s", **former | {"num_train": 3})
    monkeypatch.undo()
    write_scenes(tmp_path / "s", **former)
    assert len(list((tmp_path / "s/JPEGImages-trainval").iterdir())) == 2
    write_scenes(tmp_path / "s", **ONE)  # other settings replace what was written here
    assert (tmp_path / "s/ImageSets/Main/train.txt").read_text() == "00001\n"
    assert len(list((tmp_path / "s/JPEGImages-trainval").iterdir())) == 1


def test_what_a_killed_drawing_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = f"{aside_prefix('s')}abcd_123.partial"
    (tmp_path / living.replace(f"-{os.getpid()}-", f"-{gone.pid}-") / "fresh").mkdir(parents=True)
    (tmp_path / living).mkdir()
    write_scenes(tmp_path / "s", **ONE)
    assert {path.name for path in tmp_path.iterdir()} == {"s", living}


def test_two_that_draw_the_same_scenes_at_once_both_have_them(tmp_path, monkeypatch):
    """Two first runs at once: the slower one failed, as the folder was not empty any more."""
    draw, calls = scenes._write_all, []

    def overtaken(*arguments):
        calls.append(1)
        if len(calls) == 1:
            write_scenes(tmp_path / "s", **ONE)
        return draw(*arguments)

    monkeypatch.setattr(scenes, "_write_all", overtaken)
    assert write_scenes(tmp_path / "s", **ONE) == tmp_path / "s"
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_cannot_be_drawn_or_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    each_refused(
        (lambda: write_scenes(tmp_path / "file" / "scenes", **SMALL), OutputError, "cannot write scenes to"),
        (lambda: write_scenes(tmp_path / "s", num_train=-1), ParameterError, "negative"),
        (lambda: render_scene(0, 32), ParameterError, "at least 64"),
        (lambda: write_scenes(tmp_path / "s", size=32), ParameterError, "at least 64"),
    )
