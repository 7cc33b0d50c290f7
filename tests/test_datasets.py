"""Datasets: the three layouts, the quirks of real files, and one clear line for every bad one."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from dior_folders import (
    LAYOUTS,
    SIZE_WH,
    SPLITS,
    annotation_dir,
    annotation_xml,
    image_file,
    picture,
    split_file,
    write_dataset,
)
from PIL import Image

from surgerylib.datasets.dataset import (
    DIOR_CLASSES,
    PROMPT_TEMPLATES,
    canonical_class,
    check_images,
    load_dataset,
    prompt_names,
    read_annotation,
    read_image,
)
from surgerylib.errors import (
    AnnotationError,
    DatasetError,
    ImageReadError,
    ParameterError,
    SurgeryError,
    UnknownClassError,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def rewrite(root: Path, image_id: str, boxes, size_wh=SIZE_WH) -> Path:
    path = annotation_dir(root) / f"{image_id}.xml"
    path.write_text(annotation_xml(image_id, boxes, size_wh))
    return path


def one_line(error: pytest.ExceptionInfo[SurgeryError]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# class names


def test_twenty_classes_in_dior_spelling():
    assert len(DIOR_CLASSES) == len(set(DIOR_CLASSES)) == 20
    assert DIOR_CLASSES[0] == "airplane"
    assert DIOR_CLASSES[-1] == "windmill"
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)


def test_prompt_names():
    by_class = dict(zip(DIOR_CLASSES, prompt_names(DIOR_CLASSES), strict=True))
    assert by_class["golffield"] == "golf course"
    assert by_class["Expressway-Service-area"] == "expressway service area"
    assert by_class["groundtrackfield"] == "ground track field"
    assert by_class["ship"] == "ship"
    assert all(name == name.lower() and "-" not in name for name in by_class.values())
    assert prompt_names(["GolfField", "solar_panel-array", "plane"]) == ["golf course", "solar panel array", "plane"]
    assert prompt_names([]) == []


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("golf course", "golffield"),
        ("golf field", "golffield"),
        ("Golf_Field", "golffield"),
        ("expressway toll station", "Expressway-toll-station"),
        ("EXPRESSWAY-TOLL-STATION", "Expressway-toll-station"),
        ("toll station", "Expressway-toll-station"),
        ("Expressway-Service-Area", "Expressway-Service-area"),
        ("harbour", "harbor"),
        ("Train Station", "trainstation"),
        ("plane", "airplane"),
        ("wind mill", "windmill"),
        ("ground track field", "groundtrackfield"),
        ("storage_tank", "storagetank"),
    ],
)
def test_known_error_12_class_name_that_fails_to_match_silently(written, canonical):
    assert canonical_class(written) == canonical


def test_known_error_12_unknown_class_lists_the_nearest_names():
    with pytest.raises(UnknownClassError, match=r"airplan'.*airplane") as error:
        canonical_class("very airplan")
    one_line(error)
    with pytest.raises(UnknownClassError, match="'submarine'"):
        canonical_class("submarine")


def test_every_class_and_prompt_name_is_its_own_canonical_class():
    for name, prompt in zip(DIOR_CLASSES, prompt_names(DIOR_CLASSES), strict=True):
        assert canonical_class(name) == canonical_class(prompt) == canonical_class(name.upper()) == name


def test_own_class_list():
    assert canonical_class("Solar-Panel", ["solar panel", "golf course"]) == "solar panel"
    assert canonical_class("golffield", ["solar panel", "golf course"]) == "golf course"
    assert canonical_class("aircraft", ["plane"]) == "plane"
    with pytest.raises(UnknownClassError):
        canonical_class("airplane", ["ship"])
    for same in (["ship", "Ship"], ["golffield", "golf course"]):
        with pytest.raises(ParameterError, match="are the same"):
            canonical_class("ship", same)
    with pytest.raises(ParameterError, match="not a non-empty string"):
        canonical_class("ship", ["ship", 3])


def test_empty_class_list(root):
    with pytest.raises(ParameterError, match="class list is empty"):
        load_dataset(root, "test", classes=[])


# layouts and splits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_three_layouts_are_recognised(tmp_path, layout):
    dataset = load_dataset(write_dataset(tmp_path / "data", layout), "test")
    assert dataset.layout == layout
    assert dataset.describe() == f"{layout} layout, split test: 3 images, 4 boxes, 20 classes"
    assert dataset.images["image_id"].tolist() == ["11726", "11727", "11728"]
    assert dataset.images[["width", "height"]].drop_duplicates().to_numpy().tolist() == [list(SIZE_WH)]
    assert all(Path(path).is_file() for path in dataset.images["path"])
    assert list(dataset.boxes.columns) == ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
    assert dataset.boxes.iloc[2].tolist() == ["11726", "Expressway-toll-station", 16, 20, 50, 40]
    assert dataset.boxes.dtypes[["xmin", "ymin", "xmax", "ymax"]].eq(np.float64).all()
    assert dataset.classes == DIOR_CLASSES
    assert check_images(dataset) == []


def test_reorganised_without_subfolders(tmp_path):
    root = write_dataset(tmp_path / "data", "reorganised")
    for folder in ("images/test", "images/trainval", "annotations/horizontal"):
        for path in list((root / folder).iterdir()):
            path.rename(root / folder.split("/")[0] / path.name)
        (root / folder).rmdir()
    dataset = load_dataset(root, "test")
    assert (dataset.layout, len(dataset.images), len(dataset.boxes)) == ("reorganised", 3, 4)


@pytest.mark.parametrize("suffix", [".jpeg", ".JPG", ".png", ".bmp", ".tif"])
def test_image_suffixes(tmp_path, suffix):
    root = write_dataset(tmp_path / "data", suffix=suffix)
    dataset = load_dataset(root, "test")
    assert len(dataset.images) == 3
    assert check_images(dataset) == []
    image = read_image(dataset.images["path"][0])
    assert np.abs(image.astype(int) - picture("11726")).mean() < 4


def test_trainval_is_its_own_file_or_train_and_val(root):
    assert load_dataset(root, "trainval").images["image_id"].tolist() == ["00001", "00002", "00003"]
    split_file(root, "trainval").write_text("00003\n00001\n")
    assert load_dataset(root, "trainval").images["image_id"].tolist() == ["00003", "00001"]


def test_split_file_with_bom_windows_line_ends_blank_lines_and_repeats(root):
    split_file(root, "test").write_bytes(b"\xef\xbb\xbf11728\r\n\r\n 11726 \r\n11728\r\n")
    dataset = load_dataset(root, "test")
    assert dataset.images["image_id"].tolist() == ["11728", "11726"]
    assert dataset.n_repeated == 1
    assert dataset.describe().endswith("; 1 repeated id dropped")


def test_voc_split_file_of_one_class(root):
    split_file(root, "vehicle_test").write_text("11726  1\n11727 -1\n11728  0\n")
    assert load_dataset(root, "vehicle_test").images["image_id"].tolist() == ["11726", "11728"]


def test_limit_takes_the_first_of_the_split(root):
    assert load_dataset(root, "test", limit=2).images["image_id"].tolist() == ["11726", "11727"]
    assert len(load_dataset(root, "test", limit=99).images) == 3
    for limit in (0, -1, 2.5, "3", True):
        with pytest.raises(ParameterError, match="limit") as error:
            load_dataset(root, "test", limit=limit)
        one_line(error)


def test_split_without_any_box(root):
    split_file(root, "empty").write_text("11727\n")
    dataset = load_dataset(root, "empty")
    assert dataset.boxes.empty
    assert dataset.boxes["xmin"].dtype == np.float64
    assert dataset.boxes["label"].dtype == load_dataset(root, "test").boxes["label"].dtype
    assert len(dataset.fingerprint()) == 64


def test_without_images(root):
    for path in (root / "JPEGImages-test").iterdir():
        path.unlink()
    dataset = load_dataset(root, "test", require_images=False)
    assert (len(dataset.boxes), set(dataset.images["path"])) == (4, {""})
    with pytest.raises(ParameterError, match="require_images"):
        check_images(dataset)
    rewrite(root, "11727", [], size_wh=None)
    with pytest.raises(AnnotationError, match="states no image size"):
        load_dataset(root, "test", require_images=False)


def test_names_in_xml_are_brought_to_the_class_list(root):
    rewrite(root, "11728", [("Wind Mill", 1, 1, 5, 5), ("golf course", 1, 1, 9, 9)])
    assert load_dataset(root, "test").boxes["label"].tolist()[-2:] == ["windmill", "golffield"]
    own = ("golf course", "WindMill", "vehicle", "expressway toll station")
    dataset = load_dataset(root, "test", classes=own)
    assert dataset.boxes["label"].tolist()[-3:] == ["expressway toll station", "WindMill", "golf course"]
    assert dataset.classes == own


# what is mended, and counted


def test_boxes_beyond_the_image_are_clipped_and_empty_ones_dropped(root):
    boxes = [
        ("ship", -3, 5, 70, 20),  # leaves on both sides
        ("ship", 10, 10, 10, 20),  # no width
        ("ship", 10, 10, 10, 10),  # a point
        ("ship", 70, 5, 90, 20),  # outside
        ("ship", 0, 0, 64, 48),  # the whole image is not clipped
    ]
    rewrite(root, "11728", boxes)
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
    sample = dataset.sample(10, seed=3)
    ids = sample.images["image_id"].tolist()
    assert len(ids) == 10
    assert ids == sorted(ids)
    assert ids != [f"{i:05d}" for i in range(10)]
    assert sample.boxes["image_id"].tolist() == ids
    assert sample.images.index.tolist() == list(range(10))
    assert ids == dataset.sample(10, seed=3).images["image_id"].tolist()
    assert ids != dataset.sample(10, seed=4).images["image_id"].tolist()
    assert all(dataset.sample(n) is dataset for n in (None, 0, 40, 99))
    for n in (-1, 1.5):
        with pytest.raises(ParameterError, match="number of images"):
            dataset.sample(n)


def test_fingerprint_knows_the_content_but_not_the_place(root, tmp_path):
    here = load_dataset(root, "test").fingerprint()
    assert load_dataset(write_dataset(tmp_path / "elsewhere", "VOC"), "test").fingerprint() == here
    assert load_dataset(root, "test", limit=2).fingerprint() != here
    rewrite(root, "11728", [("windmill", 30, 5, 38, 41)])
    assert load_dataset(root, "test").fingerprint() != here


# one clear line for each bad input


def test_missing_folder_and_unknown_layout(tmp_path):
    with pytest.raises(DatasetError, match="no dataset folder") as error:
        load_dataset(tmp_path / "nowhere", "test")
    one_line(error)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="holds photos") as error:
        load_dataset(tmp_path, "test")
    text = one_line(error)
    assert all(
        part in text for part in ("DIOR: ", "Horizontal Bounding Boxes", "VOC: JPEGImages/", "reorganised: images/")
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_split_lists_those_there_are(tmp_path, layout):
    root = write_dataset(tmp_path / "data", layout)
    for split in ("tset", "../test", ""):
        with pytest.raises(DatasetError, match="there are: test, train, val") as error:
            load_dataset(root, split)
        one_line(error)
    split_file(root, "test", layout).write_text("\n")
    with pytest.raises(DatasetError, match="names no image"):
        load_dataset(root, "test")


def test_split_naming_an_image_that_is_not_there(root):
    image_file(root, "test", "11727").unlink()
    with pytest.raises(DatasetError, match=r"names 1 image not in .*: 11727;") as error:
        load_dataset(root, "test")
    one_line(error)


def test_split_naming_an_image_without_annotation(root):
    (annotation_dir(root) / "11727.xml").unlink()
    with pytest.raises(AnnotationError, match=r"no annotation file .*11727\.xml") as error:
        load_dataset(root, "test")
    one_line(error)


@pytest.mark.parametrize("image_id", ["../secret", "a/b", "a\\b", ".."])
def test_split_with_a_path_for_an_id_is_refused(root, image_id):
    split_file(root, "test").write_text(f"{image_id}\n")
    with pytest.raises(DatasetError, match="bare file name") as error:
        load_dataset(root, "test", require_images=False)
    one_line(error)


def test_split_file_that_is_no_text(root):
    split_file(root, "test").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match="UTF-8") as error:
        load_dataset(root, "test")
    one_line(error)


def test_image_that_is_there_twice(root):
    image_file(root, "test", "11727", suffix=".png").write_bytes(b"")
    with pytest.raises(DatasetError, match="there twice"):
        load_dataset(root, "test")


def test_size_written_with_a_decimal_point(root):
    path = next(annotation_dir(root).glob("*.xml"))
    text = path.read_text()
    width = re.search(r"<width>(\d+)</width>", text)[1]
    path.write_text(text.replace(f"<width>{width}</width>", f"<width>{width}.0</width>"))
    assert read_annotation(path).size_wh[0] == int(width)
    path.write_text(text.replace(f"<width>{width}</width>", f"<width>{width}.5</width>"))
    with pytest.raises(AnnotationError, match="whole numbers"):
        read_annotation(path)


def test_image_that_is_not_of_the_stated_size(root):
    rewrite(root, "11727", [], size_wh=(48, 64))
    with pytest.raises(DatasetError, match=r"11727\.xml states 48x64 .*11727\.jpg has 64x48") as error:
        load_dataset(root, "test")
    one_line(error)
    rewrite(root, "11727", [], size_wh=(0, 0))  # some tools write 0 for unknown
    assert len(load_dataset(root, "test").images) == 3


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><filename>&b;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", "not well-formed"),
        ("", "not well-formed"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not well-formed"),
        (BOMB, "entities"),
        ("<html/>", "<html>"),
        ("<annotation><object><name>ship</name></object></annotation>", r"object 1 \(ship\) has no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", "object 1 has no <name>"),
        (annotation_xml("x", [("ship", 1, 1, "two", 2)]), "'two'"),
        (annotation_xml("x", [("ship", 1, 1, "", 2)]), "must be a number"),
        (annotation_xml("x", [("ship", 1, 1, "nan", 2)]), "'nan'"),
        (annotation_xml("x", [("ship", 1, 1, "inf", 2)]), "'inf'"),
        (annotation_xml("x", [("ship", 1, 1, 2, 2), ("dam", 9, 1, 2, 2)]), r"object 2 \(dam\) has xmin 9, xmax 2"),
        (annotation_xml("x", [("ship", 1, 9, 2, 2)]), "ymin <= ymax"),
        (annotation_xml("x", [("ship", "1_0", 1, 20, 2)]), "'1_0'"),
        (annotation_xml("x", [], size_wh=("wide", 3)), "whole numbers"),
        (annotation_xml("x", [], size_wh=("6_4", 48)), "whole numbers"),
        (annotation_xml("x", [], size_wh=("1e300", 48)), "'1e300' x '48'; both must be whole numbers"),
        (annotation_xml("x", [], size_wh=("nan", "inf")), "whole numbers"),
        ('<annotation xmlns="of&#10;two lines"/>', "of two lines"),
    ],
)
def test_annotation_that_cannot_be(root, xml, message):
    path = annotation_dir(root) / "11727.xml"
    path.write_text(xml)
    for read in (lambda: read_annotation(path), lambda: load_dataset(root, "test")):
        with pytest.raises(AnnotationError, match=message) as error:
            read()
        assert "11727.xml" in one_line(error)


def test_annotation_with_a_class_nobody_knows(root):
    rewrite(root, "11727", [("shipp yard", 1, 1, 5, 5)])
    with pytest.raises(UnknownClassError, match=r"11727\.xml: object 1: unknown class 'shipp yard'; .*ship") as error:
        load_dataset(root, "test")
    one_line(error)


# images


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(size_wh=(64, 48)) -> Image.Image:
    """Smooth, so that JPEG keeps it within a few grey values."""
    x, y = np.meshgrid(np.linspace(0, 255, size_wh[0]), np.linspace(0, 255, size_wh[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_read_image_is_rgb_uint8(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(encoded(gradient(), kind))
    image = read_image(path)
    assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
    assert np.abs(image.astype(int) - np.asarray(gradient())).mean() < (3 if kind == "JPEG" else 1e-9)
    image[:] = 0  # the caller's own


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG")],
)
def test_read_image_of_other_colour_modes(tmp_path, mode, kind):
    path = tmp_path / "image"
    source = gradient().convert(mode)
    path.write_bytes(encoded(source, kind))
    image = read_image(path)
    assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
    assert np.abs(image.astype(int) - np.asarray(source.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image_of_16_bits(tmp_path, kind):
    path = tmp_path / "image"
    grey = np.asarray(gradient().convert("L"))
    path.write_bytes(encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind))
    assert np.array_equal(read_image(path), np.repeat(grey[:, :, None], 3, axis=2))


def test_exif_orientation_is_not_applied(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[274] = 6  # quarter turn
    path.write_bytes(encoded(gradient(), "JPEG", exif=exif))
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("TIFF", {})]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_image_is_an_error(root, kind, options, share):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind, **options)
    dataset = load_dataset(root, "test")
    path = Path(dataset.images["path"][1])
    path.write_bytes(data)
    assert check_images(dataset) == []
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageReadError) as error:
        read_image(path)
    assert path.name in one_line(error)
    [(image_id, reason)] = check_images(dataset)
    assert image_id == "11727"
    assert path.name in reason


def test_jpeg_cut_just_before_its_end(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    path = tmp_path / "image.jpg"
    path.write_bytes(data[:-20])
    with pytest.raises(ImageReadError, match="truncated"):
        read_image(path)
    path.write_bytes(data + b"\0" * 100 + b"appended by a camera")
    assert read_image(path).shape == (48, 64, 3)


def test_files_that_are_no_images(root):
    dataset = load_dataset(root, "test")
    paths = [Path(path) for path in dataset.images["path"]]
    paths[0].write_bytes(b"")
    paths[1].write_text("<html>not found</html>")
    paths[2].unlink()
    messages = ["empty", "not an image", "no image file"]
    for path, message in zip(paths, messages, strict=True):
        with pytest.raises(ImageReadError, match=message) as error:
            read_image(path)
        one_line(error)
    reasons = check_images(dataset)
    assert [image_id for image_id, _ in reasons] == dataset.images["image_id"].tolist()
    assert all(message in reason for (_, reason), message in zip(reasons, messages, strict=True))
    with pytest.raises(DatasetError):
        load_dataset(root, "test")


def test_image_replaced_after_loading(root):
    dataset = load_dataset(root, "test")
    Path(dataset.images["path"][0]).write_bytes(encoded(gradient((32, 32)), "JPEG"))
    [(image_id, reason)] = check_images(dataset)
    assert image_id == "11726"
    assert "32x32" in reason


# the real files


@pytest.mark.skipif("SURGERYLIB_DIOR" not in os.environ, reason="set SURGERYLIB_DIOR to a folder in DIOR's layout")
def test_all_real_annotations():
    started = time.perf_counter()
    splits = [
        load_dataset(os.environ["SURGERYLIB_DIOR"], split, require_images=False) for split in ("trainval", "test")
    ]
    seconds = time.perf_counter() - started
    assert sum(len(dataset.images) for dataset in splits) == 23_463
    assert sum(len(dataset.boxes) + dataset.n_dropped for dataset in splits) == 192_518
    assert sum(dataset.n_dropped for dataset in splits) == 6
    assert sum(dataset.n_clipped for dataset in splits) == 1
    assert seconds < 12


def test_splits_of_the_helper_hold_what_they_say(root):
    for split, images in SPLITS.items():
        dataset = load_dataset(root, split)
        assert dataset.images["image_id"].tolist() == list(images)
        assert len(dataset.boxes) == sum(map(len, images.values()))
