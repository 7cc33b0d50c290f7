"""What the notebooks of a run hand each other: files in its folder, each with what it was made of.

A notebook that reads another's results must not take those of another model, data set or run for its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ResultsError
from ..files import atomic_write, file_sha256
from ..identities import differences

# of a provenance: what two notebooks of one run have in common
_SHARED = (
    "model",
    "weights_sha256",
    "depth",
    "image_size",
    "dataset",
    "split",
    "annotations_sha256",
    "images_sha256",
    "classes",
)


_WRITTEN_BY = {"map_results.json": "01", "evaluation_results.json": "04"}


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
        raise ResultsError(
            f"{path} cannot be read ({' '.join(str(error).split())[:80]}); run its notebook again"
        ) from None
    if not isinstance(results, dict) or not isinstance(results.get("provenance"), dict):
        raise ResultsError(f"{path} does not say what it was made of; run its notebook again")
    if provenance is not None:
        theirs, own = ({name: of.get(name) for name in _SHARED} for of in (results["provenance"], provenance))
        if different := differences(theirs, own):
            raise ResultsError(
                f"{path} is of another run ({different}): run its notebook again, or choose another folder"
            )
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
