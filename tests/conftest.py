"""A tiny CLIP for every test that needs a model, and a run of the workbook with it, on data that mean harm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_scenes import write_hostile
from tiny_models import load_tiny, write_model
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from surgerylib.clip import SurgeryCLIP
from surgerylib.embedded.scenes import write_scenes
from surgerylib.workbook.run import RunResult, run_workbook

OF_THE_RUN = ("test_notebooks.py", "test_trust.py", "test_report_in_browser.py")


class ByFile(LoadScopeScheduling):
    """Where two processes share the tests: a file's stay together, for what they share, and so do those of `run`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "run" if file.endswith(OF_THE_RUN) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> SurgeryCLIP:
    return load_tiny(tiny_folder)


@pytest.fixture(scope="session")
def training_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes to train, to choose and to report on."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=12, num_val=5, num_test=4, size=96)


@pytest.fixture(scope="session")
def arguments(training_root: Path, tiny_folder: Path) -> dict:
    """Of a command: these scenes and the tiny CLIP."""
    model = {"model": f"local-dir:{tiny_folder}", "checkpoint": str(tiny_folder / "model.safetensors"), "depth": 4}
    return {"dataset": str(training_root), "device": "cpu", **model}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "scenes")


@pytest.fixture(scope="session")
def parameters(tmp_path_factory: pytest.TempPathFactory, hostile: Path, tiny_folder: Path) -> dict:
    """A configuration of all notebooks that takes little time, leaves the damaged images out, and has weights whose
    name says what they have seen."""
    weights = tmp_path_factory.mktemp("weights") / "RemoteCLIP-ViT-tiny.safetensors"
    shutil.copy(tiny_folder / "model.safetensors", weights)
    return {
        "dataset": str(hostile), "on_bad_image": "skip", "model": f"local-dir:{tiny_folder}",
        "checkpoint": str(weights), "depth": 4, "num_examples": 2, "device": "cpu", "percentiles": [60, 75, 90],
        "unions": [[60, 90]], "nms_ious": [0.5], "min_sides": [10], "max_sides": [112], "box_scores": ["max"],
        "floor_percentiles": [90], "iou_thresholds": [0.05, 0.3, 0.5], "epochs": 2, "ablation_epochs": 1,
        "warmup_epochs": 0.5, "picture_size": 32, "training_batch_size": 4, "adapter_epochs": 3,
        "adapter_ablation_epochs": 1,
    }  # fmt: skip


@pytest.fixture(scope="session")
def run(parameters: dict, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The whole workbook with it, run once."""
    return run_workbook(parameters, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def folder(run: RunResult) -> Path:
    """Of that run."""
    return run.index.parent
