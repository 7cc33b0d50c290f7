"""Pictures and data sets for the benchmarks: 800 x 800 JPEGs that cost a decoder what aerial photographs do."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from surgerylib import DIOR_CLASSES

SIDE, BOXES, N_GROUNDS = 800, 8, 200
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]
ANNOTATIONS, SPLITS = "Annotations/Horizontal Bounding Boxes", "ImageSets/Main"
_DIFFERENT, _NOISE = 64, 7.0
_OBJECT = (
    "\t<object>\r\n\t\t<name>{}</name>\r\n\t\t<pose>Unspecified</pose>\r\n\t\t<bndbox>\r\n\t\t\t<xmin>{}</xmin>\r\n"
    "\t\t\t<ymin>{}</ymin>\r\n\t\t\t<xmax>{}</xmax>\r\n\t\t\t<ymax>{}</ymax>\r\n\t\t</bndbox>\r\n\t</object>\r\n"
)
_FILE = (
    "<annotation>\r\n\t<filename>{}.jpg</filename>\r\n\t<source>\r\n\t\t<database>DIOR</database>\r\n\t</source>\r\n"
    f"\t<size>\r\n\t\t<width>{SIDE}</width>\r\n\t\t<height>{SIDE}</height>\r\n\t\t<depth>3</depth>\r\n\t</size>\r\n"
    "\t<segmented>0</segmented>\r\n{}</annotation>\r\n"
)


@lru_cache(maxsize=N_GROUNDS)  # 2 MB each
def ground(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth fields of several scales with fine noise on them: uint8 [H, W, 3]."""
    rng = np.random.default_rng(10_000 + number)
    picture = np.zeros((height, width, 3), np.float32) + rng.uniform(70, 180, 3).astype(np.float32)
    for cells, strength in ((4, 30), (16, 22), (64, 14), (200, 9)):
        grey = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 4, (cells, cells, 3))
        picture += cv2.resize(grey.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, _NOISE, (height, width, 1)).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """So many JPEGs, each a ground, turned and shifted, with three blocks on it; from the 65th on they repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number >= _DIFFERENT:
            os.link(paths[number % _DIFFERENT], path)
            continue
        picture = np.roll(np.rot90(ground(number % 16), number // 16), 37 * number, axis=(0, 1))
        for place in (100, 300, 500):
            picture[place : place + 90, place + number % 90 :][:, :60] = (70, 90, 160)
        cv2.imwrite(str(path), picture, QUALITY)
    return paths


def crowds(n_images: int, n_boxes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as crowded as DIOR's, the same at each call: some images hold hundreds, as harbours and car parks do.

    Returns:
        int [n_images] boxes an image, at least one; int [n_boxes] place of the class; float [n_boxes, 4] xyxy.
    """
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.2, n_images)
    counts = 1 + rng.multinomial(n_boxes - n_images, share / share.sum())
    main = np.repeat(rng.integers(0, len(DIOR_CLASSES), n_images), counts)
    label = np.where(rng.random(n_boxes) < 0.2, rng.integers(0, len(DIOR_CLASSES), n_boxes), main)
    side = np.exp(rng.normal(3.5, 1.0, (n_boxes, 2))).clip(4, 600)
    low = rng.random((n_boxes, 2)) * (SIDE - side)
    return counts, label, np.hstack([low, low + side])


def write_annotations(root: Path, n_images: int, n_boxes: int, split: str) -> list[Path]:
    """Files as DIOR writes them, boxes of whole pixels, and the split that names them all."""
    (root / ANNOTATIONS).mkdir(parents=True)
    (root / SPLITS).mkdir(parents=True)
    counts, label, boxes = crowds(n_images, n_boxes)
    corners = boxes.round().astype(int).tolist()
    objects = [_OBJECT.format(DIOR_CLASSES[place], *box) for place, box in zip(label, corners, strict=True)]
    paths = []
    for number, (end, count) in enumerate(zip(counts.cumsum(), counts, strict=True)):
        paths.append(root / ANNOTATIONS / f"{number:05d}.xml")
        paths[-1].write_bytes(_FILE.format(f"{number:05d}", "".join(objects[end - count : end])).encode())
    (root / SPLITS / f"{split}.txt").write_text("".join(f"{path.stem}\n" for path in paths))
    return paths


def write_dataset(root: Path, count: int, split: str = "test") -> Path:
    """Pictures and annotations in DIOR's layout, 8 boxes an image on average; returns the folder."""
    write_annotations(root, count, BOXES * count, split)
    write_pictures(root / ("JPEGImages-test" if split == "test" else "JPEGImages-trainval"), count)
    return root
