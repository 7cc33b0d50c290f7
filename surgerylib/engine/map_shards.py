"""Stored similarities -> heatmaps -> boxes: what worker processes do, in NumPy alone.

A shard holds, for some images, the similarity of every token to every class. All kinds, both similarities and every
number of layers are made of these numbers, as `heatmaps.heatmaps` makes them of tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from ..checks import worker_count
from ..errors import CacheError, OutputError, ParameterError
from ..extraction import BoxSettings, extract_many
from ..kinds import KIND_PATHS, check_kinds, check_similarity, map_source
from .parallel import in_processes

PATHS = ("qk", "vv")
_PIECE = 4  # images a worker takes at a time
_OPEN_FILES = 64


@dataclass(frozen=True)
class MapSource:
    """Which heatmap of an image: the arguments of `heatmaps.heatmaps`, and how many of the last layers it averages.

    Attributes:
        kind, similarity, last_layers: as there.
        adapter: key of the adapter that the maps went through (`adapted_store.TrainedAdapter`); None for none.
    """

    kind: str = "vv_mixed"
    similarity: str = "cosine"
    last_layers: int = 1
    adapter: str | None = None

    def __post_init__(self) -> None:
        check_kinds([self.kind])
        check_similarity(self.similarity)
        layers = self.last_layers
        if isinstance(layers, bool) or not isinstance(layers, int | np.integer) or layers < 1:
            raise ParameterError(f"last_layers must be a whole number of at least 1, got {layers!r}")
        if self.adapter is not None and self.similarity != "cosine":
            raise ParameterError(
                f"an adapter is trained on cosine maps, similarity is {self.similarity!r}; leave the adapter out or "
                "take cosine"
            )

    def describe(self) -> str:
        """`surgery similarity, last layer`: what two kinds' maps have in common."""
        layers = "last layer" if self.last_layers == 1 else f"last {self.last_layers} layers"
        if self.adapter is not None:
            return f"{self.similarity} similarity, adapter on the {layers}"
        return f"{self.similarity} similarity, {'mean of the ' if self.last_layers > 1 else ''}{layers}"

    @property
    def key(self) -> tuple:
        """Equal for sources with the same maps."""
        own = (*map_source(self.kind, self.similarity), self.similarity, self.last_layers)
        return own if self.adapter is None else (*own, self.adapter)


def joint_sources(sources: Mapping[str, MapSource]) -> dict[str, MapSource]:
    """Of kinds with the same maps one, under the names of all: `standard = vv_qk`."""
    names: dict[tuple, list[str]] = {}
    for kind, source in sources.items():
        names.setdefault(source.key, []).append(kind)
    return {" = ".join(kinds): sources[kinds[0]] for kinds in names.values()}


@dataclass(frozen=True)
class MapShard:
    """Some consecutive images of a heatmap store.

    Attributes:
        path: npy file, float32 [n, L, 2, C, 1 + h * w]: similarity of the tokens (CLS first) of the QK and the VV path
            to C classes, for the last L layers, the deepest last.
        grid: (h, w).
        first: place of the shard's first image in the data set.
        sizes_wh: [n] (width, height) in pixels.
        offset: the first image's row in the file.
        adapted: a file beside it, float32 [n, A, C, h * w]: logits of A adapters; empty for none.
        adapters: [A] the keys of their sources: an adapter has maps of the patches that it was trained on alone.
    """

    path: str
    grid: tuple[int, int]
    first: int
    sizes_wh: tuple[tuple[int, int], ...]
    offset: int = 0
    adapted: str = ""
    adapters: tuple[tuple, ...] = ()

    def pieces(self, n_images: int) -> list[MapShard]:
        """The same images, at most `n_images` each."""
        return [
            replace(self, first=self.first + k, sizes_wh=self.sizes_wh[k : k + n_images], offset=self.offset + k)
            for k in range(0, len(self.sizes_wh), n_images)
        ]

    def maps(self, source: MapSource) -> np.ndarray:
        """Raw heatmaps of every image and class: float32 [n, C, h, w].

        Raises:
            ParameterError: more layers than the shard holds, `surgery` with one class, or another adapter.
            CacheError: the file is not there, or damaged.
        """
        rows = slice(self.offset, self.offset + len(self.sizes_wh))
        if source.adapter is None:
            return maps_of(open_shard(self.path)[rows], source, self.grid)
        if source.key not in self.adapters:
            known = "; ".join(f"{key} ({patches}, {layers} layers)" for patches, _, layers, key in self.adapters)
            raise ParameterError(
                f"there are no {source.kind} maps of the adapter {source.adapter} on {source.last_layers} layers, only "
                f"of {known or 'none'}; open it first, or take `TrainedAdapter.source`"
            )
        logits = open_shard(self.adapted, "adapted maps")[rows, self.adapters.index(source.key)]  # [n, C, N]
        return np.ascontiguousarray(logits).reshape(*logits.shape[:2], *self.grid)


def maps_of(similarities: np.ndarray, source: MapSource, grid: tuple[int, int]) -> np.ndarray:
    """Raw heatmaps of every image and class: float32 [n, C, h, w].

    Args:
        similarities: float32 [n, L, 2, C, 1 + h * w], as in a shard.
        source: which map.
        grid: (h, w).

    Raises:
        ParameterError: more layers than there are, or `surgery` with one class.
    """
    n_layers = similarities.shape[1]
    check_classes_suffice([source], similarities.shape[3])
    if source.last_layers > n_layers:
        raise ParameterError(f"last_layers must be at most {n_layers}, which are stored, got {source.last_layers}")
    cls_path, patch_path = (PATHS.index(path) for path in KIND_PATHS[source.kind])
    layers = slice(n_layers - source.last_layers, None)
    patches = np.asarray(similarities[:, layers, patch_path, :, 1:])  # [n, l, C, N]
    if source.similarity == "surgery":
        patches = _surgery(np.asarray(similarities[:, layers, cls_path, :, 0]), patches)
    maps = patches.mean(axis=1, dtype=np.float32)
    return maps.reshape(*maps.shape[:2], *grid)


def open_shard(path: str | Path, what: str = "heatmaps") -> np.ndarray:
    """A shard's file, mapped into memory: only what is looked at is read.

    Raises:
        CacheError: it is not there, cut short, or no npy file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise CacheError(f"there are no {what} in {path}; compute the store first") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(f"{path} is not a shard of {what} ({reason}); delete it") from error


class BoxTable(NamedTuple):
    """Boxes of some images under one setting; rows by image, then class, then score."""

    image: np.ndarray  # int32 [K] place in the data set
    label: np.ndarray  # int16 [K] place in the class list
    boxes: np.ndarray  # float64 [K, 5] xyxy in original pixels, score
    activated: np.ndarray  # float32 [n, C] share of each map in the mask


NO_BOXES = BoxTable(np.empty(0, np.int32), np.empty(0, np.int16), np.empty((0, 5)), np.empty((0, 0), np.float32))


def shard_boxes(shard: MapShard, source: MapSource, settings: Sequence[BoxSettings]) -> list[BoxTable]:
    """The boxes of every image and class of a shard: a table for each setting."""
    found = [
        [extract_many(heatmap, size_wh, settings) for heatmap in maps]
        for maps, size_wh in zip(shard.maps(source), shard.sizes_wh, strict=True)
    ]
    return [_table(shard.first, [[by_class[s] for by_class in image] for image in found]) for s in range(len(settings))]


def check_classes_suffice(sources: Iterable[MapSource], n_classes: int) -> None:
    """Raise a `ParameterError` where `surgery` similarity would be asked of fewer than two classes."""
    if n_classes < 2 and any(source.similarity == "surgery" for source in sources):
        raise ParameterError(
            f"surgery similarity needs at least two classes, got {n_classes}: pass the whole class list"
        )


def boxes_of(
    shards: Sequence[MapShard],
    sources: Sequence[MapSource],
    settings: Sequence[BoxSettings],
    *,
    workers: int | None = None,
) -> dict[MapSource, list[BoxTable]]:
    """Boxes of all images and classes for each source, in worker processes: source -> a table for each setting."""
    with BoxesAhead(sources, settings, workers=box_workers(shards, workers)) as ahead:
        return ahead.tables(shards)


class BoxesAhead(AbstractContextManager):
    """As `boxes_of`, begun for each shard when it is there: worker processes cut boxes while the model runs."""

    def __init__(self, sources: Sequence[MapSource], settings: Sequence[BoxSettings], *, workers: int) -> None:
        """See `boxes_of`; with one worker everything waits for `tables`."""
        self._sources, self._settings, self._workers = list(dict.fromkeys(sources)), list(settings), workers
        self._work = partial(_all_boxes, sources=tuple(self._sources), settings=tuple(settings))
        self._thread = ThreadPoolExecutor(1)  # joblib's calls wait for their results
        self._found: dict[int, Future] = {}

    def add(self, shard: MapShard) -> None:
        """Begin with a shard that is on disk."""
        if self._workers > 1:
            self._found[shard.first] = self._thread.submit(self._boxes, shard.pieces(_PIECE))

    def tables(self, shards: Sequence[MapShard]) -> dict[MapSource, list[BoxTable]]:
        """What `boxes_of` gives for these shards, added before or not."""
        total, ahead = sum(len(shard.sizes_wh) for shard in shards), []
        with tqdm(total=total, desc="boxes", unit="image", delay=2, leave=False) as bar:
            for shard in shards:
                if shard.first in self._found:
                    ahead += self._found[shard.first].result()
                    bar.update(len(shard.sizes_wh))
            self._thread.shutdown()
            rest = [piece for shard in shards if shard.first not in self._found for piece in shard.pieces(_PIECE)]
            sizes = [len(piece.sizes_wh) for piece in rest]
            found = in_processes(
                self._work, rest, workers=self._workers, description="boxes", sizes=sizes, progress=bar.update
            )
            pieces = sorted([*ahead, *zip((piece.first for piece in rest), found, strict=True)], key=itemgetter(0))
        tables = [of_piece for _, of_piece in pieces]
        if not tables:
            return {source: [NO_BOXES] * len(self._settings) for source in self._sources}
        return {
            source: [_joined([of_piece[k] for of_piece in tables], s) for s in range(len(self._settings))]
            for k, source in enumerate(self._sources)
        }

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _boxes(self, pieces: list[MapShard]) -> list[tuple[int, list]]:
        found = in_processes(
            self._work, pieces, workers=self._workers, description="boxes", all_workers=True, progress=lambda _: None
        )
        return list(zip((piece.first for piece in pieces), found, strict=True))


def box_workers(shards: Sequence[MapShard], workers: int | None = None) -> int:
    """How many processes find the boxes of some shards.

    Args:
        shards, workers: as for `boxes_of`.
    """
    return min(worker_count(workers), max(sum(len(shard.pieces(_PIECE)) for shard in shards), 1))


def boxes_one_by_one(
    shards: Sequence[MapShard],
    source: MapSource,
    settings: Sequence[BoxSettings],
    *,
    workers: int | None = None,
    scratch_dir: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[BoxTable]:
    """As `boxes_of` for one source, but a table at a time: the others wait in nameless files, not in memory.

    Args:
        shards, source, settings, workers: as for `boxes_of`.
        scratch_dir: where the files lie while this runs; None takes the system's folder.
        progress: called with numbers of images, of `len(settings)` times all of them, as they are done.

    Raises:
        OutputError: the files cannot be written.
    """
    pieces = [piece for shard in shards for piece in shard.pieces(_PIECE)]
    sizes = [len(piece.sizes_wh) for piece in pieces]
    for start in range(0, len(settings), _OPEN_FILES):  # a process may hold a limited number of files open
        group = settings[start : start + _OPEN_FILES]
        work = partial(_all_boxes, sources=(source,), settings=tuple(group))
        units = [size * len(group) for size in sizes]
        with ExitStack() as stack:
            files = [stack.enter_context(_nameless_file(scratch_dir)) for _ in group]
            for (tables,) in in_processes(
                work, pieces, workers=workers, description="boxes", sizes=units, progress=progress
            ):
                for table, file in zip(tables, files, strict=True):
                    _append(file, table)
            for file in files:
                file.seek(0)
                tables = [BoxTable(*(np.load(file) for _ in NO_BOXES)) for _ in pieces]
                yield BoxTable(*map(np.concatenate, zip(*tables, strict=True))) if tables else NO_BOXES


def _nameless_file(folder: str | Path | None) -> BinaryIO:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise OutputError(f"no file can be made in {folder or tempfile.gettempdir()}: {error.strerror}") from error


def _append(file: BinaryIO, table: BoxTable) -> None:
    try:
        for array in table:
            np.save(file, array)
        file.flush()  # a full disk would be found out later, and elsewhere
    except OSError as error:
        raise OutputError(f"boxes cannot be kept on disk ({error.strerror or error}): free it") from error


def _all_boxes(shard: MapShard, sources: Sequence[MapSource], settings: Sequence[BoxSettings]) -> list[list[BoxTable]]:
    return [shard_boxes(shard, source, settings) for source in sources]


def _joined(pieces: list[list[BoxTable | None]], number: int) -> BoxTable:
    """The table of one setting; it is taken out of the pieces, so that memory holds it once."""
    tables = [piece[number] for piece in pieces]
    for piece in pieces:
        piece[number] = None
    return BoxTable(*(np.concatenate(column) for column in zip(*tables, strict=True)))


def _table(first: int, found: list) -> BoxTable:
    """`found`: [n][C] of `FoundBoxes`."""
    counts = np.array([[len(of_class.boxes) for of_class in image] for image in found], dtype=np.int64)
    image, label = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), max(counts.shape[-1], 1))
    return BoxTable(
        (image + first).astype(np.int32),
        label.astype(np.int16),
        np.concatenate([np.empty((0, 5)), *(of_class.boxes for image in found for of_class in image)]),
        np.array([[of_class.activated for of_class in image] for image in found], dtype=np.float32),
    )


def _surgery(cls: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """CLS similarities [n, l, C], patch similarities [n, l, C, N] -> [n, l, C, N], see `heatmaps.heatmaps`."""
    weights = np.exp(2 * (cls - cls.max(axis=-1, keepdims=True)))
    weights /= weights.mean(axis=-1, keepdims=True)  # the softmax's own divisor cancels
    weighted = weights[..., None] * patches
    return weighted - weighted.mean(axis=2, keepdims=True)
