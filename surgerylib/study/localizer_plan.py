"""From plain parameters to a trained localiser: what notebook 03 and the command line have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..engine.caches import FeatureCache
from ..engine.localizer_training import LocalizerSettings, LocalizerTask, train_localizer
from ..engine.training import Schedule, Training
from ..errors import ParameterError
from ..files import atomic_write
from ..heatmaps import Setting
from ..localizer import LOCALIZER_INPUTS

PUBLISHED, PUBLISHED_HISTORY = "localizer.safetensors", "training_history.parquet"


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained on what, by the names of notebook 03's parameters.

    Attributes:
        train_split, choose_split: images that are trained on, and by which the best epoch is chosen.
        num_train_images, num_choice_images: so many of them, drawn at random; None takes all.
        kind, similarity, feature_layers: the class maps, and of how many last layers maps and features are.
        picture_size: side of the raw picture in pixels.
        batch_size: images a CLIP forward.
        training_batch_size, grid_size, l1_weight, giou_weight, positive_radius, positive_iou, assign, augment,
            seen_classes, seed: of `LocalizerSettings`.
        epochs, learning_rate, min_learning_rate, warmup_epochs, weight_decay, gradient_clip, patience: of `Schedule`.
    """

    train_split: str = "train"
    choose_split: str = "val"
    num_train_images: int | None = None
    num_choice_images: int | None = None
    kind: str | None = None
    similarity: str = "cosine"
    feature_layers: int = 3
    picture_size: int = 128
    batch_size: int = 16
    training_batch_size: int = LocalizerSettings.batch_size
    grid_size: int | None = LocalizerSettings.grid_size
    l1_weight: float = LocalizerSettings.l1_weight
    giou_weight: float = LocalizerSettings.giou_weight
    positive_radius: float = LocalizerSettings.positive_radius
    positive_iou: float = LocalizerSettings.positive_iou
    assign: str = LocalizerSettings.assign
    augment: bool = LocalizerSettings.augment
    seen_classes: tuple[str, ...] | list[str] | None = None
    epochs: int = Schedule.epochs
    learning_rate: float = Schedule.learning_rate
    min_learning_rate: float = Schedule.min_learning_rate
    warmup_epochs: float = Schedule.warmup_epochs
    weight_decay: float = Schedule.weight_decay
    gradient_clip: float = Schedule.gradient_clip
    patience: int | None = Schedule.patience
    seed: int = LocalizerSettings.seed

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> TrainingPlan:
        """The plan in a notebook's or configuration's parameters; others of them are left alone."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls) if field.name in parameters})

    @property
    def settings(self) -> LocalizerSettings:
        """Of the head and its loss.

        Raises:
            ParameterError: a value that cannot be.
        """
        seen = self.seen_classes
        if seen is not None and not (isinstance(seen, list | tuple) and all(isinstance(name, str) for name in seen)):
            raise ParameterError(f"seen_classes must be a list of class names, or null for all, got {seen!r}")
        return LocalizerSettings(
            grid_size=self.grid_size,
            batch_size=self.training_batch_size,
            l1_weight=self.l1_weight,
            giou_weight=self.giou_weight,
            positive_radius=self.positive_radius,
            positive_iou=self.positive_iou,
            assign=self.assign,
            augment=self.augment,
            seen_classes=None if seen is None else tuple(seen),
            seed=self.seed,
        )

    @property
    def schedule(self) -> Schedule:
        """How long and how fast.

        Raises:
            ParameterError: a value that cannot be.
        """
        return Schedule(**{field.name: getattr(self, field.name) for field in fields(Schedule)})

    def short(self, epochs: int) -> TrainingPlan:
        """The same with fewer epochs, the warm-up shortened in proportion, to compare variants with each other."""
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * epochs / self.epochs, patience=None)

    def variants(self) -> dict[str, LocalizerSettings]:
        """What is compared in short runs: the head with all inputs, with each alone, and under the other assigner."""
        settings = self.settings
        other = "best_iou" if settings.assign == "best_iou_or_center" else "best_iou_or_center"
        return {
            "all three": settings,
            **{f"{name} only": replace(settings, inputs=(name,)) for name in LOCALIZER_INPUTS},
            other: replace(settings, assign=other),
        }

    def caches(self, clip: SurgeryCLIP, datasets: Mapping[str, Dataset], cache_dir: Path) -> dict[str, FeatureCache]:
        """The feature cache of each data set, not computed yet."""
        return {
            role: FeatureCache(
                clip,
                data,
                cache_dir,
                setting=Setting(self.kind or "vv_mixed", self.similarity, self.feature_layers),
                picture_size=self.picture_size,
            )
            for role, data in datasets.items()
        }

    def train(
        self,
        caches: Mapping[str, FeatureCache],
        trainings_dir: Path,
        settings: LocalizerSettings | None = None,
        *,
        description: str = "training the localiser",
    ) -> tuple[LocalizerTask, Training]:
        """`train_localizer` on computed caches; `settings` for a variant."""
        return train_localizer(
            caches["train"], caches["choose"], settings or self.settings, self.schedule, trainings_dir,
            description=description,
        )  # fmt: skip


def publish(training: Training, out_dir: Path) -> Path:
    """Copy a training's best weights and its history into a run's folder; returns the weights' file."""
    atomic_write(out_dir / PUBLISHED_HISTORY, training.history.to_parquet(index=False))
    return atomic_write(out_dir / PUBLISHED, training.best.read_bytes())


def plain(parameters: TrainingPlan) -> dict[str, Any]:
    """The plan as plain values, for a JSON file."""
    return json.loads(json.dumps({field.name: getattr(parameters, field.name) for field in fields(parameters)}))
