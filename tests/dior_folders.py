"""Writes tiny datasets in the three layouts that `load_dataset` knows; shared by the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

LAYOUTS = ("DIOR", "VOC", "reorganised")
Box = tuple[str, float, float, float, float]  # name as written in the XML, xmin, ymin, xmax, ymax
Splits = Mapping[str, Mapping[str, Sequence[Box]]]

SIZE_WH = (64, 48)
SPLITS: Splits = {
    "train": {"00001": [("airplane", 4, 4, 20, 16)], "00002": [("ship", 10, 10, 30, 20), ("harbor", 0, 0, 40, 40)]},
    "val": {"00003": [("golffield", 8, 8, 60, 44)]},
    "test": {
        "11726": [("vehicle", 2, 2, 8, 8), ("vehicle", 20, 2, 28, 8), ("Expressway-toll-station", 16, 20, 50, 40)],
        "11727": [],
        "11728": [("windmill", 30, 5, 38, 40)],
    },
}

_FOLDERS = {  # layout -> annotations, splits, images of test, images of the other splits
    "DIOR": ("Annotations/Horizontal Bounding Boxes", "ImageSets/Main", "JPEGImages-test", "JPEGImages-trainval"),
    "VOC": ("Annotations", "ImageSets/Main", "JPEGImages", "JPEGImages"),
    "reorganised": ("annotations/horizontal", "splits", "images/test", "images/trainval"),
}


def annotation_dir(root: Path, layout: str = "DIOR") -> Path:
    return root / _FOLDERS[layout][0]


def split_file(root: Path, split: str, layout: str = "DIOR") -> Path:
    return root / _FOLDERS[layout][1] / f"{split}.txt"


def image_file(root: Path, split: str, image_id: str, layout: str = "DIOR", suffix: str = ".jpg") -> Path:
    return root / _FOLDERS[layout][2 if split == "test" else 3] / f"{image_id}{suffix}"


def annotation_xml(image_id: str, boxes: Sequence[Box], size_wh: tuple[int, int] | None = SIZE_WH) -> str:
    """VOC XML as DIOR writes it; without <size> for None."""
    size = "" if size_wh is None else f"<size><width>{size_wh[0]}</width><height>{size_wh[1]}</height></size>"
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for name, xmin, ymin, xmax, ymax in boxes
    )
    return f"<annotation><filename>{image_id}.jpg</filename>{size}{objects}</annotation>"


def picture(image_id: str, size_wh: tuple[int, int] = SIZE_WH) -> np.ndarray:
    """A smooth random image of its own for each id: uint8 RGB [H, W, 3]."""
    rng = np.random.default_rng(list(image_id.encode()))
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, size_wh, interpolation=cv2.INTER_LINEAR)


def write_dataset(
    root: Path, layout: str = "DIOR", splits: Splits = SPLITS, size_wh: tuple[int, int] = SIZE_WH, suffix: str = ".jpg"
) -> Path:
    """Writes images, annotations and split files under `root`, and returns it."""
    for split, images in splits.items():
        list_path = split_file(root, split, layout)
        for image_id, boxes in images.items():
            image_path = image_file(root, split, image_id, layout, suffix)
            xml_path = annotation_dir(root, layout) / f"{image_id}.xml"
            for path in (image_path, xml_path, list_path):
                path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image_path), picture(image_id, size_wh)[:, :, ::-1])
            xml_path.write_text(annotation_xml(image_id, boxes, size_wh))
        list_path.write_text("".join(f"{image_id}\n" for image_id in images))
    return root
