"""Reading a detection dataset from disk: class names, splits, annotations and images.

Every image that leaves this module is uint8 RGB [H, W, 3] with the pixels as stored (no EXIF rotation); every box is
float xyxy in pixels of that image, width = xmax - xmin.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .annotations import Annotation, read_annotation
from .classes import DIOR_CLASSES, PROMPT_TEMPLATES, canonical_class, check_classes, prompt_names
from .errors import AnnotationError, DatasetError, ImageReadError, ParameterError
from .images import ends_well, image_size, read_image

__all__ = [
    "DIOR_CLASSES",
    "PROMPT_TEMPLATES",
    "Annotation",
    "Dataset",
    "canonical_class",
    "check_disjoint",
    "check_have_boxes",
    "check_images",
    "dataset_splits",
    "load_dataset",
    "prompt_names",
    "read_annotation",
    "read_image",
]
_IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "bmp", "tif", "tiff"})


class _Layout(NamedTuple):
    name: str
    annotation_dirs: tuple[str, ...]
    split_dir: str
    image_dirs: tuple[str, ...]
    picture: str


# DIOR before VOC: its annotation folder lies inside VOC's
_LAYOUTS = (
    _Layout(
        "DIOR",
        ("Annotations/Horizontal Bounding Boxes",),
        "ImageSets/Main",
        ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages"),
        "JPEGImages-trainval/, JPEGImages-test/, Annotations/Horizontal Bounding Boxes/, ImageSets/Main/*.txt",
    ),
    _Layout(
        "VOC",
        ("Annotations",),
        "ImageSets/Main",
        ("JPEGImages",),
        "JPEGImages/, Annotations/, ImageSets/Main/*.txt",
    ),
    _Layout(
        "reorganised",
        ("annotations/horizontal", "annotations"),
        "splits",
        ("images/trainval", "images/test", "images"),
        "images/{trainval,test}/ or images/, annotations/horizontal/ or annotations/, splits/*.txt",
    ),
)


@dataclass(frozen=True)
class Dataset:
    """One split of a detection dataset: frames in the order of the split file.

    Attributes:
        name: the folder's name.
        root: the dataset folder.
        split: the split's name.
        layout: 'DIOR', 'VOC' or 'reorganised'.
        images: image_id (str), path (str, empty when images were not required), width, height (int, pixels).
        boxes: image_id, label (both str), xmin, ymin, xmax, ymax (float64 pixels), clipped and without empty boxes.
        classes: the class list in force; labels are among these.
        repairs: image_id, label, repair ('clipped' or 'dropped'): a row for each box that was changed or left out.
        n_repeated: ids that the split file named again; the first mention counts.
    """

    name: str
    root: Path
    split: str
    layout: str
    images: pd.DataFrame
    boxes: pd.DataFrame
    classes: tuple[str, ...]
    repairs: pd.DataFrame
    n_repeated: int = 0

    @property
    def n_clipped(self) -> int:
        """Boxes that left the image and were cut at its border."""
        return int((self.repairs["repair"] == "clipped").sum())

    @property
    def n_dropped(self) -> int:
        """Boxes left out because they have no area inside the image."""
        return int((self.repairs["repair"] == "dropped").sum())

    def count_images(self) -> str:
        """`1 image`, `1,234 images`."""
        return _count(len(self.images), "image")

    def describe(self) -> str:
        """One line: layout, split, sizes and what was mended."""
        text = (
            f"{self.layout} layout, split {self.split}: {_count(len(self.images), 'image')}, "
            f"{_count(len(self.boxes), 'box')}, {_count(len(self.classes), 'class')}"
        )
        repairs = []
        if self.n_clipped:
            repairs.append(f"{_count(self.n_clipped, 'box')} clipped")
        if self.n_dropped:
            repairs.append(f"{_count(self.n_dropped, 'box')} dropped (no area)")
        if self.n_repeated:
            repairs.append(f"{_count(self.n_repeated, 'repeated id')} dropped")
        return "; ".join([text, ", ".join(repairs)]) if repairs else text

    def sample(self, n: int | None, seed: int = 0) -> Dataset:
        """`n` images chosen at random, in split order, with their boxes; all of them for None, 0 or n >= the size.

        Raises:
            ParameterError: `n` or `seed` is negative or no whole number.
        """
        if n is None:
            return self
        n = _whole_number("number of images", n, at_least=0)
        if n == 0 or n >= len(self.images):
            return self
        seed = _whole_number("seed", seed, at_least=0)
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.images), size=n, replace=False))
        images = self.images.iloc[chosen].reset_index(drop=True)
        ids = set(images["image_id"])
        boxes, repairs = (
            frame[frame["image_id"].isin(ids)].reset_index(drop=True) for frame in (self.boxes, self.repairs)
        )
        return replace(self, images=images, boxes=boxes, repairs=repairs)

    def fingerprint(self) -> str:
        """sha256 (hex) of ids, sizes, boxes, labels and classes: the same wherever the folder lies."""
        digest = hashlib.sha256()
        for names in (self.classes, self.images["image_id"], self.boxes["image_id"], self.boxes["label"]):
            digest.update("\0".join(names).encode() + b"\1")
        digest.update(self.images[["width", "height"]].to_numpy("<i8").tobytes())
        digest.update(self.boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy("<f8").tobytes())
        return digest.hexdigest()


def _count(n: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("x", "s")) else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def _whole_number(what: str, value: int, at_least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least:
        raise ParameterError(f"{what} is {value!r}; it must be a whole number of at least {at_least}")
    return number


def load_dataset(
    root: str | os.PathLike[str],
    split: str,
    *,
    limit: int | None = None,
    classes: Sequence[str] = DIOR_CLASSES,
    require_images: bool = True,
    progress: type[tqdm] = tqdm,
) -> Dataset:
    """Reads one split of a dataset in DIOR's, plain VOC's or the reorganised layout, recognised from the folders.

    Boxes beyond the image are clipped and boxes without area inside it dropped; both are counted in the result, as are
    ids that a split file repeats. VOC's `difficult` flag is not looked at. Images are not decoded, only their headers
    are read; `check_images` looks for truncated files.

    Args:
        root: the dataset folder.
        split: 'train', 'val', 'test', 'trainval' (its own file, else train and val together) or any other split file.
        limit: only the first so many images of the split.
        classes: the class list; names in the files are brought to its spelling.
        require_images: False reads annotations alone: `path` stays empty and the sizes are those the XML states.
        progress: tqdm, or a class of its kind that shows the progress elsewhere.

    Raises:
        DatasetError: missing folder, unknown layout, missing or empty split, an image that isn't there, a stated size
            that is not the image's.
        ImageReadError: an image whose header cannot be read.
        AnnotationError: an annotation that is missing or wrong.
        UnknownClassError: an object whose class is not in `classes`.
        ParameterError: a `limit` or class list that cannot be.
    """
    root = Path(root)
    if limit is not None:
        limit = _whole_number("limit", limit, at_least=1)
    classes = tuple(classes)
    if not classes:
        raise ParameterError("the class list is empty; name at least one class")
    check_classes(classes)
    layout, annotation_dir = _recognise(root)
    all_ids = _split_ids(root / layout.split_dir, split)
    ids = list(dict.fromkeys(all_ids))[:limit]
    paths = _image_paths(root, layout, split, ids) if require_images else [""] * len(ids)

    sizes: list[tuple[int, int]] = []
    labels: list[str] = []
    raw_boxes: list[tuple[float, float, float, float]] = []
    boxes_per_image: list[int] = []
    for image_id, path in zip(progress(ids, desc=f"reading {split}", delay=2, leave=False), paths, strict=True):
        xml_path = annotation_dir / f"{image_id}.xml"
        annotation = read_annotation(xml_path, classes)
        size_wh = image_size(path) if require_images else annotation.size_wh
        if size_wh is None:
            raise AnnotationError(f"{xml_path} states no image size, and images are not read; add <size> to the file")
        if annotation.size_wh not in (None, size_wh):
            raise DatasetError(
                f"{xml_path} states {annotation.size_wh[0]}x{annotation.size_wh[1]} pixels but {path} has "
                f"{size_wh[0]}x{size_wh[1]}; the boxes would be wrong: restore the image the boxes were drawn on"
            )
        sizes.append(size_wh)
        labels += annotation.labels
        raw_boxes += annotation.boxes_xyxy
        boxes_per_image.append(len(annotation.labels))

    images = pd.DataFrame(
        {
            "image_id": pd.Series(ids, dtype="str"),
            "path": pd.Series(paths, dtype="str"),
            "width": np.array([w for w, _ in sizes], dtype=np.int64),
            "height": np.array([h for _, h in sizes], dtype=np.int64),
        }
    )
    boxes, repairs = _mend_boxes(images, boxes_per_image, labels, raw_boxes)
    return Dataset(
        name=root.resolve().name,
        root=root,
        split=split,
        layout=layout.name,
        images=images,
        boxes=boxes,
        classes=classes,
        repairs=repairs,
        n_repeated=len(all_ids) - len(set(all_ids)),
    )


def _recognise(root: Path) -> tuple[_Layout, Path]:
    try:
        is_there = root.is_dir()
    except OSError:  # too long for a name
        is_there = False
    if not is_there:
        shown = root if len(str(root)) < 200 else f"{str(root)[:80]}..."
        raise DatasetError(f"no dataset folder {shown}; give the folder that holds the images, annotations and splits")
    for layout in _LAYOUTS:
        annotation_dir = next((root / d for d in layout.annotation_dirs if (root / d).is_dir()), None)
        if annotation_dir is not None and (root / layout.split_dir).is_dir():
            return layout, annotation_dir
    held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    pictures = "; ".join(f"{layout.name}: {layout.picture}" for layout in _LAYOUTS)
    raise DatasetError(f"{root} fits none of the three layouts ({pictures}); it holds {held}")


def dataset_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits that a dataset folder has files for, in the order of their names.

    Raises:
        DatasetError: missing folder, unknown layout, or no split file.
    """
    layout, _ = _recognise(Path(root))
    splits = _splits_in(Path(root) / layout.split_dir)
    if not splits:
        raise DatasetError(f"no split file in {Path(root) / layout.split_dir}; write train.txt, one image id a line")
    return splits


def _splits_in(split_dir: Path) -> list[str]:
    return sorted(path.stem for path in split_dir.glob("*.txt"))


def _split_ids(split_dir: Path, split: str) -> list[str]:
    available = _splits_in(split_dir)
    if split in available:
        files = [split]
    elif split == "trainval" and {"train", "val"} <= set(available):
        files = ["train", "val"]
    else:
        raise DatasetError(f"no split {split!r} in {split_dir}; there are: {', '.join(available) or 'none'}")
    ids = [image_id for name in files for image_id in _ids_of_file(split_dir / f"{name}.txt")]
    if not ids:
        raise DatasetError(f"split {split!r} in {split_dir} names no image; write one id a line")
    return ids


def _ids_of_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"split file {path} cannot be read ({error}); it must be UTF-8 text, one id a line"
        ) from None
    rows = [line.rsplit(maxsplit=1) for line in lines if line]
    if rows and all(len(row) == 2 and row[1] in ("1", "0", "-1") for row in rows):
        # VOC's split file of one class: 'id -1' says that the class is absent, so the image is not in the split
        ids = [image_id for image_id, flag in rows if flag != "-1"]
    else:
        ids = [line for line in lines if line]
    for image_id in ids:
        if image_id in (".", "..") or any(c in image_id for c in "/\\\0"):
            raise DatasetError(f"split file {path} has the id {image_id!r}; an id is a bare file name without folders")
    return ids


def _image_paths(root: Path, layout: _Layout, split: str, ids: list[str]) -> list[str]:
    folders = [root / d for d in layout.image_dirs if (root / d).is_dir()]
    if not folders:
        raise DatasetError(f"no image folder in {root}; the {layout.name} layout is {layout.picture}")
    # the folder of this split wins where both hold an image of that id
    wanted = "test" if split == "test" else "trainval"
    folders.sort(key=lambda folder: not folder.name.endswith(wanted))
    found: dict[str, list[str]] = {}
    for folder in reversed(folders):
        here: dict[str, list[str]] = {}
        for entry in os.scandir(folder):
            stem, _, suffix = entry.name.rpartition(".")
            if suffix.lower() in _IMAGE_SUFFIXES:
                here.setdefault(stem, []).append(entry.path)
        found.update(here)
    missing = [image_id for image_id in ids if image_id not in found]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        searched = ", ".join(str(folder) for folder in folders)
        raise DatasetError(
            f"split {split!r} names {_count(len(missing), 'image')} not in {searched}: {shown}; "
            "add the files or mend the split file (its ids carry no .jpg)"
        )
    for image_id in ids:
        if len(found[image_id]) > 1:
            raise DatasetError(f"image {image_id!r} is there twice: {', '.join(sorted(found[image_id]))}; keep one")
    return [found[image_id][0] for image_id in ids]


def _mend_boxes(
    images: pd.DataFrame, boxes_per_image: list[int], labels: list[str], raw_boxes: list[tuple[float, ...]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clips to the image and drops what has no area left; returns the boxes frame and the repairs frame."""
    raw_xyxy = np.array(raw_boxes, dtype=np.float64).reshape(-1, 4)
    row = np.repeat(np.arange(len(images)), boxes_per_image)
    limits = images[["width", "height", "width", "height"]].to_numpy(np.float64)[row]
    boxes_xyxy = np.clip(raw_xyxy, 0.0, limits)
    dropped = (boxes_xyxy[:, 2:] <= boxes_xyxy[:, :2]).any(axis=1)
    clipped = ~dropped & (boxes_xyxy != raw_xyxy).any(axis=1)
    frame = pd.DataFrame(boxes_xyxy, columns=["xmin", "ymin", "xmax", "ymax"])
    frame.insert(0, "image_id", images["image_id"].array.take(row))
    frame.insert(1, "label", pd.Series(labels, dtype="str"))
    repairs = frame.loc[dropped | clipped, ["image_id", "label"]].reset_index(drop=True)
    repairs["repair"] = pd.Series(np.where(dropped[dropped | clipped], "dropped", "clipped"), dtype="str")
    return frame[~dropped].reset_index(drop=True), repairs


def check_disjoint(reported: Dataset, chosen_on: Dataset) -> None:
    """Raise a `ParameterError` when two splits share an image: trained, chosen and reported on are different images."""
    shared = set(reported.images["image_id"]) & set(chosen_on.images["image_id"])
    if shared:
        raise ParameterError(
            f"the splits {reported.split} and {chosen_on.split} share {_count(len(shared), 'image')}, {min(shared)!r} "
            "for one; what is trained or chosen on images must be reported on others: set split, choose_split or "
            "train_split"
        )


def check_have_boxes(dataset: Dataset, names: Sequence[str]) -> tuple[str, ...]:
    """The classes named, in the spelling and order of the class list; each must have a box in the split.

    Raises:
        ParameterError: no name, or a class without a box.
        UnknownClassError: a name that is not in the class list.
    """
    if isinstance(names, str) or not len(names):
        raise ParameterError(f"seen_classes must be a list of class names, or null for all, got {names!r}")
    asked = {canonical_class(name, dataset.classes) for name in names}
    empty = sorted(asked - set(dataset.boxes["label"]))
    if empty:
        raise ParameterError(
            f"seen_classes names {', '.join(empty)}, without a box in the split {dataset.split}: leave it out or "
            "choose another split"
        )
    return tuple(name for name in dataset.classes if name in asked)


def check_images(dataset: Dataset) -> list[tuple[str, str]]:
    """Looks for missing, truncated, replaced and unreadable image files before long work: (image_id, reason) of each.

    Cheap on purpose: the header is parsed, and a JPEG, PNG or BMP must end as its format says; a file that does not,
    and any other format, is decoded in full. Damage in the middle of a file of the right length goes unseen.

    Raises:
        ParameterError: the dataset was loaded without its images.
    """
    if (dataset.images["path"] == "").any():
        raise ParameterError("the dataset was loaded with require_images=False; load it with its images to check them")
    problems = []
    rows = dataset.images[["image_id", "path", "width", "height"]].itertuples(index=False, name=None)
    for image_id, path, width, height in tqdm(
        rows, total=len(dataset.images), desc="checking images", delay=2, leave=False
    ):
        try:
            size_wh = image_size(path)
            if not ends_well(path):
                read_image(path)
        except ImageReadError as error:
            problems.append((image_id, str(error)))
            continue
        if size_wh != (width, height):
            reason = f"{path} now has {size_wh[0]}x{size_wh[1]} pixels, {width}x{height} when the dataset was loaded"
            problems.append((image_id, f"{reason}; load it again"))
    return problems
