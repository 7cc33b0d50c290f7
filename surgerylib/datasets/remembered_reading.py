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

from ..errors import ImageReadError, OutputError
from ..files import stamp_of, written_aside
from ..identities import short_hash
from ..versions import source_sha256
from .layouts import DatasetFolder, ImageFiles
from .reading import SplitReading

_CODE = (
    "datasets.voc",
    "words",
    "datasets.images",
    "datasets.layouts",
    "datasets.remembered_reading",
    "datasets.reading",
)  # decides what is read
_ARRAYS = ("sizes_wh", "n_boxes", "labels", "boxes_xyxy", "stamps")
_KIND = 0o170000  # the bits of a file's mode that say what it is


@dataclass(frozen=True)
class ReadingMemory:
    """The file that remembers a split, and what it must be about to be believed.

    Attributes:
        path: the file; its folder is there.
        question: a hash over the images, the class list and the code that reads.
        image_ids, paths: of all images of the split, as they are found now; the paths are empty without images.
        files: of each annotation, then of each image.
    """

    path: Path
    question: str
    image_ids: Sequence[str]
    paths: Sequence[str]
    files: Sequence[str]

    def recall(self) -> SplitReading | None:
        """What was read when all was as it is now; None where nothing is known of that."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["question"]) != self.question:
                    return None
                arrays = {name: file[name] for name in _ARRAYS}
        except Exception:  # none yet, or damaged: there is hardly a type that NumPy and zipfile don't raise on that
            return None
        now = np.fromiter(chain.from_iterable(map(stamp_of, self.files)), np.int64, 4 * len(self.files))
        unchanged = np.array_equal(now.reshape(-1, 4), arrays["stamps"])
        return SplitReading(self.image_ids, self.paths, **arrays) if unchanged else None

    def remember(self, reading: SplitReading) -> None:
        """Keeps a reading of the whole split, unless a file is a link, whose target may be another one tomorrow.

        A folder that cannot be written is no error.
        """
        if len(reading.stamps) == len(self.files) and (reading.stamps[:, 0] & _KIND == stat.S_IFREG).all():
            arrays = {name: getattr(reading, name) for name in _ARRAYS}
            with contextlib.suppress(OutputError), written_aside(self.path) as file:
                np.savez(file, question=np.array(self.question), **arrays)


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
        None where nothing is: the cache folder is not there (whoever only looks makes no folders), or an image is
        missing or there twice.
    """
    try:
        if not Path(cache_dir).is_dir():
            return None
        paths = [images.path(image_id) for image_id in ids] if images is not None else []
    except (OSError, ImageReadError):  # the folder's name may be too long for one
        return None
    asked = short_hash(str(folder.root.resolve()), split, limit, list(classes), images is not None)
    within = f"{folder.root}{os.sep}"
    digest = hashlib.sha256(source_sha256(_CODE).encode())
    for names in (classes, ids, (folder.layout, *(path.removeprefix(within) for path in paths))):
        digest.update(os.fsencode("\0".join(names)) + b"\1")
    path = Path(cache_dir) / f"reading-{asked}.npz"
    files = [*map(folder.annotation, ids), *paths]
    return ReadingMemory(path, digest.hexdigest(), ids, paths or [""] * len(ids), files)
