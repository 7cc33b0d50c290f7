"""A data set through the frozen model once, a record an image, in shard files that a later run goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
from tqdm import tqdm

from ..checks import whole_number, worker_count
from ..clip import SurgeryCLIP
from ..datasets.damage import files_sha256
from ..datasets.dataset import Dataset
from ..errors import CacheError, CheckpointError, OutputError, ParameterError
from ..files import atomic_write, file_sha256, only_process, remove_parts, written_aside
from ..identities import differences
from ..versions import source_sha256, versions
from ..words import prompt_names
from .map_shards import open_shard
from .streams import in_streams, n_streams

_IDENTITY, _HASHES = "identity.json", "hashes.json"


class ImageShards(ABC):
    """Base of what is computed once for each image of a data set and kept on disk.

    A shard is written aside and renamed when it is whole: after a kill, `compute` goes on behind the last one. The
    sha256 of each is kept beside them and looked at when `compute` finds it there.

    Attributes:
        what: what is stored, in the plural; folders begin with it.
        code: modules of this package that decide the numbers; a change elsewhere leaves a night's work valid.
        folder: where the shards lie; named after a hash of `identity`.
        identity: everything the numbers depend on: weights, model, size, images, class list, prompts, code.
        layers: how many of the last layers are looked at.
        record: dtype of one image's record.
        nbytes: size of all shards.
    """

    what: ClassVar[str]
    code: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int,
        templates: Sequence[str] | None,
        details: Mapping[str, Any],
        record: np.dtype,
        shard_images: int,
        folder: str | Path | None,
    ) -> None:
        """Find or prepare the store; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: what is asked for is its whole class list, in its order.
            cache_dir: folder of stores, one subfolder each.
            layers: number of last layers.
            templates: prompts; None where no class is asked for, so that the class list doesn't matter either.
            details: what else the numbers depend on: plain values.
            record: dtype of one image's record, perhaps with a shape.
            shard_images: images a file.
            folder: this very store, made earlier (and not looked for in `cache_dir`).

        Raises:
            CacheError: the store in the folder was made of something else; the message says of what.
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        if layers > clip.depth:
            raise ParameterError(f"layers must lie in 1..{clip.depth} (the VV path's depth), got {layers}")
        self.clip, self.dataset, self.templates, self.layers = clip, dataset, tuple(templates or ()), layers
        self.record, self.shard_images = record, shard_images
        self.identity = {
            **clip.identity,
            "layers": layers,
            **details,
            "classes": [] if templates is None else list(dataset.classes),
            "templates": list(self.templates),
            "n_images": len(dataset.images),
            "images_sha256": files_sha256(dataset),
            "shard_images": shard_images,
            "code_sha256": source_sha256(self.code),
            "versions": {name: versions().get(name) for name in ("torch", "open_clip_torch", "opencv-python-headless")},
        }
        self.key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) if folder is not None else Path(cache_dir) / f"{self.what}-{self.key[:16]}"
        self.nbytes = len(dataset.images) * record.itemsize
        self._check_folder(must_exist=folder is not None)

    @abstractmethod
    def _read(self, path: str) -> Any:
        """What one image file is to the model; called in threads."""

    @abstractmethod
    def _records(self, images: list[Any], first: int) -> np.ndarray:
        """What `_read` gave of B images of the shard that begins at `first` -> their records [B]; called in threads."""

    def _prepare(self) -> None:
        """What all batches need, computed once with all threads: the clip keeps the text embeddings."""
        if self.templates:
            self.clip.encode_text(prompt_names(self.dataset.classes), self.templates)

    def path(self, position: int) -> Path:
        """The shard that holds the image at this place of the data set."""
        return self.folder / f"{self.what}-{position // self.shard_images:05d}.npy"

    def describe(self) -> str:
        """One line: how much is stored where, and which other stores lie beside it."""
        n_images = len(self.dataset.images)
        there = sum(self._size(first) for first in self._firsts() if self.path(first).is_file())
        text = (
            f"{self.what} of {there:,} of {n_images:,} images, {self.layers} layers, "
            f"{self.nbytes / 1e6:,.1f} MB, in {self.folder.parent.name}/{self.folder.name}"
        )
        strangers = []
        for path in sorted(self.folder.parent.glob(f"{self.what}-*/{_IDENTITY}")):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # damaged: not ours to judge
                other = json.loads(path.read_text(encoding="utf-8"))
                if path.parent != self.folder and other.get("weights_sha256") != self.identity["weights_sha256"]:
                    strangers.append(path.parent.name)
        return f"{text}; not used, of other weights: {', '.join(strangers)}" if strangers else text

    def compute(
        self, *, batch_size: int = 16, workers: int | None = None, after_shard: Callable[[int], object] | None = None
    ) -> Self:
        """Run the model over the images whose shards are not there yet.

        Args:
            batch_size: images a forward.
            workers: threads that read images; None takes the CPU's cores.
            after_shard: called with the place of a shard's first image when it has been computed now.

        Raises:
            ImageReadError: a damaged image (the shards finished before it stay).
            OutputError: the disk is too small.
            CacheError: a shard that is not as it was written.
            CheckpointError: the model gives NaN or infinite values.
        """
        batch_size, n_threads = whole_number("batch_size", batch_size), worker_count(workers)
        hashes = self._hashes()
        looked_at = tqdm(self._firsts(), desc=f"checking {self.what}", unit="file", delay=2, leave=False)
        if not [first for first in looked_at if not self._is_there(first, hashes)]:
            return self
        check_disk([self])
        with only_process(self.folder, f"computes the {self.what}"):
            self._compute(batch_size, n_threads, after_shard)
        return self

    def read(self, positions: Sequence[int] | np.ndarray) -> list[np.void]:
        """Records of some images by their places in the data set: views of the mapped files, nothing is copied.

        The files stay mapped for as long as the records live, and no longer: memory does not grow with what was read.

        Raises:
            CacheError: the cache has not been computed, or a file is damaged.
        """
        opened: dict[Path, np.ndarray] = {}
        records = []
        for position in positions:
            path = self.path(int(position))
            if path not in opened:
                opened[path] = open_shard(path, self.what)
            records.append(opened[path][int(position) % self.shard_images])
        return records

    def _compute(self, batch_size: int, n_threads: int, after_shard: Callable[[int], object] | None) -> None:
        """The missing shards, as they are now that no other process writes them."""
        self._prepare()
        hashes = self._hashes()
        missing = [first for first in self._firsts() if not self.path(first).is_file()]
        n_images, n_missing = len(self.dataset.images), sum(map(self._size, missing))
        with (
            ThreadPoolExecutor(n_threads) as pool,
            tqdm(
                total=n_images, initial=n_images - n_missing, unit="image", desc=f"{self.what} of {self.dataset.split}",
                delay=2,
            ) as progress,
            contextlib.closing(in_streams(
                self._read_and_compute, self._read_ahead(self._batches(missing, batch_size), pool),
                n_streams(self.clip.device),
            )) as computed,
        ):  # fmt: skip
            atomic_write(self.folder / _IDENTITY, json.dumps(self.identity, indent=1))
            remove_parts(self.folder)
            for first in missing:
                with written_aside(self.path(first)) as file:
                    hashed = _Hashed(file)
                    write_shard_head(hashed, self.record, self._size(first))
                    # no further: an error in the next shard's images comes after this one is whole
                    for records in islice(computed, -(-self._size(first) // batch_size)):
                        hashed.write(np.ascontiguousarray(records).data)
                        progress.update(len(records))
                    # before the shard has its name: a shard without its hash would never be trusted
                    hashes[self.path(first).name] = hashed.sha256.hexdigest()
                    atomic_write(self.folder / _HASHES, json.dumps(hashes, indent=1, sort_keys=True))
                if after_shard:
                    after_shard(first)

    def missing_bytes(self) -> int:
        """What is still to be written."""
        missing = [first for first in self._firsts() if not self.path(first).is_file()]
        return sum(map(self._size, missing)) * self.record.itemsize

    def _not_finite(self, first: int) -> CheckpointError:
        return CheckpointError(
            f"{self.clip.name} gives NaN or infinite values on images of {self.path(first).name}: its weights are "
            'damaged, or overflow in half precision; try device "cpu" or another checkpoint'
        )

    def _firsts(self) -> range:
        """Places of the shards' first images."""
        return range(0, len(self.dataset.images), self.shard_images)

    def _size(self, first: int) -> int:
        """Images of the shard that begins there."""
        return min(self.shard_images, len(self.dataset.images) - first)

    def _batches(self, firsts: Sequence[int], batch_size: int) -> list[tuple[int, list[str]]]:
        """(shard, image paths): batches don't cross the border of a shard, so that a rerun forms the same ones."""
        paths = self.dataset.images["path"].tolist()
        batches = []
        for first in firsts:
            stop = first + self._size(first)
            for start in range(first, stop, batch_size):
                batches.append((first, paths[start : min(start + batch_size, stop)]))
        return batches

    def _read_ahead(
        self, batches: Sequence[tuple[int, list[str]]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, list[Future]]]:
        """(shard, its images as they will have been read): those of a batch are begun when it is asked for."""
        for first, paths in batches:
            yield first, [pool.submit(self._read, path) for path in paths]

    def _read_and_compute(self, batch: tuple[int, list[Future]]) -> np.ndarray:
        first, images = batch
        return self._records([image.result() for image in images], first)

    def _hashes(self) -> dict[str, str]:
        path = self.folder / _HASHES
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CacheError(f"{path} does not parse ({error}); delete the folder") from error

    def _is_there(self, first: int, hashes: Mapping[str, str]) -> bool:
        path = self.path(first)
        if not path.is_file():
            return False
        expected = (self._size(first), *self.record.shape)
        stored = open_shard(path, self.what)
        if stored.shape != expected or stored.dtype != self.record.base:
            raise CacheError(
                f"{path} holds {stored.dtype} {list(stored.shape)}, {self.record.base} {list(expected)} is needed; "
                "delete it"
            )
        if file_sha256(path) != hashes.get(path.name):
            raise CacheError(f"{path} is not as it was written (its sha256 is another): the disk damaged it; delete it")
        return True

    def _check_folder(self, *, must_exist: bool) -> None:
        """Raise a `CacheError` when the folder is another store, or was named and is none."""
        path = self.folder / _IDENTITY
        if not path.is_file():
            if must_exist:
                raise CacheError(
                    f"{self.folder} is no store of {self.what} (it has no {_IDENTITY}); leave it out to make one"
                )
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CacheError(f"{path} does not parse ({error}); delete the folder") from error
        if not isinstance(found, dict):
            raise CacheError(f"{path} holds no identity of a store; delete the folder")
        if different := differences(found, self.identity):
            raise CacheError(
                f"the {self.what} in {self.folder} were made of something else ({different}); delete them or choose "
                "another folder"
            )


def check_disk(stores: Sequence[ImageShards]) -> None:
    """Whether all that is still to be written fits, before the first of it is computed.

    Raises:
        OutputError: it does not.
    """
    needed: dict[int, int] = {}
    for store in stores:
        existing = next(path for path in (store.folder, *store.folder.parents) if path.exists())
        device = existing.stat().st_dev
        needed[device] = needed.get(device, 0) + store.missing_bytes()
        free = shutil.disk_usage(existing).free
        if needed[device] > free:
            raise OutputError(
                f"the {store.what} need {needed[device] / 1e9:.2f} GB in {store.folder.parent}, {free / 1e9:.2f} GB "
                "are free; free the disk or choose another folder"
            )


class _Hashed:
    """A file to write to that keeps the sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def write_shard_head(file: BinaryIO, record: np.dtype, n_images: int) -> None:
    """The head of an npy file whose records are written behind it, batch by batch.

    Not through a memory map: a full disk would end the process there, here it is an error.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(record.base),
        "fortran_order": False,
        "shape": (n_images, *record.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
