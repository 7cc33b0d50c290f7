"""Reading one VOC-style XML file: what may declare entities goes to defusedxml, and whatever is wrong is one error."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree as DefusedElementTree
from defusedxml.common import DefusedXmlException

from ..errors import AnnotationError, UnknownClassError
from ..words import DIOR_CLASSES, canonical_class

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
    return AnnotationReader(classes).read(str(Path(path)))


class AnnotationReader:
    """`read_annotation` for many files of one class list: what names and numbers mean is looked up once.

    Args:
        classes: names in the files are brought to this list's spelling.
        check_link: is called with what may be a link, before it is followed, and raises where it must not be.
    """

    def __init__(self, classes: Sequence[str], check_link: Callable[[Path], None] | None = None) -> None:
        self._classes, self._check_link = tuple(classes), check_link
        self._label_of: dict[str, str] = {}  # name as written -> label

    def read(self, path: str) -> Annotation:
        """What the file says; raises as `read_annotation` does, and what `check_link` raises."""
        root = self._root(path)
        labels: list[str] = []
        boxes = []
        for item in root.findall("object"):
            name = item.findtext("name")
            label = self._label_of.get(name)
            labels.append(self._label(path, len(labels) + 1, name) if label is None else label)
            boxes.append(self._box(path, len(labels), name, item.find("bndbox")))
        return Annotation(self._stated_size(path, root), labels, boxes)

    def _root(self, path: str) -> Element:
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                self._check_no_file(Path(path))
            root = _parse(Path(path).read_bytes())
        except FileNotFoundError:
            raise AnnotationError(f"no annotation file {path}; add it or take the image out of the split") from None
        except OSError as error:
            raise AnnotationError(
                f"{path} cannot be read: {error.strerror}; check the file and its permissions"
            ) from None
        except DefusedXmlException as error:
            raise AnnotationError(
                f"{path} declares XML entities ({type(error).__name__}); refused, as they can blow up: "
                "remove the DOCTYPE"
            ) from None
        except (ParseError, ValueError, LookupError) as error:
            raise AnnotationError(f"{path} is not well-formed XML ({error}); write the file again") from None
        if root.tag != "annotation":
            raise AnnotationError(
                f"{path} starts with <{root.tag}>, not with VOC's <annotation>; check what file it is"
            )
        return root

    def _check_no_file(self, path: Path) -> None:
        """Raise an `AnnotationError` for what is neither a file nor a link to one."""
        if self._check_link is not None:
            self._check_link(path)
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise AnnotationError(f"{path} is no file; put the annotation in its place")

    def _label(self, path: str, number: int, written: str | None) -> str:
        """The label of a name that was not seen before."""
        name = (written or "").strip()
        if not name:
            raise AnnotationError(f"{path}: object {number} has no <name>; add it or remove the object")
        try:
            return self._label_of.setdefault(written, canonical_class(name, self._classes))
        except UnknownClassError as error:
            raise UnknownClassError(f"{path}: object {number}: {error}") from None

    def _box(self, path: str, number: int, name: str, box: Element | None) -> tuple[float, float, float, float]:
        """The numbers of an object's box, checked."""
        if box is None:
            raise AnnotationError(
                f"{path}: object {number} ({name.strip()}) has no <bndbox>; only horizontal boxes are read: add one or "
                "remove the object"
            )
        texts = [box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = map(_number, texts)
        except ValueError:
            xmin = ymin = xmax = ymax = math.nan
        if not math.isfinite(xmin + ymin + xmax + ymax):
            raise AnnotationError(
                f"{path}: object {number} ({name.strip()}) has xmin, ymin, xmax, ymax = {texts}; each must be a "
                "number: mend the file"
            )
        if xmax < xmin or ymax < ymin:
            raise AnnotationError(
                f"{path}: object {number} ({name.strip()}) has xmin {xmin:g}, xmax {xmax:g}, ymin {ymin:g}, "
                f"ymax {ymax:g}; a box needs xmin <= xmax and ymin <= ymax: swap them or remove the object"
            )
        return xmin, ymin, xmax, ymax

    def _stated_size(self, path: str, root: Element) -> tuple[int, int] | None:
        """(width, height) that the file states; None where it states none, or that it is unknown."""
        sizes = root.findall("size")
        texts = _first(sizes, "width"), _first(sizes, "height")
        if texts == (None, None):
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
    return float(text)


def _first(parents: Sequence[Element], tag: str) -> str | None:
    """The text of the first child of this name in any of them."""
    for parent in parents:
        text = parent.findtext(tag)
        if text is not None:
            return text
    return None


def _parse(data: bytes) -> Element:
    """The tree of an XML file; entities are refused.

    defusedxml refuses them from Python, slowly; the parser in C would expand them. But they are declared in a DOCTYPE
    alone, and every declaration begins with the bytes `<!`: expat takes no encoding, whatever a file claims, in which
    another byte means `<` or `!`, but for UTF-16, in which each of these has a zero byte beside it. So a file without
    `<!` and without a zero byte declares nothing, and both parsers make the same of it.
    """
    if b"<!" in data or b"\0" in data:
        return DefusedElementTree.fromstring(data)
    return ElementTree.fromstring(data)
