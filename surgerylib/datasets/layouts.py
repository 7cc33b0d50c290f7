"""Where a dataset's files lie: the layouts that are known, split files, and the image and annotation of an id.

Nothing outside of the dataset's folders is read: an id is a bare name, and a file that is a link must lead to a file in
them. The folders themselves may be links, so that the images can lie on another disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ..errors import AnnotationError, DatasetError, ImageReadError, SurgeryError

_NO_NAME = frozenset("/\\\0:")  # an id with one of these may lead elsewhere
_NO_FILE = frozenset({".", ".."})
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
class DatasetFolder:
    """A dataset's folder, recognised.

    Attributes:
        root: as it was named.
        layout: 'DIOR', 'VOC' or 'reorganised'.
        annotation_dir, split_dir: where XML and split files lie.
        image_dirs: those of the layout that are there.
        picture: the layout's folders, for messages.
        own: real paths of the root and of these folders: what a link may lead into.
    """

    root: Path
    layout: str
    annotation_dir: Path
    split_dir: Path
    image_dirs: tuple[Path, ...]
    picture: str
    own: tuple[Path, ...]

    def splits(self) -> list[str]:
        """The splits that there are files for, in the order of their names.

        Raises:
            DatasetError: none.
        """
        names = sorted(path.stem for path in self.split_dir.glob("*.txt"))
        if not names:
            raise DatasetError(f"no split file in {self.split_dir}; write train.txt, one image id a line")
        return names

    def ids(self, split: str) -> list[str]:
        """The ids that a split names, repeats and all; `trainval` is its own file, else train and val together.

        Raises:
            DatasetError: no such split, no id in it, a file that cannot be read, or an id that is no bare name.
        """
        available = sorted(path.stem for path in self.split_dir.glob("*.txt"))
        if split in available:
            files = [split]
        elif split == "trainval" and {"train", "val"} <= set(available):
            files = ["train", "val"]
        else:
            raise DatasetError(f"no split {split!r} in {self.split_dir}; there are: {', '.join(available) or 'none'}")
        ids = [image_id for name in files for image_id in self._ids_of_file(self.split_dir / f"{name}.txt")]
        if not ids:
            raise DatasetError(f"split {split!r} in {self.split_dir} names no image; write one id a line")
        return ids

    @cached_property
    def _annotations(self) -> str:
        return f"{self.annotation_dir}{os.sep}"

    def annotation(self, image_id: str) -> str:
        """The XML file of an image, there or not; `check_annotation_link` says whether a link may be followed."""
        return f"{self._annotations}{image_id}.xml"

    def check_annotation_link(self, path: Path) -> None:
        """Raise an `AnnotationError` where a file is a link that leads out of the dataset."""
        self._check_link(path, AnnotationError)

    def image_files(self, split: str) -> ImageFiles:
        """The image files by id.

        Args:
            split: where two folders hold an image of one id, that of this split wins.

        Raises:
            DatasetError: no image folder.
        """
        if not self.image_dirs:
            raise DatasetError(f"no image folder in {self.root}; the {self.layout} layout is {self.picture}")
        wanted = "test" if split == "test" else "trainval"
        folders = sorted(self.image_dirs, key=lambda folder: not folder.name.endswith(wanted))
        found: dict[str, list[os.DirEntry[str]]] = {}
        for folder in reversed(folders):
            here: dict[str, list[os.DirEntry[str]]] = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, _, suffix = entry.name.rpartition(".")
                    if suffix.lower() in _IMAGE_SUFFIXES:
                        here.setdefault(stem, []).append(entry)
            found.update(here)
        return ImageFiles(self, split, tuple(folders), found)

    def _ids_of_file(self, path: Path) -> list[str]:
        self._check_link(path, DatasetError)
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DatasetError(f"split file {path} is no file; it must be UTF-8 text, one id a line")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"split file {path} cannot be read ({error}); it must be UTF-8 text, one id a line"
            ) from None
        ids = [line for line in lines if line]
        if all(_flagged(line) for line in ids):
            # VOC's split file of one class: 'id -1' says that the class is absent, so the image is not in the split
            rows = [line.rsplit(maxsplit=1) for line in ids]
            ids = [image_id for image_id, flag in rows if flag != "-1"]
        together = "".join(ids)
        if together.isprintable() and _NO_NAME.isdisjoint(together) and _NO_FILE.isdisjoint(ids):
            return ids  # nothing in any of them that `_check_id` could mind
        for image_id in ids:
            _check_id(path, image_id)
        return ids

    def _check_link(self, path: Path, error: type[SurgeryError]) -> None:
        """Raise an error of this type where a file is a link that leads out of the dataset."""
        try:
            if not path.is_symlink():
                return
        except OSError:  # too long for a name: whoever reads it says so
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
    searched: tuple[Path, ...]
    found: dict[str, list[os.DirEntry[str]]]

    def path(self, image_id: str) -> str:
        """The one file of an image.

        Raises:
            ImageReadError: none, two, or a link that leads out of the dataset.
        """
        entries = self.found.get(image_id, [])
        if not entries:
            raise ImageReadError(f"no image {image_id!r} in {self._folders()}; add the file or mend the split file")
        if len(entries) > 1:
            paths = ", ".join(sorted(entry.path for entry in entries))
            raise ImageReadError(f"image {image_id!r} is there twice: {paths}; keep one")
        if entries[0].is_symlink():
            self.folder._check_link(Path(entries[0].path), ImageReadError)
        return entries[0].path

    def check_all_there(self, ids: list[str]) -> None:
        """Raise a `DatasetError` that says how many images are missing, and names the first."""
        missing = [image_id for image_id in ids if image_id not in self.found]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            count = "1 image" if len(missing) == 1 else f"{len(missing):,} images"
            raise DatasetError(
                f"split {self.split!r} names {count} not in {self._folders()}: {shown}; "
                "add the files or mend the split file (its ids carry no .jpg)"
            )

    def _folders(self) -> str:
        return ", ".join(map(str, self.searched))


def _flagged(line: str) -> bool:
    row = line.rsplit(maxsplit=1)
    return len(row) == 2 and row[1] in ("1", "0", "-1")


def _check_id(path: Path, image_id: str) -> None:
    """Raise a `DatasetError` where an id is no bare file name, or cannot be shown."""
    # `C:x` is a folder's file on another disk, on machines that have letters for them
    is_bare = image_id not in _NO_FILE and not any(c in image_id for c in "/\\\0")
    if not is_bare or PureWindowsPath(image_id).drive:
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
            split_dir = root / layout.split_dir
            image_dirs = tuple(root / d for d in layout.image_dirs if (root / d).is_dir())
            own = tuple({folder.resolve() for folder in (root, annotation_dir, split_dir, *image_dirs)})
            return DatasetFolder(root, layout.name, annotation_dir, split_dir, image_dirs, layout.picture, own)
    held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    pictures = "; ".join(f"{layout.name}: {layout.picture}" for layout in _LAYOUTS)
    raise DatasetError(f"{root} fits none of the three layouts ({pictures}); it holds {held}")
