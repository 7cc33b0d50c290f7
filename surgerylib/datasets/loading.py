"""Loading a split of a detection dataset from disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..errors import AnnotationError, ImageReadError, ParameterError, whole_number
from ..matching import BOX_COLUMNS
from ..words import DIOR_CLASSES, check_classes
from .damage import check_on_bad_image, reason_within, sound
from .dataset import Dataset, check_any_left, frame_of, skipped_frame
from .images import image_size
from .layouts import DatasetFolder, ImageFiles, recognise
from .voc import Annotation, read_annotation


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
    skips = check_on_bad_image(on_bad_image) == "skip"
    folder = recognise(root)
    all_ids = folder.ids(split)
    ids = list(dict.fromkeys(all_ids))
    files = folder.image_files(split) if require_images else None
    if files is not None and not skips:
        files.check_all_there(ids[:limit])
    bar = progress(ids[:limit], desc=f"reading {split}", delay=2, leave=False)
    images, written, skipped = _read(folder, bar, files, classes, skips=skips)
    check_any_left(split, images, skipped)
    boxes, repairs = _mended(images, written)
    dataset = Dataset(
        root.resolve().name, root, split, folder.layout.name, images, boxes, classes, repairs, len(all_ids) - len(ids),
        skipped,
    )  # fmt: skip
    if decode is None:
        decode = require_images and skips
    return sound(dataset, on_bad_image) if decode else dataset


def dataset_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits that a dataset folder has files for, in the order of their names.

    Raises:
        DatasetError: missing folder, unknown layout, or no split file.
    """
    return recognise(root).splits()


def _read(
    folder: DatasetFolder, ids: Iterable[str], files: ImageFiles | None, classes: Sequence[str], *, skips: bool
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Annotations and image headers of these ids: images, boxes as they are written, and `Dataset.skipped`."""
    images, boxes, skipped = [], [], []
    for position, image_id in enumerate(ids):
        annotation, path = None, ""
        xml_path = folder.annotation_dir / f"{image_id}.xml"
        try:
            folder.check_link(xml_path, AnnotationError)
            annotation = read_annotation(xml_path, classes)
            size_wh = annotation.size_wh
            if files is not None:
                path = files.path(image_id)
                size_wh = image_size(path)
            _check_size(xml_path, annotation, path, size_wh)
        except (ImageReadError, AnnotationError) as error:
            if not skips:
                raise
            n_boxes = None if annotation is None else len(annotation.labels)
            skipped.append((image_id, reason_within(folder.root, error), n_boxes, position))
            continue
        images.append((image_id, path, *size_wh))
        boxes += [(image_id, label, *box) for label, box in zip(annotation.labels, annotation.boxes_xyxy, strict=True)]
    return (
        frame_of(images, image_id="str", path="str", width="int64", height="int64"),
        frame_of(boxes, image_id="str", label="str", **dict.fromkeys(BOX_COLUMNS, "float64")),
        skipped_frame(skipped),
    )


def _check_size(xml_path: Path, annotation: Annotation, path: str, size_wh: tuple[int, int] | None) -> None:
    """Raise an `AnnotationError` where the size is unknown, or is not the one that the boxes were drawn on."""
    if size_wh is None:
        raise AnnotationError(f"{xml_path} states no image size, and images are not read; add <size> to the file")
    if annotation.size_wh not in (None, size_wh):
        stated, found = ("{}x{}".format(*wh) for wh in (annotation.size_wh, size_wh))
        raise AnnotationError(
            f"{xml_path} states {stated} pixels but {path} has {found}; the boxes would be wrong: restore the image "
            "the boxes were drawn on"
        )


def _mended(images: pd.DataFrame, boxes: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The boxes clipped to their images, without those that have no area left, and `Dataset.repairs`."""
    sizes_wh = images.set_index("image_id").loc[boxes["image_id"], ["width", "height"]].to_numpy(np.float64)
    written = boxes[BOX_COLUMNS].to_numpy()
    clipped = np.clip(written, 0.0, np.tile(sizes_wh, 2))
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    changed = (clipped != written).any(axis=1) | empty
    repairs = boxes.loc[changed, ["image_id", "label"]].reset_index(drop=True)
    repairs["repair"] = pd.array(np.where(empty[changed], "dropped", "clipped"), dtype="str")
    mended = boxes.assign(**dict(zip(BOX_COLUMNS, clipped.T, strict=True)))
    return mended[~empty].reset_index(drop=True), repairs
