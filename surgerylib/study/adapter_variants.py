"""Short trainings of an adapter side by side: which of its losses it needs, and how to weigh few against many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from ..engine.adapter_training import LOSSES, AdapterSettings, train_adapter
from ..engine.adapters import load_adapters
from ..engine.caches import TokenCache
from ..engine.schedule import Schedule
from ..engine.store import HeatmapStore
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
    for size in (1, 2, 3):
        for names in combinations(LOSSES, size):
            chosen = {f"{name}_weight": weights[name] if name in names else 0.0 for name in LOSSES}
            name = "all three losses" if size == 3 else " + ".join(names) + (" alone" if size == 1 else "")
            variants[name] = replace(settings, **chosen)
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
    """Train each variant for the same time and measure all on the same images.

    Args:
        variants: name -> settings; equal ones are trained once.
        schedule: of the short trainings.
        caches: of `TrainingPlan.token_caches`, computed.
        cache_dir: folder of trainings and stores.
        kind: whose patch tokens are adapted.
        setting: of the maps without an adapter, and of the boxes with one: its floor is a logit.
        batch_size: images a CLIP forward.
        **options: as for `adaptation.compare_adapted`.
    """
    clip, data = caches["choose"].clip, caches["choose"].dataset
    names = {settings: name for name, settings in reversed(variants.items())}
    trained = {
        settings: train_adapter(
            caches["train"],
            caches["choose"],
            settings,
            schedule,
            cache_dir,
            kind=kind,
            description=f"short run: {name}",
        )[1]
        for settings, name in names.items()
    }
    trainings = {name: trained[settings] for name, settings in variants.items()}
    adapters = {name: load_adapters(training.last, clip)[kind] for name, training in trainings.items()}
    distinct = list({adapter.key: adapter for adapter in adapters.values()}.values())
    store = HeatmapStore(clip, data, cache_dir, adapters=distinct).compute(batch_size=batch_size)
    found: dict[str, Adaptation] = {}
    for name, adapter in adapters.items():
        same = next((other for other in found if adapters[other].key == adapter.key), None)
        if same is None:
            states = states_of({kind: setting}, {kind: adapter}, adapter_floor=setting.floor)
            only_after = {kind: {"after": states[kind]["after"]}}
            found[name] = compare_adapted(
                store, only_after, class_groups(data.classes, adapter.seen_classes), **options
            )
        else:
            found[name] = found[same]
    return {
        name: Variant(float(trainings[name].history["val_patch_ap"].iloc[-1]), of_variant)
        for name, of_variant in found.items()
    }
