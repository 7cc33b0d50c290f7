"""A split read from its cache is the split as it is read; whatever has changed is seen; no cache file does harm."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dior_folders import LAYOUTS, annotation_dir, annotation_xml, image_file, split_file, write_dataset

from surgerylib.datasets.dataset import Dataset, load_dataset, remembered_reading
from surgerylib.datasets.dataset import dataset as datasets
from surgerylib.errors import AnnotationError, DatasetError
from surgerylib.workbook.session import Session

SPLITS = {
    "test": {
        "00001": [("ship", -3, 5, 70, 20), ("Golf Course", 1, 1, 9, 9)],  # clipped
        "00002": [],
        "00003": [("ship", 10, 10, 10, 20), ("vehicle", 0.5, 0.25, 64, 48)],  # dropped
        "00004": [("windmill", 30, 5, 38, 40)],
    },
    "train": {"00100": [("dam", 1, 1, 20, 20)]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_dataset(tmp_path / "data", splits=SPLITS)
    path = split_file(root, "test")
    path.write_text(path.read_text() + "00002\n")  # said twice
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def readings(monkeypatch) -> list[int]:
    """How many images each call that did read has read."""
    found: list[int] = []
    read = datasets.read_split

    def counting(*args):
        reading = read(*args)
        found.append(len(reading.image_ids))
        return reading

    monkeypatch.setattr(datasets, "read_split", counting)
    return found


def same(one: Dataset, other: Dataset) -> None:
    for name in ("images", "boxes", "repairs", "skipped"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
        assert getattr(one, name).dtypes.equals(getattr(other, name).dtypes)
    assert one.fingerprint() == other.fingerprint()
    names = ("name", "root", "split", "layout", "classes", "n_repeated", "n_clipped", "n_dropped")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def file_in(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("require_images", [True, False])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_split_from_its_cache_is_the_split_as_it_was_read(tmp_path, cache, readings, layout, require_images, policy):
    root = write_dataset(tmp_path / "data", layout, splits=SPLITS)
    options = {"require_images": require_images, "on_bad_image": policy}
    plain = load_dataset(root, "test", **options)
    first = load_dataset(root, "test", **options, cache_dir=cache)
    again = load_dataset(root, "test", **options, cache_dir=cache)
    assert readings == [4, 4]
    same(first, plain)
    same(again, plain)
    assert (again.n_clipped, again.n_dropped) == (1, 1)


def test_without_a_cache_nothing_is_remembered(root, readings):
    load_dataset(root, "test")
    load_dataset(root, "test")
    assert readings == [4, 4]


def test_a_split_without_any_box_is_remembered_too(root, cache, readings):
    split_file(root, "empty").write_text("00002\n")
    plain = load_dataset(root, "empty", require_images=False)
    for _ in range(2):
        same(load_dataset(root, "empty", require_images=False, cache_dir=cache), plain)
    assert readings == [1, 1]


def test_each_question_has_a_file_of_its_own(root, cache, readings):
    questions = [
        {"split": "test"}, {"split": "train"}, {"split": "test", "limit": 2},
        {"split": "test", "require_images": False},
        {"split": "test", "classes": ("ship", "golf course", "vehicle", "windmill")},
    ]  # fmt: skip
    answers = [load_dataset(root, **question, cache_dir=cache) for question in questions]
    assert len(list(cache.iterdir())) == len(readings) == 5
    for question, answer in zip(questions, answers, strict=True):
        same(load_dataset(root, **question, cache_dir=cache), answer)
    assert len(readings) == 5
    assert answers[4].boxes["label"].tolist() == ["ship", "golf course", "vehicle", "windmill"]


def test_a_dataset_is_the_same_by_whatever_way_it_is_named(root, cache, readings, monkeypatch):
    load_dataset(root, "test", cache_dir=cache)
    monkeypatch.chdir(root.parent)
    found = load_dataset(root.name, "test", cache_dir=cache)
    assert found.images["path"].tolist()[0] == "data/JPEGImages-test/00001.jpg"
    monkeypatch.chdir(root)
    assert load_dataset(".", "test", cache_dir=cache).name == "data"
    assert readings == [4]


# ---- what has changed


def annotate(path: Path, boxes: list) -> None:
    path.write_text(annotation_xml(path.stem, boxes))


def annotation_of_the_same_size_and_time(root):
    path = annotation_dir(root) / "00004.xml"
    before = path.stat()
    path.write_text(path.read_text().replace("<xmax>38<", "<xmax>39<"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def annotation_put_in_place_of_another(root):
    new = root / "new.xml"
    annotate(new, [("windmill", 30, 5, 38, 41)])
    new.replace(annotation_dir(root) / "00004.xml")


def annotation_touched(root):
    os.utime(annotation_dir(root) / "00004.xml")


def image_written_again(root):
    path = image_file(root, "test", "00003")
    path.write_bytes(path.read_bytes() + b"\0")


def image_moved(root):
    path = image_file(root, "test", "00003")
    path.rename(image_file(root, "train", "00003"))


def image_with_another_ending(root):
    path = image_file(root, "test", "00003")
    path.rename(path.with_suffix(".jpeg"))


def split_in_another_order(root):
    split_file(root, "test").write_text("00004\n00003\n00002\n00001\n")


def split_that_is_shorter(root):
    split_file(root, "test").write_text("00001\n00004\n")


CHANGES = [
    annotation_of_the_same_size_and_time, annotation_put_in_place_of_another, annotation_touched, image_written_again,
    image_moved, image_with_another_ending, split_in_another_order, split_that_is_shorter,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_has_changed_is_read_again_and_the_file_replaced(root, cache, readings, change):
    load_dataset(root, "test", cache_dir=cache)
    path, before = file_in(cache), file_in(cache).read_bytes()
    change(root)
    plain = load_dataset(root, "test")
    same(load_dataset(root, "test", cache_dir=cache), plain)
    assert len(readings) == 3
    assert file_in(cache) == path
    assert path.read_bytes() != before
    same(load_dataset(root, "test", cache_dir=cache), plain)
    assert len(readings) == 3


def test_what_other_code_has_read_is_read_again(root, cache, readings, monkeypatch):
    load_dataset(root, "test", cache_dir=cache)
    monkeypatch.setattr(remembered_reading, "source_sha256", lambda names: "another")
    for _ in range(2):
        load_dataset(root, "test", cache_dir=cache)
    assert readings == [4, 4]
    assert len(list(cache.iterdir())) == 1


def test_the_code_that_decides_is_all_there():
    folder = Path(remembered_reading.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in remembered_reading._CODE)


def test_another_dataset_in_the_same_place_is_read(root, cache, tmp_path, readings):
    load_dataset(root, "test", cache_dir=cache)
    shutil.rmtree(root)
    write_dataset(root, "VOC", splits={"test": {name: [("dam", 1, 1, 5, 5)] for name in SPLITS["test"]}})
    found = load_dataset(root, "test", cache_dir=cache)
    assert set(found.boxes["label"]) == {"dam"}
    assert len(readings) == 2


def test_what_changes_while_it_is_read_is_not_believed_later(root, cache, readings, monkeypatch):
    path, read = annotation_dir(root) / "00004.xml", datasets.read_split

    def slow(*args):
        reading = read(*args)
        annotate(path, [("windmill", 1, 1, 2, 2)])
        return reading

    monkeypatch.setattr(datasets, "read_split", slow)
    load_dataset(root, "test", cache_dir=cache)
    monkeypatch.setattr(datasets, "read_split", read)
    assert load_dataset(root, "test", cache_dir=cache).boxes["xmax"].iloc[-1] == 2


# ---- what is not remembered


def test_a_missing_annotation_is_an_error_with_the_cache_there(root, cache):
    load_dataset(root, "test", cache_dir=cache)
    (annotation_dir(root) / "00002.xml").unlink()
    with pytest.raises(AnnotationError, match=r"no annotation file .*00002\.xml"):
        load_dataset(root, "test", cache_dir=cache)
    image_file(root, "test", "00001").unlink()
    with pytest.raises(DatasetError, match="names 1 image not in"):
        load_dataset(root, "test", cache_dir=cache)


def test_nothing_is_remembered_of_a_split_with_damage(root, cache, readings):
    image_file(root, "test", "00001").write_bytes(b"")
    for _ in range(2):
        assert len(load_dataset(root, "test", on_bad_image="skip", decode=False, cache_dir=cache).skipped) == 1
    assert readings == [3, 3]
    assert not list(cache.iterdir())


def test_links_are_followed_anew_each_time(root, cache, readings):
    path = annotation_dir(root) / "00001.xml"
    path.rename(root / "elsewhere.xml")
    path.symlink_to(root / "elsewhere.xml")
    for _ in range(2):
        assert len(load_dataset(root, "test", cache_dir=cache).images) == 4
    assert readings == [4, 4]
    assert not list(cache.iterdir())


def test_folders_that_are_links_are_no_hindrance(root, cache, readings, tmp_path):
    for name in ("JPEGImages-test", "Annotations"):
        (root / name).rename(tmp_path / name)
        (root / name).symlink_to(tmp_path / name)
    for _ in range(2):
        load_dataset(root, "test", cache_dir=cache)
    assert readings == [4]


# ---- the collector of garbage


def test_the_collector_of_garbage_is_left_as_it_was(root):
    for broken in (False, True):
        if broken:
            annotate(annotation_dir(root) / "00004.xml", [("windmill", 3, 1, 2, 2)])
        with pytest.raises(AnnotationError) if broken else contextlib.nullcontext():
            load_dataset(root, "test")
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        load_dataset(root, "train")
        assert gc.get_freeze_count() > 0  # somebody else's
    finally:
        gc.unfreeze()


# ---- the folder and the file


def test_whoever_only_looks_makes_no_folder(root, tmp_path):
    load_dataset(root, "test", cache_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_no_error(root, cache, readings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    load_dataset(root, "test", cache_dir=tmp_path / "file")
    load_dataset(root, "test", cache_dir=f"{tmp_path}/{'x' * 5000}")

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    for _ in range(2):
        load_dataset(root, "test", cache_dir=cache)
    assert readings == [4, 4, 4, 4]
    assert not list(cache.iterdir())


def test_a_folder_in_place_of_the_file_is_no_error(root, cache, readings):
    load_dataset(root, "test", cache_dir=cache)
    path = file_in(cache)
    path.unlink()
    path.mkdir()
    load_dataset(root, "test", cache_dir=cache)
    assert readings == [4, 4]
    assert [entry.name for entry in cache.iterdir()] == [path.name]


def foreign() -> dict[str, bytes]:
    """Files that were never written by us."""
    archive, array = io.BytesIO(), io.BytesIO()
    np.savez(archive, something=np.arange(3))
    np.save(array, np.arange(3))
    return {
        "empty": b"", "text": b"{}", "another archive": archive.getvalue(), "an array": array.getvalue(),
        "a pickle": pickle.dumps({"question": 3}), "the start of an archive": b"PK\x03\x04" + bytes(100),
    }  # fmt: skip


@pytest.mark.parametrize("name", foreign())
def test_a_foreign_file_is_replaced(root, cache, readings, name):
    plain = load_dataset(root, "test", cache_dir=cache)
    path = file_in(cache)
    whole = path.read_bytes()
    path.write_bytes(foreign()[name])
    same(load_dataset(root, "test", cache_dir=cache), plain)
    assert len(readings) == 2
    same(load_dataset(root, "test", cache_dir=cache), plain)
    assert len(readings) == 2
    assert len(path.read_bytes()) == len(whole)


def test_a_damaged_file_gives_nothing_else_than_what_was_read(root, cache):
    plain = load_dataset(root, "test", cache_dir=cache)
    path = file_in(cache)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(0, len(whole), 151), *rng.integers(0, len(whole), 20)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        for content in (bytes(flipped), whole[:at]):
            path.write_bytes(content)
            same(load_dataset(root, "test", cache_dir=cache), plain)


def test_a_pickle_in_the_file_is_not_run(root, cache, tmp_path):
    load_dataset(root, "test", cache_dir=cache)
    np.savez(file_in(cache), question=np.array([Touch(tmp_path / "touched")], dtype=object))
    load_dataset(root, "test", cache_dir=cache)
    assert not (tmp_path / "touched").exists()


class Touch:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_session_remembers_its_other_splits_in_its_cache(root, cache, readings, monkeypatch):
    whole = load_dataset(root, "test")
    session = Session(whole, None, cache.parent, cache, {"seed": 0, "on_bad_image": "error"}, 0.0, root, whole)
    for _ in range(2):
        session.other_split("train")
    assert readings == [4, 1]
    assert {path.name.split("-")[0] for path in cache.iterdir()} == {"reading", "checked_images.json"}
