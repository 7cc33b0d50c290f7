"""Many settings judged on the same images: thresholds, kinds, layers, similarities and ways to cut boxes.

All settings see the same images and the same resamples of them, so that any two can be compared by their paired
difference. A setting is chosen on one split and reported on another: the best of many on the very images it was chosen
on flatters itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..engine.box_evaluation import BoxEvaluation, evaluate
from ..engine.map_shards import NO_BOXES, box_workers, boxes_one_by_one
from ..engine.measures import MEASURES
from ..engine.settings import Setting, threshold_text
from ..engine.store import HeatmapStore
from ..errors import CacheError, ParameterError
from ..files import atomic_write
from ..frames import check_interpolation, checked_thresholds
from ..kinds import KIND_PREFERENCE
from ..metrics import IOU_THRESHOLDS, BootstrapResult, paired_difference
from ..versions import source_sha256
from .summary import PROTOCOLS

# what decides the numbers of a sweep, beside the store's
_CODE = (
    "engine.adapted_store",
    "adapter",
    "engine.box_evaluation",
    "curves",
    "extraction",
    "frames",
    "intervals",
    "kinds",
    "engine.map_shards",
    "matching",
    "engine.measures",
    "metrics",
    "engine.settings",
    "study.sweep",
    "weights",
)


@dataclass(frozen=True)
class Sweep:
    """What `sweep` measured.

    Attributes:
        settings: those asked for, in their order, each once.
        frame: a row for each setting, protocol and IoU threshold: the setting's parameters (`percentile` as a number
            where it is one, `threshold` as text always), protocol, iou_threshold, map, low, high (95 % over images),
            mean_map, mean_low, mean_high (over the IoU thresholds), n_images, and `MEASURES`, see `measure_boxes`.
        results: (setting key, protocol) -> mAP and its resamples; the classes' own are not kept.
    """

    settings: tuple[Setting, ...]
    frame: pd.DataFrame
    results: Mapping[tuple, BootstrapResult]

    @property
    def n_distinct(self) -> int:
        """Settings that have boxes of their own."""
        return len({setting.key for setting in self.settings})

    def of(self, settings: Sequence[Setting]) -> Sweep:
        """The same of these settings alone."""
        numbers = [number for number, setting in enumerate(self.settings) if setting in set(settings)]
        frame = self.frame[self.frame["setting"].isin(numbers)]
        frame = frame.assign(setting=frame["setting"].map({old: new for new, old in enumerate(numbers)}))
        return Sweep(tuple(self.settings[number] for number in numbers), frame.reset_index(drop=True), self.results)

    def joined(self, other: Sweep) -> Sweep:
        """Both together, a setting of both once.

        Raises:
            ParameterError: they were not measured alike.
        """
        paired_difference(next(iter(self.results.values())), next(iter(other.results.values())))
        new = [number for number, setting in enumerate(other.settings) if setting not in self.settings]
        number_of = {number: len(self.settings) + place for place, number in enumerate(new)}
        added = other.frame[other.frame["setting"].isin(new)]
        added = added.assign(setting=added["setting"].map(number_of).astype("int64"))
        frame = pd.concat([self.frame, added], ignore_index=True)
        settings = self.settings + tuple(other.settings[number] for number in new)
        return Sweep(settings, frame, {**self.results, **other.results})

    def value(self, setting: Setting, protocol: str, iou_threshold: float | None = None) -> tuple[float, float, float]:
        """mAP, low and high at one IoU threshold, or of the mean over all thresholds."""
        result = self.results[setting.key, protocol]
        if iou_threshold is None:
            return result.mean_over_thresholds()
        rows = result.summary().set_index("iou_threshold")
        return tuple(rows.loc[iou_threshold, ["map", "low", "high"]])

    def difference(
        self, a: Setting, b: Setting, protocol: str, iou_threshold: float | None = None
    ) -> tuple[float, float, float]:
        """mAP of `a` minus that of `b` on the same resamples of the images: value, low, high."""
        paired = paired_difference(self.results[a.key, protocol], self.results[b.key, protocol])
        if iou_threshold is None:
            return paired.mean_over_thresholds()
        rows = paired.summary().set_index("iou_threshold")
        return tuple(rows.loc[iou_threshold, ["difference", "low", "high"]])

    def best(self, protocol: str, iou_threshold: float | None = None) -> Setting:
        """The setting with the highest mAP (None: of the mean over the IoU thresholds).

        Of equals: the paper's kind, then fewer layers, then the first asked for.
        """

        def rank(setting: Setting) -> tuple:
            value = self.value(setting, protocol, iou_threshold)[0]
            worth = -np.inf if np.isnan(value) else value
            return (-worth, KIND_PREFERENCE.index(setting.source.kind), setting.source.last_layers)

        return min(self.settings, key=rank)

    def not_told_apart(self, setting: Setting, protocol: str, iou_threshold: float | None = None) -> list[Setting]:
        """The other distinct settings whose paired difference to this one has an interval that holds 0."""
        seen = {setting.key}
        alike = []
        for other in self.settings:
            if other.key not in seen:
                seen.add(other.key)
                _, low, high = self.difference(setting, other, protocol, iou_threshold)
                if not (low > 0 or high < 0):
                    alike.append(other)
        return alike


def sweep(
    store: HeatmapStore,
    settings: Sequence[Setting],
    *,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: str = "11point",
    n_resamples: int = 1000,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
) -> Sweep:
    """Boxes, mAP and intervals of every setting on the images of a computed store.

    Settings of one map share their work; one map's boxes are held at a time. With a cache folder, each map's figures
    are kept when they are whole, and a rerun continues behind them.

    Args:
        store: computed, of the split to measure on.
        settings: any; those with the same boxes are evaluated once.
        iou_thresholds, interpolation: as in `average_precision`.
        n_resamples, seed: of the half-samples of the images.
        cache_dir: where finished figures are kept; None keeps nothing.
        workers: processes that extract boxes; None takes the CPU's cores.

    Raises:
        ParameterError: no settings, or an argument out of range.
    """
    if not settings:
        raise ParameterError("there are no settings to sweep; give one or more")
    settings = list(dict.fromkeys(settings))
    thresholds = tuple(checked_thresholds(iou_thresholds).tolist())
    check_interpolation(interpolation)
    by_source: dict[tuple, dict[tuple, Setting]] = {}
    for setting in settings:
        by_source.setdefault(setting.source.key, {}).setdefault(setting.key, setting)
    evaluation = BoxEvaluation(store.dataset, thresholds, interpolation, n_resamples, seed)
    folder = None
    if cache_dir is not None:
        identity = {
            "store": store.identity,
            "annotations": store.dataset.fingerprint(),
            "evaluation": [thresholds, interpolation, n_resamples, seed],
            "code": source_sha256(_CODE),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        folder = Path(cache_dir) / f"sweep-{key[:16]}"
    results: dict[tuple, BootstrapResult] = {}
    measures: dict[tuple, dict[str, float]] = {}
    n_settings = sum(map(len, by_source.values()))
    bar = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    # images count twice for each setting: when their boxes are found, and when they are measured
    total = 2 * n_settings * len(store.dataset.images)
    with tqdm(total=total, desc=f"sweep of {n_settings} settings", bar_format=bar, delay=2) as progress:
        for members in by_source.values():
            figures = _figures_of_source(store, list(members.values()), evaluation, folder, workers, progress)
            for setting, of_setting in zip(members.values(), figures, strict=True):
                for protocol, (result, measured) in of_setting.items():
                    results[setting.key, protocol] = result
                    measures[setting.key, protocol] = measured
    return Sweep(tuple(settings), _tidy(settings, results, measures), results)


def _figures_of_source(
    store: HeatmapStore,
    members: Sequence[Setting],
    evaluation: BoxEvaluation,
    folder: Path | None,
    workers: int | None,
    progress: tqdm,
) -> list[dict[str, tuple[BootstrapResult, dict[str, float]]]]:
    """The figures of all settings of one map, from the cache where they are."""
    path = None
    if folder is not None:
        boxes = json.dumps([asdict(setting.boxes) for setting in members], sort_keys=True)
        name = "-".join(map(str, members[0].source.key))
        path = folder / f"{name}-{hashlib.sha256(boxes.encode()).hexdigest()[:12]}.npz"
        if path.is_file():
            progress.update(2 * len(members) * len(store.dataset.images))
            return _load(path, evaluation, len(members))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    figures = []
    tables = boxes_one_by_one(
        store.shards, members[0].source, [setting.boxes for setting in members], workers=workers,
        scratch_dir=None if path is None else path.parent, progress=progress.update,
    )  # fmt: skip
    for found in evaluate(evaluation.figures, tables, workers=box_workers(store.shards, workers)):
        figures.append(found)
        progress.update(len(store.dataset.images))
    if path is not None:
        _save(path, figures)
    return figures


def _save(path: Path, figures: Sequence[Mapping[str, tuple[BootstrapResult, Mapping[str, float]]]]) -> None:
    """S settings x P protocols as arrays [S, P, ...]."""
    pairs = [[of_setting[protocol] for protocol in PROTOCOLS] for of_setting in figures]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        map=np.array([[result.map for result, _ in row] for row in pairs]),
        map_samples=np.array([[result.map_samples for result, _ in row] for row in pairs]),
        measures=np.array([[[measured[name] for name in MEASURES] for _, measured in row] for row in pairs]),
    )
    atomic_write(path, buffer.getvalue())


def _load(path: Path, evaluation: BoxEvaluation, n_settings: int) -> list:
    try:
        with np.load(path, allow_pickle=False) as stored:
            maps, samples, measures = (stored[name] for name in ("map", "map_samples", "measures"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CacheError(f"{path} cannot be read ({error}); delete it") from error
    # an evaluation without detections gives everything but the figures
    frame = evaluation.bootstrap(NO_BOXES, np.empty(0, dtype=bool)).without_classes()
    return [
        {
            protocol: (
                replace(frame, map=maps[s, p], map_samples=samples[s, p]),
                dict(zip(MEASURES, measures[s, p].tolist(), strict=True)),
            )
            for p, protocol in enumerate(PROTOCOLS)
        }
        for s in range(n_settings)
    ]


def _tidy(settings: Sequence[Setting], results: Mapping, measures: Mapping) -> pd.DataFrame:
    rows = []
    for number, setting in enumerate(settings):
        parameters = setting.parameters()
        parameters["threshold"] = threshold_text(setting.boxes.percentile)
        if isinstance(parameters["percentile"], list | str):
            parameters["percentile"] = np.nan
        for protocol in PROTOCOLS:
            result = results[setting.key, protocol]
            mean = dict(zip(("mean_map", "mean_low", "mean_high"), result.mean_over_thresholds(), strict=True))
            shared = {"setting": number, **parameters, "protocol": protocol, **mean, "n_images": result.n_images}
            rows += [
                {**shared, **row, **measures[setting.key, protocol]} for row in result.summary().to_dict("records")
            ]
    frame = pd.DataFrame(rows)
    return frame.astype({"percentile": "float64", "max_side": "Int64", "nms_iou": "float64", "floor": "float64"})
