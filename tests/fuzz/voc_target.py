"""What must hold of the VOC reader for any bytes at all; the fuzzer and the replay of what it found both ask this."""

from __future__ import annotations

import math
from pathlib import Path

from surgerylib.datasets import Annotation, load_dataset, read_annotation
from surgerylib.errors import AnnotationError, SurgeryError
from surgerylib.words import DIOR_CLASSES

IMAGE_ID = "00001"
ANNOTATIONS = "Annotations/Horizontal Bounding Boxes"


def one_line(error: SurgeryError) -> str:
    """The message, which must be one line that a terminal can show."""
    text = str(error)
    assert text.isprintable(), ascii(text)
    assert len(text) <= 2000, len(text)
    return text


def make_dataset(folder: Path) -> Path:
    """A data set without images: one image named in the split `test`; its annotation is still to be written."""
    for name in (ANNOTATIONS, "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/test.txt").write_text(f"{IMAGE_ID}\n")
    return folder


def check_annotation(data: bytes, root: Path) -> Annotation | None:
    """Reads `data` as the annotation of a data set's only image.

    Returns:
        what was read; None where the file was refused as it must be: one line that names the file.
    """
    path = root / ANNOTATIONS / f"{IMAGE_ID}.xml"
    path.write_bytes(data)
    try:
        annotation = read_annotation(path)
    except SurgeryError as error:
        message = one_line(error)
        assert path.name in message
        return None
    assert len(annotation.labels) == len(annotation.boxes_xyxy)
    assert set(annotation.labels) <= set(DIOR_CLASSES)
    for xmin, ymin, xmax, ymax in annotation.boxes_xyxy:
        assert all(map(math.isfinite, (xmin, ymin, xmax, ymax)))
        assert xmin <= xmax
        assert ymin <= ymax
    try:
        dataset = load_dataset(root, "test", require_images=False)
    except AnnotationError as error:
        one_line(error)
        assert annotation.size_wh is None
        return annotation
    width, height = annotation.size_wh
    assert dataset.images[["image_id", "width", "height"]].to_numpy().tolist() == [[IMAGE_ID, width, height]]
    assert len(dataset.boxes) + dataset.n_dropped == len(annotation.labels)
    assert dataset.n_clipped <= len(dataset.boxes)
    for xmin, ymin, xmax, ymax in dataset.boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy().tolist():
        assert 0 <= xmin < xmax <= width
        assert 0 <= ymin < ymax <= height
    assert len(dataset.fingerprint()) == 64
    assert len(dataset.describe().splitlines()) == 1
    return annotation
