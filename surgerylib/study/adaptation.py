"""Maps before and after a trained adapter, on the same images: how well they localise, and how often they invent.

And short trainings side by side: which of its losses an adapter needs, and how to weigh few patches against many.

Every figure comes for all classes and apart for those that were trained on and the others, with its 95 % interval over
images, and every change with the interval of its paired difference: same images, same resamples of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..datasets import Dataset
from ..engine import (
    LOSSES,
    AdapterSettings,
    Boxes,
    HeatmapStore,
    Schedule,
    TokenCache,
    TrainedAdapter,
    Training,
    best_overlaps,
    distinct_adapters,
    evaluate,
    load_adapters,
    present_pairs,
    train_adapter,
    truth_codes,
)
from ..errors import ParameterError
from ..heatmaps import Setting
from ..intervals import basic_interval, bootstrap_weights, share_interval
from ..metrics import paired_difference
from ..words import ALL, PROTOCOLS, SEEN, UNSEEN
from .quality import map_quality
from .settings import Criterion, floor_values, sweep
from .tables import joined

KEYS = ("group", "kind", "state", "reference")
EVEN_ODDS = 0.0  # as a logit: the floor that a trained adapter brings along
FLOOR_PERCENTILES = (80, 85, 90, 93, 95, 96, 97, 98, 99)
FIGURES = {
    "false_box_rate": "absent with a box",
    "inverted": "inverted",
    "pointing": "pointing",
    "mean_iou": "mean IoU of the boxes",
    "mean_best_iou": "mean best IoU of the ground truth",
    "max_iou": "max IoU",
}
_NO_INTERVALS = {"n_resamples": 1}  # where only the best is asked for
_SHARES = ("false_box_rate", "inverted", "pointing")
# of a change the reader wants to know: against the maps as they were, and against what a floor alone would have done
_REFERENCES = {"after": ("before", "floor"), "floor": ("before",)}
Counts = Mapping[str, tuple[np.ndarray, np.ndarray]]  # figure -> sums and counts, each [images, classes]


@dataclass(frozen=True)
class Adaptation:
    """What `compare_adapted` measured.

    A row of the frames says whose figure it is by `KEYS`: group, kind, state, and in `reference` what it is a paired
    difference to, "" where it is the figure itself.
    """

    settings: Mapping[str, Mapping[str, Setting]]  # kind -> state -> setting
    groups: Mapping[str, tuple[str, ...]]  # name of a group of classes -> its classes
    maps: pd.DataFrame  # `KEYS`, protocol, iou_threshold, value, low, high
    figures: pd.DataFrame  # `KEYS`, figure (of `FIGURES`), value, low, high
    interpolation: str  # of the average precision
    n_images: int  # evaluated


def class_groups(classes: Sequence[str], seen: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """All classes; and apart those trained on and the others, where there are both."""
    parts = {group: tuple(n for n in classes if (n in seen) == (group == SEEN)) for group in (SEEN, UNSEEN)}
    return {ALL: tuple(classes), **(parts if all(parts.values()) else {})}


def states_of(
    settings: Mapping[str, Setting],
    adapters: Mapping[str, TrainedAdapter],
    *,
    adapter_floor: float | None = EVEN_ODDS,
    floors: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Setting]]:
    """The settings to compare, by kind: `before`, `after`, and with `floors` `floor`, the maps before with a floor.

    Args:
        settings: kind -> its maps as they are, and how boxes are cut out of them.
        adapters: kind -> its adapter; kinds without one are left out.
        adapter_floor: logit that a pixel must reach after the adapter; None sets none.
        floors: kind -> raw value that a pixel must reach before it.

    Raises:
        ParameterError: no adapter is for any of the kinds.
    """
    if not set(settings) & set(adapters):
        raise ParameterError(
            f"the adapters are for {', '.join(adapters)}, none of which is among the kinds asked for "
            f"({', '.join(settings)}); add one of them, or leave the adapter out"
        )
    states = {}
    for kind in [kind for kind in settings if kind in adapters]:
        before, of_adapter = settings[kind], adapters[kind].setting(kind)
        states[kind] = {"before": before}
        if floors:
            states[kind]["floor"] = replace(before, floor=floors[kind])
        of_map = {name: getattr(of_adapter, name) for name in ("kind", "similarity", "layers", "adapter")}
        states[kind]["after"] = replace(before, **of_map, floor=adapter_floor)
    return states


def choose_floor(store: HeatmapStore, setting: Setting, **options: Any) -> float:
    """Of floors at `FLOOR_PERCENTILES` that with the highest mean mAP under `all`: maps at their best without training.

    `store` is of a split that nothing is reported on, `setting` all but the floor; `options` as for `sweep`.
    """
    floors = floor_values(store, setting, FLOOR_PERCENTILES)
    settings = [replace(setting, floor=value) for value in floors.values()]
    return sweep(store, settings, **options | _NO_INTERVALS).best("all").floor


def best_states(
    store: HeatmapStore,
    settings: Mapping[str, Setting],
    adapters: Mapping[str, TrainedAdapter],
    *,
    tries: Mapping[str, Sequence[Any]],
    criterion: Criterion,
    **options: Any,
) -> dict[str, dict[str, Setting]]:
    """As `states_of`, each state of each kind at its own best percentile, floor and score by the criterion.

    After the adapter even odds are among the floors. A comparison at one setting may favour the maps that it happens to
    suit; this one asks what each is worth when its boxes are cut as well as they can be.

    Args:
        store: computed with the adapters' maps, of a split that nothing is reported on.
        settings, adapters: as of `states_of`, whose errors are raised.
        tries: `percentiles`, `box_scores`, and `floor_percentiles`: floors as percentiles of all values of the maps.
        **options: as for `sweep`.
    """
    scores = dict.fromkeys(tries["box_scores"])  # each once
    tried: dict[tuple[str, str], list[Setting]] = {}
    for kind, states in states_of(settings, adapters).items():
        before, after = (states[state] for state in ("before", "after"))
        floors = {of: list(floor_values(store, of, tries["floor_percentiles"]).values()) for of in (before, after)}
        of_state = {"before": [None], "floor": floors[before], "after": [EVEN_ODDS, *floors[after]]}
        for state, tried_floors in of_state.items():
            tried[kind, state] = [
                replace(after if state == "after" else before, percentile=percentile, floor=floor, box_score=score)
                for score, floor, percentile in product(scores, tried_floors, tries["percentiles"])
            ]
    found = sweep(store, [setting for of_state in tried.values() for setting in of_state], **options | _NO_INTERVALS)
    best: dict[str, dict[str, Setting]] = {}
    for (kind, state), of_state in tried.items():
        if of_state:
            best.setdefault(kind, {})[state] = found.of(of_state).best(*criterion.where)
    return best


def compare_adapted(
    store: HeatmapStore,
    settings: Mapping[str, Mapping[str, Setting]],
    groups: Mapping[str, Sequence[str]],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Adaptation:
    """Measure all states of all kinds (`states_of`) on the same images and resamples, by `class_groups`.

    `store` is computed, with the adapters' maps; the options are those of `evaluate`.
    """
    named = {(kind, state): setting for kind, states in settings.items() for state, setting in states.items()}
    found = evaluate(store, named, n_resamples=n_resamples, seed=seed, **options)
    measure = _Measure(store.dataset, n_resamples, seed)
    quality = map_quality(store, named, cam_thresholds=1, workers=options.get("workers"))
    counts = {name: measure.counts(found.boxes[name], quality[name]) for name in named}
    maps, figures = {}, {}
    for group, labels in groups.items():
        ap = {key: of.ap.of_classes(labels) for key, of in found.figures.items()}
        places = [store.dataset.classes.index(label) for label in labels]
        for kind, state in named:
            for reference in ["", *(of for of in _REFERENCES.get(state, ()) if of in settings[kind])]:
                at, own = (group, kind, state, reference), counts[kind, state]
                figures[at] = measure.figures(own, places, minus=counts.get((kind, reference)))
                for protocol in PROTOCOLS:
                    of = ap[(kind, state), protocol]
                    of = paired_difference(of, ap[(kind, reference), protocol]) if reference else of
                    rows = of.summary().rename(columns={"map": "value", "difference": "value"})
                    maps[*at, protocol] = rows[["iou_threshold", "value", "low", "high"]]
    return Adaptation(
        settings={kind: dict(states) for kind, states in settings.items()},
        groups={group: tuple(labels) for group, labels in groups.items()},
        maps=joined(maps, *KEYS, "protocol"),
        figures=joined(figures, *KEYS),
        interpolation=found.interpolation,
        n_images=found.n_images,
    )


class Variant(NamedTuple):
    """One short training, measured on the split of the choice."""

    patch_ap: float  # of the classes trained on, after the last epoch
    found: Adaptation


def loss_variants(settings: AdapterSettings) -> dict[str, AdapterSettings]:
    """Each loss alone, each pair, and all: name -> settings. A loss that is switched off counts as of weight 1 here."""
    weights = {name: getattr(settings, f"{name}_weight") or 1.0 for name in LOSSES}
    tried = {f"{name} alone": (name,) for name in LOSSES} | {" + ".join(pair): pair for pair in combinations(LOSSES, 2)}
    return {
        title: replace(settings, **{f"{name}_weight": weights[name] if name in names else 0.0 for name in LOSSES})
        for title, names in (tried | {"all three losses": LOSSES}).items()
    }


def balance_variants(settings: AdapterSettings) -> dict[str, AdapterSettings]:
    """Ways to weigh the few covered patches against the many empty ones: name -> settings."""
    ways = {
        "no balance": (1.0, 0.0),
        "covered patches × 3": (3.0, 0.0),
        "covered patches × 10": (10.0, 0.0),
        "covered patches × 30": (30.0, 0.0),
        "focal, γ = 2": (1.0, 2.0),
    }
    return {
        name: replace(settings, positive_weight=weight, focal_gamma=gamma) for name, (weight, gamma) in ways.items()
    }


def compare_variants(
    variants: Mapping[str, AdapterSettings],
    schedule: Schedule,
    caches: Mapping[str, TokenCache],
    cache_dir: Path,
    kind: str,
    setting: Setting,
    *,
    batch_size: int = 16,
    **options: Any,
) -> dict[str, Variant]:
    """Train each variant for the same time (`schedule`) and measure all on the same images.

    Args:
        variants: name -> settings; equal ones are trained once.
        caches: of `TrainingPlan.token_caches`, computed.
        cache_dir: folder of trainings and stores.
        kind: whose patch tokens are adapted.
        setting: of the maps without an adapter, and of the boxes with one: its floor is a logit.
        **options: as for `compare_adapted`.
    """
    train, choose = caches["train"], caches["choose"]
    clip, data = choose.clip, choose.dataset
    trainings: dict[AdapterSettings, Training] = {}
    for name, settings in variants.items():
        if settings not in trainings:
            _, trainings[settings] = train_adapter(
                train, choose, settings, schedule, cache_dir, kind=kind, description=f"short run: {name}"
            )
    adapters = {settings: load_adapters(training.last, clip)[kind] for settings, training in trainings.items()}
    store = HeatmapStore(clip, data, cache_dir, adapters=distinct_adapters(adapters)).compute(batch_size=batch_size)
    results: dict[AdapterSettings, Variant] = {}
    for settings, adapter in adapters.items():
        after = states_of({kind: setting}, {kind: adapter}, adapter_floor=setting.floor)[kind]["after"]
        groups = class_groups(data.classes, adapter.seen_classes)
        found = compare_adapted(store, {kind: {"after": after}}, groups, **options)
        results[settings] = Variant(float(trainings[settings].history["val_patch_ap"].iloc[-1]), found)
    return {name: results[settings] for name, settings in variants.items()}


class _Measure:
    """The figures of one setting, kept by image and class so that groups of classes can be taken out of them."""

    def __init__(self, data: Dataset, n_resamples: int, seed: int) -> None:
        self.dataset, self.present, self.truth_place = data, present_pairs(data), truth_codes(data)
        # resamples are drawn by sorted ids: figures don't depend on the order of the images
        self.ids = pd.Index(data.images["image_id"])
        places = self.ids.sort_values().get_indexer(self.ids)
        self.drawn = bootstrap_weights(len(self.ids), n_resamples, seed)[:, places].astype(np.float64)

    def counts(self, table: Boxes, pairs: pd.DataFrame) -> Counts:
        """By image and class: a figure is sum over count; of `max_iou` the largest value stands in the sum's place."""
        image, label = table.image.astype(np.int64), table.label.astype(np.int64)
        keep = self.present[image, label]
        of_box, of_truth = best_overlaps(table, self.dataset, keep)
        kept = image[keep], label[keep]
        highest = np.zeros(self.present.shape)
        np.maximum.at(highest, kept, of_box)
        _, found = self._sums(np.ones(len(image)), (image, label))
        of_pair = self.ids.get_indexer(pairs["image_id"]), pd.Index(self.dataset.classes).get_indexer(pairs["label"])
        return {
            "false_box_rate": ((found > 0) & ~self.present, ~self.present),
            "inverted": self._sums(pairs["inverted"].to_numpy(np.float64), of_pair),
            "pointing": self._sums(pairs["pointing"].to_numpy(np.float64), of_pair),
            "mean_iou": self._sums(of_box, kept),
            "mean_best_iou": self._sums(of_truth, self.truth_place),
            "max_iou": (highest, found * self.present),
        }

    def _sums(self, values: np.ndarray, at: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Sum and number of the values of each image and class, NaN left out."""
        known, shape = ~np.isnan(values), self.present.shape
        place = np.ravel_multi_index(at, shape)[known]
        sums, counts = (np.bincount(place, weights, self.present.size) for weights in (values[known], None))
        return sums.reshape(shape), counts.reshape(shape)

    def figures(self, counts: Counts, places: Sequence[int], *, minus: Counts | None = None) -> pd.DataFrame:
        """Frame figure, value, low, high over some classes; with `minus` the difference, of the same resamples."""
        rows = []
        for name in FIGURES:
            value, samples, n_rows, n_images = self._estimate(*counts[name], places, name)
            if minus is not None:
                other, of_other, _, n_other = self._estimate(*minus[name], places, name)
                value = value - other
                ends = np.clip(basic_interval(value, samples - of_other, min(n_images, n_other)), -1, 1)
            elif name in _SHARES:
                ends = share_interval(value, samples, n_rows, n_images)
            else:
                ends = np.clip(basic_interval(value, samples, n_images), 0, 1)
            rows.append((name, *map(float, (value, *ends))))
        return pd.DataFrame(rows, columns=["figure", "value", "low", "high"])

    def _estimate(
        self, sums: np.ndarray, counts: np.ndarray, places: Sequence[int], name: str
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """A figure over some classes, in each resample [R], and of how many rows and images it is."""
        of_image, rows = sums[:, places], counts[:, places].sum(axis=1).astype(np.float64)
        n_rows, n_images = int(rows.sum()), int((rows > 0).sum())
        if name == "max_iou":  # one box decides: resamples would only tell whether its image is among them
            value = np.asarray(of_image.max() if n_images else np.nan)
            return value, np.full(len(self.drawn), np.nan), n_rows, n_images
        of_image = of_image.sum(axis=1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing counts: NaN
            value, samples = of_image.sum() / rows.sum(), (self.drawn @ of_image) / (self.drawn @ rows)
        return np.asarray(value), samples, n_rows, n_images
