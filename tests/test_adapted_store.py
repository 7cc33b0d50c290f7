"""Trained adapters from files, and their maps beside those of a heatmap store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_model

from surgerylib.adapter import clip_and_tokens, load_adapter, save_adapter, untrained_adapter
from surgerylib.clip import ImageTokens, load_clip
from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import adapted_store as adapted_store_module
from surgerylib.engine import store as store_module
from surgerylib.engine.adapters import AdaptedStore, distinct_adapters, find_adapters, load_adapters
from surgerylib.engine.finding import boxes_of
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import CacheError, CheckpointError, ParameterError
from surgerylib.files import file_sha256
from surgerylib.heatmaps import HEATMAP_KINDS, SIMILARITIES, Setting, heatmaps
from surgerylib.words import prompt_names

N_IMAGES, SHARD_IMAGES = 5, 2
LAYERS = {"standard": 1, "vv_mixed": 3}  # of the two adapters: one of the stock model's tokens, one of the VV path's


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_IMAGES", SHARD_IMAGES)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, num_train=1, num_val=1, num_test=N_IMAGES, size=96)


@pytest.fixture(scope="module")
def data(root) -> Dataset:
    return load_dataset(root, "test")


def write_adapter(path: Path, clip, kind: str = "vv_mixed", layers: int = 3, seed: int = 0, **about) -> Path:
    """As if it had been trained: no weight is where it began."""
    model = untrained_adapter({"embed_dim": clip.embed_dim, "num_layers": layers, "rank": 4}, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in model.state_dict().items()}
    about = {"belongs_to": clip_and_tokens(clip, kind, layers), "seen_classes": ["ship", "harbor"], **about}
    return save_adapter(path, model.config, weights, about)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (kind, layers) in enumerate(LAYERS.items()):
        write_adapter(folder / f"adapter_{kind}.safetensors", tiny, kind, layers, seed)
    (folder / "localizer.safetensors").write_bytes(b"something else that lies there")
    return folder


@pytest.fixture(scope="module")
def adapters(tiny, folder):
    return load_adapters(folder, tiny)


@pytest.fixture(scope="module")
def kept(tiny, data, adapters, tmp_path_factory) -> Path:
    """A cache folder with the maps before and after; for reading only."""
    cache = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_IMAGES", SHARD_IMAGES)
        HeatmapStore(tiny, data, cache, adapters=distinct_adapters(adapters)).compute(batch_size=2)
    return cache


@pytest.fixture
def store(tiny, data, adapters, kept) -> HeatmapStore:
    return HeatmapStore(tiny, data, kept, adapters=distinct_adapters(adapters))


@pytest.fixture(scope="module")
def live(tiny, data) -> dict[int, list[ImageTokens]]:
    pixels = [tiny.preprocess(read_image(path))[None] for path in data.images["path"]]
    return {layers: [tiny.encode_image(image, layers) for image in pixels] for layers in (1, 3)}


def refused(where, clip, match: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=match) as raised:
        load_adapters(where, clip)
    assert "\n" not in str(raised.value)


# --------------------------------------------------------------------------------------------- adapters from files


def test_an_adapter_is_for_the_kinds_that_share_its_patches(adapters, folder):
    assert list(adapters) == list(HEATMAP_KINDS)
    assert adapters["standard"] is adapters["vv_qk"]
    assert adapters["vv_vv"] is adapters["vv_mixed"]
    assert [adapter.patches for adapter in distinct_adapters(adapters)] == ["qk", "vv"]
    for kind in HEATMAP_KINDS:
        adapter = adapters[kind]
        of_file = next(name for name in LAYERS if name in adapter.file.name)
        assert adapter.file == folder / f"adapter_{of_file}.safetensors"
        assert adapter.key == file_sha256(adapter.file)[:12]
        assert kind in adapter.kinds
        assert adapter.seen_classes == ["ship", "harbor"]
        assert adapter.model.num_layers == LAYERS[of_file]
        assert not adapter.model.training
        assert adapter.source(kind) == Setting(kind, "cosine", LAYERS[of_file], adapter.key)


def test_one_file_serves_its_own_kinds_alone(tiny, folder):
    only = load_adapters(folder / "adapter_standard.safetensors", tiny)
    assert list(only) == ["standard", "vv_qk"]
    assert load_adapters(str(folder / "adapter_vv_mixed.safetensors"), tiny).keys() == {"vv_vv", "vv_mixed"}


def test_a_relative_path_is_relative_to_the_project(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(adapted_store_module, "PROJECT_ROOT", folder.parent)
    monkeypatch.chdir(tmp_path)
    assert find_adapters(folder.name) == sorted(folder.glob("adapter_*"))
    assert find_adapters(f"{folder.name}/adapter_standard.safetensors") == [folder / "adapter_standard.safetensors"]
    assert len(load_adapters(Path(folder.name), tiny)) == 4
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setattr(adapted_store_module, "PROJECT_ROOT", tmp_path)
    assert find_adapters(f"~/{folder.name}") == sorted(folder.glob("adapter_*"))


def test_where_there_is_none(tiny, tmp_path):
    refused(tmp_path, tiny, rf"no adapter_\*\.safetensors in the folder {tmp_path}; train")
    refused(tmp_path / "gone", tiny, f"no file or folder {tmp_path / 'gone'}; train")


@pytest.mark.parametrize("where", ["~nobody-of-this-name/adapters", "x" * 5000])
def test_bug_a_path_that_cannot_be_looked_at_was_no_error_of_one_line(tiny, where):
    refused(where, tiny, "no adapters can be looked for in ")


def test_two_adapters_for_one_kind(tiny, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "x")
    write_adapter(tmp_path / "x" / "adapter_vv_vv.safetensors", tiny, "vv_vv", seed=3)  # shares its patches
    refused(tmp_path / "x", tiny, r"adapter_vv_mixed\.safetensors and .*adapter_vv_vv\.safetensors are both for vv_vv")


def test_an_adapter_that_is_not_for_this_clip(tiny, folder, tmp_path):
    other = load_clip(f"local-dir:{write_model(tmp_path / 'other', seed=8)}",
                      str(tmp_path / "other" / "model.safetensors"), device="cpu", depth=3)  # fmt: skip
    refused(folder, other, "belongs to something else .*weights_sha256")
    (tmp_path / "adapter_x.safetensors").write_bytes((folder / "localizer.safetensors").read_bytes())
    refused(tmp_path, tiny, r"adapter_x\.safetensors is not a trained adapter")


@pytest.mark.parametrize("left_out", ["belongs_to", "seen_classes", "patches", "layers"])
def test_an_adapter_that_does_not_say_what_it_belongs_to(tiny, folder, tmp_path, left_out):
    model, about = load_adapter(folder / "adapter_vv_mixed.safetensors")
    for part in (about, about["belongs_to"]):
        part.pop(left_out, None)
    path = save_adapter(tmp_path / "adapter_x.safetensors", model.config, model.state_dict(), about)
    refused(path, tiny, "does not say which tokens it belongs to")


def test_layers_that_are_not_those_of_the_weights(tiny, folder, tmp_path):
    model, about = load_adapter(folder / "adapter_vv_mixed.safetensors")
    about["belongs_to"]["layers"] = 2
    path = save_adapter(tmp_path / "adapter_x.safetensors", model.config, model.state_dict(), about)
    refused(path, tiny, "does not say which tokens it belongs to")


# ------------------------------------------------------------------------------------------------------- their maps


@pytest.mark.parametrize("kind", HEATMAP_KINDS)
def test_stored_maps_are_those_of_the_tokens_through_the_adapter(store, tiny, data, adapters, live, kind):
    text, adapter = tiny.encode_text(prompt_names(data.classes)), adapters[kind]
    source = adapter.source(kind)
    stored = np.concatenate([shard.maps(source) for shard in store.shards])
    assert stored.dtype == np.float32
    assert stored.shape == (N_IMAGES, len(data.classes), *tiny.grid)
    for maps, tokens in zip(stored, live[adapter.model.num_layers], strict=True):
        expected = heatmaps(tokens, text, kind, adapter=adapter.model)[0].numpy()
        np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-5)
        plain = heatmaps(tokens, text, kind)[0].numpy()
        assert not np.allclose(maps, plain, atol=0.01)
    np.testing.assert_array_equal(np.stack([store.maps(k, source) for k in range(N_IMAGES)]), stored)
    pieces = [piece for shard in store.shards for piece in shard.pieces(1)]
    np.testing.assert_array_equal(np.concatenate([piece.maps(source) for piece in pieces]), stored)


def test_the_maps_before_do_not_know_of_adapters(store, tiny, data, tmp_path):
    plain = HeatmapStore(tiny, data, tmp_path).compute(batch_size=2)
    assert plain.folder.name == store.folder.name
    assert plain.adapted is None
    for mine, theirs in zip(store.shards, plain.shards, strict=True):
        assert Path(mine.path).read_bytes() == Path(theirs.path).read_bytes()
        for kind in HEATMAP_KINDS:
            for similarity in SIMILARITIES:
                source = Setting(kind, similarity, 2)
                np.testing.assert_array_equal(mine.maps(source), theirs.maps(source))


def test_the_stores_lie_side_by_side_and_only_what_is_missing_is_computed(store, tiny, data, adapters, tmp_path, kept):
    shutil.copytree(kept, tmp_path / "copied")
    assert sorted(path.name.rsplit("-", 1)[0] for path in kept.iterdir()) == ["adapted-maps", "heatmaps"]
    # another pair of adapters: the maps before are there already
    other = load_adapters(write_adapter(tmp_path / "adapter_new.safetensors", tiny, seed=9), tiny)
    again = HeatmapStore(tiny, data, tmp_path / "copied", adapters=distinct_adapters(other))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "copied").glob("*/*.npy")}
    again.compute()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list((tmp_path / "copied").iterdir())) == 3
    source = other["vv_mixed"].source("vv_mixed")
    assert not np.allclose(again.maps(0, source), store.maps(0, adapters["vv_mixed"].source("vv_mixed")), atol=0.01)


def test_a_rerun_does_not_use_the_model(tiny, store, monkeypatch):
    monkeypatch.setattr(tiny, "encode_image", lambda *_: pytest.fail("the model was used"))
    before = {path: path.stat().st_mtime_ns for path in store.adapted.folder.iterdir()}
    assert store.compute() is store
    assert {path: path.stat().st_mtime_ns for path in store.adapted.folder.iterdir()} == before


def test_what_an_adapted_store_is_made_of_is_part_of_its_name(store, tiny, data, adapters, tmp_path):
    qk, vv = distinct_adapters(adapters)
    make = {"shard_images": SHARD_IMAGES}
    assert AdaptedStore(tiny, data, tmp_path, [qk, vv], **make).key == store.adapted.key
    others = [
        AdaptedStore(tiny, data, tmp_path, [vv], **make),
        AdaptedStore(tiny, data, tmp_path, [vv, qk], **make),
        AdaptedStore(tiny, data.sample(3), tmp_path, [qk, vv], **make),
        AdaptedStore(tiny, replace(data, classes=data.classes[::-1]), tmp_path, [qk, vv], **make),
        AdaptedStore(tiny, data, tmp_path, [qk, vv], templates=("{}",), **make),
    ]
    assert len({other.key for other in others} | {store.adapted.key}) == 6
    assert others[0].layers == 3


def test_boxes_after_the_adapter_are_cut_in_worker_processes_too(store, adapters):
    sources = [adapters[kind].source(kind) for kind in ("standard", "vv_mixed")] + [Setting("vv_mixed", "cosine", 3)]
    found = boxes_of(store.shards, sources, [Setting(floor=0.0)], workers=2)
    alone = boxes_of(store.shards, sources, [Setting(floor=0.0)], workers=1)
    assert len(found) == 3
    for source, (table,) in alone.items():
        for mine, theirs in zip(found[source][0], table, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert table.activated.shape == (N_IMAGES, len(store.dataset.classes))


def test_an_adapted_map_that_is_not_finite_is_refused(tiny, data, adapters, tmp_path):
    adapter = adapters["vv_mixed"]
    weights = {**adapter.model.state_dict(), "log_scale": torch.tensor(20.0)}  # exp(200) is infinite in 32 bits
    path = save_adapter(tmp_path / "adapter_x.safetensors", adapter.model.config, weights, adapter.about)
    (large,) = distinct_adapters(load_adapters(path, tiny))
    with pytest.raises(CheckpointError, match="NaN or infinite values"):
        AdaptedStore(tiny, data, tmp_path, [large], shard_images=SHARD_IMAGES).compute()


def test_a_damaged_shard_of_adapted_maps_is_named(tiny, data, adapters, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "copied")
    copied = HeatmapStore(tiny, data, tmp_path / "copied", adapters=distinct_adapters(adapters))
    path, source = copied.adapted.path(2), adapters["vv_mixed"].source("vv_mixed")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"adapted-maps-00001\.npy is not as it was written"):
        copied.compute()
    path.write_bytes(content[:200])
    with pytest.raises(CacheError, match=r"adapted-maps-00001\.npy is not a shard of adapted maps"):
        copied.maps(2, source)
    path.unlink()
    with pytest.raises(CacheError, match="there are no adapted maps"):
        copied.maps(2, source)
    assert copied.compute(batch_size=2).maps(2, source).shape == (len(data.classes), 4, 4)


# ---------------------------------------------------------------------------------------------------- map sources


def test_an_adapter_and_surgery_do_not_go_together():
    with pytest.raises(ParameterError, match="trained on cosine maps, similarity is 'surgery'") as raised:
        Setting("vv_mixed", "surgery", 3, "0123456789ab")
    assert "\n" not in str(raised.value)


def test_maps_of_an_adapter_that_was_not_opened(store, tiny, data, adapters, kept):
    unknown = Setting("vv_mixed", "cosine", 3, "0123456789ab")
    known = [adapter.key for adapter in distinct_adapters(adapters)]
    with pytest.raises(ParameterError, match=f"0123456789ab .*only of {known[0]}.*{known[1]}") as raised:
        store.maps(0, unknown)
    assert "\n" not in str(raised.value)
    with pytest.raises(ParameterError, match="only of none"):
        HeatmapStore(tiny, data, kept).maps(0, unknown)
    with pytest.raises(ParameterError, match="0123456789ab"):
        boxes_of(store.shards, [unknown], [Setting()], workers=1)


def test_bug_another_kind_or_number_of_layers_was_given_the_maps_of_the_adapter(store, adapters):
    """Known error 3: the kind asked for was not looked at, so all kinds had the same maps through an adapter."""
    adapter = adapters["vv_mixed"]
    for kind, layers in (("standard", 3), ("vv_qk", 3), ("vv_mixed", 1)):
        with pytest.raises(ParameterError, match=f"no {kind} maps of the adapter {adapter.key} on {layers} layers"):
            store.maps(0, Setting(kind, "cosine", layers, adapter.key))
    same = [store.maps(0, Setting(kind, "cosine", 3, adapter.key)) for kind in ("vv_vv", "vv_mixed")]
    np.testing.assert_array_equal(*same)


def test_sources_with_and_without_an_adapter_are_apart(adapters):
    sources = {kind: adapters[kind].source(kind) for kind in HEATMAP_KINDS}
    assert list(joint_sources(sources)) == ["standard = vv_qk", "vv_vv = vv_mixed"]
    plain = Setting("vv_mixed", "cosine", 3)
    assert len({plain.key, sources["vv_mixed"].key, sources["standard"].key, replace(plain, adapter="x").key}) == 4
    assert sources["vv_mixed"].describe() == "cosine similarity, adapter on the last 3 layers"
    assert sources["standard"].describe() == "cosine similarity, adapter on the last layer"
    assert plain.describe() == "cosine similarity, mean of the last 3 layers"
