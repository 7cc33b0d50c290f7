"""Ground truth boxes in groups: by size, by size in patches, by company, by shape."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ..datasets import Dataset
from ..engine import truth_codes
from ..matching import BOX_COLUMNS

# by area in pixels of the original image, as COCO does
SIZE_LIMITS = {"small": 32**2, "medium": 96**2, "large": math.inf}
# grouping -> name of each group and the value below which a box belongs to it
GROUPINGS: dict[str, dict[str, float]] = {
    "size": {"small (below 32² px)": 32**2, "medium (32² to 96² px)": 96**2, "large (from 96² px)": math.inf},
    "size in patches": {"below 1 patch": 1, "1 to 4 patches": 4, "4 to 16 patches": 16, "from 16 patches": math.inf},
    "boxes in the image": {"1 box": 1.5, "2 to 5 boxes": 5.5, "6 to 20 boxes": 20.5, "more than 20 boxes": math.inf},
    "of them of its class": {
        "1 of it": 1.5,
        "2 to 5 of it": 5.5,
        "6 to 20 of it": 20.5,
        "more than 20 of it": math.inf,
    },
    "aspect": {"below 1.5 : 1": 1.5, "1.5 to 3 : 1": 3, "from 3 : 1": math.inf},
}


def box_sizes(boxes: pd.DataFrame) -> np.ndarray:
    """`small`, `medium` or `large` for each box of a frame: by area in pixels, as COCO (32², 96²)."""
    return _named(box_sides(boxes).prod(axis=1), SIZE_LIMITS)


def box_groups(dataset: Dataset, grid: tuple[int, int]) -> pd.DataFrame:
    """The group of each box of a data set under each of `GROUPINGS`: a row a box, a column a grouping.

    - size: area in pixels of the original image, COCO's limits.
    - size in patches: area in patches of the model (`grid`: rows, columns), to which the whole image is squashed.
    - boxes in the image, of them of its class: how many boxes its image holds, of any class and of its own.
    - aspect: longer side by shorter.
    """
    image, label = truth_codes(dataset)
    sides = box_sides(dataset.boxes)
    pair = image * len(dataset.classes) + label
    values = {
        "size": sides.prod(axis=1),
        "size in patches": areas_in_patches(dataset, grid),
        "boxes in the image": np.bincount(image)[image],
        "of them of its class": np.bincount(pair)[pair],
        "aspect": sides.max(axis=1) / sides.min(axis=1),
    }
    return pd.DataFrame({name: _named(values[name], limits) for name, limits in GROUPINGS.items()})


def box_sides(boxes: pd.DataFrame) -> np.ndarray:
    """[G, 2] width and height in pixels."""
    xyxy = boxes[BOX_COLUMNS].to_numpy(np.float64).reshape(-1, 4)
    return xyxy[:, 2:] - xyxy[:, :2]


def areas_in_patches(dataset: Dataset, grid: tuple[int, int]) -> np.ndarray:
    """[G] area of each box in patches of the model (rows, columns), to which the whole image is squashed."""
    whole = dataset.images[["width", "height"]].to_numpy(np.float64)[truth_codes(dataset)[0]]
    return (box_sides(dataset.boxes) / whole).prod(axis=1) * grid[0] * grid[1]


def boxes_by_image(dataset: Dataset) -> list[np.ndarray]:
    """Rows of `dataset.boxes` that lie in each image, in the order of the images."""
    image, _ = truth_codes(dataset)
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, len(dataset.images))))


def _named(values: np.ndarray, limits: dict[str, float]) -> np.ndarray:
    """The first name whose limit lies above each value."""
    return np.array(list(limits), dtype=object)[np.digitize(values, list(limits.values())[:-1])]
