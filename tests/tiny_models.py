"""Tiny CLIPs in open_clip's own architecture, as files on disk, and what a hostile file may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgerylib.clip import SurgeryCLIP, load_clip, open_clip
from surgerylib.engine import recipes

TINY_VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16}
TINY_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": TINY_VISION,
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Touch:
    """Pickled, it makes a file wherever it is read without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def write_config(folder: Path, config: object, preprocessing: dict | None = None) -> Path:
    """An open_clip folder (`local-dir:`) without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocessing or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def write_model(folder: Path, config: dict = TINY_CONFIG, seed: int = 7) -> Path:
    """An open_clip folder (`local-dir:`): config and weights that are large enough to tell the paths apart."""
    write_config(folder, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
        state = {key: value + 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


def load_tiny(folder: Path, depth: int = 3, *, checkpoint: Path | str | None = "its own", **options) -> SurgeryCLIP:
    own = folder / "model.safetensors" if checkpoint == "its own" else checkpoint
    return load_clip(f"local-dir:{folder}", own, depth=depth, **{"device": "cpu", **options})


@contextmanager
def shards_of(n_images: int) -> Iterator[None]:
    """Stores that are made inside have so many images a file."""
    plain = recipes.Recipe.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recipes.Recipe, "__init__", lambda self, *a, **k: plain(self, *a, **{**k, "shard_images": n_images})
        )
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, as golden figures need them."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
