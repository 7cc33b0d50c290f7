"""What the notebooks of a run hand each other: files in its folder, each with what it was made of.

A notebook that reads another's results must not take those of another model, data set or run for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..datasets import Dataset
from ..errors import ResultsError
from ..files import atomic_write, differences, file_sha256

# of run.json and of what a run's folder holds: another number where a folder of an earlier version no longer fits
RUN_FORMAT = 2
# of a provenance: what two notebooks of one run have in common
_SHARED = ("model", "weights_sha256", "depth", "image_size", "dataset", "split", "annotations_sha256", "images_sha256",
           "classes")  # fmt: skip
_WRITTEN_BY = {"map_results.json": "01", "evaluation_results.json": "04"}


def valid_files(notebooks: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Files that the notebooks of a run answer for, each with its notebook's entry in `run.json`.

    A failed notebook leaves an earlier run's files in the folder.
    """
    return {name: entry for entry in notebooks if entry["status"] in ("ok", "outdated") for name in entry["files"]}


def write_frames(out_dir: Path, frames: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Write frames as parquet files; returns name -> sha256, for the JSON file that answers for them."""
    written = {name: atomic_write(out_dir / name, frame.to_parquet(index=False)) for name, frame in frames.items()}
    return {name: file_sha256(path) for name, path in written.items()}


def read_results(path: Path, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON file that a notebook left.

    Args:
        path: the file.
        provenance: of the notebook that reads it; None compares nothing.

    Raises:
        ResultsError: there is no such file, it is damaged, or it is of another model or other data.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        number = _WRITTEN_BY.get(path.name)
        writer = f"notebook {number}" if number else "the notebook that writes it"
        raise ResultsError(f"{path} is not there; run {writer} into this folder first") from None
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:80]
        raise ResultsError(f"{path} cannot be read ({said}); run its notebook again") from None
    if not isinstance(results, dict) or not isinstance(results.get("provenance"), dict):
        raise ResultsError(f"{path} does not say what it was made of; run its notebook again")
    if provenance is not None:
        theirs, own = ({name: of.get(name) for name in _SHARED} for of in (results["provenance"], provenance))
        if other := differences(theirs, own):
            raise ResultsError(f"{path} is of another run ({other}): run its notebook again, or choose another folder")
    return results


def read_frame(out_dir: Path, results: Mapping[str, Any], name: str) -> pd.DataFrame:
    """A parquet file that a notebook left, as `results`, its JSON file, states it.

    Raises:
        ResultsError: it is not there, not stated, or another file than that.
    """
    path = out_dir / name
    stated = (results.get("files") or {}).get(name)
    if stated is None:
        raise ResultsError(f"no results state what {path} holds; run the notebook that writes it again")
    if not path.is_file():
        raise ResultsError(f"{path} is not there; run the notebook that writes it again")
    if file_sha256(path) != stated:
        raise ResultsError(f"{path} is not the file that this run's results were made with; run its notebook again")
    return pd.read_parquet(path)


def images_sha256(dataset: Dataset) -> str:
    """A hash over the bytes of all image files, in the split's order."""
    paths = dataset.images["path"]
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        digests = pool.map(file_sha256, map(Path, paths))
        for digest in tqdm(digests, total=len(paths), desc="hashing images", delay=2, leave=False):
            whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def data_provenance(dataset: Dataset) -> dict:
    """Which images and boxes were used: plain values."""
    return {
        "dataset": dataset.name,
        "layout": dataset.layout,
        "split": dataset.split,
        "annotations_sha256": dataset.fingerprint(),
        "images_sha256": images_sha256(dataset),
        "n_images": len(dataset.images),
        "skipped": [
            {"image_id": image_id, "reason": reason, "n_boxes": None if pd.isna(n_boxes) else int(n_boxes)}
            for image_id, reason, n_boxes in dataset.skipped[["image_id", "reason", "n_boxes"]].itertuples(index=False)
        ],
    }
