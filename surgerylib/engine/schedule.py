"""How long and how fast to learn; and the types of the numbers that settings of trainings are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, TypeVar

from pydantic import Field

from ..errors import ParameterError, checked

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Settings = TypeVar("Settings")


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
