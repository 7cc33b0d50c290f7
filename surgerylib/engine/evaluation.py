"""Boxes of every image and class -> average precision with intervals, for one setting or for hundreds of them.

All settings see the same images and the same half-samples of them, so that any two can be compared by their paired
difference. Settings with the same boxes are judged once. Worker processes cut and judge boxes without torch.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field
from tqdm import tqdm

from ..datasets import Dataset
from ..errors import CacheError, ParameterError, checked
from ..files import atomic_write, short_hash
from ..heatmaps import Setting, check_classes_suffice
from ..matching import BOX_COLUMNS, check_interpolation, checked_thresholds
from ..metrics import IOU_THRESHOLDS, BootstrapResult, bootstrap_map, paired_difference
from ..words import KIND_PREFERENCE, PROTOCOLS
from .finding import NO_BOXES, Boxes, Cut, find_boxes
from .measures import MEASURES, measure_boxes, present_pairs, truth_codes
from .own import key_of
from .parallel import in_processes

if TYPE_CHECKING:  # a worker process has no need of torch
    from .store import HeatmapStore

# how boxes and their figures are made of maps: to be raised with them; figures kept under another number are not taken
EVALUATION_VERSION = 1
_AT_ONCE = 24  # settings whose boxes of all images are in memory together
_BAR = {"bar_format": "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]", "delay": 2, "leave": False}


@checked
class Options:
    """How average precision is taken, and with what."""

    # as in `average_precision`, and so the interpolation
    iou_thresholds: Annotated[tuple[float, ...], BeforeValidator(lambda v: tuple(checked_thresholds(v).tolist()))] = (
        IOU_THRESHOLDS
    )
    interpolation: Annotated[str, BeforeValidator(lambda v: check_interpolation(v) or v)] = "11point"
    n_resamples: Annotated[int, Field(ge=1)] = 1000  # this and the seed: of the half-samples of the images
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=1)] | None = None  # processes; None takes the CPU's cores
    cache_dir: Path | None = None  # of finished figures, so that a rerun continues behind them; None keeps nothing

    @property
    def of_figures(self) -> dict[str, Any]:
        """Those that decide the figures, by name."""
        return {name: getattr(self, name) for name in ("iou_thresholds", "interpolation", "n_resamples", "seed")}


@dataclass(frozen=True)
class Figures:
    """What is known of one setting's boxes under one protocol."""

    ap: BootstrapResult  # mAP with its resamples; the classes' own where they were asked for
    measures: Mapping[str, float]  # of `measure_boxes`
    n_detections: np.ndarray  # int64 [C] boxes of each class


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured of some settings, each under its name.

    Attributes:
        settings: name -> setting.
        figures: (name, protocol) -> `Figures`.
        classes: the class list.
        n_ground_truth: int64 [C] boxes of each class.
        interpolation: of the average precision.
        image_ids: [n] of the data set, in its order.
        boxes: name -> its boxes; none where no details were asked for.
    """

    settings: Mapping[Hashable, Setting]
    figures: Mapping[tuple[Hashable, str], Figures]
    classes: tuple[str, ...]
    n_ground_truth: np.ndarray
    image_ids: np.ndarray
    interpolation: str
    boxes: Mapping[Hashable, Boxes]

    @property
    def n_images(self) -> int:
        """Evaluated, with boxes or without."""
        return len(self.image_ids)

    @property
    def detections(self) -> pd.DataFrame:
        """Frame image_id, label, xmin, ymin, xmax, ymax, score, kind (the name): image by image, names in order."""
        tables = list(self.boxes.values())
        # sorted as numbers, for millions of names would be held several times
        order = np.argsort(np.concatenate([table.image for table in tables]), kind="stable")
        image, label, boxes = (np.concatenate([table[column] for table in tables])[order] for column in range(3))
        kind = np.repeat(np.array([str(name) for name in self.boxes], dtype=object), [len(of.image) for of in tables])
        frame = pd.DataFrame({
            "image_id": self.image_ids[image],
            "label": np.array(self.classes, dtype=object)[label],
            **dict(zip([*BOX_COLUMNS, "score"], boxes.T, strict=True)),
            "kind": kind[order],
        })  # fmt: skip
        return frame.astype({"image_id": "str", "label": "str", "kind": "str"})

    @property
    def iou_thresholds(self) -> tuple[float, ...]:
        """Those that were asked for, in their order."""
        return next(iter(self.figures.values())).ap.iou_thresholds

    def value(self, name: Hashable, protocol: str, iou_threshold: float | None = None) -> tuple[float, float, float]:
        """mAP, low and high at one IoU threshold, or (None) of the mean over all thresholds."""
        return _at(self.figures[name, protocol].ap, "map", iou_threshold)

    def difference(
        self, a: Hashable, b: Hashable, protocol: str, iou_threshold: float | None = None
    ) -> tuple[float, float, float]:
        """mAP of `a` minus that of `b` on the same half-samples of the images: value, low, high."""
        paired = paired_difference(self.figures[a, protocol].ap, self.figures[b, protocol].ap)
        return _at(paired, "difference", iou_threshold)

    def bias_notes(self) -> list[str]:
        """The first of the settings whose average precision reads high (`BootstrapResult.bias_note`), or nothing."""
        notes = (of.ap.bias_note(f" ({self.settings[name].kind}, {p})") for (name, p), of in self.figures.items())
        return [note for note in notes if note][:1]

    def summary(self) -> pd.DataFrame:
        """Frame protocol, kind (the name), iou_threshold, map, low, high."""
        return self._each(lambda of: of.ap.summary(), ["iou_threshold", "map", "low", "high"])

    def by_class(self) -> pd.DataFrame:
        """Frame protocol, kind, label, iou_threshold, ap, low, high, n_ground_truth, n_detections."""

        def rows(of: Figures) -> pd.DataFrame:
            counts = {"n_ground_truth": self.n_ground_truth, "n_detections": of.n_detections}
            return of.ap.class_summary().join(pd.DataFrame(counts, index=list(self.classes)), on="label")

        return self._each(rows, ["label", "iou_threshold", "ap", "low", "high", "n_ground_truth", "n_detections"])

    def _each(self, rows: Callable[[Figures], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
        """Some rows of the figures of each protocol and name."""
        pairs = [(protocol, name) for protocol in PROTOCOLS for name in self.settings]
        parts = [rows(self.figures[name, protocol]).assign(protocol=protocol, kind=name) for protocol, name in pairs]
        return pd.concat(parts, ignore_index=True)[["protocol", "kind", *columns]]

    def differences(self, a: Hashable, b: Hashable) -> pd.DataFrame:
        """Frame protocol, iou_threshold, difference, low, high, excludes_zero of `a` minus `b`, if both are there."""
        columns = ["protocol", "iou_threshold", "difference", "low", "high", "excludes_zero"]
        if not {a, b} <= set(self.settings):
            return pd.DataFrame(columns=columns)
        parts = [
            paired_difference(self.figures[a, p].ap, self.figures[b, p].ap).summary().assign(protocol=p)
            for p in PROTOCOLS
        ]
        return pd.concat(parts, ignore_index=True)[columns]

    def of(self, names: Iterable[Hashable]) -> Evaluation:
        """The same of these names alone."""
        names = [name for name in dict.fromkeys(names) if name in self.settings]
        boxes = {name: self.boxes[name] for name in names if name in self.boxes}
        figures = {(name, protocol): self.figures[name, protocol] for name in names for protocol in PROTOCOLS}
        return replace(self, settings={name: self.settings[name] for name in names}, figures=figures, boxes=boxes)

    def joined(self, other: Evaluation) -> Evaluation:
        """Both together, a name of both once; a `ParameterError` where they were not measured alike."""
        paired_difference(next(iter(self.figures.values())).ap, next(iter(other.figures.values())).ap)
        return replace(
            self,
            settings={**self.settings, **other.settings},
            figures={**other.figures, **self.figures},
            boxes={**other.boxes, **self.boxes},
        )

    @property
    def distinct(self) -> dict[tuple, list[Hashable]]:
        """Settings that have boxes of their own: key -> the names that share it."""
        names: dict[tuple, list[Hashable]] = {}
        for name, setting in self.settings.items():
            names.setdefault(setting.key, []).append(name)
        return names

    def best(self, protocol: str, iou_threshold: float | None = None) -> Hashable:
        """The name with the highest mAP (None: of the mean over the IoU thresholds).

        Of equals: the paper's kind, then fewer layers, then the first asked for.
        """

        def rank(name: Hashable) -> tuple:
            value, setting = self.value(name, protocol, iou_threshold)[0], self.settings[name]
            worth = -np.inf if np.isnan(value) else value
            return (-worth, KIND_PREFERENCE.index(setting.kind), setting.layers)

        return min(self.settings, key=rank)

    def not_told_apart(self, name: Hashable, protocol: str, iou_threshold: float | None = None) -> list[Hashable]:
        """One name each of the other distinct settings whose paired difference to this one has an interval with 0."""
        own = self.settings[name].key
        others = [alike[0] for key, alike in self.distinct.items() if key != own]
        ends = {other: self.difference(name, other, protocol, iou_threshold)[1:] for other in others}
        return [other for other, (low, high) in ends.items() if not (low > 0 or high < 0)]


def evaluate(
    store: HeatmapStore,
    settings: Mapping[Hashable, Setting] | None = None,
    *,
    heatmap: Callable[..., Any] | None = None,
    boxes: Cut | None = None,
    name: str = "own",
    details: bool = True,
    **options: Any,
) -> Evaluation:
    """Boxes, average precision under both protocols and its intervals, on the images of a computed store.

    An idea of one's own takes the place of the settings' maps or boxes:
        evaluate(store, heatmap=lambda similarities: similarities[-1, 1, :, 1:].sigmoid(), name="sigmoid")

    Args:
        store: computed.
        settings: name -> setting; None takes the default one under `name`.
        heatmap: similarities of one image [L, 2, C, 1+N] (layers, paths qk and vv, classes, CLS and patches) -> its
            maps [C, h, w] or [C, N]. One whose first parameter is called `tokens` gets the image's `ImageTokens`, and
            the text [C, D] behind them.
        boxes: map float32 [h, w] and (width, height) -> [K, 5] xyxy in pixels, score; called in worker processes.
        name: of the one setting, where no settings are given.
        details: keep all boxes and the classes' own figures, which take many times the memory of the rest.
        **options: fields of `Options`.

    Raises:
        ParameterError: a setting or option that cannot be, more layers than are stored, or what an own function gives.
    """
    chosen = Options(**options)
    settings = {name: Setting()} if settings is None else dict(settings)
    if not settings:
        raise ParameterError("there are no settings to evaluate; give one or more")
    check_classes_suffice([] if heatmap else [of.similarity for of in settings.values()], len(store.dataset.classes))
    groups: dict[tuple, dict[tuple, Setting]] = defaultdict(dict)  # settings with the same maps
    for setting in settings.values():
        groups[() if heatmap else setting.maps_key].setdefault(setting.key, setting)
    data, n_images, n_distinct = store.dataset, len(store.dataset.images), sum(map(len, groups.values()))
    judge, folder = _Judge(data, chosen, details), None if details else _folder(store, chosen, heatmap, boxes)
    found, tables, n_kept = {}, {}, 0
    bar = tqdm(total=2 * n_distinct * n_images, desc=f"boxes of {len(settings)} settings", **_BAR)  # found, measured
    with ExitStack() as stack, bar:
        work = {"workers": chosen.workers, "progress": bar.update}
        for members in groups.values():
            maps = store.own_maps(heatmap, stack) if heatmap else None
            for start in range(0, len(members), _AT_ONCE):
                part = dict(list(members.items())[start : start + _AT_ONCE])
                if (path := folder and folder / f"{short_hash(*map(repr, part))}.npz") and path.is_file():
                    found |= _load(path, part, judge)
                    n_kept += len(part)
                    bar.update(2 * len(part) * n_images)
                    continue
                of_part, sizes = find_boxes(store, list(part.values()), maps, boxes, **work), [n_images] * len(part)
                figures = in_processes(judge.figures, of_part, sizes=sizes, description="evaluation", **work)
                found |= zip(part, figures, strict=True)
                if path:
                    _save(path, {key: found[key] for key in part})
                tables |= zip(part, of_part, strict=True) if details else ()
    if n_kept:
        versions = f"{store.made_of}, evaluation version {EVALUATION_VERSION}"
        print(f"figures: {n_kept} of {n_distinct} settings were there already, made of {versions}")
    return Evaluation(
        settings=settings,
        figures={(n, p): found[setting.key][p] for n, setting in settings.items() for p in PROTOCOLS},
        classes=data.classes,
        n_ground_truth=np.bincount(truth_codes(data)[1], minlength=len(data.classes)),
        image_ids=data.images["image_id"].to_numpy(),
        interpolation=chosen.interpolation,
        boxes={n: tables[setting.key] for n, setting in settings.items()} if details else {},
    )


def _at(result: BootstrapResult, column: str, iou_threshold: float | None) -> tuple[float, float, float]:
    if iou_threshold is None:
        return result.mean_over_thresholds()
    rows = result.summary().set_index("iou_threshold")
    return tuple(rows.loc[iou_threshold, [column, "low", "high"]])


class _Judge:
    """The figures of one setting's boxes under both protocols; made once, sent to worker processes."""

    def __init__(self, dataset: Dataset, options: Options, details: bool) -> None:
        self.dataset, self.details = dataset, details
        self.present = present_pairs(dataset)
        # whole numbers in place of names take a fraction of their time and memory; images are numbered in the order
        # of their ids, by which the half-samples are drawn
        ids = pd.Index(dataset.images["image_id"])
        self.number_of_image = ids.sort_values().get_indexer(ids)
        place, label = truth_codes(dataset)
        self.truth = dataset.boxes[BOX_COLUMNS].assign(image_id=self.number_of_image[place], label=label)
        classes = range(len(dataset.classes))
        self.options = {"image_ids": range(len(ids)), "classes": classes, **options.of_figures}

    def figures(self, table: Boxes) -> dict[str, Figures]:
        """By protocol."""
        found = {}
        for protocol in PROTOCOLS:
            asked = self.present if protocol == "present" else np.ones_like(self.present)
            rows = asked[table.image, table.label]
            counts = np.bincount(table.label[rows], minlength=len(self.dataset.classes))
            found[protocol] = Figures(self.bootstrap(table, rows), measure_boxes(table, self.dataset, asked), counts)
        return found

    def bootstrap(self, table: Boxes, rows: np.ndarray) -> BootstrapResult:
        detections = pd.DataFrame(table.boxes[rows], columns=[*BOX_COLUMNS, "score"])
        detections["image_id"] = self.number_of_image[table.image[rows]]
        detections["label"] = table.label[rows].astype(np.int64)
        result = bootstrap_map(detections, self.truth, **self.options)
        return replace(result, classes=self.dataset.classes) if self.details else result.without_classes()


def _folder(store: HeatmapStore, options: Options, *functions: Callable[..., Any] | None) -> Path | None:
    """Where figures are kept; None where they are not, or what an own function does cannot be told."""
    own = [key_of(function) if function else "" for function in functions]
    if options.cache_dir is None or None in own:
        return None
    adapters = [adapter.key for adapter in store.adapters]
    made_of = [store.identity, adapters, store.dataset.fingerprint(), own, EVALUATION_VERSION]
    return options.cache_dir / f"figures-{short_hash(*made_of, options.of_figures)}"


def _save(path: Path, found: Mapping[tuple, Mapping[str, Figures]]) -> None:
    """The figures of settings that were judged together: S settings x P protocols as arrays [S, P, ...]."""
    rows, buffer = [[of[protocol] for protocol in PROTOCOLS] for of in found.values()], io.BytesIO()
    np.savez(
        buffer,
        map=[[of.ap.map for of in row] for row in rows],
        map_samples=[[of.ap.map_samples for of in row] for row in rows],
        measures=[[[of.measures[name] for name in MEASURES] for of in row] for row in rows],
        n_detections=[[of.n_detections for of in row] for row in rows],
    )
    atomic_write(path, buffer.getvalue())


def _load(path: Path, settings: Iterable[tuple], judge: _Judge) -> dict[tuple, dict[str, Figures]]:
    """What `_save` wrote of these settings."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[name] for name in ("map", "map_samples", "measures", "n_detections")]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CacheError(f"{path} cannot be read ({error}); delete it") from error
    # an evaluation without detections gives everything but the figures
    frame = judge.bootstrap(NO_BOXES, np.empty(0, dtype=bool))

    def figures(ap: np.ndarray, samples: np.ndarray, measures: np.ndarray, n_detections: np.ndarray) -> Figures:
        measured = dict(zip(MEASURES, measures.tolist(), strict=True))
        return Figures(replace(frame, map=ap, map_samples=samples), measured, n_detections)

    return {
        key: {protocol: figures(*(array[s, p] for array in arrays)) for p, protocol in enumerate(PROTOCOLS)}
        for s, key in enumerate(settings)
    }
