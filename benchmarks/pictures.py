"""Pictures for the benchmarks: 800 x 800 JPEGs that cost a decoder what aerial photographs do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scale_pictures import ground

from surgerylib.datasets import Dataset
from surgerylib.words import DIOR_CLASSES

SIDE, BOXES = 800, 8
_GROUNDS, _QUALITY = 16, 85


def write_pictures(folder: Path, count: int) -> list[Path]:
    """So many JPEGs, each a ground, turned and shifted, with three blocks on it."""
    paths = []
    for number in range(count):
        turned = np.rot90(ground(number % _GROUNDS, SIDE, SIDE), number // _GROUNDS)
        picture = np.roll(turned, 37 * number, axis=(0, 1))
        for place in (100, 300, 500):
            picture[place : place + 90, place + number % 90 :][:, :60] = (70, 90, 160)
        path = folder / f"{number:05d}.jpg"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        paths.append(path)
    return paths


def dataset_of(folder: Path, paths: list[Path]) -> Dataset:
    """A data set of these pictures with random boxes."""
    images = pd.DataFrame(
        {"image_id": [path.stem for path in paths], "path": list(map(str, paths)), "width": SIDE, "height": SIDE}
    )
    return with_boxes(folder, images, np.random.default_rng(0))


def with_boxes(folder: Path, images: pd.DataFrame, rng: np.random.Generator) -> Dataset:
    """The data set of these images, `BOXES` random boxes on each."""
    low = rng.uniform(0, 600, (len(images) * BOXES, 2))
    boxes = pd.DataFrame(
        np.hstack([low, low + rng.uniform(20, 200, low.shape)]), columns=["xmin", "ymin", "xmax", "ymax"]
    )
    boxes.insert(0, "image_id", np.repeat(images["image_id"].to_numpy(object), BOXES))
    boxes.insert(1, "label", np.array(DIOR_CLASSES, dtype=object)[rng.integers(0, 20, len(boxes))])
    nothing = pd.DataFrame(columns=["image_id", "label", "repair"])
    return Dataset("random", folder, "test", "DIOR", images, boxes, DIOR_CLASSES, nothing)
