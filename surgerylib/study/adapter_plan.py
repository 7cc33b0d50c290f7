"""From plain parameters to trained heatmap adapters: what notebook 03 and the command line have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..engine.adapter_training import LOSSES, AdapterSettings, AdapterTask, train_adapter, training_folder
from ..engine.caches import TokenCache
from ..engine.side_by_side import Job, fit_side_by_side
from ..engine.training import Schedule, Training
from ..errors import ParameterError, UnknownClassError
from ..files import atomic_write
from ..heatmaps import HEATMAP_KINDS, KIND_PATHS, KIND_PREFERENCE
from ..words import canonical_class

STAGES = ("heatmap", "localizer")
BOTH = "both"
PUBLISHED_FOLDER = "adapters"
# classes of the earlier study's mini-DIOR that it kept for the test: trained on are the other 16
NOVEL_CLASSES = ("airport", "basketballcourt", "stadium", "windmill")


@dataclass(frozen=True)
class AdapterPlan:
    """What adapters are trained on what, by the names of notebook 03's parameters.

    Attributes:
        feature_layers: last layers whose tokens are adapted.
        batch_size: images a CLIP forward.
        training_batch_size: images a step.
        adapter_rank: of the residual.
        classification_weight, localization_weight, sparsity_weight, anchor_weight, positive_weight, focal_gamma, seed:
            of `AdapterSettings`.
        unseen_classes: whose boxes are not trained on; none trains on all.
        adapter_epochs, adapter_learning_rate, min_learning_rate, warmup_epochs, weight_decay, gradient_clip, patience:
            of `Schedule`.
    """

    feature_layers: int = 3
    batch_size: int = 16
    training_batch_size: int = AdapterSettings.batch_size
    adapter_rank: int = AdapterSettings.rank
    classification_weight: float = AdapterSettings.classification_weight
    localization_weight: float = AdapterSettings.localization_weight
    sparsity_weight: float = AdapterSettings.sparsity_weight
    anchor_weight: float = AdapterSettings.anchor_weight
    positive_weight: float = AdapterSettings.positive_weight
    focal_gamma: float = AdapterSettings.focal_gamma
    unseen_classes: tuple[str, ...] | list[str] = NOVEL_CLASSES
    adapter_epochs: int = 60
    adapter_learning_rate: float = 0.01
    min_learning_rate: float = Schedule.min_learning_rate
    warmup_epochs: float = Schedule.warmup_epochs
    weight_decay: float = Schedule.weight_decay
    gradient_clip: float = Schedule.gradient_clip
    patience: int | None = Schedule.patience
    seed: int = AdapterSettings.seed

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> AdapterPlan:
        """The plan in a notebook's or configuration's parameters; others of them are left alone."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls) if field.name in parameters})

    def settings(self, classes: Sequence[str]) -> AdapterSettings:
        """Of the adapter and its losses.

        Args:
            classes: the class list.

        Raises:
            ParameterError: a value that cannot be, or no class left to train on.
            UnknownClassError: a name that is not in the class list.
        """
        names = self.unseen_classes
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ParameterError(f"unseen_classes must be a list of class names, [] for none, got {names!r}")
        try:
            unseen = {canonical_class(name, classes) for name in names}
        except UnknownClassError as error:
            raise UnknownClassError(f"unseen_classes: {error}") from None
        seen = tuple(name for name in classes if name not in unseen)
        if not seen:
            raise ParameterError("unseen_classes names all classes; leave one or more to train on")
        return AdapterSettings(
            rank=self.adapter_rank,
            batch_size=self.training_batch_size,
            **{f"{name}_weight": getattr(self, f"{name}_weight") for name in LOSSES},
            anchor_weight=self.anchor_weight,
            positive_weight=self.positive_weight,
            focal_gamma=self.focal_gamma,
            seen_classes=seen if unseen else None,
            seed=self.seed,
        )

    @property
    def schedule(self) -> Schedule:
        """How long and how fast.

        Raises:
            ParameterError: a value that cannot be.
        """
        own = {"epochs": self.adapter_epochs, "learning_rate": self.adapter_learning_rate}
        others = {field.name for field in fields(Schedule)} - set(own)
        try:
            return Schedule(**own, **{name: getattr(self, name) for name in others})
        except ParameterError as error:  # of epochs and learning_rate, which are also the head's parameters
            raise ParameterError(f"the adapter's schedule: {error}") from None

    def short(self, epochs: int) -> AdapterPlan:
        """The same with fewer epochs, the warm-up shortened in proportion, to compare variants with each other."""
        warmup = self.warmup_epochs * epochs / self.adapter_epochs
        return replace(self, adapter_epochs=epochs, warmup_epochs=warmup, patience=None)

    def caches(self, clip: SurgeryCLIP, datasets: Mapping[str, Dataset], cache_dir: Path) -> dict[str, TokenCache]:
        """The token caches to train and to choose on, not computed yet."""
        return {
            role: TokenCache(clip, datasets[role], cache_dir, layers=self.feature_layers)
            for role in ("train", "choose")
        }

    def train(
        self,
        caches: Mapping[str, TokenCache],
        trainings_dir: Path,
        kind: str,
        settings: AdapterSettings | None = None,
        *,
        description: str | None = None,
    ) -> tuple[AdapterTask, Training]:
        """`train_adapter` on computed caches; `settings` for a variant."""
        return train_adapter(
            caches["train"], caches["choose"], settings or self.settings(caches["train"].dataset.classes),
            self.schedule, trainings_dir, kind=kind, description=description or f"training the adapter of {kind}",
        )  # fmt: skip

    def train_all(
        self,
        caches: Mapping[str, TokenCache],
        trainings_dir: Path,
        variants: Mapping[str, tuple[str, AdapterSettings | None]],
        *,
        description: str = "training the adapters",
    ) -> dict[str, Training]:
        """`train` of several at once, see `fit_side_by_side`: name -> kind and settings, None for the plan's.

        Equal ones are trained once.
        """
        own = self.settings(caches["train"].dataset.classes)
        jobs: dict[str, Job] = {}
        for name, (kind, settings) in variants.items():
            task = AdapterTask(caches["train"], caches["choose"], settings or own, kind=kind)
            jobs[name] = Job(task, self.schedule, training_folder(task, self.schedule, trainings_dir))
        distinct = list({job.folder: job for job in jobs.values()}.values())
        trained = fit_side_by_side(distinct, description=description)
        of_folder = {job.folder: training for job, training in zip(distinct, trained, strict=True)}
        return {name: of_folder[job.folder] for name, job in jobs.items()}


def check_stage(stage: str) -> tuple[str, ...]:
    """The stages that a parameter names: one of `STAGES`, or both.

    Raises:
        ParameterError: another word.
    """
    if stage not in (*STAGES, BOTH):
        raise ParameterError(f"stage must be {', '.join(STAGES)} or {BOTH}, got {stage!r}")
    return STAGES if stage == BOTH else (stage,)


def adapted_kinds() -> list[str]:
    """One kind for each path that patches come from, the one preferred: an adapter each serves all four."""
    paths = dict.fromkeys(KIND_PATHS[kind][1] for kind in HEATMAP_KINDS)
    return [next(kind for kind in KIND_PREFERENCE if KIND_PATHS[kind][1] == path) for path in paths]


def publish_adapters(trainings: Mapping[str, Training], out_dir: Path) -> dict[str, Path]:
    """Copy the best weights of each kind's training into a run's folder; returns the files."""
    return {
        kind: atomic_write(out_dir / PUBLISHED_FOLDER / f"adapter_{kind}.safetensors", training.best.read_bytes())
        for kind, training in trainings.items()
    }
