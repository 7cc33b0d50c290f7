"""The embedded dataset: procedural aerial scenes with DIOR's twenty classes, written in DIOR's layout.

A scene is composed from the ground up: ground, water, roads and rails with what stands on them, then free-standing
objects, then distractors (houses, trees), then one finish for the whole image (colours, haze, blur, noise).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import OutputError, ParameterError
from ..files import aside_prefix, is_abandoned
from .ground import finish
from .layout import Composer

GENERATOR = "surgerylib.scenes"  # in the manifest, wherever this module stands, so that drawn folders stay valid
VERSION = 1  # raise when the same seed no longer gives the same scenes
STREAMS = {"train": 0, "val": 1, "test": 2, "pretrain": 3, "pretrain_check": 4}
MANIFEST = "scenes.json"


@dataclass(frozen=True)
class Scene:
    """image: uint8 RGB [H, W, 3]; boxes_xyxy: float64 pixels [K, 4]; labels: K class names."""

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: tuple[str, ...]


def scene_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of one scene; streams (the splits, and what pre-training sees) never share one."""
    return np.random.default_rng([seed, STREAMS[stream], index])


def render_scene(seed_or_rng: int | np.random.Generator, size: int = 448) -> Scene:
    """Draw one scene.

    Args:
        seed_or_rng: a seed or a generator; the same one gives the same scene, bit for bit.
        size: width and height in pixels, at least 64; another size gives another scene.

    Returns:
        The image and its boxes, tight around each object without its shadow, clipped to the image.
    """
    _check_size(size)
    rng = np.random.default_rng(seed_or_rng)  # a generator is taken as it is
    composer = Composer(rng, size)
    composer.compose()
    image = finish(composer.canvas, rng)
    return Scene(image, np.array(composer.boxes, float).reshape(-1, 4), tuple(composer.labels))


def _check_size(size: int) -> None:
    if size < 64:
        raise ParameterError(f"size must be at least 64 pixels, got {size}; the default is 448")


def write_scenes(
    out_dir: str | Path,
    *,
    num_train: int = 240,
    num_val: int = 80,
    num_test: int = 120,
    size: int = 448,
    seed: int = 0,
    progress: type[tqdm] = tqdm,
) -> Path:
    """Write a dataset of scenes in DIOR's layout; a folder that already holds these very scenes is left as it is.

    The folder appears whole or not at all. One that this function wrote with other settings is replaced.

    Args:
        out_dir: the dataset folder; must be absent, empty, or written by this function.
        num_train, num_val, num_test: images in each split.
        size: width and height in pixels.
        seed: another seed gives other scenes; the splits never share one.
        progress: tqdm, or a class of its kind that shows the progress elsewhere.

    Returns:
        the folder.

    Raises:
        ParameterError: a negative number of images, or a size below 64.
        OutputError: the folder holds something else, or cannot be written.
    """
    out_dir = Path(out_dir)
    counts = {"train": num_train, "val": num_val, "test": num_test}
    if min(counts.values()) < 0:
        raise ParameterError(f"the number of images cannot be negative, got {counts}; give 0 for an empty split")
    _check_size(size)
    manifest = {"generator": GENERATOR, "version": VERSION, "counts": counts, "size": size, "seed": seed}
    found = _manifest_of(out_dir)
    if found is not None and all(found.get(key) == value for key, value in manifest.items()):
        return out_dir
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        for left in out_dir.parent.glob(f".{out_dir.name}.*.partial"):
            if is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=aside_prefix(out_dir.name), suffix=".partial", dir=out_dir.parent))
        try:
            fresh = aside / "fresh"
            manifest["boxes"] = _write_all(fresh, counts, size, seed, progress)
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            if found is not None:
                out_dir.rename(aside / "former")  # as a whole: what is deleted piece by piece has its name meanwhile
            try:
                fresh.rename(out_dir)
            except OSError:
                if _manifest_of(out_dir) != manifest:  # else another process has drawn them too, and was faster
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write scenes to {out_dir} ({error.strerror}): choose another folder") from error
    return out_dir


_TOP_LEVEL = {"JPEGImages-trainval", "JPEGImages-test", "Annotations", "ImageSets", MANIFEST}


def _manifest_of(folder: Path) -> dict | None:
    """The manifest of a folder written here; None where there is nothing yet; an error where something else lies."""
    if not folder.exists():
        return None
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not entries:
        return None
    if MANIFEST in entries and entries <= _TOP_LEVEL:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except ValueError:
            manifest = None
        if isinstance(manifest, dict) and manifest.get("generator") == GENERATOR:
            return manifest
    raise OutputError(f"{folder} holds files that are not generated scenes: choose another folder or empty this one")


def _write_all(root: Path, counts: dict[str, int], size: int, seed: int, progress: type[tqdm]) -> int:
    """Images, annotations and split files under `root`; returns the number of boxes."""
    annotations, sets = root / "Annotations" / "Horizontal Bounding Boxes", root / "ImageSets" / "Main"
    for folder in (annotations, sets, root / "JPEGImages-trainval", root / "JPEGImages-test"):
        folder.mkdir(parents=True)
    total, number = 0, 0
    with progress(total=sum(counts.values()), desc="drawing scenes", unit="image") as bar:
        for split, count in counts.items():
            images = root / ("JPEGImages-test" if split == "test" else "JPEGImages-trainval")
            names = []
            for index in range(count):
                number += 1
                name = f"{number:05d}"
                scene = render_scene(scene_rng(seed, split, index), size)
                _, data = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                (images / f"{name}.jpg").write_bytes(data.tobytes())
                (annotations / f"{name}.xml").write_text(_xml(f"{name}.jpg", scene))
                names.append(name)
                total += len(scene.labels)
                bar.update()
            (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return total


_ANNOTATION = (
    "<annotation>\n\t<filename>{}</filename>\n\t<source>\n\t\t<database>surgerylib scenes</database>\n\t</source>\n"
    "\t<size>\n\t\t<width>{}</width>\n\t\t<height>{}</height>\n\t\t<depth>{}</depth>\n\t</size>\n"
    "\t<segmented>0</segmented>\n{}</annotation>\n"
)
_OBJECT = (
    "\t<object>\n\t\t<name>{}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<bndbox>\n\t\t\t<xmin>{}</xmin>\n"
    "\t\t\t<ymin>{}</ymin>\n\t\t\t<xmax>{}</xmax>\n\t\t\t<ymax>{}</ymax>\n\t\t</bndbox>\n\t</object>\n"
)


def _xml(filename: str, scene: Scene) -> str:
    height, width, depth = scene.image.shape
    objects = zip(scene.labels, scene.boxes_xyxy.astype(int).tolist(), strict=True)
    return _ANNOTATION.format(
        filename, width, height, depth, "".join(_OBJECT.format(label, *box) for label, box in objects)
    )
