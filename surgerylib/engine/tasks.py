"""What the training loop is told: what is learned of what, and how long and how fast."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from ..datasets import check_disjoint
from ..errors import CacheError, ParameterError, TrainingError, checked
from ..files import differences
from ..weights import save_trained
from .own import key_of
from .parallel import read_ahead
from .store import Store

N_SYMMETRIES = 8  # of the square: quarter turns 0 to 3, then the same after a mirroring
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Settings = TypeVar("Settings")


class Task(ABC):
    """What is learned of what is stored of training images, and validated on what is stored of others.

    `fit` trains `model`, whatever it is. A subclass sets what is declared here, and says what a batch and its loss are.
    """

    name: str  # of its folders
    module: str  # what is trained, as `weights.save_trained` takes it
    criterion: str  # the figure of `validate` by which the best epoch is chosen; more is better
    model: nn.Module  # all of its parameters are trained
    places: np.ndarray  # of the training images that an epoch goes through
    # everything besides the schedule that the result depends on, plain values; under `loss` the name or key of the
    # loss, None where what it does cannot be told: such a training is not kept
    identity: Mapping[str, Any]
    about: dict[str, Any]  # plain values written beside the weights
    plain_settings: dict[str, Any]  # the settings as JSON takes them
    kept: dict[str, Tensor]  # what the task itself keeps over a restart

    def __init__(
        self, train: Store, validation: Store, settings: Any, belongs_to: Callable[[Any], Mapping[str, Any]]
    ) -> None:
        """Raise an error unless the stores go together: other images, but the same in all that `belongs_to` gives."""
        check_disjoint(train.dataset, validation.dataset)
        self.train, self.validation, self.settings, self._belongs_to = train, validation, settings, belongs_to(train)
        self.kept, self.plain_settings = {}, json.loads(json.dumps(asdict(settings)))
        if different := differences(belongs_to(validation), self._belongs_to):
            raise CacheError(
                f"the {train.what} to train and to validate on were made of different things ({different})"
            )

    @abstractmethod
    def batch(self, places: np.ndarray, symmetries: np.ndarray) -> Any:
        """Some of the training images, each under one of the `N_SYMMETRIES` where the settings `augment`; else 0."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The loss of a batch, with gradient, and figures for the history as (sum, count): sum / count of an epoch."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on images that are not trained on."""

    @property
    def steps(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-len(self.places) // self.settings.training_batch_size)

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """The batches of an epoch from number `first` on, shuffled, the same every time; the next is read ahead."""
        size, rng = self.settings.training_batch_size, np.random.default_rng([self.settings.seed, epoch])
        order = rng.permutation(self.places)
        turned = getattr(self.settings, "augment", False)
        symmetries = rng.integers(N_SYMMETRIES, size=len(order)) if turned else np.zeros(len(order), np.int64)
        parts = [slice(start, start + size) for start in range(first * size, len(order), size)]
        return read_ahead(lambda part: self.batch(order[part], symmetries[part]), parts)

    def made_of(
        self, loss: Callable[..., Any] | None, own: Callable[..., Any], settings: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        """The identity: settings that decide the weights, the data, and the loss: `own` where none is given."""
        return {
            "trained": type(self.model).__name__,
            "settings": settings,
            **more,
            "train_cache": self.train.key,
            "validation_cache": self.validation.key,
            "annotations": [self.train.dataset.fingerprint(), self.validation.dataset.fingerprint()],
            "loss": own.__name__ if loss is None else key_of(loss),
        }

    def check_has_boxes(self, store: Store, n_boxes: int) -> None:
        """Raise a `TrainingError` where no box of the classes that are trained on was found."""
        if not n_boxes:
            raise TrainingError(
                f"the split {store.dataset.split} has no box of the classes that are trained on; choose another"
            )

    def describe(self, batch: Any) -> str:
        """Names what is in a batch, for an error: the first few images."""
        ids = self.train.dataset.images["image_id"].iloc[batch.positions].tolist()
        return f"images {', '.join(ids[:4])}" + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")

    def save(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write weights for use, with what they belong to and where the images came from."""
        origins = {"trained_on": self.train.dataset.origin(), "chosen_on": self.validation.dataset.origin()}
        what = {"belongs_to": self._belongs_to, **self.about, **origins, **about}
        save_trained(path, self.module, self.model.config, weights, what)


@checked
class Schedule:
    """How long and how fast to learn."""

    epochs: Count = 40  # passes over the training images
    learning_rate: Positive = 3e-3  # AdamW's, reached after the warm-up
    min_learning_rate: NotNegative = 0.0  # what the cosine ends with
    warmup_epochs: NotNegative = 1.0  # epochs, or a part of one, in which the rate rises in equal steps
    weight_decay: NotNegative = 0.01  # AdamW's, of weights with two or more dimensions; biases and norms have none
    gradient_clip: Positive = 1.0  # largest norm of all gradients together
    patience: Count | None = None  # epochs without a better validation after which to stop; None never stops early

    def __post_init__(self) -> None:
        """Raise a `ParameterError` for values that do not go together."""
        if self.min_learning_rate > self.learning_rate:
            raise ParameterError(
                f"min_learning_rate must be at most learning_rate ({self.learning_rate}), got {self.min_learning_rate}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ParameterError(f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then a cosine that ends with the minimum."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        last = max(self.epochs * steps_per_epoch - 1 - warmup, 1)
        share = min((step - warmup) / last, 1.0)
        span = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + 0.5 * span * (1 + math.cos(math.pi * share))

    def short(self, epochs: int) -> Schedule:
        """The same with fewer epochs, the warm-up shortened in proportion, to compare variants with each other."""
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * epochs / self.epochs, patience=None)


def from_parameters(cls: type[Settings], parameters: Mapping[str, Any], prefix: str = "") -> Settings:
    """Settings out of a notebook's or configuration's parameters; what these do not name keeps its default.

    Args:
        cls: a `checked` dataclass; what is wrong is its `ParameterError`.
        parameters: by name; others than the fields of `cls` are left alone.
        prefix: a parameter of a field's name behind it goes before the one of the name alone.
    """
    names = {field.name: f"{prefix}{field.name}" for field in fields(cls)}
    names = {field: name if name in parameters else field for field, name in names.items()}
    try:
        return cls(**{field: parameters[name] for field, name in names.items() if name in parameters})
    except ParameterError as error:  # by the name under which the user gave it
        field, _, rest = str(error).partition(" ")
        where = "" if names.get(field, prefix) != field else f"{prefix.replace('_', ': ')}"
        raise ParameterError(f"{where}{names.get(field, field)} {rest}") from None
