"""A whole dataset through the frozen model: images -> heatmaps -> a detections frame, resumable.

Every class of the list is asked for on every image (the `all` protocol); `summary.present_only` keeps what the
`present` protocol would have asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .boxes import check_percentile, extract_boxes
from .classes import PROMPT_TEMPLATES, prompt_names
from .clip import SurgeryCLIP
from .datasets import Dataset, read_image
from .errors import ParameterError
from .files import atomic_write
from .heatmaps import HEATMAP_KINDS, check_kinds, check_similarity, heatmaps, map_source
from .versions import library_sha256, versions

DETECTION_COLUMNS = ("image_id", "label", "xmin", "ymin", "xmax", "ymax", "score", "kind")
SHARD_IMAGES = 256


@dataclass(frozen=True)
class DetectionSettings:
    """How boxes are made from images; together with model, data and class list it identifies a result."""

    kinds: tuple[str, ...] = HEATMAP_KINDS
    similarity: str = "cosine"
    percentile: float = 75.0
    last_layers: int = 1
    working_size: int = 224
    min_side: int = 5
    templates: tuple[str, ...] = PROMPT_TEMPLATES

    def __post_init__(self) -> None:
        check_kinds(self.kinds)
        check_similarity(self.similarity)
        check_percentile(self.percentile)


def detect(
    clip: SurgeryCLIP,
    dataset: Dataset,
    settings: DetectionSettings | None = None,
    *,
    cache_dir: str | Path | None = None,
    batch_size: int = 16,
    workers: int | None = None,
) -> pd.DataFrame:
    """Boxes of every class on every image, for each heatmap kind.

    With a cache folder, finished images are kept in shards as the work goes on: after a crash or a kill a rerun with
    the same model, data and settings continues behind the last whole shard, and gives the same frame.

    Args:
        clip: the frozen model.
        dataset: its whole class list is asked for, in its order.
        settings: kinds, similarity, percentile...; the defaults when None.
        cache_dir: where shards are kept; None keeps nothing.
        batch_size: images a forward.
        workers: threads that read images and extract boxes; None takes the CPU's cores.

    Returns:
        frame with the columns `DETECTION_COLUMNS`; xyxy in pixels of the original image; a row a box and kind.

    Raises:
        ImageReadError: a damaged image (the shards finished before it stay).
    """
    settings = settings or DetectionSettings()
    if batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, got {batch_size}")
    workers = workers or os.cpu_count() or 1
    text = clip.encode_text(prompt_names(dataset.classes), settings.templates)
    shard_dir = None
    if cache_dir is not None:
        identity = _identity(clip, dataset, settings)
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        shard_dir = Path(cache_dir) / f"detections-{key[:16]}"
        atomic_write(shard_dir / "identity.json", json.dumps(identity, indent=1).encode())
    images = dataset.images
    frames = []
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), unit="image", desc="heatmaps and boxes", delay=2) as progress,
    ):
        for start in range(0, len(images), SHARD_IMAGES):
            rows = images.iloc[start : start + SHARD_IMAGES]
            path = shard_dir / f"part-{start // SHARD_IMAGES:05d}.parquet" if shard_dir else None
            if path is not None and path.is_file():
                frames.append(pd.read_parquet(path))
                progress.update(len(rows))
                continue
            shard = _detect_rows(clip, rows, text, dataset.classes, settings, pool, batch_size, progress)
            if path is not None:
                atomic_write(path, shard.to_parquet(index=False))
            frames.append(shard)
    return _typed(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(DETECTION_COLUMNS)))


def image_heatmaps(
    clip: SurgeryCLIP, image: np.ndarray, text: Tensor, settings: DetectionSettings
) -> dict[str, Tensor]:
    """The raw maps of one image for each kind: kind -> float32 [C, h, w] on the CPU.

    Args:
        clip: the frozen model.
        image: uint8 RGB [H, W, 3].
        text: [C, D] unit rows.
        settings: its kinds, similarity and number of layers are used.
    """
    tokens = clip.encode_image(clip.preprocess(image).unsqueeze(0), settings.last_layers)
    return {kind: heatmaps(tokens, text, kind, similarity=settings.similarity)[0].cpu() for kind in settings.kinds}


def _detect_rows(
    clip: SurgeryCLIP,
    rows: pd.DataFrame,
    text: Tensor,
    classes: Sequence[str],
    settings: DetectionSettings,
    pool: ThreadPoolExecutor,
    batch_size: int,
    progress: tqdm,
) -> pd.DataFrame:
    """Detections of some rows of the images frame."""
    # kinds that depend on the same tokens have the same boxes: found once, listed under each name
    sources = {map_source(kind, settings.similarity): kind for kind in settings.kinds}
    records: list[tuple] = []
    for batch, pixels in _batches(clip, rows, pool, batch_size):
        tokens = clip.encode_image(pixels, settings.last_layers)
        maps = {
            source: heatmaps(tokens, text, kind, similarity=settings.similarity).cpu().numpy()
            for source, kind in sources.items()
        }

        def boxes_of(index: int, size_wh: tuple[int, int], maps: dict = maps) -> dict[tuple, list[np.ndarray]]:
            return {
                source: [
                    extract_boxes(
                        heatmap,
                        size_wh,
                        percentile=settings.percentile,
                        working_size=settings.working_size,
                        min_side=settings.min_side,
                    )
                    for heatmap in batch_maps[index]
                ]
                for source, batch_maps in maps.items()
            }

        sizes = list(zip(batch["width"].tolist(), batch["height"].tolist(), strict=True))
        found = pool.map(boxes_of, range(len(batch)), sizes)
        for image_id, by_source in zip(batch["image_id"], found, strict=True):
            for kind in settings.kinds:
                by_class = by_source[map_source(kind, settings.similarity)]
                for label, boxes in zip(classes, by_class, strict=True):
                    records += [(image_id, label, *box, kind) for box in boxes.tolist()]
        progress.update(len(batch))
    return _typed(pd.DataFrame.from_records(records, columns=list(DETECTION_COLUMNS)))


def _batches(
    clip: SurgeryCLIP, rows: pd.DataFrame, pool: ThreadPoolExecutor, batch_size: int
) -> Iterator[tuple[pd.DataFrame, Tensor]]:
    """(rows, [B, 3, S, S]); the next batch is read while the present one is computed."""

    def read(path: str) -> Tensor:
        return clip.preprocess(read_image(path))

    batches = [rows.iloc[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    ahead = [pool.submit(read, path) for path in batches[0]["path"]] if batches else []
    for index, batch in enumerate(batches):
        pending = ahead
        following = batches[index + 1]["path"] if index + 1 < len(batches) else ()
        ahead = [pool.submit(read, path) for path in following]
        yield batch, torch.stack([future.result() for future in pending])


def _identity(clip: SurgeryCLIP, dataset: Dataset, settings: DetectionSettings) -> dict:
    """Everything that the detections depend on."""
    files = hashlib.sha256()
    for image_id, path in zip(dataset.images["image_id"], dataset.images["path"], strict=True):
        stat = Path(path).stat()
        files.update(f"{image_id}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {
        "library_sha256": library_sha256(),
        "versions": versions(),
        "device": clip.device.type,
        "weights_sha256": clip.weights.sha256,
        "model": clip.name,
        "depth": clip.depth,
        "image_size": clip.image_size,
        "annotations_sha256": dataset.fingerprint(),
        "files_sha256": files.hexdigest(),
        "classes": list(dataset.classes),
        **asdict(settings),
    }


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """One set of column types, also for a frame without rows."""
    numbers = dict.fromkeys(("xmin", "ymin", "xmax", "ymax", "score"), "float64")
    return frame.astype({**numbers, **dict.fromkeys(("image_id", "label", "kind"), "str")})
