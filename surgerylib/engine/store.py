"""A data set through the frozen model once: a record an image, in shard files that a later run goes on from.

There is one store; a recipe says what is kept of an image. All kinds of heatmaps, similarities and thresholds follow
from what a `HeatmapStore` holds without the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from ..clip import SurgeryCLIP
from ..datasets import Dataset, files_sha256, read_image
from ..errors import CacheError, CheckpointError, OutputError, ParameterError, whole_number, worker_count
from ..files import atomic_write, file_sha256, only_process, remove_parts, versions, written_aside
from ..heatmaps import Setting, maps_of
from ..words import PROMPT_TEMPLATES
from .adapters import TrainedAdapter
from .own import key_of
from .parallel import read_ahead
from .recipes import Recipe, adapted_maps, own_map, own_maps, similarities

# how the stored numbers are made: to be raised with them. Stores of another number are left alone and made anew.
STORE_VERSION = 2
STORED_LAYERS = 3
_IDENTITY, _HASHES = "identity.json", "hashes.json"


class Store:
    """What a recipe makes of each image of a data set, on disk.

    A shard is written aside and renamed when it is whole: after a kill, `compute` goes on behind the last one. The
    sha256 of each is kept beside them and looked at when `compute` finds it there.

    Attributes:
        clip, dataset, recipe: as given.
        what, layers, record: of the recipe.
        identity: everything the numbers depend on: weights, model, size, images, recipe, `STORE_VERSION`.
        key: a hash of it.
        folder: where the shards lie; named after the key.
        nbytes: size of all shards.
        found: shards that an earlier run has left, of those that `compute` was asked for.
    """

    def __init__(self, clip: SurgeryCLIP, dataset: Dataset, cache_dir: str | Path, recipe: Recipe) -> None:
        """Find or prepare the store, a subfolder of `cache_dir`; nothing is computed yet.

        Raises:
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        if recipe.layers > clip.depth:
            raise ParameterError(f"layers must lie in 1..{clip.depth} (the VV path's depth), got {recipe.layers}")
        self.clip, self.dataset, self.recipe = clip, dataset, recipe
        self.what, self.layers, self.record = recipe.what, recipe.layers, recipe.record
        self.identity = {
            "store_version": STORE_VERSION,
            **clip.identity,
            "layers": recipe.layers,
            **recipe.made_of,
            "n_images": len(dataset.images),
            "images_sha256": files_sha256(dataset),
            "shard_images": recipe.shard_images,
            "versions": {name: versions().get(name) for name in ("torch", "open_clip_torch", "opencv-python-headless")},
        }
        self.key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.folder = Path(cache_dir) / f"{recipe.what}-{self.key[:16]}"
        n_images, size = len(dataset.images), recipe.shard_images
        self.nbytes = n_images * recipe.record.itemsize
        self.found = 0
        # (place of the first image, number of images) of each
        self._shards = [(first, min(size, n_images - first)) for first in range(0, n_images, size)]

    @property
    def made_of(self) -> str:
        """By what the numbers were made, short."""
        return f"{self.clip.name}, weights {self.clip.weights.sha256[:12]}, store version {STORE_VERSION}"

    def path(self, position: int) -> Path:
        """The shard that holds the image at this place of the data set."""
        return self.folder / f"{self.what}-{position // self.recipe.shard_images:05d}.npy"

    def describe(self) -> str:
        """One line: how much is stored where, what of it an earlier run has left, and what that was made of."""
        n_images = len(self.dataset.images)
        there = n_images - sum(size for _, size in self.missing())
        text = f"{self.what} of {there:,} of {n_images:,} images, {self.layers} layers, {self.nbytes / 1e6:,.1f} MB, "
        text += f"in {self.folder.parent.name}/{self.folder.name}"
        if self.found:
            text += f"; {self.found} of {len(self._shards)} files were there already, made of {self.made_of}"
        others = self._of_other_weights()
        return f"{text}; not used, of other weights: {', '.join(others)}" if others else text

    def compute(self, *, batch_size: int = 16, workers: int | None = None) -> Self:
        """Run the model over the images whose shards are not there yet.

        Args:
            batch_size: images a forward.
            workers: threads that read images; None takes the CPU's cores.

        Raises:
            ImageReadError: a damaged image (the shards finished before it stay).
            OutputError: the disk is too small.
            CacheError: a shard that is not as it was written.
            CheckpointError: the model gives NaN or infinite values.
        """
        batch_size, n_threads = whole_number("batch_size", batch_size), worker_count(workers)
        hashes = self._hashes()
        bar = tqdm(self._shards, desc=f"checking {self.what}", unit="file", delay=2, leave=False)
        self.found = sum(self._is_there(*shard, hashes) for shard in bar)
        if self.found < len(self._shards):
            check_disk([self])
            with only_process(self.folder, f"computes the {self.what}"):
                self._compute(batch_size, n_threads)
        return self

    def block(self, start: int, stop: int) -> np.ndarray:
        """Records of consecutive images, by their places in the data set, of one shard: a view of the mapped file."""
        offset = start % self.recipe.shard_images
        return self._open(self.path(start))[offset : offset + stop - start]

    def blocks(self, most: int) -> list[tuple[int, int]]:
        """(start, stop) of all images in order, at most so many at a time and of one shard each."""
        edges = (range(first, first + size, most) for first, size in self._shards)
        ends = [place for of_shard in edges for place in of_shard]
        return list(pairwise([*ends, len(self.dataset.images)])) if ends else []

    def shards(self) -> Iterator[np.ndarray]:
        """Records of all images in order, shard by shard, mapped from disk."""
        return (self.block(first, first + size) for first, size in self._shards)

    def read(self, positions: Sequence[int] | np.ndarray) -> list[np.void]:
        """Records of some images by their places in the data set: views of the mapped files, nothing is copied.

        The files stay mapped for as long as the records live, and no longer: memory does not grow with what was read.

        Raises:
            CacheError: the store has not been computed, or a file is damaged.
        """
        places = list(map(int, positions))
        opened = {path: self._open(path) for path in dict.fromkeys(map(self.path, places))}
        return [opened[self.path(place)][place % self.recipe.shard_images] for place in places]

    def missing(self) -> list[tuple[int, int]]:
        """The shards still to be written: place of the first image, number of images."""
        return [(first, size) for first, size in self._shards if not self.path(first).is_file()]

    def _compute(self, batch_size: int, n_threads: int) -> None:
        """The missing shards, as they are now that no other process writes them."""
        hashes, missing = self._hashes(), self.missing()
        n_images, n_missing = len(self.dataset.images), sum(size for _, size in missing)
        atomic_write(self.folder / _IDENTITY, json.dumps(self.identity, indent=1))
        remove_parts(self.folder)
        paths = [path for first, size in missing for path in self.dataset.images["path"].iloc[first : first + size]]
        # two batches are read while the model works on one
        images = read_ahead(self._read_image, paths, threads=n_threads, ahead=2 * batch_size)
        what = f"{self.what} of {self.dataset.split}"
        with tqdm(unit="image", desc=what, delay=2, total=n_images, initial=n_images - n_missing) as progress:
            for first, size in missing:
                with written_aside(self.path(first)) as file:
                    sha256 = hashlib.sha256()
                    for content in self._content(first, size, images, batch_size, progress):
                        sha256.update(content)
                        file.write(content)
                    # before the shard has its name: a shard without its hash would never be trusted
                    hashes[self.path(first).name] = sha256.hexdigest()
                    atomic_write(self.folder / _HASHES, json.dumps(hashes, indent=1, sort_keys=True))

    def _content(
        self, first: int, size: int, images: Iterator[tuple], batch_size: int, progress: tqdm
    ) -> Iterator[bytes | memoryview]:
        """An npy file piece by piece: not through a memory map, where a full disk would end the process.

        Batches don't cross the border of a shard, so that a rerun forms the same ones.
        """
        head, shape = io.BytesIO(), (size, *self.record.shape)
        descr = np.lib.format.dtype_to_descr(self.record.base)
        np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
        yield head.getvalue()
        for start in range(0, size, batch_size):
            records = self._records(list(islice(images, min(batch_size, size - start))), first)
            yield np.ascontiguousarray(records).data
            progress.update(len(records))

    def _read_image(self, path: str) -> tuple[torch.Tensor, Any]:
        image = read_image(path)
        return self.clip.preprocess(image), self.recipe.beside(image)

    @torch.no_grad()
    def _records(self, images: list[tuple], first: int) -> np.ndarray:
        pixels, beside = zip(*images, strict=True)
        records = self.recipe.records(self.clip.encode_image(torch.stack(pixels), self.layers), beside)
        fields = [records[name] for name in records.dtype.names] if records.dtype.names else [records]
        if not all(np.isfinite(field).all() for field in fields if field.dtype.kind == "f"):
            short = any(field.dtype.itemsize == 2 for field in fields)
            bits = ", or such that 16 bits do not hold them" if short else ""
            raise CheckpointError(
                f"{self.clip.name} gives NaN or infinite values{bits} on images of {self.path(first).name}: its "
                'weights are damaged, or overflow in half precision; try device "cpu" or another checkpoint'
            )
        return records

    def _hashes(self) -> dict[str, str]:
        path = self.folder / _HASHES
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CacheError(f"{path} does not parse ({error}); delete the folder") from error

    def _is_there(self, first: int, size: int, hashes: dict[str, str]) -> bool:
        path = self.path(first)
        if not path.is_file():
            return False
        expected = (size, *self.record.shape)
        stored = self._open(path)
        if stored.shape != expected or stored.dtype != self.record.base:
            raise CacheError(
                f"{path} holds {stored.dtype} {list(stored.shape)}, {self.record.base} {list(expected)} is needed; "
                "delete it"
            )
        if file_sha256(path) != hashes.get(path.name):
            raise CacheError(f"{path} is not as it was written (its sha256 is another): the disk damaged it; delete it")
        return True

    def _open(self, path: Path) -> np.ndarray:
        """A shard's file, mapped into memory: only what is looked at is read."""
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError as error:
            raise CacheError(f"there are no {self.what} in {path}; compute the store first") from error
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CacheError(f"{path} is not a shard of {self.what} ({reason}); delete it") from error

    def _of_other_weights(self) -> list[str]:
        """Stores of the same kind beside this one."""
        found = []
        for path in sorted(self.folder.parent.glob(f"{self.what}-*/{_IDENTITY}")):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # damaged: not ours to judge
                other = json.loads(path.read_text(encoding="utf-8"))
                if path.parent != self.folder and other.get("weights_sha256") != self.identity["weights_sha256"]:
                    found.append(path.parent.name)
        return found


class HeatmapStore(Store):
    """Similarities of a data set's tokens to its class list: every heatmap follows from them.

    A record is float32 [L, 2, C, 1+N] of `ImageTokens.similarities`. Adapters' maps lie in a store of their own beside
    it; `Setting.adapter` chooses between them.
    """

    def __init__(
        self,
        clip: SurgeryCLIP,
        dataset: Dataset,
        cache_dir: str | Path,
        *,
        layers: int = 1,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        adapters: Sequence[TrainedAdapter] = (),
    ) -> None:
        """Find or prepare the store; nothing is computed yet.

        Args:
            clip: the frozen model.
            dataset: its whole class list is stored, in its order.
            cache_dir: folder of stores, one subfolder each.
            layers: at least this many of the last layers are kept, and `STORED_LAYERS` where the model has so many.
            templates: prompts.
            adapters: whose maps are wanted too, each once.

        Raises:
            ParameterError: more layers than the value-value path has.
            ImageReadError: an image file is missing.
        """
        kept = layers if layers > clip.depth else min(max(layers, STORED_LAYERS), clip.depth)
        super().__init__(clip, dataset, cache_dir, similarities(clip, dataset.classes, kept, templates))
        self.adapters = tuple(adapters)
        self.adapted = None
        if adapters:
            recipe = adapted_maps(clip, dataset.classes, self.adapters, templates)
            self.adapted = Store(clip, dataset, cache_dir, recipe)

    def compute(self, *, batch_size: int = 16, workers: int | None = None) -> HeatmapStore:
        """As `Store.compute`, with the adapters' maps, which come after all shards."""
        super().compute(batch_size=batch_size, workers=workers)
        if self.adapted is not None:
            self.adapted.compute(batch_size=batch_size, workers=workers)
        return self

    def maps(self, setting: Setting, start: int, stop: int | None = None) -> np.ndarray:
        """Raw heatmaps of consecutive images of one shard, by their places in the data set: float32 [n, C, h, w].

        Args:
            setting: which maps.
            start, stop: places; one image where `stop` is left out.

        Raises:
            ParameterError: more layers than are stored, `surgery` with one class, or an adapter that was not given.
            CacheError: the store has not been computed, or a file is damaged.
        """
        stop = start + 1 if stop is None else stop
        if setting.adapter is None:
            if setting.layers > self.layers:
                raise ParameterError(f"layers must be at most {self.layers}, which are stored, got {setting.layers}")
            stored = torch.from_numpy(np.array(self.block(start, stop)[:, -setting.layers :]))
            return maps_of(stored, self.clip.grid, setting.kind, similarity=setting.similarity).numpy()
        keys = [adapter.setting(adapter.kinds[0]).maps_key for adapter in self.adapters]
        if setting.maps_key not in keys:
            known = "; ".join(f"{key} ({patches}, {layers} layers)" for patches, _, layers, key in keys)
            raise ParameterError(
                f"there are no {setting.kind} maps of the adapter {setting.adapter} on {setting.layers} layers, only "
                f"of {known or 'none'}; open it first, or take `TrainedAdapter.setting`"
            )
        logits = self.adapted.block(start, stop)[:, keys.index(setting.maps_key)]  # [n, C, N]
        return np.ascontiguousarray(logits).reshape(*logits.shape[:2], *self.clip.grid)

    def own_maps(self, heatmap: Callable[..., Any], stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        """Maps of consecutive images (start, stop) by an own function of similarities or tokens, see `evaluate`.

        Those of tokens are kept beside the store, or, where what the function does cannot be told, until `stack` ends.
        """
        classes, grid = self.dataset.classes, self.clip.grid
        if next(iter(inspect.signature(heatmap).parameters), "") != "tokens":
            return lambda start, stop: np.stack([
                own_map(heatmap(torch.from_numpy(np.array(of_image))), len(classes), grid)
                for of_image in self.block(start, stop)
            ])  # fmt: skip
        key, folder = key_of(heatmap), self.folder.parent
        if key is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        templates = self.recipe.made_of["templates"]
        recipe = own_maps(self.clip, classes, self.layers, templates, heatmap, key or "not kept")
        own = Store(self.clip, self.dataset, folder, recipe).compute()
        if own.found:
            print(own.describe())
        return lambda start, stop: np.array(own.block(start, stop)).reshape(-1, len(classes), *grid)


def check_disk(stores: Sequence[Store]) -> None:
    """Raise an `OutputError`, before anything is computed, unless all that is still to be written fits on the disk."""
    needed: Counter[int] = Counter()
    for store in stores:
        existing = next(path for path in (store.folder, *store.folder.parents) if path.exists())
        device = existing.stat().st_dev
        needed[device] += sum(size for _, size in store.missing()) * store.record.itemsize
        free = shutil.disk_usage(existing).free
        if needed[device] > free:
            raise OutputError(
                f"the {store.what} need {needed[device] / 1e9:.2f} GB in {store.folder.parent}, {free / 1e9:.2f} GB "
                "are free; free the disk or choose another folder"
            )
