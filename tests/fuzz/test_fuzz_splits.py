"""Split files: whatever bytes they hold, ids are bare names, or there is one line that says what is wrong."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import fuzz
from voc_target import ANNOTATIONS, IMAGE_ID, make_dataset, one_line

from surgerylib.datasets import load_dataset
from surgerylib.errors import DatasetError

ANNOTATION = "<annotation><size><width>8</width><height>6</height></size></annotation>"
# what a file name may be made of, without what a split file itself gives a meaning
IDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=12
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_dataset(tmp_path_factory.mktemp("data"))
    annotate(folder, [IMAGE_ID])
    return folder


def ids_of(root: Path, content: bytes) -> list[str] | str:
    """The ids that a split file with these bytes names, or the one line that refuses it."""
    (root / "ImageSets/Main/test.txt").write_bytes(content)
    try:
        dataset = load_dataset(root, "test", require_images=False)
    except DatasetError as error:
        return one_line(error)
    assert len(dataset.describe().splitlines()) == 1
    return dataset.images["image_id"].tolist()


def annotate(root: Path, ids: list[str]) -> None:
    for image_id in ids:
        (root / ANNOTATIONS / f"{image_id}.xml").write_text(ANNOTATION)


ODD = [
    b"", b"\xff\xfe0\x000\x00", b"..\n", b"/etc/passwd", b"a\\..\\b", b"C:\\secret", b"a\0b", b"x" * 5000, b"\x1b[2J\n",
    b"  .. \r\n", b"../secret 1\n..  1\n", b"00001 1\n../00001 -1\n", "\u2028..\u2029".encode(),
    "\ufeff\ufeff00001".encode(),
]  # fmt: skip


@fuzz(50)
@given(content=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(root, content):
    check_ids(root, content)


@pytest.mark.parametrize("content", ODD, ids=lambda content: ascii(content[:20]))
def test_odd_bytes(root, content):
    check_ids(root, content)


def check_ids(root: Path, content: bytes) -> None:
    """Bare names, each once, or one line."""
    found = ids_of(root, content)
    if isinstance(found, list):
        assert 0 < len(found) == len(set(found))
        for image_id in found:
            assert not set(image_id) & set("/\\\0\n\r")
            assert image_id == image_id.strip()
            assert image_id not in ("", ".", "..")
            assert (root / ANNOTATIONS / f"{image_id}.xml").resolve().parent == (root / ANNOTATIONS).resolve()


@fuzz(40)
@given(
    folders=st.lists(st.sampled_from(["..", ".", "", "etc", "JPEGImages", "C:"]), min_size=1, max_size=3),
    separator=st.sampled_from(["/", "\\"]),
    image_id=IDS,
    flag=st.sampled_from(["", " 1", "  0"]),
    end=st.sampled_from(["", "\n", "\r\n", "\u2028"]),
)
def test_a_path_for_an_id_is_refused(root, folders, separator, image_id, flag, end):
    line = separator.join([*folders, image_id]) + flag + end
    found = ids_of(root, line.encode())
    assert isinstance(found, str)
    assert "an id is a bare file name without folders" in found
    assert "'" in found or '"' in found  # shown as text, quoted


@fuzz(40)
@given(
    ids=st.lists(IDS.filter(lambda text: len(text.encode()) < 100 and text not in (".", "..")), min_size=1, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n\t\n", "\r\n\r\n"]),
    before=st.sampled_from(["", " ", "\t", "  "]),
    marked=st.booleans(),
    last=st.booleans(),
)
def test_ids_are_read_back_whatever_the_editor_made_of_the_lines(root, ids, end, before, marked, last):
    annotate(root, ids)
    content = end.join(before + image_id for image_id in ids) + (end if last else "")
    found = ids_of(root, (codecs.BOM_UTF8 if marked else b"") + content.encode())
    assert found == list(dict.fromkeys(ids))
