"""Reading image files: always uint8 RGB [H, W, 3], a damaged file always an error."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import ImageReadError

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# what Pillow and OpenCV raise on files that are damaged, hostile or no image
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, cv2.error)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's header alone.

    Raises:
        ImageReadError: the file is missing, empty or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | os.PathLike[str], error: Exception) -> ImageReadError:
    path = Path(path)
    try:
        is_there = path.is_file()
    except OSError as too_long:
        return ImageReadError(f"image file {str(path)[:80]}... cannot be read: {too_long.strerror}; give another name")
    if not is_there:
        return ImageReadError(f"no image file {path}; add it or take it out of the split")
    if path.stat().st_size == 0:
        return ImageReadError(f"image file {path} is empty (0 bytes); copy it again")
    if isinstance(error, UnidentifiedImageError):
        return ImageReadError(f"{path} is not an image that can be read (JPEG, PNG, BMP, TIFF); replace the file")
    reason = " ".join(str(error).split())
    return ImageReadError(f"image file {path} cannot be read: {reason}; copy it again or replace it")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file as uint8 RGB [H, W, 3], whatever its own colour mode; alpha is dropped, 16 bit cut to 8.

    The EXIF orientation is not applied: boxes refer to the pixels as stored, in the order annotation tools see them.

    Raises:
        ImageReadError: the file is missing, empty, truncated or not an image.
    """
    try:
        return _decoded(Path(path).read_bytes())
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def decode_image(data: bytes, name: str) -> np.ndarray:
    """`read_image` of a file's bytes, such as of one that was uploaded.

    Args:
        data: JPEG, PNG, BMP or TIFF.
        name: of the file, for the error.

    Raises:
        ImageReadError: empty, truncated or not an image.
    """
    try:
        return _decoded(data)
    except _READ_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise ImageReadError(
            f"{name} cannot be read as JPEG, PNG, BMP or TIFF: {reason}; choose another file"
        ) from None


def _decoded(data: bytes) -> np.ndarray:
    # OpenCV decodes JPEG fastest, but fills what a truncated file lacks with grey and says nothing. Compressed JPEG
    # data cannot hold the end marker, so a file that ends with it is whole; of any other Pillow is the judge.
    if data.startswith(_JPEG_START) and data.rstrip(b"\0").endswith(_JPEG_END):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is not None:
            return image
    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
            grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if picture.mode == "F":
            raise ValueError("32-bit float pixels have no known range; save it with 8 bits a channel")
        return np.array(picture.convert("RGB"))


def ends_well(path: str | os.PathLike[str]) -> bool:
    """Whether the file's last bytes are those its format ends with; False for formats without such an end."""
    with Path(path).open("rb") as file:
        head = file.read(6)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - len(_PNG_END)))
        tail = file.read()
    if head.startswith(_JPEG_START):
        return tail.endswith(_JPEG_END)
    if head.startswith(b"\x89PNG"):
        return tail == _PNG_END
    return head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == length
