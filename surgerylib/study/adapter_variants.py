"""Short trainings of an adapter side by side: which of its losses it needs, and how to weigh few against many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from ..engine import (
    LOSSES,
    AdapterSettings,
    HeatmapStore,
    Schedule,
    TokenCache,
    Training,
    distinct_adapters,
    load_adapters,
    train_adapter,
)
from ..heatmaps import Setting
from .adaptation import Adaptation, class_groups, compare_adapted, states_of


class Variant(NamedTuple):
    """One short training, measured on the split of the choice."""

    patch_ap: float  # of the classes trained on, after the last epoch
    found: Adaptation


def loss_variants(settings: AdapterSettings) -> dict[str, AdapterSettings]:
    """Each loss alone, each pair, and all: name -> settings. A loss that is switched off counts as of weight 1 here."""
    weights = {name: getattr(settings, f"{name}_weight") or 1.0 for name in LOSSES}
    variants = {}
    for names in (names for size in (1, 2, 3) for names in combinations(LOSSES, size)):
        title = {1: f"{names[0]} alone", 2: " + ".join(names), 3: "all three losses"}[len(names)]
        chosen = {f"{name}_weight": weights[name] if name in names else 0.0 for name in LOSSES}
        variants[title] = replace(settings, **chosen)
    return variants


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
        **options: as for `adaptation.compare_adapted`.
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
