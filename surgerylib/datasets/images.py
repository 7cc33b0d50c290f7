"""Reading image files: always uint8 RGB [H, W, 3], a damaged file always an error.

The content decides what a file is, not its ending. Only the formats below are tried: Pillow knows many more, some of
which start other programs. An image of more pixels than `MAX_PIXELS` is refused from its header alone.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageReadError

MAX_PIXELS = 178_956_970  # twice Pillow's own limit, at which it refuses too, unless somebody has switched that off
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP")
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# what Pillow and OpenCV raise on files that are damaged, hostile or no image
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, cv2.error)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's header alone.

    Raises:
        ImageReadError: the file is missing, empty or not an image.
    """
    try:
        _check_is_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image)
            return image.size
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def check_decodes(path: str | os.PathLike[str]) -> None:
    """Decodes a file to see whether it can be, a JPEG at an eighth of its size: quicker, and read to its end as well.

    Raises:
        ImageReadError: as `read_image`.
    """
    _decoded_file(path, reduced=True)


def _check_is_file(path: str | os.PathLike[str]) -> None:
    """Raise an `OSError` for what is there but no file: a pipe would be waited for."""
    path = Path(path)
    if not path.is_file() and path.exists():
        raise OSError("it is no file")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> ImageReadError:
    path = Path(path)
    try:
        is_there = path.is_file()
    except OSError as too_long:
        return ImageReadError(f"image file {str(path)[:80]}... cannot be read: {too_long.strerror}; give another name")
    if not is_there and not path.exists():
        return ImageReadError(f"no image file {path}; add it or take it out of the split")
    if is_there and path.stat().st_size == 0:
        return ImageReadError(f"image file {path} is empty (0 bytes); copy it again")
    if isinstance(error, UnidentifiedImageError):
        return ImageReadError(f"{path} is not an image that can be read ({', '.join(_FORMATS)}); replace the file")
    if isinstance(error, Image.DecompressionBombError):
        return ImageReadError(
            f"image file {path} states more than the {MAX_PIXELS:,} pixels that are read at most: it may be made to "
            "fill the memory; cut it into tiles"
        )
    reason = " ".join(str(error).split())
    return ImageReadError(f"image file {path} cannot be read: {reason}; copy it again or replace it")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file as uint8 RGB [H, W, 3], whatever its own colour mode; alpha is dropped, 16 bit cut to 8.

    Of an animation the first picture is taken. The EXIF orientation is not applied: boxes refer to the pixels as
    stored, in the order annotation tools see them.

    Raises:
        ImageReadError: the file is missing, empty, truncated, too large or not an image.
    """
    return _decoded_file(path)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """`read_image` of a file's bytes, such as of one that was uploaded.

    Args:
        data: of one of the formats that `read_image` takes.
        name: of the file, for the error.

    Raises:
        ImageReadError: empty, truncated or not an image.
    """
    try:
        return _decoded(data)
    except _READ_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise ImageReadError(
            f"{name} cannot be read as an image ({', '.join(_FORMATS)}): {reason}; choose another file"
        ) from None


def _decoded_file(path: str | os.PathLike[str], *, reduced: bool = False) -> np.ndarray:
    try:
        _check_is_file(path)
        return _decoded(Path(path).read_bytes(), reduced=reduced)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def _decoded(data: bytes, *, reduced: bool = False) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:  # the header: what it is, and how large
        _check_pixels(picture)
        # OpenCV decodes JPEG fastest, but fills what a truncated file lacks with grey and says nothing. Compressed JPEG
        # data cannot hold the end marker, so a file that ends with it is whole; of any other Pillow is the judge.
        if data.startswith(_JPEG_START) and data.rstrip(b"\0").endswith(_JPEG_END):
            size = cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR_RGB
            image = cv2.imdecode(np.frombuffer(data, np.uint8), size | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is not None:
                return image
        if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
            grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if picture.mode == "F":
            raise ValueError("32-bit float pixels have no known range; save it with 8 bits a channel")
        return np.array(picture.convert("RGB"))
