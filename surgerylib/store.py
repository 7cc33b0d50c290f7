"""The heatmap store: the frozen model runs once over a data set, and every later question is asked of files.

What is kept is the similarity of every token to every class, for both paths and the last few layers (see
`map_shards`): all kinds, similarities and thresholds follow from it without the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .classes import PROMPT_TEMPLATES, prompt_names
from .clip import SurgeryCLIP
from .datasets import Dataset, read_image
from .errors import CacheError, CheckpointError, ImageReadError, OutputError, ParameterError
from .files import atomic_write
from .map_shards import PATHS, MapShard, MapSource, open_shard
from .parallel import worker_count
from .versions import source_sha256, versions

STORED_LAYERS = 3
SHARD_IMAGES = 64
_IDENTITY = "identity.json"
# what decides the numbers in a shard; a change elsewhere in the package leaves a night's work valid
_CODE = ("_open_clip", "attention", "checkpoints", "classes", "clip", "images", "store")


class HeatmapStore:
    """Similarities of a data set's tokens to its class list, in shards on disk.

    A shard is written aside and renamed when it is whole: after a kill, `compute` goes on behind the last one.

    Attributes:
        folder: where the shards lie; named after a hash of `identity`.
        identity: everything the numbers depend on: weights, model, size, images, class list, prompts, code.
        layers: how many of the last layers are stored.
        nbytes: size of all shards.
    """

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int = 1,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        folder: str | Path | None = None,
    ) -> None:
        """Find or prepare the store of a model and a data set; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its whole class list is stored, in its order.
            cache_dir: folder of stores, one subfolder each.
            layers: at least this many of the last layers are kept, and `STORED_LAYERS` where the model has so many.
            templates: prompts.
            folder: this very store, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError: the store in the folder was made of something else; the message says of what.
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        if layers > clip.depth:
            raise ParameterError(f"layers must lie in 1..{clip.depth} (the VV path's depth), got {layers}")
        self.clip, self.dataset, self.templates = clip, dataset, tuple(templates)
        self.layers = min(max(layers, STORED_LAYERS), clip.depth)
        self.identity = _identity(clip, dataset, self.layers, self.templates)
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) if folder is not None else Path(cache_dir) / f"heatmaps-{key[:16]}"
        n_tokens = 1 + clip.grid[0] * clip.grid[1]
        self._record = (self.layers, len(PATHS), len(dataset.classes), n_tokens)
        self.nbytes = len(dataset.images) * int(np.prod(self._record)) * 4
        self._check_folder(must_exist=folder is not None)

    @property
    def shards(self) -> list[MapShard]:
        """All shards, in the order of the data set; `compute` makes the files behind them."""
        images = self.dataset.images
        sizes = list(zip(images["width"].tolist(), images["height"].tolist(), strict=True))
        return [
            MapShard(str(self._path(start)), self.clip.grid, start, tuple(sizes[start : start + SHARD_IMAGES]))
            for start in range(0, len(images), SHARD_IMAGES)
        ]

    def maps(self, position: int, source: MapSource) -> np.ndarray:
        """Raw heatmaps of one image, by its place in the data set: float32 [C, h, w]."""
        width, height = self.dataset.images[["width", "height"]].iloc[position].tolist()
        path, offset = self._path(position), position % SHARD_IMAGES
        return MapShard(str(path), self.clip.grid, position, ((width, height),), offset).maps(source)[0]

    def describe(self) -> str:
        """One line: how much is stored where, and which other stores lie beside it."""
        shards = self.shards
        there = sum(len(shard.sizes_wh) for shard in shards if Path(shard.path).is_file())
        text = (
            f"heatmaps of {there:,} of {len(self.dataset.images):,} images, {self.layers} layers, "
            f"{self.nbytes / 1e6:,.1f} MB, in {self.folder.parent.name}/{self.folder.name}"
        )
        strangers = []
        for path in sorted(self.folder.parent.glob(f"heatmaps-*/{_IDENTITY}")):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # damaged: not ours to judge
                other = json.loads(path.read_text(encoding="utf-8"))
                if path.parent != self.folder and other.get("weights_sha256") != self.identity["weights_sha256"]:
                    strangers.append(path.parent.name)
        return f"{text}; not used, of other weights: {', '.join(strangers)}" if strangers else text

    def compute(self, *, batch_size: int = 16, workers: int | None = None) -> HeatmapStore:
        """Run the model over the images whose shards are not there yet.

        Args:
            batch_size: images a forward.
            workers: threads that read images; None takes the CPU's cores.

        Raises:
            ImageReadError: a damaged image (the shards finished before it stay).
            OutputError: the disk is too small.
            CacheError: a shard of another shape.
            CheckpointError: the model gives NaN or infinite values.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ParameterError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        n_threads = worker_count(workers)
        missing = [shard for shard in self.shards if not self._is_there(shard)]
        if not missing:
            return self
        self._check_disk(sum(len(shard.sizes_wh) for shard in missing))
        atomic_write(self.folder / _IDENTITY, json.dumps(self.identity, indent=1))
        text = self.clip.encode_text(prompt_names(self.dataset.classes), self.templates)
        n_images = len(self.dataset.images)
        done = n_images - sum(len(shard.sizes_wh) for shard in missing)
        with (
            ThreadPoolExecutor(n_threads) as pool,
            tqdm(total=n_images, initial=done, unit="image", desc="heatmaps", delay=2) as progress,
        ):
            batches = self._batches(missing, batch_size)
            parts: list[np.ndarray] = []
            for shard, pixels in _read_ahead(self.clip, batches, pool):
                parts.append(self._similarities(pixels, text))
                if not np.isfinite(parts[-1]).all():
                    raise CheckpointError(
                        f"{self.clip.name} gives NaN or infinite values on images of {Path(shard.path).name}: its "
                        'weights are damaged, or overflow in half precision; try device "cpu" or another checkpoint'
                    )
                progress.update(len(pixels))
                if sum(map(len, parts)) == len(shard.sizes_wh):
                    _save(Path(shard.path), np.concatenate(parts))
                    parts = []
        return self

    def _similarities(self, pixels: Tensor, text: Tensor) -> np.ndarray:
        """[B, 3, S, S] -> float32 [B, L, 2, C, 1+N]."""
        tokens = self.clip.encode_image(pixels, self.layers)
        both = torch.stack([getattr(tokens, path) for path in PATHS]) @ text.T  # [2, L, B, 1+N, C]
        return both.permute(2, 1, 0, 4, 3).contiguous().cpu().numpy()

    def _batches(self, shards: Sequence[MapShard], batch_size: int) -> list[tuple[MapShard, list[str]]]:
        """(shard, image paths): batches don't cross the border of a shard, so that a rerun forms the same ones."""
        paths = self.dataset.images["path"].tolist()
        batches = []
        for shard in shards:
            stop = shard.first + len(shard.sizes_wh)
            for start in range(shard.first, stop, batch_size):
                batches.append((shard, paths[start : min(start + batch_size, stop)]))
        return batches

    def _path(self, position: int) -> Path:
        """The shard that holds the image at this place of the data set."""
        return self.folder / f"maps-{position // SHARD_IMAGES:05d}.npy"

    def _is_there(self, shard: MapShard) -> bool:
        path = Path(shard.path)
        if not path.is_file():
            return False
        expected = (len(shard.sizes_wh), *self._record)
        stored = open_shard(path)
        if stored.shape != expected or stored.dtype != np.float32:
            raise CacheError(
                f"{path} holds {stored.dtype} {list(stored.shape)}, float32 {list(expected)} is needed; delete it"
            )
        return True

    def _check_folder(self, *, must_exist: bool) -> None:
        """Raise a `CacheError` when the folder is another store, or was named and is none."""
        path = self.folder / _IDENTITY
        if not path.is_file():
            if must_exist:
                raise CacheError(f"{self.folder} is no heatmap store (it has no {_IDENTITY}); leave it out to make one")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CacheError(f"{path} does not parse ({error}); delete the folder") from error
        if not isinstance(found, dict):
            raise CacheError(f"{path} holds no identity of a store; delete the folder")
        others = [name for name in self.identity if found.get(name) != self.identity[name]]
        if others:
            differences = "; ".join(_difference(name, found.get(name), self.identity[name]) for name in others)
            raise CacheError(
                f"the heatmaps in {self.folder} were made of something else ({differences}); delete them or choose "
                "another folder"
            )

    def _check_disk(self, n_images: int) -> None:
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        needed = n_images * int(np.prod(self._record)) * 4
        if needed > free:
            raise OutputError(
                f"the heatmaps need {needed / 1e9:.2f} GB in {self.folder}, {free / 1e9:.2f} GB are free; free the "
                "disk or choose another folder"
            )


def _read_ahead(
    clip: SurgeryCLIP, batches: Sequence[tuple[MapShard, list[str]]], pool: ThreadPoolExecutor
) -> Iterator[tuple[MapShard, Tensor]]:
    """(shard, [B, 3, S, S]); the next batch is read while the present one is computed."""

    def read(path: str) -> Tensor:
        return clip.preprocess(read_image(path))

    ahead = [pool.submit(read, path) for path in batches[0][1]] if batches else []
    for index, (shard, _) in enumerate(batches):
        pending = ahead
        following = batches[index + 1][1] if index + 1 < len(batches) else ()
        ahead = [pool.submit(read, path) for path in following]
        yield shard, torch.stack([future.result() for future in pending])


def _save(path: Path, similarities: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, similarities)
    atomic_write(path, buffer.getvalue())


def _identity(clip: SurgeryCLIP, dataset: Dataset, layers: int, templates: tuple[str, ...]) -> dict:
    images = hashlib.sha256()
    for image_id, path in zip(dataset.images["image_id"], dataset.images["path"], strict=True):
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise ImageReadError(f"no image file {path}; add it or take it out of the split") from error
        images.update(f"{image_id}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {
        **clip.identity,
        "layers": layers,
        "paths": list(PATHS),
        "classes": list(dataset.classes),
        "templates": list(templates),
        "n_images": len(dataset.images),
        "images_sha256": images.hexdigest(),
        "shard_images": SHARD_IMAGES,
        "code_sha256": source_sha256(_CODE),
        "versions": {name: versions().get(name) for name in ("torch", "open_clip_torch", "opencv-python-headless")},
    }


def _difference(name: str, there: object, here: object) -> str:
    """What differs between two stores' identities, short; of two lists, the first item that does."""
    if isinstance(there, list) and isinstance(here, list):
        item = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
        if item is None:
            return f"{name}: {len(there)} items there, {len(here)} here"
        name, there, here = f"{name}, item {item + 1}", there[item], here[item]
    return f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:16]}…{text[-16:]}"
