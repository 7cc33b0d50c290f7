"""Damaged images, one case a test: read all the same, stopped at, or left out and listed."""

from __future__ import annotations

import json
import os
import shutil
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from dior_folders import annotation_dir, annotation_xml, image_file, picture, split_file, write_dataset
from PIL import Image

from surgerylib.datasets import damage, load_dataset, read_image, sound
from surgerylib.datasets.images import check_decodes, image_size
from surgerylib.errors import AnnotationError, DatasetError, ImageReadError, ParameterError, UnknownClassError

SIZE_WH = (64, 48)
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


def restated(root, size_wh):
    """The annotation of the image, for an image of this size."""
    text = annotation_xml(VICTIM, [("ship", 0, 0, size_wh[0], size_wh[1])], size_wh)
    (annotation_dir(root) / f"{VICTIM}.xml").write_text(text)


# ---- what is read all the same


def colour_modes() -> dict[str, tuple[Image.Image, str]]:
    rgb = Image.fromarray(picture(VICTIM, SIZE_WH))
    grey16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    animation = [rgb, rgb.rotate(180)]
    return {
        "greyscale": (rgb.convert("L"), "JPEG"),
        "RGBA": (rgb.convert("RGBA"), "PNG"),
        "palette": (rgb.convert("P"), "PNG"),
        "16-bit": (grey16, "PNG"),
        "CMYK": (rgb.convert("CMYK"), "JPEG"),
        "animated GIF": (animation, "GIF"),
        "animated PNG": (animation, "PNG"),
        "TIFF of several pages": (animation, "TIFF"),
        "WEBP": (rgb, "WEBP"),
    }


@pytest.mark.parametrize("case", colour_modes())
def test_other_colour_modes_and_animations_are_read_whatever_the_ending(root, victim, case):
    """The content decides: each of them is written into a file that ends with .jpg."""
    image, form = colour_modes()[case]
    first, *others = image if isinstance(image, list) else [image]
    options = {"save_all": True, "append_images": others} if others else {}
    first.save(victim, format=form, **options)
    data = sound(load_dataset(root, "test"))
    assert len(data.images) == 8
    assert len(data.skipped) == 0
    read = read_image(victim)
    assert read.shape == (48, 64, 3)
    assert read.dtype == np.uint8
    expected = np.asarray(first.convert("RGB")) if case != "16-bit" else picture(VICTIM, SIZE_WH)
    grey = expected.mean(axis=2) if case != "16-bit" else np.asarray(Image.fromarray(expected).convert("L"))
    assert np.abs(read.mean(axis=2) - grey).mean() < 12  # JPEG, CMYK and palettes lose a little


def test_exif_rotation_is_not_applied_as_boxes_count_in_stored_pixels(root, victim):
    rgb = Image.fromarray(picture(VICTIM, SIZE_WH))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    rgb.save(victim, exif=exif, quality=95)
    data = sound(load_dataset(root, "test"))
    row = data.images.set_index("image_id").loc[VICTIM]
    assert (row["width"], row["height"]) == SIZE_WH
    assert read_image(victim).shape == (48, 64, 3)


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 300), (4000, 30)])
def test_images_of_any_shape_are_read(root, victim, size_wh):
    cv2.imwrite(str(victim), picture(VICTIM, size_wh)[:, :, ::-1])
    restated(root, size_wh)
    data = sound(load_dataset(root, "test"))
    row = data.images.set_index("image_id").loc[VICTIM]
    assert (row["width"], row["height"]) == size_wh
    assert len(data.boxes) == 15  # one of its two


@pytest.mark.parametrize("name", ["图像一号", "äöü ß", "a b'c\"d", "<script>alert(1)<", "$x^2$ & {y}"])
def test_names_of_any_letters_are_names(root, victim, xml, name):
    victim.rename(victim.with_stem(name))
    xml.rename(xml.with_stem(name))
    path = split_file(root, "test")
    path.write_text(path.read_text().replace(VICTIM, name), encoding="utf-8")
    data = sound(load_dataset(root, "test"))
    assert data.images["image_id"][3] == name
    assert set(data.boxes.loc[data.boxes["image_id"] == name, "label"]) == {"ship", "airplane"}


def test_folders_that_are_links_are_followed(root, tmp_path):
    images = root / "JPEGImages-test"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    assert len(sound(load_dataset(root, "test")).images) == 8


# ---- what is damaged: each case -> (what is done to the file, the error, words of its message)


def truncated(root, victim, xml):
    victim.write_bytes(victim.read_bytes()[:-200])


def empty(root, victim, xml):
    victim.write_bytes(b"")


def missing(root, victim, xml):
    victim.unlink()


def text_with_the_ending_of_an_image(root, victim, xml):
    victim.write_text("<html>404: not found</html>")


def postscript_with_the_ending_of_an_image(root, victim, xml):
    # Pillow would start Ghostscript for it
    victim.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n")


def broken_in_the_middle(root, victim, xml):
    """Of the right length and with the right end, but a decoder can't read it: its header's tables are overwritten."""
    data = bytearray(victim.read_bytes())
    at = data.index(b"\xff\xc4")  # the Huffman tables
    data[at + 5 : at + 21] = b"\xff" * 16
    victim.write_bytes(data)


def decompression_bomb(root, victim, xml):
    # 20,000 x 20,000 pixels in 51 kB: a PNG of one colour, 1 bit a pixel
    line = b"\0" + b"\0" * 2500

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    side = (20000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([1, 0, 0, 0, 0]))
    victim.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(line * 20000, 9)) + chunk(b"IEND", b"")
    )


def of_another_size_than_its_annotation(root, victim, xml):
    cv2.imwrite(str(victim), picture(VICTIM, (48, 64))[:, :, ::-1])


def a_link_that_leads_to_itself(root, victim, xml):
    victim.unlink()
    victim.symlink_to(victim)


def a_pipe(root, victim, xml):
    """Reading it would wait for somebody to write."""
    victim.unlink()
    os.mkfifo(victim)


def annotation_that_is_a_pipe(root, victim, xml):
    xml.unlink()
    os.mkfifo(xml)


def a_link_out_of_the_dataset(root, victim, xml):
    outside = root.parent / "private.jpg"
    victim.rename(outside)
    victim.symlink_to(outside)


def there_twice(root, victim, xml):
    shutil.copy(victim, victim.with_suffix(".jpeg"))


def annotation_missing(root, victim, xml):
    xml.unlink()


def annotation_cut_short(root, victim, xml):
    xml.write_bytes(xml.read_bytes()[:-20])


def annotation_with_an_entity_bomb(root, victim, xml):
    xml.write_text(
        '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation><object><name>&b;</name>'
        "</object></annotation>"
    )


def annotation_with_an_external_entity(root, victim, xml):
    secret = root.parent / "secret.txt"
    secret.write_text("ship")
    xml.write_text(
        f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><annotation><object><name>&x;</name></object></annotation>'
    )


def annotation_that_links_out_of_the_dataset(root, victim, xml):
    outside = root.parent / "private.xml"
    xml.rename(outside)
    xml.symlink_to(outside)


DAMAGE = {
    truncated: (ImageReadError, "cannot be read"),
    empty: (ImageReadError, "is empty (0 bytes)"),
    missing: (DatasetError, "'test' names 1 image not in"),
    text_with_the_ending_of_an_image: (ImageReadError, "not an image that can be read"),
    postscript_with_the_ending_of_an_image: (ImageReadError, "not an image that can be read"),
    broken_in_the_middle: (ImageReadError, "cannot be read"),
    decompression_bomb: (ImageReadError, "states more than the 178,956,970 pixels"),
    of_another_size_than_its_annotation: (AnnotationError, "states 64x48 pixels but"),
    a_link_that_leads_to_itself: (ImageReadError, "leads to itself"),
    a_pipe: (ImageReadError, "is no file"),
    annotation_that_is_a_pipe: (AnnotationError, "is no file"),
    a_link_out_of_the_dataset: (ImageReadError, "outside of the dataset"),
    there_twice: (ImageReadError, "is there twice"),
    annotation_missing: (AnnotationError, "no annotation file"),
    annotation_cut_short: (AnnotationError, "not well-formed XML"),
    annotation_with_an_entity_bomb: (AnnotationError, "declares XML entities"),
    annotation_with_an_external_entity: (AnnotationError, "declares XML entities"),
    annotation_that_links_out_of_the_dataset: (AnnotationError, "outside of the dataset"),
}
UNCOUNTED = {annotation_missing, annotation_cut_short, annotation_with_an_entity_bomb}
UNCOUNTED |= {annotation_with_an_external_entity, annotation_that_links_out_of_the_dataset, annotation_that_is_a_pipe}


@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
def test_a_damaged_image_stops_the_work_before_it_begins(root, victim, xml, harm):
    """And under `skip` it is left out with its boxes, and listed."""
    harm(root, victim, xml)
    error, words = DAMAGE[harm]
    with pytest.raises(error) as caught:
        sound(load_dataset(root, "test"))
    text = str(caught.value)
    assert "\n" not in text
    assert words in text
    assert VICTIM in text
    data = sound(load_dataset(root, "test", on_bad_image="skip", decode=False), "skip")
    assert VICTIM not in set(data.images["image_id"])
    assert len(data.images) == 7
    assert len(data.boxes) == 14
    assert VICTIM not in set(data.boxes["image_id"])
    [row] = data.skipped.itertuples(index=False)
    assert row.image_id == VICTIM
    assert row.position == 3
    assert VICTIM in row.reason
    assert "\n" not in row.reason
    assert not row.reason.startswith(str(root))  # a report names no folder of the machine
    assert pd.isna(row.n_boxes) if harm in UNCOUNTED else row.n_boxes == 2
    counted = "its boxes cannot be counted" if harm in UNCOUNTED else "and 2 boxes"
    assert f"1 damaged image ({counted}) skipped" in data.describe()
    for image in data.images["path"]:
        check_decodes(image)


def test_skip_alone_leaves_sound_images_and_error_can_be_asked_to_decode(root, victim):
    truncated(root, victim, None)
    data = load_dataset(root, "test", on_bad_image="skip")
    assert data.skipped["image_id"].tolist() == [VICTIM]
    assert len(load_dataset(root, "test").images) == 8  # the header is whole
    with pytest.raises(ImageReadError, match=VICTIM):
        load_dataset(root, "test", decode=True)


def test_a_bomb_is_refused_from_its_header_without_filling_the_memory(root, victim):
    decompression_bomb(root, victim, None)
    assert victim.stat().st_size < 100_000
    for read in (image_size, read_image, check_decodes):
        with pytest.raises(ImageReadError, match="cut it into tiles"):
            read(victim)


def test_bug_pixels_are_limited_where_pillow_is_told_not_to(root, victim, monkeypatch):
    """Notebooks on large scenes set Pillow's limit to None."""
    decompression_bomb(root, victim, None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for read in (image_size, read_image, check_decodes):
        with pytest.raises(ImageReadError, match="cut it into tiles"):
            read(victim)


def test_boxes_are_counted_alike_wherever_the_damage_is_found(root, victim, xml):
    xml.write_text(annotation_xml(VICTIM, [("ship", 4, 4, 20, 16), ("ship", 5, 5, 5, 9)]))
    truncated(root, victim, None)
    late = load_dataset(root, "test", on_bad_image="skip").skipped["n_boxes"].tolist()
    victim.write_bytes(b"")
    assert load_dataset(root, "test", on_bad_image="skip").skipped["n_boxes"].tolist() == late == [2]


def test_what_no_policy_forgives(root, xml):
    """A class that nobody knows and a split file that leads elsewhere are not damage of one image."""
    xml.write_text(annotation_xml(VICTIM, [("dragon", 1, 1, 20, 20)]))
    with pytest.raises(UnknownClassError, match="dragon"):
        load_dataset(root, "test", on_bad_image="skip")
    xml.write_text(annotation_xml(VICTIM, []))
    split_file(root, "test").write_text("00001\n../../secret\n")
    with pytest.raises(DatasetError, match="bare file name"):
        load_dataset(root, "test", on_bad_image="skip")
    outside = root.parent / "private.txt"
    outside.write_text("00001\n")
    split_file(root, "test").unlink()
    split_file(root, "test").symlink_to(outside)
    with pytest.raises(DatasetError, match="outside of the dataset"):
        load_dataset(root, "test", on_bad_image="skip")


def test_no_image_left_is_an_error_that_says_why(root):
    for path in (root / "JPEGImages-test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"all 8 images of split 'test' are damaged.*empty"):
        load_dataset(root, "test", on_bad_image="skip")


@pytest.mark.parametrize("bad", ["ignore", None, ["skip"]])
def test_policies_that_there_are_not(root, bad):
    with pytest.raises(ParameterError, match="on_bad_image must be error"):
        load_dataset(root, "test", on_bad_image=bad)


def test_several_damaged_images_are_counted_in_one_line(root):
    for image_id in ("00001", "00005", "00006"):
        path = image_file(root, "test", image_id)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageReadError, match=r"00001.*\(and 2 more\); on_bad_image=skip leaves such images out"):
        sound(load_dataset(root, "test"))
    data = sound(load_dataset(root, "test", on_bad_image="skip", decode=False), "skip")
    assert data.skipped["position"].tolist() == [1, 5, 6]
    assert "3 damaged images (and 6 boxes) skipped" in data.describe()


def test_the_check_counts_boxes_of_images_found_at_loading_and_at_decoding(root, xml):
    annotation_cut_short(root, None, xml)
    path = image_file(root, "test", "00006")
    path.write_bytes(path.read_bytes()[:-100])
    data = sound(load_dataset(root, "test", on_bad_image="skip"), "skip")
    assert data.skipped["image_id"].tolist() == [VICTIM, "00006"]
    assert "2 damaged images (and 2 boxes, without those of 1, which cannot be counted) skipped" in data.describe()


@pytest.mark.parametrize("harm", [missing, truncated, annotation_missing])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_damage_does_not_change_which_other_images_are_drawn(root, victim, xml, harm, n):
    whole = load_dataset(root, "test").sample(n, seed=5)
    harm(root, victim, xml)
    drawn = load_dataset(root, "test", on_bad_image="skip")
    if set(whole.images["image_id"]) == {VICTIM}:
        with pytest.raises(DatasetError, match="all 1 images"):
            sound(drawn.sample(n, seed=5), "skip")
        return
    left = sound(drawn.sample(n, seed=5), "skip")
    expected = [image_id for image_id in whole.images["image_id"] if image_id != VICTIM]
    assert left.images["image_id"].tolist() == expected
    assert left.skipped["image_id"].tolist() == ([VICTIM] if VICTIM in set(whole.images["image_id"]) else [])
    everything = whole.images["image_id"].tolist()
    assert [everything[at] for at in left.skipped["position"]] == left.skipped["image_id"].tolist()
    assert [everything[at] for at in left.positions] == expected


def test_the_order_of_files_in_a_folder_does_not_matter(root, monkeypatch):
    """A file system lists its files in any order."""
    forward = load_dataset(root, "test")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder), reverse=True))
    backward = load_dataset(root, "test")
    assert backward.fingerprint() == forward.fingerprint()
    pd.testing.assert_frame_equal(backward.images, forward.images)


def test_images_once_found_sound_are_not_decoded_again(root, tmp_path, monkeypatch):
    looked_at = []
    checked = damage.check_decodes
    monkeypatch.setattr(damage, "check_decodes", lambda path: (looked_at.append(path), checked(path)))
    data = load_dataset(root, "test")
    sound(data, memory_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # whoever only looks makes no folder
    (tmp_path / "cache").mkdir()
    looked_at.clear()
    for expected in (8, 8):
        sound(data, memory_dir=tmp_path / "cache")
        assert len(looked_at) == expected
    path = image_file(root, "test", VICTIM)
    path.write_bytes(path.read_bytes()[:-100])  # another size: another file
    with pytest.raises(ImageReadError, match=VICTIM):
        sound(data, memory_dir=tmp_path / "cache")
    assert len(looked_at) == 16


def test_bug_damage_that_is_mended_is_forgotten(root, tmp_path, monkeypatch):
    """A disk that could not be read for a moment blocked every later run through the memory of the check."""
    checked = damage.check_decodes

    def flaky(path):
        if VICTIM in str(path):
            raise ImageReadError(f"{path}: input/output error")
        checked(path)

    data = load_dataset(root, "test")
    monkeypatch.setattr(damage, "check_decodes", flaky)
    with pytest.raises(ImageReadError, match="input/output"):
        sound(data, memory_dir=tmp_path)
    monkeypatch.setattr(damage, "check_decodes", checked)
    assert sound(data, memory_dir=tmp_path) is data


def test_bug_the_memory_took_the_same_id_in_another_folder_for_the_same_file(root, tmp_path):
    other = root / "JPEGImages-trainval" / f"{VICTIM}.jpg"
    shutil.copy2(image_file(root, "test", VICTIM), other)
    twin = load_dataset(root, "test")
    assert sound(twin, memory_dir=tmp_path) is twin
    key = damage.files_sha256(twin)
    twin.images.loc[twin.images["image_id"] == VICTIM, "path"] = str(other)
    assert damage.files_sha256(twin) != key


def test_an_image_that_vanishes_behind_the_load_is_left_out(root, victim, tmp_path):
    data = load_dataset(root, "test", on_bad_image="skip")
    victim.unlink()
    assert sound(data, "skip", memory_dir=tmp_path).skipped["image_id"].tolist() == [VICTIM]


@pytest.mark.parametrize("text", ["{", "null", "\xff"])
def test_a_damaged_memory_is_no_memory(root, tmp_path, text):
    data = load_dataset(root, "test")
    (tmp_path / damage.MEMORY).write_text(text)
    assert sound(data, memory_dir=tmp_path) is data
    assert len(json.loads((tmp_path / damage.MEMORY).read_text())) == 1


def test_a_memory_that_cannot_be_written_is_no_error(root, tmp_path):
    (tmp_path / "file").write_text("")
    data = load_dataset(root, "test")
    assert sound(data, memory_dir=tmp_path / "file") is data
