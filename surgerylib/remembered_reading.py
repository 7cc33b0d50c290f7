"""What was read of a split, kept in a cache folder and believed for as long as none of its files has changed.

A file is taken for unchanged while its size and its times are those it had before it was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from .errors import ImageReadError, OutputError
from .files import written_aside
from .identities import short_hash
from .layouts import DatasetFolder, ImageFiles
from .split_reading import SplitReading
from .versions import source_sha256

_CODE = ("annotations", "classes", "images", "layouts", "remembered_reading", "split_reading")  # decides what is read
_ARRAYS = ("sizes_wh", "n_boxes", "labels", "boxes_xyxy")


@dataclass(frozen=True)
class ReadingMemory:
    """The file that remembers a split, and what must be found in it to be believed.

    Attributes:
        path: the file; its folder is there.
        image_ids, paths: of all images of the split, as they are found now; the paths are empty without images.
        question: a hash over these, the class list and the code that reads.
        stamps: of each annotation, then of each image file: mode, size and times, int64 [files, 4].
    """

    path: Path
    image_ids: Sequence[str]
    paths: Sequence[str]
    question: str
    stamps: np.ndarray

    def recall(self) -> SplitReading | None:
        """What was read when all was as it is now; None where nothing is known of that."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["question"]) != self.question or not np.array_equal(file["stamps"], self.stamps):
                    return None
                return SplitReading(self.image_ids, self.paths, **{name: file[name] for name in _ARRAYS})
        except Exception:  # none yet, or damaged: there is hardly a type that NumPy and zipfile don't raise on that
            return None

    def remember(self, reading: SplitReading) -> None:
        """Keeps the reading of all images of the split; a folder that cannot be written is no error."""
        arrays = {name: getattr(reading, name) for name in _ARRAYS}
        with contextlib.suppress(OutputError), written_aside(self.path) as file:
            np.savez(file, question=np.array(self.question), stamps=self.stamps, **arrays)


def reading_memory(
    cache_dir: str | os.PathLike[str],
    folder: DatasetFolder,
    split: str,
    limit: int | None,
    ids: Sequence[str],
    classes: Sequence[str],
    images: ImageFiles | None,
) -> ReadingMemory | None:
    """Where the reading of a split is remembered.

    Args:
        cache_dir: the folder.
        folder: of the dataset.
        split, limit: what was asked for.
        ids: of its images.
        classes: the class list.
        images: the image files; None where they are left alone.

    Returns:
        None where nothing can be remembered: the cache folder is not there (whoever only looks makes no folders), or
        a file is missing, there twice, or a link, whose target may be another one by now.
    """
    try:
        if not Path(cache_dir).is_dir():
            return None
        paths = [images.path(image_id) for image_id in ids] if images is not None else []
    except (OSError, ImageReadError):  # the folder's name may be too long for one
        return None
    stamps = _stamps([*map(folder.annotation, ids), *paths])
    if stamps is None:
        return None
    asked = short_hash(str(folder.root.resolve()), split, limit, list(classes), images is not None)
    within = f"{folder.root}{os.sep}"
    digest = hashlib.sha256(source_sha256(_CODE).encode())
    for names in (classes, ids, (folder.layout, *(path.removeprefix(within) for path in paths))):
        digest.update(os.fsencode("\0".join(names)) + b"\1")
    path = Path(cache_dir) / f"reading-{asked}.npz"
    return ReadingMemory(path, ids, paths or [""] * len(ids), digest.hexdigest(), stamps)


def _stamps(paths: Sequence[str]) -> np.ndarray | None:
    """Mode, size and times of each file, int64 [n, 4]; None unless each is a plain file."""
    try:
        # of the two times a copy can bring the first along from another file, but not the second
        stamps = [(s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.lstat, paths)]
    except OSError:
        return None
    found = np.fromiter(chain.from_iterable(stamps), np.int64, 4 * len(paths)).reshape(-1, 4)
    return found if (found[:, 0] & 0o170000 == stat.S_IFREG).all() else None
