"""What the files of a split say, read in one pass: annotations, and the sizes of the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..errors import AnnotationError, ImageReadError
from .damage import SkippedImages
from .images import image_size
from .layouts import DatasetFolder, ImageFiles
from .voc import Annotation, AnnotationReader


@dataclass(frozen=True)
class SplitReading:
    """n images and their m boxes, in the order of the split.

    Attributes:
        image_ids, paths: of each image; the path is empty where image files were left alone.
        sizes_wh: pixels, int64 [n, 2].
        n_boxes: of each image, int64 [n].
        labels: of each box the place of its class in the class list, int32 [m].
        boxes_xyxy: as written, neither clipped nor dropped, float64 [m, 4].
    """

    image_ids: Sequence[str]
    paths: Sequence[str]
    sizes_wh: np.ndarray
    n_boxes: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray


def read_split(
    folder: DatasetFolder,
    ids: Iterable[str],
    classes: Sequence[str],
    images: ImageFiles | None,
    skipped: SkippedImages,
) -> SplitReading:
    """Reads the annotations of these images, and the headers of their files.

    Args:
        folder: of the dataset.
        ids: of the images, each once.
        classes: the class list; names in the files are brought to its spelling.
        images: the image files; None leaves them alone, and sizes are those that the XML states.
        skipped: takes note of a damaged image, or raises.

    Raises:
        ImageReadError, AnnotationError: a damaged image, unless `skipped` takes note.
        UnknownClassError: an object whose class is not in `classes`.
    """
    reader = AnnotationReader(classes, folder.check_annotation_link)
    image_ids: list[str] = []
    paths: list[str] = []
    sizes_wh: list[tuple[int, int]] = []
    n_boxes: list[int] = []
    labels: list[str] = []
    coordinates: list[float] = []
    for position, image_id in enumerate(ids):
        annotation, path = None, ""
        try:
            xml_path = folder.annotation(image_id)
            annotation = reader.read(xml_path)
            size_wh = annotation.size_wh
            if images is not None:
                path = images.path(image_id)
                size_wh = image_size(path)
            _check_size(xml_path, annotation, path, size_wh)
        except (ImageReadError, AnnotationError) as error:
            skipped.take(error, image_id, position, None if annotation is None else len(annotation.labels))
            continue
        image_ids.append(image_id)
        paths.append(path)
        sizes_wh.append(size_wh)
        n_boxes.append(len(annotation.labels))
        labels += annotation.labels
        coordinates += chain.from_iterable(annotation.boxes_xyxy)
    place = {name: k for k, name in enumerate(classes)}
    return SplitReading(
        image_ids,
        paths,
        np.array(sizes_wh, np.int64).reshape(-1, 2),
        np.array(n_boxes, np.int64),
        np.array([place[label] for label in labels], np.int32),
        np.array(coordinates, np.float64).reshape(-1, 4),
    )


def _check_size(xml_path: str, annotation: Annotation, path: str, size_wh: tuple[int, int] | None) -> None:
    """Raise an `AnnotationError` where the size is unknown, or is not the one that the boxes were drawn on."""
    if size_wh is None:
        raise AnnotationError(f"{xml_path} states no image size, and images are not read; add <size> to the file")
    if annotation.size_wh not in (None, size_wh):
        raise AnnotationError(
            f"{xml_path} states {annotation.size_wh[0]}x{annotation.size_wh[1]} pixels but {path} has "
            f"{size_wh[0]}x{size_wh[1]}; the boxes would be wrong: restore the image the boxes were drawn on"
        )
