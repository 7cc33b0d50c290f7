"""The reader of VOC's XML. Whatever is wrong in a file is one error."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..errors import AnnotationError, UnknownClassError
from ..matching import BOX_COLUMNS
from ..words import DIOR_CLASSES, canonical_class

_LONGEST_SIDE = 2**31 - 1  # of an image in pixels; no format that is read can state more
_canonical_class = lru_cache(maxsize=1024)(canonical_class)  # the same few names stand in all files


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
        AnnotationError: the file is missing, is not well-formed VOC XML, declares entities, holds a box without
            numbers or with xmax < xmin or ymax < ymin, or one that would be lost: an object's second, or an object
            elsewhere in the tree.
        UnknownClassError: an object's name is not in `classes`.
    """
    path, classes = Path(path), tuple(classes)
    root = _root(path)
    labels, boxes, objects = [], [], root.findall("object")
    if elsewhere := sum(1 for _ in root.iter("object")) - len(objects):
        raise AnnotationError(f"{path} has {elsewhere} <object> not right below <annotation>; move them there")
    for number, item in enumerate(objects, start=1):
        where, name = f"{path}: object {number}", (item.findtext("name") or "").strip()
        if not name:
            raise AnnotationError(f"{where} has no <name>; add it or remove the object")
        try:
            labels.append(_canonical_class(name, classes))
        except UnknownClassError as error:
            raise UnknownClassError(f"{where}: {error}") from None
        boxes.append(_box(f"{where} ({name})", item.findall("bndbox")))
    return Annotation(_stated_size(path, root), labels, boxes)


def _root(path: Path) -> Element:
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise AnnotationError(f"{path} is no file; put the annotation in its place")
        root = ElementTree.fromstring(path.read_bytes())
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


def _box(what: str, found: list[Element]) -> tuple[float, float, float, float]:
    """The numbers of an object's box, checked; `what` names the object."""
    if not found:
        raise AnnotationError(f"{what} has no <bndbox>; only horizontal boxes are read: add one or remove the object")
    if len(found) > 1:
        raise AnnotationError(f"{what} has {len(found)} <bndbox>; an object has one box: write an object for each")
    texts = [found[0].findtext(corner) for corner in BOX_COLUMNS]
    try:
        xmin, ymin, xmax, ymax = map(_number, texts)
    except ValueError:
        raise AnnotationError(
            f"{what} has {', '.join(BOX_COLUMNS)} = {texts}; each must be a number: mend the file"
        ) from None
    if xmax < xmin or ymax < ymin:
        raise AnnotationError(
            f"{what} has xmin {xmin:g}, xmax {xmax:g}, ymin {ymin:g}, ymax {ymax:g}; a box needs xmin <= xmax and "
            "ymin <= ymax: swap them or remove the object"
        )
    return xmin, ymin, xmax, ymax


def _stated_size(path: Path, root: Element) -> tuple[int, int] | None:
    """(width, height) that the file states; None where it states none, or that it is unknown."""
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if texts == [None, None]:
        return None
    try:
        width, height = map(_number, texts)
        if not (width.is_integer() and height.is_integer()) or max(width, height) > _LONGEST_SIDE:
            raise ValueError("a fraction of a pixel, or more than an image can have")
    except ValueError:
        raise AnnotationError(
            f"{path} states the size {texts[0]!r} x {texts[1]!r}; both must be whole numbers of pixels"
        ) from None
    # some annotation tools write 0 x 0 for "unknown"
    return (int(width), int(height)) if width > 0 and height > 0 else None


def _number(text: str | None) -> float:
    if text is None or "_" in text:  # Python alone would take 1_0, and read it as 10
        raise ValueError(f"{text!r} is no number")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number
