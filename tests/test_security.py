"""What SECURITY.md promises, where no other test proves it."""

from __future__ import annotations

import re
import socket

import numpy as np
import pytest
import yaml
from refusals import refused
from test_dependencies import declared
from tiny_models import Touch

from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CacheError, CheckpointError, ParameterError
from surgerylib.files import PROJECT_ROOT
from surgerylib.heatmaps import Setting
from surgerylib.weights import load_weights
from surgerylib.workbook.check import check
from surgerylib.workbook.parameters import apply_overrides, load_config


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list:
    """Addresses that something tried to reach; nothing is reached."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments[-1])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_every_promise_names_a_test() -> None:
    """That there is such a test: `test_docs`."""
    page = (PROJECT_ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promises = page.split("## What is promised")[1].split("\n## ")[0]
    for paragraph in promises.split("\n- ")[1:]:
        assert re.search(r"`test_\w+`", paragraph), paragraph


def test_the_network_is_left_alone_by_files_and_folders(connections, parameters, tiny_folder) -> None:
    assert "model:" in check(parameters)
    load_clip("embedded", device="cpu")
    load_clip(f"local-dir:{tiny_folder}", "random", device="cpu")
    assert connections == []


@pytest.mark.parametrize("checkpoint", ["hf:owner/repo/file.pt", "openai"])
def test_the_network_is_asked_for_a_checkpoint_that_names_it(connections, monkeypatch, tiny, checkpoint) -> None:
    """The other test's judge: what does reach out is seen."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it asks again
    refused(load_weights, CheckpointError, "could not be fetched", tiny.model, "ViT-B-32", checkpoint)
    assert connections


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
def test_yaml_runs_no_code(tmp_path, tag) -> None:
    target = tmp_path / "made"
    text = f"seed: !!python/{tag} [{target}]"
    (tmp_path / "config.yaml").write_text(text)
    refused(load_config, ParameterError, "not valid YAML", tmp_path / "config.yaml")
    assert apply_overrides({}, [text.replace(": ", "=", 1)], {}) == {"seed": text.removeprefix("seed: ")}
    assert not target.exists()
    if "apply" in tag:  # the loader that would
        yaml.unsafe_load(text)
        assert target.exists()


def test_figures_stored_as_pickles_are_not_run(tmp_path, tiny, training_root) -> None:
    store = HeatmapStore(tiny, load_dataset(training_root, "test", limit=1), tmp_path / "cache").compute()
    options = {"n_resamples": 2, "workers": 1, "details": False, "cache_dir": tmp_path / "kept"}
    evaluate(store, {"one": Setting()}, **options)
    (path,) = (tmp_path / "kept").rglob("*.npz")
    target = tmp_path / "made"
    np.savez(path, map=np.array([Touch(target)], dtype=object), map_samples=0, measures=0, n_detections=0)
    refused(evaluate, CacheError, "cannot be read", store, {"one": Setting()}, **options)
    assert not target.exists()
    with np.load(path, allow_pickle=True) as stored:  # the way that would
        _ = stored["map"]
    assert target.exists()


@pytest.mark.parametrize(("package", "vulnerable"), [
    pytest.param("torch", "2.9.1", id="CVE-2026-24747"), pytest.param("pyarrow", "14.0.0", id="CVE-2023-47248")
])  # fmt: skip
def test_versions_whose_readers_run_code_are_not_accepted(package, vulnerable) -> None:
    (requirement,) = [one for one in declared(PROJECT_ROOT)["runtime"] if one.name == package]
    assert not requirement.specifier.contains(vulnerable)
