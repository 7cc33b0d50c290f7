"""What the training loop is told of what is learned: what the localiser and the heatmap adapter have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..datasets import check_disjoint
from ..errors import CacheError, TrainingError
from ..files import differences
from ..weights import save_trained
from .own import key_of
from .store import Store


class Task(ABC):
    """What is learned of what is stored of training images, and validated on what is stored of others.

    `fit` trains `model`, whatever it is. A subclass sets what is declared here, and says what a batch and its loss are.
    """

    name: str  # of its folders
    module: str  # what is trained, as `weights.save_trained` takes it
    criterion: str  # the figure of `validate` by which the best epoch is chosen; more is better
    model: nn.Module  # all of its parameters are trained
    steps: int  # batches an epoch
    # everything besides the schedule that the result depends on, plain values; under `loss` the name or key of the
    # loss, None where what it does cannot be told: such a training is not kept
    identity: Mapping[str, Any]
    about: dict[str, Any]  # plain values written beside the weights

    def __init__(
        self, train: Store, validation: Store, settings: Any, belongs_to: Callable[[Any], Mapping[str, Any]]
    ) -> None:
        """Raise an error unless the stores go together: other images, but the same in all that `belongs_to` gives."""
        check_disjoint(train.dataset, validation.dataset)
        self.train, self.validation, self.settings, self._belongs_to = train, validation, settings, belongs_to(train)
        if different := differences(belongs_to(validation), self._belongs_to):
            raise CacheError(
                f"the {train.what} to train and to validate on were made of different things ({different})"
            )

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """The batches of an epoch from number `first` on, the same every time."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The loss of a batch, with gradient, and figures for the history as (sum, count): sum / count of an epoch."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on images that are not trained on."""

    @property
    def plain_settings(self) -> dict[str, Any]:
        """The settings as JSON takes them."""
        return json.loads(json.dumps(asdict(self.settings)))

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

    def state(self) -> dict[str, Tensor]:
        """What the task itself keeps over a restart."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  # as `state`: a task without one is whole
        """Take up what `state` gave; nothing."""

    def save(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write weights for use, with what they belong to and where the images came from."""
        origins = {"trained_on": self.train.dataset.origin(), "chosen_on": self.validation.dataset.origin()}
        what = {"belongs_to": self._belongs_to, **self.about, **origins, **about}
        save_trained(path, self.module, self.model.config, weights, what)
