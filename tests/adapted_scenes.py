"""Adapters with drawn weights, and the maps of a few scenes through them, for every test of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from surgerylib.adapter import HeatmapAdapter, clip_and_tokens
from surgerylib.clip import SurgeryCLIP
from surgerylib.datasets import Dataset
from surgerylib.engine.adapters import TrainedAdapter, distinct_adapters, load_adapters
from surgerylib.engine.store import HeatmapStore
from surgerylib.weights import save_trained, untrained_model

LAYERS = 3
SEEN = ("airplane", "airport", "ship", "vehicle")


def write_adapter(
    path: Path, clip: SurgeryCLIP, kind: str = "vv_mixed", *, strength: float = 0.5, seen: Sequence[str] = SEEN
) -> Path:
    """An adapter as a training leaves it; the greater the strength, the further from CLIP, and with 0 untrained."""
    config = {"embed_dim": clip.embed_dim, "num_layers": LAYERS, "rank": 4}
    model = untrained_model(HeatmapAdapter, config, seed=1)
    drawn = torch.randn(model.up.weight.shape, generator=torch.Generator().manual_seed(len(kind)))
    if strength:
        with torch.no_grad():
            model.up.weight.copy_(strength * drawn)
            model.log_scale.fill_(0.2)
            model.bias.fill_(-0.1)  # about half of the maps have no pixel above even odds
    about = {"belongs_to": clip_and_tokens(clip, kind, LAYERS), "seen_classes": list(seen)}
    return save_trained(path, "adapter", config, model.state_dict(), about)


def write_adapters(folder: Path, clip: SurgeryCLIP, **options) -> Path:
    """One for each path, as notebook 03 leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("standard", "vv_mixed"):
        write_adapter(folder / f"adapter_{kind}.safetensors", clip, kind, **options)
    return folder


def adapted_store(clip: SurgeryCLIP, data: Dataset, folder: Path, adapters: dict[str, TrainedAdapter]) -> HeatmapStore:
    """Computed."""
    return HeatmapStore(clip, data, folder / "cache", adapters=distinct_adapters(adapters)).compute()


__all__ = ["LAYERS", "SEEN", "adapted_store", "load_adapters", "write_adapter", "write_adapters"]
