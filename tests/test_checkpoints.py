from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_models import TINY_CONFIG, Touch, load_tiny, write_config, write_model

from surgerylib import weights as checkpoints
from surgerylib.clip import SurgeryCLIP, load_clip
from surgerylib.errors import CheckpointError, ParameterError


def changed(part: str, **values) -> dict:
    return {**TINY_CONFIG, part: {**TINY_CONFIG[part], **values}}


@pytest.fixture
def state(tiny_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_folder / "model.safetensors")


def not_taken(match: str, tiny: SurgeryCLIP, checkpoint: Path | str, name: str = "tiny") -> str:
    """The line that says why weights are not taken."""
    return refused(checkpoints.load_weights, CheckpointError, match, tiny.model, name, checkpoint)


def test_known_error_14_weights_that_saw_dior_are_marked(tiny_folder, tiny, state, tmp_path):
    """By the name of their file; and every form of one checkpoint gives the same model."""
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": prefixed}, tmp_path / "parallel.pt")
    save_file(prefixed, tmp_path / "RemoteCLIP-parallel.safetensors")
    for name in ("plain.pt", "wrapped.pt", "parallel.pt", "RemoteCLIP-parallel.safetensors"):
        weights = load_tiny(tiny_folder, checkpoint=tmp_path / name).weights
        assert weights.sha256 == tiny.weights.sha256
        assert weights.saw_dior == name.startswith("RemoteCLIP")


@pytest.mark.parametrize(("checkpoint", "match"), [
    ("nowhere.pt", r"file not found: .*nowhere\.pt"), ("laion2b_s34b", r"nearest tags: laion2b_s34b_b79k"),
    *((bad, "hf:owner/repo/file") for bad in ("hf:", "hf:owner", "hf:owner/repo", "hf:owner//file")),
])  # fmt: skip
def test_weights_from_nowhere(tiny, checkpoint, match):
    assert len(not_taken(match, tiny, checkpoint, "ViT-B-32")) < 250


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated(tiny, state, tmp_path, suffix, keep):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    content = whole.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    not_taken("cut", tiny, path)


class NotBeforeTheSecondTry:
    """Read as plain weights it raises a TypeError; read by a full unpickler it is nothing special."""

    def __reduce__(self):
        return OrderedDict, (), (None, {"attribute": 1})


@pytest.mark.filterwarnings("error")  # one line on the screen, without torch's own
@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
@pytest.mark.parametrize("told", [False, True])
def test_pickle_with_code_never_runs_not_even_where_torch_is_told_to_run_it(tiny, tmp_path, monkeypatch, save, told):
    if told:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    save({"state_dict": [*[NotBeforeTheSecondTry()] * told, Touch(tmp_path / "created")]}, tmp_path / "hostile.pt")
    not_taken("never run", tiny, tmp_path / "hostile.pt")
    assert not (tmp_path / "created").exists()


def test_a_tag_is_read_without_the_variable_that_runs_pickled_code(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    seen = []

    def fetched(name, **options):
        seen.append((os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"), options["weights_only"]))
        raise OSError("no network")

    monkeypatch.setattr(checkpoints.open_clip, "create_model", fetched)
    refused(checkpoints.load_weights, CheckpointError, "no network", torch.nn.Module(), "ViT-B-32", "openai")
    assert seen == [(None, True)]
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize("option", ["trust_remote_code", "bpe_path", "tokenizer_file"])
def test_a_configuration_cannot_make_transformers_run_the_code_of_its_folder(tmp_path, monkeypatch, option):
    asked = []
    tokenizers = types.SimpleNamespace(from_pretrained=lambda *args, **options: asked.append(options))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=tokenizers))
    write_config(tmp_path, changed("text_cfg", hf_tokenizer_name="any", tokenizer_kwargs={option: True}))
    refused(load_tiny, CheckpointError, f"'{option}' in tokenizer_kwargs", tmp_path, checkpoint="random")
    assert asked == []
    write_config(tmp_path, changed("text_cfg", hf_tokenizer_name="any", tokenizer_kwargs={"clean": "lower"}))
    checkpoints.build_model(f"local-dir:{tmp_path}")
    assert asked == [{"cache_dir": None}]


@pytest.mark.parametrize("config", [
    [1], "text", {}, {**TINY_CONFIG, "unknown": 1}, {**TINY_CONFIG, "embed_dim": "many"},
    *({key: TINY_CONFIG[key] for key in ("embed_dim", part)} for part in ("vision_cfg", "text_cfg")),
    changed("vision_cfg", patch_size=0), changed("vision_cfg", width=2**50),
    *(changed("text_cfg", tokenizer_kwargs=wrong)
      for wrong in (3, {"clean": "thoroughly"}, {"additional_special_tokens": "("})),
])  # fmt: skip
def test_a_configuration_that_cannot_be_built_is_one_line(tmp_path, config):
    write_config(tmp_path, config)
    refused(load_tiny, ParameterError, "open_clip cannot build", tmp_path, checkpoint="random")


@pytest.mark.parametrize("name", ["file:///etc", "local-dir:", "local-dir:/nowhere", "hf-hub:", ":", "hf:owner/repo"])
def test_a_model_from_nowhere(name):
    refused(load_clip, ParameterError, "open_clip cannot build", name, "random", device="cpu")


def test_other_architecture_names_three_keys_and_what_fits(tiny, tmp_path):
    other = write_model(tmp_path, changed("vision_cfg", width=32))
    message = not_taken("no architecture of open_clip fits", tiny, other / "model.safetensors")
    assert message.count(" in the model)") == 3
    assert "more" in message
    with torch.device("meta"):
        layers = checkpoints.open_clip.create_model("ViT-B-32", load_weights=False, device="meta").state_dict()
    sized = ("visual.conv1.weight", "visual.proj")  # of the others the names are enough
    state = {key: torch.zeros(value.shape if key in sized else 1) for key, value in layers.items()}
    torch.save(state, tmp_path / "b32.pt")
    not_taken(r"the file fits ViT-B-32\b", tiny, tmp_path / "b32.pt")


NOTHING_FITS = "no architecture of open_clip fits"
NOT_PLAIN = "logit_scale as .*save it as float32|plain weights file"


@pytest.mark.parametrize(("match", "key", "value"), [
    (r"extra \(2 in the file, missing in the model\)", "extra", torch.zeros(2)),
    (r"ln_final.bias \(missing in the file, 32 in the model\)", "ln_final.bias", None),
    (r"NaN.*visual\.proj", "visual.proj", torch.full((64, 24), torch.nan)),
    (NOTHING_FITS, "visual.transformer.resblocks.x.y", torch.ones(1)),
    (NOTHING_FITS, "visual.conv1.weight", torch.ones(())),
    (NOTHING_FITS, "visual.proj", torch.ones(3)),
    *((NOT_PLAIN, "logit_scale", value) for value in (
        torch.ones(2, 2).to_sparse(), torch.ones(2, 2).to_sparse_csr(), torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"), torch.ones(2).to(torch.float8_e4m3fn),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    )),
])  # fmt: skip
def test_a_state_dict_that_does_not_fit_is_one_line(tiny, state, tmp_path, match, key, value):
    odd = {name: tensor for name, tensor in {**state, key: value}.items() if tensor is not None}
    torch.save(odd, tmp_path / "odd.pt")
    not_taken(match, tiny, tmp_path / "odd.pt")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_a_file_without_a_state_dict(tiny, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    not_taken("state_dict|state dict", tiny, tmp_path / "other.pt")


def test_hugging_face_file(tiny_folder, tiny, monkeypatch):
    asked = []

    def fake(repo: str, file: str) -> str:
        asked.append((repo, file))
        if repo == "owner/gone":
            raise OSError("no route to host")
        return str(tiny_folder / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    model = load_tiny(tiny_folder, checkpoint="hf:chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt")
    assert asked == [("chendelong/RemoteCLIP", "RemoteCLIP-ViT-B-32.pt")]
    assert model.weights.source == "hf:chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt"
    not_taken(r"no route to host.*give its path", tiny, "hf:owner/gone/file.pt")
