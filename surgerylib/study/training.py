"""From notebook 03's parameters to trained heads and adapters: what it and the command line have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..engine import (
    AdapterSettings,
    Count,
    FeatureCache,
    LocalizerSettings,
    Schedule,
    TokenCache,
    Training,
    from_parameters,
)
from ..errors import checked
from ..files import atomic_write
from ..heatmaps import Setting
from ..localizer import LOCALIZER_INPUTS
from ..words import HEATMAP_KINDS, KIND_PATHS, KIND_PREFERENCE
from .tables import plain

STAGES = ("heatmap", "localizer")
BOTH = "both"
PUBLISHED, PUBLISHED_HISTORY = "localizer.safetensors", "training_history.parquet"
PUBLISHED_FOLDER = "adapters"
_ADAPTER = "adapter_"


@checked
class TrainingPlan:
    """What is trained on what."""

    stage: Literal["heatmap", "localizer", "both"] = BOTH
    train_split: str = "train"
    choose_split: str = "val"  # whose images the best epoch is chosen by
    num_train_images: Count | None = None  # so many of a split, drawn at random; None takes all
    num_choice_images: Count | None = None
    kind: str | None = None  # this and the similarity: of the class maps
    similarity: str = "cosine"
    feature_layers: Count = 3  # of how many last layers maps, features and tokens are
    picture_size: Annotated[int, Field(ge=8)] = 128  # side of the raw picture in pixels
    batch_size: Count = 16  # images a CLIP forward
    head: LocalizerSettings | None = None  # this and the schedule: of the localiser; None where it is not trained
    schedule: Schedule | None = None
    adapter: AdapterSettings | None = None  # this and its schedule: of the adapters; None where none is trained
    adapter_schedule: Schedule | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> TrainingPlan:
        """The plan in a notebook's or configuration's parameters; others of them are left alone.

        Raises:
            ParameterError: a value that cannot be, of a stage that is asked for.
        """
        # `adapter` is another parameter, of the notebooks that take one
        plan = from_parameters(cls, {name: value for name, value in parameters.items() if name not in _NESTED})
        made = {
            name: from_parameters(of, parameters, prefix)
            for name, (stage, of, prefix) in _NESTED.items()
            if stage in plan.stages
        }
        return replace(plan, **made)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those asked for, in order."""
        return STAGES if self.stage == BOTH else (self.stage,)

    def parameters(self, stage: str) -> dict[str, Any]:
        """What decides a stage, by the names of the notebook's parameters: plain values, for a JSON file."""
        own = {name: value for name, value in vars(self).items() if name not in ("stage", *_NESTED)}
        if stage == "localizer":
            own |= asdict(self.head) | asdict(self.schedule)
            del own["inputs"]
        else:
            own = {name: own[name] for name in ("feature_layers", "batch_size")}
            trained = asdict(self.adapter) | asdict(self.adapter_schedule)
            own |= {f"{_ADAPTER}{name}" if name in _PREFIXED else name: value for name, value in trained.items()}
        return plain(own)

    def feature_caches(
        self, clip: SurgeryCLIP, datasets: Mapping[str, Dataset], cache_dir: Path
    ) -> dict[str, FeatureCache]:
        """What the head is trained on, of each data set; not computed yet."""
        setting = Setting(self.kind or "vv_mixed", self.similarity, self.feature_layers)
        options = {"setting": setting, "picture_size": self.picture_size}
        return {role: FeatureCache(clip, data, cache_dir, **options) for role, data in datasets.items()}

    def token_caches(
        self, clip: SurgeryCLIP, datasets: Mapping[str, Dataset], cache_dir: Path
    ) -> dict[str, TokenCache]:
        """What adapters are trained and chosen on; not computed yet."""
        roles = ("train", "choose")
        return {role: TokenCache(clip, datasets[role], cache_dir, layers=self.feature_layers) for role in roles}


# field of a plan -> the stage that has it, of which class, and what stands before names that both trainings have
_NESTED = {
    "head": ("localizer", LocalizerSettings, ""),
    "schedule": ("localizer", Schedule, ""),
    "adapter": ("heatmap", AdapterSettings, _ADAPTER),
    "adapter_schedule": ("heatmap", Schedule, _ADAPTER),
}
_PREFIXED = ("rank", "epochs", "learning_rate")


def head_variants(settings: LocalizerSettings) -> dict[str, LocalizerSettings]:
    """What is compared in short runs: the head with all inputs, with each alone, and under the other assigner."""
    other = "best_iou" if settings.assign == "best_iou_or_center" else "best_iou_or_center"
    return {
        "all three": settings,
        **{f"{name} only": replace(settings, inputs=(name,)) for name in LOCALIZER_INPUTS},
        other: replace(settings, assign=other),
    }


def adapted_kinds() -> list[str]:
    """One kind for each path that patches come from, the one preferred: an adapter each serves all four."""
    paths = dict.fromkeys(KIND_PATHS[kind][1] for kind in HEATMAP_KINDS)
    return [next(kind for kind in KIND_PREFERENCE if KIND_PATHS[kind][1] == path) for path in paths]


def publish(training: Training, out_dir: Path) -> Path:
    """Copy a head's best weights and its history into a run's folder; returns the weights' file."""
    atomic_write(out_dir / PUBLISHED_HISTORY, training.history.to_parquet(index=False))
    return atomic_write(out_dir / PUBLISHED, training.best.read_bytes())


def publish_adapters(trainings: Mapping[str, Training], out_dir: Path) -> dict[str, Path]:
    """Copy the best weights of each kind's training into a run's folder; returns the files."""
    return {
        kind: atomic_write(out_dir / PUBLISHED_FOLDER / f"adapter_{kind}.safetensors", training.best.read_bytes())
        for kind, training in trainings.items()
    }
