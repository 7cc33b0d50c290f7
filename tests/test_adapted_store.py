"""Trained adapters from files, and their maps beside those of a heatmap store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import refusals
from adapted_scenes import write_adapter, write_adapters
from tiny_models import load_tiny, write_model

from surgerylib.adapter import load_adapter
from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.engine import adapters as module
from surgerylib.engine.adapters import distinct_adapters, find_adapters, load_adapters
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CheckpointError, ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, Setting, heatmaps
from surgerylib.weights import save_trained
from surgerylib.words import prompt_names

N_IMAGES = 3


@pytest.fixture(scope="module")
def data(training_root) -> Dataset:
    return load_dataset(training_root, "test", limit=N_IMAGES)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    folder = write_adapters(tmp_path_factory.mktemp("adapters"), tiny)
    (folder / "localizer.safetensors").write_bytes(b"something else that lies there")
    return folder


@pytest.fixture(scope="module")
def adapters(tiny, folder):
    return load_adapters(folder, tiny)


@pytest.fixture(scope="module")
def store(tiny, data, adapters, tmp_path_factory) -> HeatmapStore:
    """For reading only."""
    cache = tmp_path_factory.mktemp("kept")
    return HeatmapStore(tiny, data, cache, adapters=distinct_adapters(adapters)).compute(batch_size=2)


def refused(call, match: str, error: type[Exception] = CheckpointError) -> None:
    refusals.refused(call, error, match)


# --------------------------------------------------------------------------------------------- adapters from files


def test_an_adapter_is_for_the_kinds_that_share_its_patches(tiny, adapters, folder):
    assert list(adapters) == list(HEATMAP_KINDS)
    assert adapters["standard"] is adapters["vv_qk"]
    assert adapters["vv_vv"] is adapters["vv_mixed"]
    assert [adapter.patches for adapter in distinct_adapters(adapters)] == ["qk", "vv"]
    for kind, adapter in adapters.items():
        assert kind in adapter.kinds
        assert not adapter.model.training
        assert adapter.setting(kind, floor=0) == Setting(kind, "cosine", 3, adapter=adapter.key, floor=0)
        assert ", floor 0" in adapter.setting(kind, floor=0).describe()
    assert list(load_adapters(folder / "adapter_standard.safetensors", tiny)) == ["standard", "vv_qk"]


def test_a_relative_path_is_relative_to_the_project_and_may_begin_at_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for root, where in ((folder.parent, folder.name), (tmp_path, f"~/{folder.name}")):
        monkeypatch.setattr(module, "PROJECT_ROOT", root)
        assert find_adapters(where) == sorted(folder.glob("adapter_*"))


def test_adapters_that_are_not_there_not_for_this_clip_or_for_one_kind_alone(tiny, folder, tmp_path):
    empty, twice, other = tmp_path / "empty", tmp_path / "twice", load_tiny(write_model(tmp_path / "other", seed=8))
    empty.mkdir()
    shutil.copytree(folder, twice)
    write_adapter(twice / "adapter_vv_vv.safetensors", tiny, "vv_vv", strength=1)  # shares its patches
    (tmp_path / "adapter_x.safetensors").write_bytes((folder / "localizer.safetensors").read_bytes())
    refused(lambda: find_adapters(empty), rf"no adapter_\*\.safetensors in the folder {empty}; train")
    refused(lambda: load_adapters(twice, tiny), r"adapter_vv_mixed\.safetensors and .* are both for vv_vv")
    refused(lambda: load_adapters(folder, other), "belongs to something else .*weights_sha256")
    refused(lambda: load_adapters(tmp_path, tiny), r"adapter_x\.safetensors is not a trained adapter")
    # the last two cannot even be looked at
    for where in (tmp_path / "gone", "~nobody-of-this-name/adapters", "x" * 5000):
        refused(lambda where=where: find_adapters(where), "no file or folder .*; train")


def test_an_adapter_that_does_not_say_what_it_belongs_to(tiny, folder, tmp_path):
    for change in ("belongs_to", "seen_classes", "patches", "layers", "other layers"):
        model, about = load_adapter(folder / "adapter_vv_mixed.safetensors")
        if change == "other layers":
            about["belongs_to"]["layers"] = 2
        for part in (about, about["belongs_to"]):
            part.pop(change, None)
        path = save_trained(tmp_path / "adapter_x.safetensors", "adapter", model.config, model.state_dict(), about)
        refused(lambda path=path: load_adapters(path, tiny), "does not say which tokens it belongs to")


# ------------------------------------------------------------------------------------------------------- their maps


def test_stored_maps_are_those_of_the_tokens_through_the_adapter(store, tiny, data, adapters):
    text = tiny.encode_text(prompt_names(data.classes))
    tokens = [tiny.encode_image(tiny.preprocess(read_image(path))[None], 3) for path in data.images["path"]]
    for kind, adapter in adapters.items():
        stored = store.maps(adapter.setting(kind), 0, N_IMAGES)
        assert stored.dtype == np.float32
        expected = [heatmaps(of, text, kind, adapter=adapter.model)[0].numpy() for of in tokens]
        np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(stored, store.maps(Setting(kind, layers=3), 0, N_IMAGES), atol=0.01)
        np.testing.assert_array_equal(store.maps(adapter.setting(kind), 1)[0], stored[1])


def test_the_maps_before_do_not_know_of_adapters_and_only_what_is_missing_is_computed(
    store, tiny, data, adapters, tmp_path, monkeypatch
):
    assert HeatmapStore(tiny, data, store.folder.parent).folder == store.folder
    shutil.copytree(store.folder.parent, tmp_path / "copied")
    other = load_adapters(write_adapter(tmp_path / "adapter_new.safetensors", tiny, strength=1), tiny)
    again = HeatmapStore(tiny, data, tmp_path / "copied", adapters=distinct_adapters(other))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "copied").glob("*/*.npy")}
    again.compute()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    setting = other["vv_mixed"].setting("vv_mixed")
    assert not np.allclose(again.maps(setting, 0), store.maps(adapters["vv_mixed"].setting("vv_mixed"), 0), atol=0.01)
    monkeypatch.setattr(tiny, "encode_image", lambda *_: pytest.fail("the model was used"))
    assert again.compute() is again


def test_what_adapted_maps_are_made_of_is_part_of_their_name(store, tiny, data, adapters, tmp_path):
    qk, vv = distinct_adapters(adapters)

    def key(dataset=data, of=(qk, vv), **options):
        return HeatmapStore(tiny, dataset, tmp_path, adapters=of, **options).adapted.key

    others = [key(of=[vv]), key(of=[vv, qk]), key(data.sample(2)), key(templates=("{}",)),
              key(replace(data, classes=data.classes[::-1]))]  # fmt: skip
    assert key() == store.adapted.key
    assert len({*others, store.adapted.key}) == 6


def test_maps_of_an_adapter_that_was_not_opened(store, tiny, data, adapters):
    unknown = Setting("vv_mixed", layers=3, adapter="0123456789ab")
    known = [adapter.key for adapter in distinct_adapters(adapters)]
    refused(lambda: store.maps(unknown, 0), f"0123456789ab .*only of {known[0]}.*{known[1]}", ParameterError)
    plain = HeatmapStore(tiny, data, store.folder.parent)
    refused(lambda: plain.maps(unknown, 0), "only of none", ParameterError)
    refused(lambda: evaluate(store, {"": unknown}, workers=1), "0123456789ab", ParameterError)
