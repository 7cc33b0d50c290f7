"""What is needed to repeat a result: versions, device, hashes of weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..versions import library_sha256, versions


def images_sha256(dataset: Dataset) -> str:
    """A hash over the bytes of all image files, in the split's order."""

    def of_file(path: str) -> bytes:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    paths = dataset.images["path"]
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        for digest in tqdm(pool.map(of_file, paths), total=len(paths), desc="hashing images", delay=2, leave=False):
            whole.update(digest)
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
            {
                "image_id": row.image_id,
                "reason": row.reason,
                "n_boxes": None if pd.isna(row.n_boxes) else int(row.n_boxes),
            }
            for row in dataset.skipped.itertuples()
        ],
    }


def provenance(
    clip: SurgeryCLIP, dataset: Dataset, *, seed: int, seconds: float, parameters: Mapping[str, Any]
) -> dict:
    """Plain values for a notebook's last cell and for the JSON files.

    Args:
        clip: the model used.
        dataset: the data used, as sampled.
        seed: of the run.
        seconds: wall time of the notebook so far.
        parameters: of the notebook: plain values.
    """
    device = torch.cuda.get_device_name(clip.device) if clip.device.type == "cuda" else str(clip.device)
    return {
        "model": clip.name,
        "weights": clip.weights.source,
        "weights_sha256": clip.weights.sha256,
        "depth": clip.depth,
        "image_size": clip.image_size,
        "self_check_error": clip.self_check_error,
        **data_provenance(dataset),
        "classes": list(dataset.classes),
        "device": device,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "parameters": dict(parameters),
        "library_sha256": library_sha256(),
        "versions": versions(),
        "seconds": seconds,
    }
