"""Files of weights: CLIPs' from anywhere, and those of the small modules trained here; no pickled code is ever run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import CheckpointError, ParameterError, SurgeryWarning, nearest
from .files import EMBEDDED, EMBEDDED_MODEL, atomic_write, checkpoint_file, differences

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    # Beside a CPU build of torch torchvision's compiled operators do not load, and its import (hence open_clip's) stops
    # at "operator torchvision::nms does not exist". open_clip uses none of them: two schemas declared are enough, and
    # calling them remains an error. The library must stay alive: its declarations go when it is collected.
    if "torchvision::" not in str(error):
        raise
    _TORCHVISION_SCHEMAS = torch.library.Library("torchvision", "DEF")
    _TORCHVISION_SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _TORCHVISION_SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip

Module = TypeVar("Module", bound=nn.Module)

_RANDOM = "random weights (seed 0)"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# of weights, and of the counters and masks beside them
_DTYPES = frozenset({
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool,
})  # fmt: skip
# what open_clip's own tokenizers take; it hands all else that a configuration says to transformers
_TOKENIZER_OPTIONS = frozenset({"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"})


@dataclass(frozen=True)
class Weights:
    """Where the weights came from, and what they are."""

    source: str  # one line for a report
    sha256: str  # over names, types and values of all parameters; the same for one model in any file format
    # the pre-training data is known to hold DIOR, so that nothing here is "zero-shot": weights whose file or
    # repository is named after RemoteCLIP
    saw_dior: bool
    random: bool  # nothing was loaded


def build_model(name: str) -> tuple[nn.Module, object]:
    """An open_clip model with seeded random weights, and its tokenizer.

    Raises:
        ParameterError: open_clip knows no such model, or cannot build it.
        CheckpointError: the model's own configuration asks for what could run code out of its folder.
    """
    identifier = name
    if name == EMBEDDED:
        identifier = f"local-dir:{EMBEDDED_MODEL}"
        if not all((EMBEDDED_MODEL / file).is_file() for file in ("open_clip_config.json", "model.safetensors")):
            missing = f"the embedded model is not in {EMBEDDED_MODEL}"
            raise CheckpointError(f"{missing}: install from a clone with pip install -e .")
    elif ":" not in name and open_clip.get_model_config(name) is None:
        raise ParameterError(f"open_clip knows no model {name!r}; near names: {nearest(name, open_clip.list_models())}")
    with torch.random.fork_rng(devices=[]), _quiet_logging():
        torch.manual_seed(0)  # so that `random` means the same weights every time
        try:
            if ":" in name:
                _check_configuration(name)
            model = open_clip.create_model(identifier, load_weights=False, pretrained_text=False)
            return model, open_clip.get_tokenizer(identifier)
        except CheckpointError:
            raise
        except Exception as error:  # the network, or a configuration that says anything, and open_clip believes it
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise ParameterError(f"open_clip cannot build {name!r}: {reason}") from error


def _check_configuration(name: str) -> None:
    """Refuse a folder or repository that could run code: open_clip passes `tokenizer_kwargs` of its configuration on to
    transformers' `AutoTokenizer`, where one `trust_remote_code` runs Python files that lie beside it.
    """
    configuration = open_clip.get_model_config(name)
    if configuration is None:
        raise ValueError("no configuration there; give local-dir:FOLDER or hf-hub:OWNER/REPOSITORY")
    if refused := sorted(set(configuration["text_cfg"].get("tokenizer_kwargs", {})) - _TOKENIZER_OPTIONS):
        raise CheckpointError(
            f"the configuration of {name} sets {', '.join(map(repr, refused))} in tokenizer_kwargs, which could run "
            f"code or read other files; only {', '.join(sorted(_TOKENIZER_OPTIONS))} are taken: remove the rest"
        )


def load_weights(model: nn.Module, name: str, checkpoint: str | os.PathLike[str] | None) -> tuple[Weights, nn.Module]:
    """Fill `model` from a checkpoint in one of the forms that `clip.load_clip` takes.

    Gives what the weights are, and the model that holds them (a pretrained tag may bring its own).
    """
    path = None
    if checkpoint is None and name != EMBEDDED:
        said = f"no checkpoint given for {name}: its weights are random, its heatmaps mean nothing"
        warnings.warn(said, SurgeryWarning, stacklevel=3)
        checkpoint = "random"
    checkpoint = None if checkpoint is None else os.fspath(checkpoint)
    if checkpoint is None:
        source, path = "embedded, shipped with the project", EMBEDDED_MODEL / "model.safetensors"
    elif checkpoint == "random":
        source = _RANDOM
    elif checkpoint.startswith("hf:"):
        source, path = checkpoint, _download(checkpoint)
    elif path := checkpoint_file(checkpoint, Path()):
        source = path.name
    elif ":" not in name and open_clip.pretrained.is_pretrained_cfg(name, checkpoint):
        source = f"open_clip tag {checkpoint}"
        fetching = _fetching(f"the weights of {name} tag {checkpoint!r}", "check the network, or give a local file")
        with fetching, _quiet_logging(logging.ERROR), _safe_reading():
            model = open_clip.create_model(name, pretrained=checkpoint, weights_only=True)
    elif Path(checkpoint).suffix in _SUFFIXES or any(separator in checkpoint for separator in "/\\"):
        raise CheckpointError(f"checkpoint file not found: {checkpoint}; check the path, or give hf:owner/repo/file")
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        near = ", ".join(get_close_matches(checkpoint, tags, n=3, cutoff=0.0)) or "none"
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is neither a file nor a pretrained tag of {name} (nearest tags: {near}): "
            "give a file, a tag, or hf:owner/repo/file"
        )
    if path is not None:
        fill_model(model, read_state_dict(path), name, path)
    content = _content_sha256(model.state_dict())
    return Weights(source, content, saw_dior="remoteclip" in source.lower(), random=source == _RANDOM), model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by parameter name, on the CPU.

    Takes a plain state dict or `{"state_dict": ...}`, with or without a `module.` prefix, as safetensors or as a
    pickle read with `weights_only=True`.

    Raises:
        CheckpointError: truncated, with code in it, or not a state dict.
    """
    try:
        # not by open_clip's own function: after a TypeError that calls torch.load again without weights_only
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch's, on pickles that it refuses a moment later
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a plain weights file: it is damaged, or holds pickled code, which is never run; "
            "save its state_dict as safetensors where it comes from"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        hint = "it is a TorchScript archive" if "TorchScript" in str(error) else "truncated or not a checkpoint"
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read ({hint}): download or save it again"
        ) from error
    state = content["state_dict"] if isinstance(content, Mapping) and "state_dict" in content else content
    items = state.items() if isinstance(state, Mapping) else ()
    if not items or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
        raise CheckpointError(f"{path} holds no state dict, tensors by name: save model.state_dict() into it")
    for key, value in items:
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path} holds {key} as {value.dtype}, {value.layout}, on {value.device}; plain numbers of 16 bits or "
                "more are needed: save it as float32"
            )
    return {key.removeprefix("module."): value for key, value in items}  # of a training on several GPUs


def fill_model(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Copy `state` into `model`, every parameter or none.

    Raises:
        CheckpointError: keys or shapes differ (which, and the architecture that would fit), or a value is not finite.
    """
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    state.pop("text.transformer.embeddings.position_ids", None)  # a buffer that older versions saved
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in expected and state[scalar].numel() == expected[scalar].numel():
            state[scalar] = state[scalar].reshape(expected[scalar].shape)
    differing = [
        f"{key} ({_shape(state.get(key))} in the file, {_shape(expected.get(key))} in the model)"
        for key in sorted(expected.keys() | state.keys())
        if key not in state or key not in expected or state[key].shape != expected[key].shape
    ]
    if differing:
        fitting = _fitting_models(state)
        advice = f"the file fits {', '.join(fitting)}" if fitting else "no architecture of open_clip fits the file"
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(f"{path} is not of {name}: {'; '.join(differing[:3])}{more}; {advice}")
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path} holds NaN or infinite values, first in {key}: download or save it again")
    model.load_state_dict(state)


def untrained_model(make: Callable[..., Module], config: Mapping[str, Any], seed: int = 0) -> Module:
    """The module that a training with this seed starts from, in eval mode; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(**config).eval()


def save_trained(
    path: str | Path, what: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Write a module's weights, the `config` it is made with, and plain values about it; equal ones give equal files.

    Under `what`, the module's name, `load_trained` looks for it; of `about` it compares `belongs_to`.
    """
    # one entry: of several, safetensors writes another order each time
    metadata = {what: json.dumps({"config": config, "about": about})}
    content = safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}, metadata=metadata)
    return atomic_write(path, content)


def load_trained(
    path: str | Path,
    what: str,
    make: Callable[..., Module],
    *,
    belongs_to: Mapping[str, Any] | None,
    name: str,
    command: str,
) -> tuple[Module, dict[str, Any]]:
    """A module from a file that `save_trained` wrote, in eval mode on the CPU, and what was written about it.

    `make` gives the module of a config; `belongs_to` is what it will be used with, None compares nothing; `name` of the
    module and `command` to train one are for messages.

    Raises:
        CheckpointError: no such file, a damaged one, weights that are not finite, or one that belongs elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no trained {name} {path}; train one: {command}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[what])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        config, about = metadata["config"], metadata["about"]
        model = untrained_model(make, config)
        model.load_state_dict(weights)
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("it holds NaN or infinite weights")
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} is not a trained {name} ({reason}); train one again") from error
    if different := differences(about.get("belongs_to", {}), belongs_to or {}):
        raise CheckpointError(
            f"the {name} {path} belongs to something else ({different}); use it with what it was trained on, or "
            "train another"
        )
    return model, about


def _download(checkpoint: str) -> Path:
    from huggingface_hub import hf_hub_download

    owner, repo, file, *_ = [*checkpoint.removeprefix("hf:").split("/", 2), "", ""]
    if not (owner and repo and file):
        raise CheckpointError(f"checkpoint {checkpoint!r} is not of the form hf:owner/repo/file")
    remedy = "check the name and the network, or download the file and give its path"
    with _fetching(checkpoint, remedy), _quiet_logging():
        return Path(hf_hub_download(f"{owner}/{repo}", file))


def _fitting_models(state: Mapping[str, Tensor]) -> list[str]:
    """Built-in open_clip ViTs with the image tower of this state dict."""
    conv, projection = state.get("visual.conv1.weight"), state.get("visual.proj")
    if conv is None or projection is None or conv.ndim != 4 or projection.ndim != 2:
        return []
    blocks = {key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")}
    layers = 1 + max((int(block) for block in blocks if block.isdecimal()), default=-1)
    vision = {"layers": layers, "width": conv.shape[0], "patch_size": conv.shape[-1]}.items()
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    found = [name for name, of in configs.items()
             if of["embed_dim"] == projection.shape[1] and vision <= of["vision_cfg"].items()]  # fmt: skip
    return sorted(found, key=len)[:3]


def _content_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _fetching(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:  # the network's, the hub's, and what a library makes of them
        raise CheckpointError(f"{what} could not be fetched ({_first_line(error)}): {remedy}") from error


@contextmanager
def _safe_reading() -> Iterator[None]:
    """Without the variable that makes torch run pickled code, which open_clip's second try at a file would heed."""
    variable = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {variable: os.environ.pop(variable)} if variable in os.environ else {}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _quiet_logging(level: int = logging.WARNING) -> Iterator[None]:
    """Libraries log what is said here in one line: that weights are random, or that they can't be fetched."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
