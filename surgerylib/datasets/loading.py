"""Loading a split of a detection dataset from disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..errors import ParameterError, whole_number
from ..words import DIOR_CLASSES, check_classes
from .damage import SkippedImages, sound
from .dataset import Dataset, check_any_left
from .layouts import recognise
from .voc import read_split


def load_dataset(
    root: str | os.PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    require_images: bool = True,
    on_bad_image: str = "error",
    decode: bool | None = None,
    progress: type[tqdm] = tqdm,
) -> Dataset:
    """Reads one split of a dataset in DIOR's, plain VOC's or the reorganised layout, recognised from the folders.

    Boxes beyond the image are clipped and boxes without area inside it dropped; both are counted in the result, as are
    ids that a split file repeats. VOC's `difficult` flag is not looked at. Images are not decoded, only their headers
    are read, unless `decode` says so: `sound` does it later, of a sample for one.

    Args:
        root: the dataset folder.
        split: 'train', 'val', 'test', 'trainval' (its own file, else train and val together) or any other split file.
        classes: the class list; names in the files are brought to its spelling. None takes DIOR's.
        limit: only the first so many images of the split.
        require_images: False reads annotations alone: `path` stays empty and the sizes are those the XML states.
        on_bad_image: `error` raises the first damaged image, `skip` leaves such images out (see `damage`); they are
            listed in the result.
        decode: decode each image to see whether it can be; None does so under `skip`, where what is left must be sound.
        progress: tqdm, or a class of its kind that shows the progress elsewhere.

    Raises:
        DatasetError: missing folder, unknown layout, missing or empty split, an image that isn't there, or every image
            damaged.
        ImageReadError: an image whose header (or, with `decode`, whose pixels) cannot be read, that is there twice, or
            lies outside of the dataset.
        AnnotationError: an annotation that is missing or wrong, or states a size that is not the image's.
        UnknownClassError: an object whose class is not in `classes`.
        ParameterError: a `limit` or class list that cannot be.
    """
    root, classes = Path(root), DIOR_CLASSES if classes is None else tuple(classes)
    if not classes:
        raise ParameterError("the class list is empty; name at least one class")
    check_classes(classes)
    if limit is not None:
        limit = whole_number("limit", limit)
    damaged = SkippedImages(root, on_bad_image)
    reading = read_split(root, split, classes, damaged, limit=limit, require_images=require_images, progress=progress)
    skipped = damaged.frame()
    check_any_left(split, reading.images, skipped)
    boxes, repairs = _mended(reading.images, reading.boxes)
    dataset = Dataset(
        root.resolve().name, root, split, reading.layout, reading.images, boxes, classes, repairs, reading.n_repeated,
        skipped,
    )  # fmt: skip
    if decode is None:
        decode = require_images and on_bad_image == "skip"
    return sound(dataset, on_bad_image) if decode else dataset


def dataset_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits that a dataset folder has files for, in the order of their names.

    Raises:
        DatasetError: missing folder, unknown layout, or no split file.
    """
    return recognise(root).splits()


def _mended(images: pd.DataFrame, boxes: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The boxes clipped to their images, without those that have no area left, and `Dataset.repairs`."""
    sizes_wh = images.set_index("image_id").loc[boxes["image_id"], ["width", "height"]].to_numpy(np.float64)
    written = boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy()
    clipped = np.clip(written, 0.0, np.tile(sizes_wh, 2))
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    changed = (clipped != written).any(axis=1) | empty
    repairs = boxes.loc[changed, ["image_id", "label"]].reset_index(drop=True)
    repairs["repair"] = pd.array(np.where(empty[changed], "dropped", "clipped"), dtype="str")
    mended = boxes.assign(**dict(zip(("xmin", "ymin", "xmax", "ymax"), clipped.T, strict=True)))
    return mended[~empty].reset_index(drop=True), repairs
