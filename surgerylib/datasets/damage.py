"""The one place that decides what becomes of a damaged image: it stops the work before it begins, or is left out.

Damaged is an image that is missing, cannot be decoded, lies outside of the dataset, or whose annotation cannot be
read or is of another image. An image that is left out takes its ground truth with it, out of every denominator, and
is listed with its reason. A class that nobody knows, or a split file that cannot be read, is no damage: it stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ..errors import ImageReadError, OutputError, ParameterError, worker_count
from ..files import atomic_write, short_hash, versions
from .dataset import Dataset, skipped_frame
from .images import check_decodes, image_size

ON_BAD_IMAGE = ("error", "skip")
MEMORY = "checked_images.json"  # in a cache folder: keys of the files that were found sound


def check_on_bad_image(value: object) -> str:
    """The policy; a `ParameterError` unless it is one of `ON_BAD_IMAGE`."""
    if value not in ON_BAD_IMAGE:
        raise ParameterError(
            "on_bad_image must be error (stop before the work) or skip (leave the image out and list it), not "
            f"{value!r}"
        )
    return value


def reason_within(root: Path, error: object) -> str:
    """Why an image is left out, as one line that a report can hold: paths begin within the dataset."""
    return " ".join(str(error).replace(f"{root}{os.sep}", "").split())


def check_images(dataset: Dataset) -> list[tuple[str, str]]:
    """Decodes every image before long work: (image_id, reason) of each that is damaged.

    What passes here can be read later. Of changed bytes in the middle of a JPEG's picture data only those are seen that
    stop a decoder: others change the picture, and no decoder tells.

    Raises:
        ParameterError: the dataset was loaded without its images.
    """
    images = dataset.images
    if not images["path"].all():
        raise ParameterError("the dataset was loaded with require_images=False; load it with its images to check them")

    def problem(path: str, size_wh: tuple[int, int]) -> str | None:
        try:
            now_wh = image_size(path)
            if now_wh != size_wh:
                now, then = ("{}x{}".format(*wh) for wh in (now_wh, size_wh))
                return f"{path} now has {now} pixels, {then} when the dataset was loaded; load it again"
            check_decodes(path)
        except ImageReadError as error:
            return str(error)
        return None

    sizes = list(zip(images["width"], images["height"], strict=True))
    with ThreadPoolExecutor(worker_count(None)) as pool:  # the decoders let go of the interpreter lock
        found = tqdm(
            pool.map(problem, images["path"], sizes), total=len(images), desc="checking images", unit="image", delay=2,
            leave=False,
        )  # fmt: skip
        return [(image_id, reason) for image_id, reason in zip(images["image_id"], found, strict=True) if reason]


def sound(dataset: Dataset, on_bad_image: str = "error", *, memory_dir: str | Path | None = None) -> Dataset:
    """The dataset once every image in it is known to decode.

    Args:
        dataset: loaded with its images.
        on_bad_image: `error` or `skip`.
        memory_dir: folder that remembers which files are sound, so that they need not be decoded again; None for
            none. One that is not there, or cannot be written, is no error: the check is repeated the next time.

    Returns:
        the same dataset, or under `skip` without its damaged images, which `skipped` lists.

    Raises:
        ImageReadError: under `error`, the first damaged image, and how many there are.
        DatasetError: no image is left.
    """
    check_on_bad_image(on_bad_image)
    problems = _remembered_check(dataset, memory_dir)
    if not problems:
        return dataset
    if on_bad_image == "error":
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ImageReadError(f"{problems[0][1]}{more}; on_bad_image=skip leaves such images out")
    return _without(dataset, dict(problems))


def _without(dataset: Dataset, problems: dict[str, str]) -> Dataset:
    damaged = dataset.images["image_id"].isin(problems).to_numpy()
    dropped = dataset.repairs.loc[dataset.repairs["repair"] == "dropped", "image_id"]
    counts = pd.concat([dataset.boxes["image_id"], dropped]).value_counts()  # as many as the annotation has
    rows = [
        (image_id, reason_within(dataset.root, problems[image_id]), int(counts.get(image_id, 0)), position)
        for image_id, position in zip(dataset.images.loc[damaged, "image_id"], dataset.positions[damaged], strict=True)
    ]
    skipped = pd.concat([dataset.skipped, skipped_frame(rows)]).sort_values("position", ignore_index=True)
    return dataset.of_images(~damaged, skipped)


def files_sha256(dataset: Dataset) -> str:
    """A hash over ids, places, sizes and times of the image files: cheap for any number of them, unlike their contents.

    Raises:
        ImageReadError: a file is missing.
    """
    digest = hashlib.sha256()
    for image_id, path in zip(dataset.images["image_id"], dataset.images["path"], strict=True):
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise ImageReadError(f"no image file {path}; add it or take it out of the split") from error
        place = os.path.relpath(path, dataset.root)
        digest.update(f"{image_id}\0{place}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _remembered_check(dataset: Dataset, memory_dir: str | Path | None) -> list[tuple[str, str]]:
    """`check_images`, unless these very files were found sound before.

    Damage is not remembered: it may have been the disk's for a moment, and be mended by now.
    """
    if memory_dir is None:
        return check_images(dataset)
    path = Path(memory_dir) / MEMORY
    try:
        key = short_hash(str(dataset.root.resolve()), files_sha256(dataset), versions())
    except ImageReadError:  # gone since the dataset was read: the check says which
        return check_images(dataset)
    try:
        known = {str(key) for key in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):  # none yet, or not as it was written: the images are looked at again
        known = set()
    if key in known:
        return []
    problems = check_images(dataset)
    if not problems and path.parent.is_dir():  # a mere look makes no folders
        with contextlib.suppress(OutputError):  # what needs the folder will say so
            atomic_write(path, json.dumps(sorted({*known, key}), indent=1))
    return problems
