"""Where a dataset's files lie: the layouts that are known, split files, and the image and annotation of an id.

Nothing outside of the dataset's folders is read: an id is a bare name, and a file that is a link must lead to a file in
them. The folders themselves may be links, so that the images can lie on another disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError, ImageReadError, SurgeryError
from ..intervals import counted

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


class Layout(NamedTuple):
    """Names of folders below the root; `picture` shows them in messages."""

    name: str
    annotation_dirs: tuple[str, ...]
    split_dir: str
    image_dirs: tuple[str, ...]
    picture: str


# DIOR before VOC: its annotation folder lies inside VOC's
_LAYOUTS = (
    Layout(
        "DIOR",
        ("Annotations/Horizontal Bounding Boxes",),
        "ImageSets/Main",
        ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages"),
        "JPEGImages-trainval/, JPEGImages-test/, Annotations/Horizontal Bounding Boxes/, ImageSets/Main/*.txt",
    ),
    Layout(
        "VOC", ("Annotations",), "ImageSets/Main", ("JPEGImages",), "JPEGImages/, Annotations/, ImageSets/Main/*.txt"
    ),
    Layout(
        "reorganised",
        ("annotations/horizontal", "annotations"),
        "splits",
        ("images/trainval", "images/test", "images"),
        "images/{trainval,test}/ or images/, annotations/horizontal/ or annotations/, splits/*.txt",
    ),
)


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset's folder, recognised."""

    root: Path  # as it was named
    layout: Layout
    annotation_dir: Path
    split_dir: Path
    image_dirs: tuple[Path, ...]  # those of the layout that are there
    own: frozenset[Path]  # real paths of the root and of these folders: what a link may lead into

    def splits(self) -> list[str]:
        """The splits that there are files for, in the order of their names; a `DatasetError` for none."""
        names = sorted(path.stem for path in self.split_dir.glob("*.txt"))
        if not names:
            raise DatasetError(f"no split file in {self.split_dir}; write train.txt, one image id a line")
        return names

    def ids(self, split: str) -> list[str]:
        """The ids that a split names, repeats and all; `trainval` is its own file, else train and val together.

        Raises:
            DatasetError: no such split, no id in it, a file that cannot be read, or an id that is no bare name.
        """
        available = self.splits()
        if split in available:
            files = [split]
        elif split == "trainval" and {"train", "val"} <= set(available):
            files = ["train", "val"]
        else:
            raise DatasetError(f"no split {split!r} in {self.split_dir}; there are: {', '.join(available)}")
        ids = [image_id for name in files for image_id in self._ids_of_file(self.split_dir / f"{name}.txt")]
        if not ids:
            raise DatasetError(f"split {split!r} in {self.split_dir} names no image; write one id a line")
        return ids

    def _ids_of_file(self, path: Path) -> list[str]:
        self.check_link(path, DatasetError)
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DatasetError(f"split file {path} is no file; it must be UTF-8 text, one id a line")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"split file {path} cannot be read ({error}); it must be UTF-8 text, one id a line"
            ) from None
        ids = [line for line in lines if line]
        rows = [line.rsplit(maxsplit=1) for line in ids]
        if all(len(row) == 2 and row[1] in ("1", "0", "-1") for row in rows):
            # VOC's split file of one class: 'id -1' says that the class is absent, so the image is not in the split
            ids = [image_id for image_id, flag in rows if flag != "-1"]
        for image_id in ids:
            _check_id(path, image_id)
        return ids

    def image_files(self, split: str) -> ImageFiles:
        """The image files by id; where two folders hold an image of one id, that of this split wins."""
        if not self.image_dirs:
            layout = self.layout
            raise DatasetError(f"no image folder in {self.root}; the {layout.name} layout is {layout.picture}")
        wanted = "test" if split == "test" else "trainval"
        folders = sorted(self.image_dirs, key=lambda folder: not folder.name.endswith(wanted))
        found: dict[str, list[Path]] = {}
        for folder in reversed(folders):
            here: dict[str, list[Path]] = {}
            for path in folder.iterdir():
                if path.suffix.lower() in _IMAGE_SUFFIXES:
                    here.setdefault(path.stem, []).append(path)
            found.update(here)
        return ImageFiles(self, split, ", ".join(map(str, folders)), found)

    def check_link(self, path: Path, error: type[SurgeryError]) -> None:
        """Raise an error of this type where a file is a link that leads out of the dataset."""
        if not os.path.islink(path):  # noqa: PTH114 - unlike Path, takes a name that is too long: its reader says so
            return
        try:
            target = path.resolve()
        except (OSError, RuntimeError):
            raise error(f"{path} is a link that leads to itself; put the file in its place") from None
        if not any(target.is_relative_to(folder) for folder in self.own):
            raise error(
                f"{path} is a link to {target}, outside of the dataset; copy the file there, link the whole folder, or "
                "name the images in a split file of the dataset that holds them"
            )


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a dataset by id, as `DatasetFolder.image_files` finds them."""

    folder: DatasetFolder
    split: str
    searched: str
    found: dict[str, list[Path]]

    def path(self, image_id: str) -> str:
        """The one file of an image; an `ImageReadError` for none, two, or a link that leads out of the dataset."""
        paths = self.found.get(image_id, [])
        if not paths:
            raise ImageReadError(f"no image {image_id!r} in {self.searched}; add the file or mend the split file")
        if len(paths) > 1:
            raise ImageReadError(f"image {image_id!r} is there twice: {', '.join(sorted(map(str, paths)))}; keep one")
        self.folder.check_link(paths[0], ImageReadError)
        return str(paths[0])

    def check_all_there(self, ids: list[str]) -> None:
        """Raise a `DatasetError` that says how many images are missing, and names the first."""
        missing = [image_id for image_id in ids if image_id not in self.found]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DatasetError(
                f"split {self.split!r} names {counted(len(missing), 'image')} not in {self.searched}: {shown}; "
                "add the files or mend the split file (its ids carry no .jpg)"
            )


def _check_id(path: Path, image_id: str) -> None:
    """Raise a `DatasetError` where an id is no bare file name, or cannot be shown."""
    # `C:x` is a folder's file on another disk, on machines that have letters for them
    if image_id in (".", "..") or image_id[1:2] == ":" or any(mark in image_id for mark in "/\\\0"):
        raise DatasetError(f"split file {path} has the id {image_id!r}; an id is a bare file name without folders")
    if not image_id.isprintable():
        raise DatasetError(
            f"split file {path} has the id {image_id!r}, with characters that cannot be shown; rename the files"
        )


def recognise(root: str | os.PathLike[str]) -> DatasetFolder:
    """A dataset's folder and its layout.

    Raises:
        DatasetError: no folder, or none of the layouts.
    """
    root = Path(root)
    if not os.path.isdir(root):  # noqa: PTH112 - unlike Path, takes a name that is too long
        shown = root if len(str(root)) < 200 else f"{str(root)[:80]}..."
        raise DatasetError(f"no dataset folder {shown}; give the folder that holds the images, annotations and splits")
    for layout in _LAYOUTS:
        annotation_dir = next((root / d for d in layout.annotation_dirs if (root / d).is_dir()), None)
        split_dir = root / layout.split_dir
        if annotation_dir is not None and split_dir.is_dir():
            image_dirs = tuple(root / d for d in layout.image_dirs if (root / d).is_dir())
            own = frozenset(folder.resolve() for folder in (root, annotation_dir, split_dir, *image_dirs))
            return DatasetFolder(root, layout, annotation_dir, split_dir, image_dirs, own)
    held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    pictures = "; ".join(f"{layout.name}: {layout.picture}" for layout in _LAYOUTS)
    raise DatasetError(f"{root} fits none of the three layouts ({pictures}); it holds {held}")
