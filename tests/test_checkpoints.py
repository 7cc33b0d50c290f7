from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_CONFIG, TINY_VISION, write_model

from surgerylib import weights as checkpoints
from surgerylib.clip import load_clip
from surgerylib.errors import CheckpointError, ParameterError


@pytest.fixture
def state(tiny_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_folder / "model.safetensors")


def load(folder: Path, checkpoint) -> object:
    return load_clip(f"local-dir:{folder}", str(checkpoint), device="cpu", depth=2)


def write_config(folder: Path, config: object) -> None:
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_every_form_of_one_checkpoint_gives_the_same_model(tiny_folder, state, tmp_path):
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": prefixed}, tmp_path / "parallel.pt")
    save_file(prefixed, tmp_path / "parallel.safetensors")
    expected = load(tiny_folder, tiny_folder / "model.safetensors").weights.sha256
    for name in ("plain.pt", "wrapped.pt", "parallel.pt", "parallel.safetensors"):
        assert load(tiny_folder, tmp_path / name).weights.sha256 == expected


def test_missing_file(tiny_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"file not found: .*nowhere\.pt") as error:
        load(tiny_folder, tmp_path / "nowhere.pt")
    one_line(error)


def test_unknown_tag_lists_the_nearest():
    with pytest.raises(CheckpointError, match=r"nearest tags: laion2b_s34b_b79k") as error:
        load_clip("ViT-B-32", "laion2b_s34b", device="cpu")
    assert len(one_line(error)) < 250


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated(tiny_folder, state, tmp_path, suffix, keep):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    content = whole.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(CheckpointError, match="cut") as error:
        load(tiny_folder, path)
    one_line(error)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("error")  # one line on the screen, without torch's own
@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_pickle_with_code_never_runs(tiny_folder, tmp_path, save):
    target = tmp_path / "created-by-the-pickle"
    save({"state_dict": Payload(target)}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="never run") as error:
        load(tiny_folder, tmp_path / "hostile.pt")
    one_line(error)
    assert not target.exists()


class NotBeforeTheSecondTry:
    """Read as plain weights it raises a TypeError; read by a full unpickler it is nothing special."""

    def __reduce__(self):
        return OrderedDict, (), (None, {"attribute": 1})


def test_pickle_with_code_never_runs_where_torch_is_told_to_run_it(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target = tmp_path / "created-by-the-pickle"
    torch.save({"state_dict": [NotBeforeTheSecondTry(), Payload(target)]}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="never run") as error:
        load(tiny_folder, tmp_path / "hostile.pt")
    one_line(error)
    assert not target.exists()


def test_a_tag_is_read_without_the_variable_that_runs_pickled_code(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    seen = []

    def fetched(name, **options):
        seen.append((os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"), options["weights_only"]))
        raise OSError("no network")

    model = torch.nn.Module()
    monkeypatch.setattr(checkpoints.open_clip, "create_model", fetched)
    with pytest.raises(CheckpointError, match="no network"):
        checkpoints.load_weights(model, "ViT-B-32", "openai")
    assert seen == [(None, True)]
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize("option", ["trust_remote_code", "bpe_path", "tokenizer_file"])
def test_a_configuration_cannot_make_transformers_run_the_code_of_its_folder(tmp_path, monkeypatch, option):
    asked = []
    tokenizers = types.SimpleNamespace(from_pretrained=lambda *args, **options: asked.append(options))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=tokenizers))
    text = {**TINY_CONFIG["text_cfg"], "hf_tokenizer_name": "any"}
    folder = write_model(tmp_path / "model")
    write_config(folder, {**TINY_CONFIG, "text_cfg": {**text, "tokenizer_kwargs": {option: True}}})
    with pytest.raises(CheckpointError, match=f"'{option}' in tokenizer_kwargs") as error:
        load(folder, "random")
    one_line(error)
    assert asked == []
    write_config(folder, {**TINY_CONFIG, "text_cfg": {**text, "tokenizer_kwargs": {"clean": "lower"}}})
    checkpoints.build_model(f"local-dir:{folder}")
    assert asked == [{"cache_dir": None}]


def tokenized(options: object) -> dict:
    return {**TINY_CONFIG["text_cfg"], "tokenizer_kwargs": options}


def without(name: str) -> dict:
    return {key: value for key, value in TINY_CONFIG.items() if key != name}


@pytest.mark.parametrize(
    "config",
    [
        [1],
        "text",
        {},
        without("text_cfg"),
        without("vision_cfg"),
        {**TINY_CONFIG, "unknown": 1},
        {**TINY_CONFIG, "embed_dim": "many"},
        {**TINY_CONFIG, "vision_cfg": {**TINY_VISION, "patch_size": 0}},
        {**TINY_CONFIG, "vision_cfg": {**TINY_VISION, "width": 2**50}},
        {**TINY_CONFIG, "text_cfg": tokenized(3)},
        {**TINY_CONFIG, "text_cfg": tokenized({"clean": "thoroughly"})},
        {**TINY_CONFIG, "text_cfg": tokenized({"additional_special_tokens": "("})},
    ],
)
def test_a_configuration_that_cannot_be_built_is_one_line(tmp_path, config):
    write_config(tmp_path, config)
    with pytest.raises(ParameterError, match="open_clip cannot build") as error:
        load(tmp_path, "random")
    one_line(error)


@pytest.mark.parametrize("name", ["file:///etc", "local-dir:", "hf-hub:", ":", "hf:owner/repo"])
def test_a_model_from_nowhere(name):
    with pytest.raises(ParameterError, match="open_clip cannot build") as error:
        load_clip(name, "random", device="cpu")
    one_line(error)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_a_file_without_a_state_dict(tiny_folder, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"state_dict|state dict"):
        load(tiny_folder, tmp_path / "other.pt")


def test_other_architecture_names_three_keys_and_what_fits(tiny_folder, tmp_path):
    other = write_model(tmp_path, {**TINY_CONFIG, "vision_cfg": {**TINY_VISION, "width": 32}})
    with pytest.raises(CheckpointError, match="no architecture of open_clip fits") as error:
        load(tiny_folder, other / "model.safetensors")
    assert one_line(error).count(" in the model)") == 3
    assert "more" in str(error.value)


def test_other_architecture_names_the_one_that_fits(tiny_folder, tmp_path):
    model, _ = checkpoints.build_model("ViT-B-32")
    save_file(dict(model.state_dict()), tmp_path / "b32.safetensors")
    with pytest.raises(CheckpointError, match=r"the file fits ViT-B-32\b"):
        load(tiny_folder, tmp_path / "b32.safetensors")


def test_a_key_too_many_or_too_few(tiny_folder, state, tmp_path):
    save_file({**state, "extra": torch.zeros(2)}, tmp_path / "more.safetensors")
    state.pop("ln_final.bias")
    save_file(state, tmp_path / "fewer.safetensors")
    with pytest.raises(CheckpointError, match=r"extra \(2 in the file, missing in the model\)"):
        load(tiny_folder, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_final.bias \(missing in the file, 32 in the model\)"):
        load(tiny_folder, tmp_path / "fewer.safetensors")


def test_values_that_are_not_finite(tiny_folder, state, tmp_path):
    state["visual.proj"][3, 2] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN.*visual\.proj"):
        load(tiny_folder, tmp_path / "nan.safetensors")


def test_hugging_face_file(tiny_folder, monkeypatch):
    asked = []

    def fake(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tiny_folder / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    model = load(tiny_folder, "hf:chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt")
    assert asked == [("chendelong/RemoteCLIP", "RemoteCLIP-ViT-B-32.pt")]
    assert model.weights.source == "hf:chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt"


@pytest.mark.parametrize("bad", ["hf:", "hf:owner", "hf:owner/repo", "hf:owner//file"])
def test_hugging_face_form(tiny_folder, bad):
    with pytest.raises(CheckpointError, match="hf:owner/repo/file"):
        load(tiny_folder, bad)


def test_hugging_face_out_of_reach(tiny_folder, monkeypatch):
    def unreachable(repo: str, file: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"no route to host.*give its path"):
        load(tiny_folder, "hf:owner/repo/file.pt")


def test_known_error_14_weights_that_saw_dior_are_marked(tiny_folder, tmp_path, state):
    save_file(state, tmp_path / "RemoteCLIP-ViT-B-32.safetensors")
    assert load(tiny_folder, tmp_path / "RemoteCLIP-ViT-B-32.safetensors").weights.saw_dior
    assert not load(tiny_folder, tiny_folder / "model.safetensors").weights.saw_dior


def test_unknown_local_folder(tmp_path):
    with pytest.raises(ParameterError, match="cannot build"):
        load_clip(f"local-dir:{tmp_path / 'nowhere'}", "random", device="cpu")


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 2).to_sparse(), torch.ones(2, 2).to_sparse_csr(), torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"), torch.ones(2).to(torch.float8_e4m3fn),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "csr", "complex", "meta", "float8", "quantised"],
)  # fmt: skip
def test_tensors_that_are_no_plain_numbers_are_one_line(tiny_folder, state, tmp_path, value):
    torch.save({**state, "logit_scale": value}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"logit_scale as .*save it as float32|plain weights file") as error:
        load(tiny_folder, tmp_path / "odd.pt")
    one_line(error)


@pytest.mark.parametrize(
    "change",
    [
        {"visual.transformer.resblocks.x.y": torch.ones(1)}, {"visual.conv1.weight": torch.ones(())},
        {"visual.proj": torch.ones(3)},
    ],
    ids=["a block without a number", "a scalar", "a vector"],
)  # fmt: skip
def test_odd_keys_and_shapes_are_one_line(tiny_folder, state, tmp_path, change):
    torch.save(state | change, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="no architecture of open_clip fits") as error:
        load(tiny_folder, tmp_path / "odd.pt")
    one_line(error)
