"""Files of small trained modules: weights as safetensors, and in the metadata what they are and belong to, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import CheckpointError
from .files import atomic_write
from .identities import differences

Module = TypeVar("Module", bound=nn.Module)


def save_trained(
    path: str | Path, what: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Write a module's weights; equal ones give equal files.

    Args:
        path: the file.
        what: the module's name, under which `load_trained` looks for it.
        config: arguments that make the module.
        weights: its state dict.
        about: plain values; `belongs_to` is what `load_trained` compares.
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

    Args:
        path: the file.
        what: as in `save_trained`.
        make: the module of a config.
        belongs_to: what it will be used with; None compares nothing.
        name: of the module, for messages.
        command: that trains one, for messages.

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
        with torch.random.fork_rng(devices=[]):  # the random weights are thrown away, and nobody's draws are used up
            model = make(**config)
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
    return model.eval(), about
