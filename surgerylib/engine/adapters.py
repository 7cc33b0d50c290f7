"""Trained heatmap adapters from their files, ready for one CLIP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import HeatmapAdapter, clip_and_tokens, load_adapter
from ..clip import SurgeryCLIP
from ..datasets import Dataset, flattered_by
from ..errors import CheckpointError
from ..files import ADAPTER_FILES, PROJECT_ROOT, adapter_files, file_sha256, project_path
from ..heatmaps import Setting
from ..words import KIND_PATHS, kinds_on


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter from a file, ready for one CLIP."""

    model: HeatmapAdapter  # in eval mode, on the CLIP's device
    key: str  # the first digits of the file's sha256: names its maps
    patches: str  # the path, `qk` or `vv`, whose tokens it was trained on
    about: dict[str, Any]  # what was written about it: `seen_classes`, `kinds`, `settings`...
    file: Path  # where it came from

    @property
    def kinds(self) -> tuple[str, ...]:
        """The heatmap kinds that take their patches from this path."""
        return kinds_on(self.patches)

    @property
    def seen_classes(self) -> list[str]:
        """The classes that it was trained on."""
        return list(self.about["seen_classes"])

    def setting(self, kind: str, **others: Any) -> Setting:
        """The maps of a kind through this adapter; `others` are fields of `Setting`."""
        return Setting(kind, "cosine", self.model.num_layers, adapter=self.key, **others)


def find_adapters(where: str | Path) -> list[Path]:
    """The adapter files that a parameter names, as `files.adapter_files`; a `CheckpointError` where there is none."""
    found = adapter_files(str(where), PROJECT_ROOT)
    if not found:
        folder = project_path(where, PROJECT_ROOT)
        what = f"no {ADAPTER_FILES} in the folder" if os.path.isdir(folder) else "no file or folder"  # noqa: PTH112
        raise CheckpointError(f"{what} {folder}; train adapters with notebook 03, or: python -m surgerylib train")
    return found


def load_adapters(where: str | Path, clip: SurgeryCLIP) -> dict[str, TrainedAdapter]:
    """The adapters in a file or folder, by the kinds that they are for; kinds without one are left out.

    Args:
        where: as for `find_adapters`.
        clip: they must have been trained on its tokens.

    Raises:
        CheckpointError: none there, a damaged one, one of another CLIP, or two for one kind.
    """
    by_kind: dict[str, TrainedAdapter] = {}
    for path in find_adapters(where):
        model, about = load_adapter(path)
        belongs = about.get("belongs_to", {})
        patches, layers = belongs.get("patches"), belongs.get("layers")
        kinds = kinds_on(patches)
        if not kinds or not isinstance(layers, int) or layers != model.num_layers or "seen_classes" not in about:
            raise CheckpointError(f"{path} does not say which tokens it belongs to; train the adapter again")
        load_adapter(path, belongs_to=clip_and_tokens(clip, kinds[0], layers))
        if taken := by_kind.get(kinds[0]):
            raise CheckpointError(f"{taken.file} and {path} are both for {kinds[0]}; name one of the files")
        trained = TrainedAdapter(model.to(clip.device), file_sha256(path)[:12], patches, about, path)
        by_kind |= dict.fromkeys(kinds, trained)
    return {kind: by_kind[kind] for kind in KIND_PATHS if kind in by_kind}


def flattered_adapters(by_kind: Mapping[str, TrainedAdapter], dataset: Dataset) -> list[str]:
    """What a reader must know of the images, see `flattered_by`; each sentence once."""
    notes = (flattered_by(adapter.about, dataset, "adapter") for adapter in by_kind.values())
    return list(dict.fromkeys(note for of_one in notes for note in of_one))


def distinct_adapters(by_kind: Mapping[str, TrainedAdapter]) -> list[TrainedAdapter]:
    """Each adapter of `load_adapters` once: kinds that share their patches share one."""
    return list({adapter.key: adapter for adapter in by_kind.values()}.values())
