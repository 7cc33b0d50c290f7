"""Real annotations with generated pictures: a data set of DIOR's size and layout without its images.

Every picture is a procedural ground with each annotated box drawn as a textured rectangle. What is there already is
kept: after a kill the rest is drawn.
"""

from __future__ import annotations

import time
import zipfile
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from surgerylib.datasets import read_annotation
from surgerylib.engine.parallel import in_processes
from surgerylib.words import DIOR_CLASSES

BOXES_FOLDER = Path("Annotations/Horizontal Bounding Boxes")
_GROUNDS, _PIECE = 200, 50
_NOISE, _QUALITY = 7.0, 85


def unpack(source: Path, out: Path) -> None:
    """Annotations and split files into the data set's folder.

    `source` holds DIOR's ImageSets/Main/ and either Annotations/ or Annotations.zip.
    """
    splits = out / "ImageSets/Main"
    splits.mkdir(parents=True, exist_ok=True)
    for path in (source / "ImageSets/Main").glob("*.txt"):
        (splits / path.name).write_bytes(path.read_bytes())
    if (out / BOXES_FOLDER).exists():
        return
    if (source / BOXES_FOLDER).is_dir():
        (out / BOXES_FOLDER).parent.mkdir(parents=True, exist_ok=True)
        (out / BOXES_FOLDER).symlink_to((source / BOXES_FOLDER).resolve())
        return
    with zipfile.ZipFile(source / "Annotations.zip") as archive:
        archive.extractall(out)


def image_folder(split: str) -> str:
    """DIOR's folder of a split's pictures."""
    return "JPEGImages-test" if split == "test" else "JPEGImages-trainval"


def draw(out: Path, split: str) -> None:
    """Every picture of the split that is not there yet; prints the seconds a thousand, and their mean size."""
    folder = out / image_folder(split)
    folder.mkdir(exist_ok=True)
    ids = (out / f"ImageSets/Main/{split}.txt").read_text().split()
    missing = [image_id for image_id in ids if not (folder / f"{image_id}.jpg").exists()]
    pieces = [missing[k : k + _PIECE] for k in range(0, len(missing), _PIECE)]
    started = time.perf_counter()
    work = partial(_draw_piece, annotations=out / BOXES_FOLDER, folder=folder)
    for _ in in_processes(work, pieces, description=f"pictures of {split}", unit="image", sizes=list(map(len, pieces))):
        pass
    seconds = time.perf_counter() - started
    size = np.mean([(folder / f"{image_id}.jpg").stat().st_size for image_id in ids])
    rate = f", {1000 * seconds / len(missing):.1f} s a thousand" if missing else ""
    print(f"{split}: {len(missing):,} of {len(ids):,} pictures drawn{rate}; mean {size / 1e3:.0f} kB", flush=True)


def _draw_piece(ids: list[str], annotations: Path, folder: Path) -> None:
    cv2.setNumThreads(1)
    for image_id in ids:
        picture = _picture(image_id, annotations / f"{image_id}.xml")
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        part = folder / f".{image_id}.part"  # renamed when whole: a killed process leaves no half picture
        part.write_bytes(data.tobytes())
        part.replace(folder / f"{image_id}.jpg")


def _picture(image_id: str, xml: Path) -> np.ndarray:
    annotation = read_annotation(xml, DIOR_CLASSES)
    width, height = annotation.size_wh
    rng = np.random.default_rng(int(image_id))
    below = ground(int(rng.integers(_GROUNDS)), height, width)
    picture = below[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])].copy()
    texture = ground(int(rng.integers(_GROUNDS)), height, width)
    for label, box in zip(annotation.labels, annotation.boxes_xyxy, strict=True):
        xmin, ymin, xmax, ymax = (round(side) for side in box)
        colour = np.random.default_rng(DIOR_CLASSES.index(label)).integers(30, 226, 3)
        patch = picture[max(ymin, 0) : ymax, max(xmin, 0) : xmax]
        own = texture[: patch.shape[0], : patch.shape[1]].astype(np.int16)
        patch[:] = np.clip((own - 128) // 2 + colour, 0, 255)
        cv2.rectangle(picture, (xmin, ymin), (xmax - 1, ymax - 1), [int(value) // 2 for value in colour], 2)
    return picture


@lru_cache(maxsize=_GROUNDS)  # 2 MB each
def ground(number: int, height: int, width: int) -> np.ndarray:
    """Smooth fields of several scales with fine noise on them: what aerial photographs cost a JPEG decoder."""
    rng = np.random.default_rng(10_000 + number)
    picture = np.zeros((height, width, 3), np.float32) + rng.uniform(70, 180, 3).astype(np.float32)
    for cells, strength in ((4, 30), (16, 22), (64, 14), (200, 9)):
        grey = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 4, (cells, cells, 3))
        picture += cv2.resize(grey.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, _NOISE, (height, width, 1)).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)
