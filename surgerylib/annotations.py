"""Reading one VOC-style XML file: defusedxml parses it, and whatever cannot be is one clear error."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from .classes import DIOR_CLASSES, canonical_class
from .errors import AnnotationError, UnknownClassError

_LONGEST_SIDE = 2**31 - 1  # of an image in pixels; no format that is read can state more


class Annotation(NamedTuple):
    """What one XML file says: stated image size (None when it states none), labels and raw boxes_xyxy [n, 4]."""

    size_wh: tuple[int, int] | None
    labels: list[str]
    boxes_xyxy: list[tuple[float, float, float, float]]


def read_annotation(path: str | os.PathLike[str], classes: Sequence[str] = DIOR_CLASSES) -> Annotation:
    """Reads one VOC-style XML file; boxes come as written, neither clipped nor dropped.

    Args:
        path: the XML file.
        classes: names in the file are brought to this list's spelling.

    Raises:
        AnnotationError: the file is missing, is not well-formed VOC XML, declares entities, or holds a box without
            numbers or with xmax < xmin or ymax < ymin.
        UnknownClassError: an object's name is not in `classes`.
    """
    path = Path(path)
    root = _parse_xml(path)
    labels, boxes = [], []
    for number, (name, box) in enumerate(_objects(root), start=1):
        if not name:
            raise AnnotationError(f"{path}: object {number} has no <name>; add it or remove the object")
        try:
            label = canonical_class(name, classes)
        except UnknownClassError as error:
            raise UnknownClassError(f"{path}: object {number}: {error}") from None
        labels.append(label)
        boxes.append(_box(path, number, name, box))
    return Annotation(_stated_size(path, root), labels, boxes)


def _parse_xml(path: Path) -> Element:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise AnnotationError(f"{path} is no file; put the annotation in its place")
        root = fromstring(path.read_bytes())
    except FileNotFoundError:
        raise AnnotationError(f"no annotation file {path}; add it or take the image out of the split") from None
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{path} declares XML entities ({type(error).__name__}); refused, as they can blow up: remove the DOCTYPE"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path} is not well-formed XML ({error}); write the file again") from None
    if root.tag != "annotation":
        raise AnnotationError(f"{path} starts with <{root.tag}>, not with VOC's <annotation>; check what file it is")
    return root


def _objects(root: Element) -> Iterator[tuple[str, Element | None]]:
    for item in root.iterfind("object"):
        yield (item.findtext("name") or "").strip(), item.find("bndbox")


def _box(path: Path, number: int, name: str, box: Element | None) -> tuple[float, float, float, float]:
    where = f"{path}: object {number} ({name})"
    if box is None:
        raise AnnotationError(f"{where} has no <bndbox>; only horizontal boxes are read: add one or remove the object")
    texts = [box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        xmin, ymin, xmax, ymax = map(_number, texts)
    except (TypeError, ValueError):
        xmin = ymin = xmax = ymax = math.nan
    if not math.isfinite(xmin + ymin + xmax + ymax):
        raise AnnotationError(f"{where} has xmin, ymin, xmax, ymax = {texts}; each must be a number: mend the file")
    if xmax < xmin or ymax < ymin:
        raise AnnotationError(
            f"{where} has xmin {xmin:g}, xmax {xmax:g}, ymin {ymin:g}, ymax {ymax:g}; "
            "a box needs xmin <= xmax and ymin <= ymax: swap them or remove the object"
        )
    return xmin, ymin, xmax, ymax


def _number(text: str | None) -> float:
    """The number as written; Python alone would also take 1_0, and read it as 10."""
    if text is not None and "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)


def _stated_size(path: Path, root: Element) -> tuple[int, int] | None:
    texts = root.findtext("size/width"), root.findtext("size/height")
    if texts == (None, None):
        return None
    try:
        sides = [_number(text) for text in texts]
        width, height = map(int, sides)
        if [width, height] != sides or max(sides) > _LONGEST_SIDE:
            raise ValueError("a fraction of a pixel, or more than an image can have")
    except (TypeError, ValueError, OverflowError):
        raise AnnotationError(
            f"{path} states the size {texts[0]!r} x {texts[1]!r}; both must be whole numbers of pixels"
        ) from None
    # some annotation tools write 0 x 0 for "unknown"
    return (width, height) if width > 0 and height > 0 else None
