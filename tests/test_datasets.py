"""Datasets: the three layouts, the quirks of real files, and one clear line for every bad one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import refusals
from dior_folders import LAYOUTS, SIZE_WH, annotation_dir, annotation_xml, picture, split_file, write_dataset
from PIL import Image

from surgerylib.datasets import check_images, dataset_splits, load_dataset, read_annotation, read_image
from surgerylib.errors import AnnotationError, DatasetError, ImageReadError, ParameterError, UnknownClassError
from surgerylib.words import DIOR_CLASSES, PROMPT_TEMPLATES, canonical_class, prompt_names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def rewrite(root: Path, image_id: str, boxes, size_wh=SIZE_WH) -> None:
    (annotation_dir(root) / f"{image_id}.xml").write_text(annotation_xml(image_id, boxes, size_wh))


def ids(root: Path, split: str = "test", **options) -> list[str]:
    return load_dataset(root, split, **options).images["image_id"].tolist()


def refused(error: type[Exception], match: str, root: Path, split: str = "test", **options) -> str:
    """The one line with which a dataset is refused."""
    return refusals.refused(lambda: load_dataset(root, split, **options), error, match)


# class names


def test_twenty_classes_in_dior_spelling_and_the_words_they_are_asked_with():
    assert len(set(DIOR_CLASSES)) == 20
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)
    by_class = dict(zip(DIOR_CLASSES, prompt_names(DIOR_CLASSES), strict=True))
    assert by_class["golffield"] == "golf course"
    assert by_class["Expressway-Service-area"] == "expressway service area"
    assert all(name == name.lower() and "-" not in name for name in by_class.values())
    for name, prompt in by_class.items():
        assert canonical_class(name) == canonical_class(prompt) == canonical_class(name.upper()) == name
    assert prompt_names(["GolfField", "solar_panel-array", "plane"]) == ["golf course", "solar panel array", "plane"]
    assert prompt_names([]) == []


def test_known_error_12_class_name_that_fails_to_match_silently():
    for written, canonical in (
        ("golf course", "golffield"), ("Golf_Field", "golffield"), ("harbour", "harbor"), ("plane", "airplane"),
        ("EXPRESSWAY-TOLL-STATION", "Expressway-toll-station"), ("toll station", "Expressway-toll-station"),
        ("Expressway-Service-Area", "Expressway-Service-area"),
    ):  # fmt: skip
        assert canonical_class(written) == canonical


def test_known_error_12_unknown_class_lists_the_nearest_names(root):
    refusals.refused(lambda: canonical_class("very airplan"), UnknownClassError, r"airplan'.*airplane")
    rewrite(root, "11727", [("shipp yard", 1, 1, 5, 5)])
    refused(UnknownClassError, r"11727\.xml: object 1: unknown class 'shipp yard'; .*ship", root)


def test_own_class_list(root):
    assert canonical_class("Solar-Panel", ["solar panel", "golf course"]) == "solar panel"
    assert canonical_class("aircraft", ["plane"]) == "plane"
    for wrong, match in (
        ([], "class list is empty"), (["golffield", "golf course"], "are the same"), (["ship", 3], "not a non-empty"),
    ):  # fmt: skip
        refused(ParameterError, match, root, classes=wrong)
    rewrite(root, "11728", [("Wind Mill", 1, 1, 5, 5), ("golf course", 1, 1, 9, 9)])
    assert load_dataset(root, "test").boxes["label"].tolist()[-2:] == ["windmill", "golffield"]
    own = ("golf course", "WindMill", "vehicle", "expressway toll station")
    dataset = load_dataset(root, "test", classes=own)
    assert dataset.boxes["label"].tolist()[-3:] == ["expressway toll station", "WindMill", "golf course"]
    assert dataset.classes == own


# layouts and splits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_three_layouts_are_recognised(tmp_path, layout):
    root = write_dataset(tmp_path / "data", layout)
    dataset = load_dataset(root, "test")
    assert dataset.layout == layout
    assert dataset.describe() == f"{layout} layout, split test: 3 images, 4 boxes, 20 classes"
    sizes = [[image_id, *SIZE_WH] for image_id in ("11726", "11727", "11728")]
    assert dataset.images[["image_id", "width", "height"]].to_numpy().tolist() == sizes
    box = {"image_id": "11726", "label": "Expressway-toll-station", "xmin": 16, "ymin": 20, "xmax": 50, "ymax": 40}
    assert dataset.boxes.iloc[2].to_dict() == box
    assert dataset.classes == DIOR_CLASSES
    assert check_images(dataset) == []
    assert dataset_splits(root) == ["test", "train", "val"]
    for split in ("tset", "../test", ""):
        refused(DatasetError, "there are: test, train, val", root, split)
    split_file(root, "test", layout).write_text("\n")
    refused(DatasetError, "names no image", root)
    for path in split_file(root, "test", layout).parent.iterdir():
        path.unlink()
    refused(DatasetError, "no split file", root)


def test_reorganised_without_subfolders(tmp_path):
    root = write_dataset(tmp_path / "data", "reorganised")
    for path in list(root.glob("*/*/*")):
        path.rename(path.parents[1] / path.name)
    (root / "annotations/horizontal").rmdir()
    dataset = load_dataset(root, "test")
    assert (dataset.layout, len(dataset.images), len(dataset.boxes)) == ("reorganised", 3, 4)


def test_missing_folder_and_unknown_layout(tmp_path):
    refused(DatasetError, "no dataset folder", tmp_path / "nowhere")
    refused(DatasetError, r"no dataset folder x{80}\.\.\.", Path("x" * 5000))
    (tmp_path / "photos").mkdir()
    text = refused(DatasetError, "holds photos", tmp_path)
    for part in ("DIOR: ", "Horizontal Bounding Boxes", "VOC: JPEGImages/", "reorganised: images/"):
        assert part in text


def test_a_dataset_without_image_folders_is_read_for_its_annotations_alone(root):
    for folder in ("JPEGImages-test", "JPEGImages-trainval"):
        (root / folder).rename(root / f"no {folder}")
    refused(DatasetError, "no image folder in .*; the DIOR layout is JPEGImages-trainval/", root)
    dataset = load_dataset(root, "test", require_images=False)
    assert (len(dataset.boxes), set(dataset.images["path"])) == (4, {""})
    refusals.refused(lambda: check_images(dataset), ParameterError, "require_images")
    rewrite(root, "11727", [], size_wh=None)
    refused(AnnotationError, "states no image size", root, require_images=False)


@pytest.mark.parametrize("suffix", [".jpeg", ".JPG", ".png", ".tif"])
def test_image_suffixes(tmp_path, suffix):
    dataset = load_dataset(write_dataset(tmp_path / "data", suffix=suffix), "test")
    assert (len(dataset.images), check_images(dataset)) == (3, [])
    assert np.abs(read_image(dataset.images["path"][0]).astype(int) - picture("11726")).mean() < 4


def test_split_files_as_tools_write_them(root):
    assert ids(root, "trainval") == ["00001", "00002", "00003"]  # train and val, unless there is a file of its own
    for split, content, expected in (
        ("trainval", b"00003\n00001\n", ["00003", "00001"]),
        ("vehicle_test", b"11726  1\n11727 -1\n11728  0\n", ["11726", "11728"]),  # of one class, as VOC writes it
        ("test", b"\xef\xbb\xbf11728\r\n\r\n 11726 \r\n11728\r\n", ["11728", "11726"]),
    ):
        split_file(root, split).write_bytes(content)
        assert ids(root, split) == expected
    dataset = load_dataset(root, "test")
    assert dataset.n_repeated == 1
    assert dataset.describe().endswith("; 1 repeated id dropped")


def test_split_files_that_cannot_be(root):
    split_file(root, "test").write_text("11726\n..\n")  # paths with a name behind them are the fuzzer's
    refused(DatasetError, "bare file name", root, require_images=False)
    for image_id in ("a\x1b[2Jb", "a\u202eb"):
        split_file(root, "test").write_text(f"11726\n{image_id}\n", encoding="utf-8")
        assert refused(DatasetError, "cannot be shown", root, on_bad_image="skip").isprintable()
    split_file(root, "test").write_bytes(b"\xff\xfe\x00\x81")
    refused(DatasetError, "UTF-8", root)
    split_file(root, "test").unlink()
    os.mkfifo(split_file(root, "test"))
    refused(DatasetError, "is no file", root)


def test_limit_takes_the_first_of_the_split(root):
    assert ids(root, limit=2) == ["11726", "11727"]
    assert len(ids(root, limit=99)) == 3
    for limit in (0, 2.5):
        refused(ParameterError, "limit", root, limit=limit)


def test_split_without_any_box(root):
    split_file(root, "empty").write_text("11727\n")
    dataset = load_dataset(root, "empty")
    assert dataset.boxes.empty
    assert dataset.boxes.dtypes.equals(load_dataset(root, "test").boxes.dtypes)
    assert dataset.repairs.dtypes.equals(load_dataset(root, "test").repairs.dtypes)
    assert len(dataset.fingerprint()) == 64


# what is mended, and counted


def test_boxes_beyond_the_image_are_clipped_and_empty_ones_dropped(root):
    beyond, outside, whole = ("ship", -3, 5, 70, 20), ("ship", 70, 5, 90, 20), ("ship", 0, 0, 64, 48)
    no_width, point = ("ship", 10, 10, 10, 20), ("ship", 10, 10, 10, 10)
    rewrite(root, "11728", [beyond, no_width, point, outside, whole])
    dataset = load_dataset(root, "test")
    kept = dataset.boxes[dataset.boxes["image_id"] == "11728"]
    assert kept.iloc[:, 2:].to_numpy().tolist() == [[0, 5, 64, 20], [0, 0, 64, 48]]
    assert (dataset.n_clipped, dataset.n_dropped) == (1, 3)
    assert dataset.describe().endswith("; 1 box clipped, 3 boxes dropped (no area)")
    assert dataset.repairs["repair"].tolist() == ["clipped", "dropped", "dropped", "dropped"]
    assert read_annotation(annotation_dir(root) / "11728.xml").boxes_xyxy[0] == (-3, 5, 70, 20)


def test_sample_keeps_the_order_of_the_split(tmp_path):
    splits = {"test": {f"{i:05d}": [("ship", 0, 0, i + 1, i + 1)] for i in range(40)}}
    dataset = load_dataset(write_dataset(tmp_path / "data", splits=splits), "test")
    sample, *others = (dataset.sample(10, seed).images["image_id"].tolist() for seed in (3, 3, 4))
    assert (len(sample), sample) == (10, sorted(sample))
    assert others[0] == sample != others[1]
    assert dataset.sample(10, 3).boxes["image_id"].tolist() == sample
    assert all(dataset.sample(n) is dataset for n in (None, 0, 40, 99))
    for n, seed, match in ((-1, 0, "number of images"), (1.5, 0, "number of images"), (3, -1, "seed")):
        refusals.refused(lambda n=n, seed=seed: dataset.sample(n, seed), ParameterError, match)


def test_fingerprint_knows_the_content_but_not_the_place(root, tmp_path):
    here = load_dataset(root, "test").fingerprint()
    assert load_dataset(write_dataset(tmp_path / "elsewhere", "VOC"), "test").fingerprint() == here
    assert load_dataset(root, "test", limit=2).fingerprint() != here
    rewrite(root, "11728", [("windmill", 30, 5, 38, 41)])
    assert load_dataset(root, "test").fingerprint() != here


# annotations


def test_annotation_that_cannot_be(root):
    def ship(*corners) -> str:
        return annotation_xml("x", [("dam", 1, 1, 2, 2), ("ship", *corners)])

    def of_size(*size_wh) -> str:
        return annotation_xml("x", [], size_wh=size_wh)

    for xml, message in (
        ("", "not well-formed"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not well-formed"),
        ("<html/>", "<html>"),
        ('<annotation xmlns="of&#10;two lines"/>', "of two lines"),
        ("<annotation><object><name>ship</name></object></annotation>", r"object 1 \(ship\) has no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", "object 1 has no <name>"),
        *((ship(1, 1, text, 2), f"'{text}'") for text in ("two", "nan", "inf", "1_0")),
        (ship(1, 1, "", 2), "must be a number"),
        (ship(9, 1, 2, 2), r"object 2 \(ship\) has xmin 9, xmax 2"),
        (ship(1, 9, 2, 2), "ymin <= ymax"),
        *((of_size(*size), "whole numbers") for size in (("wide", 3), ("64.5", 48), ("nan", "inf"))),
        (of_size("1e300", 48), "'1e300' x '48'; both must be whole numbers"),
        (of_size(48, 64), r"states 48x64 .*11727\.jpg has 64x48"),
    ):
        (annotation_dir(root) / "11727.xml").write_text(xml)
        assert "11727.xml" in refused(AnnotationError, message, root)


def test_known_error_15_ground_truth_lost_in_silence(root):
    xml = annotation_xml("11727", [("ship", 1, 1, 5, 5)])
    for old, new, message in (
        ("</object>", "<bndbox/></object>", r"object 1 \(ship\) has 2 <bndbox>; an object has one box"),
        ("<object>", "<part><object/></part><object>", "has 1 <object> not right below <annotation>"),
        ("</object>", "<object/></object>", "has 1 <object> not right below <annotation>"),
    ):
        (annotation_dir(root) / "11727.xml").write_text(xml.replace(old, new))
        refused(AnnotationError, message, root)


def test_sizes_as_tools_write_them(root):
    rewrite(root, "11727", [], size_wh=("64.0", 48))
    assert read_annotation(annotation_dir(root) / "11727.xml").size_wh == SIZE_WH
    for unknown in ((0, 0), None):
        rewrite(root, "11727", [], size_wh=unknown)
        assert load_dataset(root, "test").images["width"].tolist() == [64, 64, 64]


# images


def encoded(kind: str, size: int = 48, **options) -> bytes:
    """A file of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_that_were_truncated_lengthened_or_replaced_since_they_were_loaded(root):
    dataset = load_dataset(root, "test")
    path, jpeg = Path(dataset.images["path"][1]), encoded("JPEG")
    formats = [jpeg, encoded("JPEG", progressive=True), *map(encoded, ("PNG", "BMP", "TIFF"))]
    sound = [*formats, jpeg + b"\0" * 100 + b"appended by a camera"]
    cut = [(data[: int(len(data) * share)], path.name) for data in formats for share in (0.3, 0.6, 0.9)]
    damaged = [*cut, (jpeg[:-20], "truncated"), (encoded("JPEG", 32), "64x32")]
    for content, reason in [*((content, None) for content in sound), *damaged]:
        path.write_bytes(content)
        problems = check_images(dataset)
        if reason in (None, "64x32"):
            assert read_image(path).shape == (32 if reason else 48, 64, 3)
        else:
            refusals.refused(lambda: read_image(path), ImageReadError, reason)
        assert [image_id for image_id, _ in problems] == (["11727"] if reason else [])
        assert all(reason in text and path.name in text for _, text in problems)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    refusals.refused(lambda: read_image(path), ImageReadError, "no known range")


@pytest.mark.skipif("SURGERYLIB_DIOR" not in os.environ, reason="set SURGERYLIB_DIOR to a folder in DIOR's layout")
def test_all_real_annotations():
    root = os.environ["SURGERYLIB_DIOR"]
    splits = [load_dataset(root, split, require_images=False) for split in ("trainval", "test")]
    assert sum(len(dataset.images) for dataset in splits) == 23_463
    assert sum(len(dataset.boxes) + dataset.n_dropped for dataset in splits) == 192_518
    assert sum(dataset.n_dropped for dataset in splits) == 6
    assert sum(dataset.n_clipped for dataset in splits) == 1
