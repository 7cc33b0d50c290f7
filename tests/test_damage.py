"""Damaged images, one case a test: read all the same, stopped at, or left out and listed."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
from dior_folders import SIZE_WH, annotation_dir, annotation_xml, image_file, picture, split_file, write_dataset
from PIL import Image
from refusals import refused

from surgerylib.datasets import damage, load_dataset, read_image, sound
from surgerylib.datasets.images import check_decodes, image_size
from surgerylib.errors import AnnotationError, DatasetError, ImageReadError, ParameterError, UnknownClassError

SPLITS = {
    "test": {f"{i:05d}": [("ship", 4, 4, 20, 16), ("airplane", 10, 10, 30, 40)] for i in range(8)},
    "train": {"00100": [("ship", 1, 1, 20, 20)]},
}
VICTIM = "00003"


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", splits=SPLITS)


@pytest.fixture
def victim(root):
    return image_file(root, "test", VICTIM)


@pytest.fixture
def xml(root):
    return annotation_dir(root) / f"{VICTIM}.xml"


# ---- what is read all the same


RGB = Image.fromarray(picture(VICTIM, SIZE_WH))
MOVING = [RGB, RGB.rotate(180)]
COLOUR_MODES = {
    "greyscale": (RGB.convert("L"), "JPEG"),
    "RGBA": (RGB.convert("RGBA"), "PNG"),
    "palette": (RGB.convert("P"), "PNG"),
    "16-bit": (Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257), "PNG"),
    "CMYK": (RGB.convert("CMYK"), "JPEG"),
    "animated GIF": (MOVING, "GIF"),
    "animated PNG": (MOVING, "PNG"),
    "TIFF of several pages": (MOVING, "TIFF"),
    "WEBP": (RGB, "WEBP"),
}


@pytest.mark.parametrize("case", COLOUR_MODES)
def test_other_colour_modes_and_animations_are_read_whatever_the_ending(root, victim, case):
    """The content decides: each of them is written into a file that ends with .jpg."""
    image, form = COLOUR_MODES[case]
    first, *others = image if isinstance(image, list) else [image]
    options = {"save_all": True, "append_images": others} if others else {}
    first.save(victim, format=form, **options)
    data = sound(load_dataset(root, "test"))
    assert (len(data.images), len(data.skipped)) == (8, 0)
    read = read_image(victim)
    assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)
    grey = np.asarray(first).astype(float) / 257 if case == "16-bit" else np.asarray(first.convert("RGB")).mean(axis=2)
    assert np.abs(read.mean(axis=2) - grey).mean() < 12  # JPEG, CMYK and palettes lose a little


def test_exif_rotation_is_not_applied_as_boxes_count_in_stored_pixels(root, victim):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    RGB.save(victim, exif=exif, quality=95)
    assert tuple(sound(load_dataset(root, "test")).images.loc[3, ["width", "height"]]) == SIZE_WH
    assert read_image(victim).shape == (48, 64, 3)


@pytest.mark.parametrize("size_wh", [(1, 1), (4000, 30)])
def test_images_of_any_shape_are_read(root, victim, xml, size_wh):
    cv2.imwrite(str(victim), picture(VICTIM, size_wh)[:, :, ::-1])
    xml.write_text(annotation_xml(VICTIM, [("ship", 0, 0, *size_wh)], size_wh))
    data = sound(load_dataset(root, "test"))
    assert tuple(data.images.loc[3, ["width", "height"]]) == size_wh
    assert len(data.boxes) == 15  # one of its two


def test_folders_that_are_links_are_followed(root, tmp_path):
    images = root / "JPEGImages-test"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    assert len(sound(load_dataset(root, "test")).images) == 8


# ---- what is damaged: each case -> (what is done to the image and the annotation, the error, words of its message)


def break_in_the_middle(image):
    """Of the right length and with the right end, but a decoder can't read it: its header's tables are overwritten."""
    data = bytearray(image.read_bytes())
    at = data.index(b"\xff\xc4")  # the Huffman tables
    data[at + 5 : at + 21] = b"\xff" * 16
    image.write_bytes(data)


def make_a_bomb(image):
    """20,000 x 20,000 pixels in 51 kB: a PNG of one colour, 1 bit a pixel."""
    side, line = (20000).to_bytes(4, "big"), b"\0" * 2501
    header, pixels = side + side + bytes([1, 0, 0, 0, 0]), zlib.compress(line * 20000, 9)
    chunks = [
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    ]
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def shorten(path, n=20):
    path.write_bytes(path.read_bytes()[:-n])


def make_a_pipe(path):
    """Reading it would wait for somebody to write."""
    path.unlink()
    os.mkfifo(path)


def move_out(path):
    """What was there stands outside of the dataset, and a link in its place."""
    root = next(folder for folder in path.parents if folder.name == "data")
    path.symlink_to(path.rename(root.parent / f"private{path.suffix}"))


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


SECRET = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
TURNED = picture(VICTIM, SIZE_WH[::-1])[:, :, ::-1]
DAMAGED_IMAGE = {
    "truncated": (lambda image: shorten(image, 200), ImageReadError, "cannot be read"),
    "empty": (lambda image: image.write_bytes(b""), ImageReadError, "is empty (0 bytes)"),
    "missing": (Path.unlink, DatasetError, "'test' names 1 image not in"),
    "text": (lambda image: image.write_text("<html>404"), ImageReadError, "not an image that can be read"),
    # Pillow would start Ghostscript for it
    "postscript": (lambda image: image.write_bytes(POSTSCRIPT), ImageReadError, "not an image that can be read"),
    "broken in the middle": (break_in_the_middle, ImageReadError, "cannot be read"),
    "bomb": (make_a_bomb, ImageReadError, "states more than the 178,956,970 pixels"),
    "another size": (lambda image: cv2.imwrite(str(image), TURNED), AnnotationError, "states 64x48 pixels but"),
    "link to itself": (link_to_itself, ImageReadError, "leads to itself"),
    "pipe": (make_a_pipe, ImageReadError, "is no file"),
    "link out": (move_out, ImageReadError, "outside of the dataset"),
    "there twice": (lambda image: shutil.copy(image, image.with_suffix(".jpeg")), ImageReadError, "is there twice"),
}
DAMAGED_ANNOTATION = {
    "annotation missing": (Path.unlink, AnnotationError, "no annotation file"),
    "annotation cut short": (shorten, AnnotationError, "not well-formed XML"),
    "external entity": (lambda xml: xml.write_text(SECRET), AnnotationError, "declares XML entities"),
    "annotation is a pipe": (make_a_pipe, AnnotationError, "is no file"),
    "annotation links out": (move_out, AnnotationError, "outside of the dataset"),
}


@pytest.mark.parametrize("case", [*DAMAGED_IMAGE, *DAMAGED_ANNOTATION])
def test_a_damaged_image_stops_the_work_before_it_begins(root, victim, xml, case):
    """And under `skip` it is left out with its boxes, and listed."""
    harm, error, words = (DAMAGED_IMAGE | DAMAGED_ANNOTATION)[case]
    harm(victim if case in DAMAGED_IMAGE else xml)
    assert VICTIM in refused(lambda: sound(load_dataset(root, "test")), error, re.escape(words))
    data = sound(load_dataset(root, "test", on_bad_image="skip", decode=False), "skip")
    assert (len(data.images), len(data.boxes)) == (7, 14)
    assert VICTIM not in {*data.images["image_id"], *data.boxes["image_id"]}
    [row] = data.skipped.itertuples(index=False)
    assert (row.image_id, row.position) == (VICTIM, 3)
    assert VICTIM in row.reason
    assert "\n" not in row.reason
    assert not row.reason.startswith(str(root))  # a report names no folder of the machine
    assert row.n_boxes == 2 if case in DAMAGED_IMAGE else pd.isna(row.n_boxes)
    counted = "and 2 boxes" if case in DAMAGED_IMAGE else "its boxes cannot be counted"
    assert f"1 damaged image ({counted}) skipped" in data.describe()
    for image in data.images["path"]:
        check_decodes(image)


def test_skip_alone_leaves_sound_images_and_error_can_be_asked_to_decode(root, victim):
    shorten(victim)
    data = load_dataset(root, "test", on_bad_image="skip")
    assert data.skipped["image_id"].tolist() == [VICTIM]
    assert len(load_dataset(root, "test").images) == 8  # the header is whole
    refused(lambda: load_dataset(root, "test", decode=True), ImageReadError, VICTIM)


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])  # None: so notebooks on large scenes set it
def test_a_bomb_is_refused_from_its_header_without_filling_the_memory(victim, monkeypatch, limit):
    make_a_bomb(victim)
    assert victim.stat().st_size < 100_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (image_size, read_image, check_decodes):
        refused(lambda read=read: read(victim), ImageReadError, "cut it into tiles")


def test_what_no_policy_forgives(root, xml):
    """Classes that nobody knows, a split file that leads elsewhere or no image left are not damage of one image."""

    def stopped(error: type[Exception], match: str, policy: object = "skip") -> None:
        refused(lambda: load_dataset(root, "test", on_bad_image=policy), error, match)

    for policy in ("ignore", None, ["skip"]):
        stopped(ParameterError, "on_bad_image must be error", policy)
    xml.write_text(annotation_xml(VICTIM, [("dragon", 1, 1, 20, 20)]))
    stopped(UnknownClassError, "dragon")
    xml.write_text(annotation_xml(VICTIM, []))
    for path in (root / "JPEGImages-test").iterdir():
        path.write_bytes(b"")
    stopped(DatasetError, r"all 8 images of split 'test' are damaged.*empty")
    split_file(root, "test").write_text("00001\n../../secret\n")
    stopped(DatasetError, "bare file name")
    move_out(split_file(root, "test"))
    stopped(DatasetError, "outside of the dataset")


def test_damaged_images_and_their_boxes_are_counted_wherever_the_damage_is_found(root, victim, xml):
    def skipped() -> tuple[list, list, str]:
        data = sound(load_dataset(root, "test", on_bad_image="skip", decode=False), "skip")
        return data.skipped["position"].tolist(), data.skipped["n_boxes"].tolist(), data.describe()

    for image_id in ("00001", VICTIM, "00006"):
        shorten(image_file(root, "test", image_id))
    more = r"00001.*\(and 2 more\); on_bad_image=skip leaves such images out"
    refused(lambda: sound(load_dataset(root, "test")), ImageReadError, more)
    xml.write_text(annotation_xml(VICTIM, [("ship", 4, 4, 20, 16), ("ship", 5, 5, 5, 9)]))
    at_decoding = skipped()
    victim.write_bytes(b"")
    assert skipped() == at_decoding
    assert at_decoding[:2] == ([1, 3, 6], [2, 2, 2])
    assert "3 damaged images (and 6 boxes) skipped" in at_decoding[2]
    shorten(xml)
    assert "3 damaged images (and 4 boxes, without those of 1, which cannot be counted) skipped" in skipped()[2]


@pytest.mark.parametrize("harm", [Path.unlink, shorten])  # found as it is loaded, and as it is decoded
@pytest.mark.parametrize(("n", "seed"), [(1, 4), (4, 5), (8, 5)])
def test_damage_does_not_change_which_other_images_are_drawn(root, victim, harm, n, seed):
    everything = load_dataset(root, "test").sample(n, seed).images["image_id"].tolist()
    harm(victim)
    left = sound(load_dataset(root, "test", on_bad_image="skip", decode=False).sample(n, seed), "skip")
    assert left.images["image_id"].tolist() == [image_id for image_id in everything if image_id != VICTIM]
    assert left.skipped["image_id"].tolist() == [image_id for image_id in everything if image_id == VICTIM]
    assert [everything[at] for at in left.skipped["position"]] == left.skipped["image_id"].tolist()
    assert [everything[at] for at in left.positions] == left.images["image_id"].tolist()


def test_images_once_found_sound_are_not_decoded_again(root, victim, tmp_path, monkeypatch):
    check = Mock(wraps=damage.check_decodes)
    monkeypatch.setattr(damage, "check_decodes", check)
    data, cache = load_dataset(root, "test"), tmp_path / "cache"
    sound(data, memory_dir=cache)
    assert not cache.exists()  # whoever only looks makes no folder
    cache.mkdir()
    for expected in (16, 16):
        sound(data, memory_dir=cache)
        assert check.call_count == expected
    shorten(victim)  # another size: another file
    refused(lambda: sound(data, memory_dir=cache), ImageReadError, VICTIM)
    assert check.call_count == 24


def test_bug_damage_that_is_mended_is_forgotten(root, tmp_path, monkeypatch):
    """A disk that could not be read for a moment blocked every later run through the memory of the check."""
    data = load_dataset(root, "test")
    broken = [None] * 3 + [ImageReadError("x.jpg: input/output error")] + [None] * 4
    monkeypatch.setattr(damage, "check_decodes", Mock(side_effect=broken))
    refused(lambda: sound(data, memory_dir=tmp_path), ImageReadError, "input/output")
    monkeypatch.undo()
    assert sound(data, memory_dir=tmp_path) is data


def test_bug_the_memory_took_the_same_id_in_another_folder_for_the_same_file(root):
    other = root / "JPEGImages-trainval" / f"{VICTIM}.jpg"
    shutil.copy2(image_file(root, "test", VICTIM), other)
    twin = load_dataset(root, "test")
    key = damage.files_sha256(twin)
    twin.images.loc[twin.images["image_id"] == VICTIM, "path"] = str(other)
    assert damage.files_sha256(twin) != key


def test_an_image_that_vanishes_behind_the_load_is_left_out(root, victim, tmp_path):
    data = load_dataset(root, "test", on_bad_image="skip")
    victim.unlink()
    assert sound(data, "skip", memory_dir=tmp_path).skipped["image_id"].tolist() == [VICTIM]


def test_a_memory_that_is_damaged_or_cannot_be_written_is_no_memory(root, tmp_path):
    data = load_dataset(root, "test")
    for text in ("{", "null", "\xff"):
        (tmp_path / damage.MEMORY).write_text(text)
        assert sound(data, memory_dir=tmp_path) is data
        assert len(json.loads((tmp_path / damage.MEMORY).read_text())) == 1
    assert sound(data, memory_dir=tmp_path / damage.MEMORY) is data  # a file, no folder
