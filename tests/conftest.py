"""A tiny CLIP in open_clip's own architecture, as files on disk, for every test that needs a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgerylib.clip import SurgeryCLIP, load_clip, open_clip
from surgerylib.scenes import write_scenes
from surgerylib.workbook import RunResult, run_workbook

TINY_VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16}
TINY_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": TINY_VISION,
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_model(folder: Path, config: dict = TINY_CONFIG, seed: int = 7) -> Path:
    """An open_clip folder (`local-dir:`): config and weights that are large enough to tell the paths apart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
        state = {key: value + 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> SurgeryCLIP:
    return load_clip(f"local-dir:{tiny_folder}", str(tiny_folder / "model.safetensors"), device="cpu", depth=3)


@pytest.fixture(scope="session")
def parameters(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict:
    """A configuration of all notebooks that takes little time."""
    scenes = write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=7, num_val=5, num_test=6, size=96)
    return {
        "dataset": str(scenes),
        "model": f"local-dir:{tiny_folder}",
        "checkpoint": str(tiny_folder / "model.safetensors"),
        "depth": 4,
        "num_examples": 2,
        "device": "cpu",
        "percentiles": [60, 75, 90],
        "unions": [[60, 90]],
        "epochs": 2,
        "ablation_epochs": 1,
        "warmup_epochs": 0.5,
        "picture_size": 32,
        "training_batch_size": 4,
        "adapter_epochs": 3,
        "adapter_ablation_epochs": 1,
    }


@pytest.fixture(scope="session")
def run(parameters: dict, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The whole workbook with it, run once."""
    return run_workbook(parameters, tmp_path_factory.mktemp("run"))
