"""The training loop: warm-up and cosine by step, validation each epoch, and a run that survives being killed.

What is trained is a `Task`: the localiser, the heatmap adapter. Nothing random is kept between steps: order and
augmentation of an epoch follow from (seed, epoch), so a run that goes on from a checkpoint ends, on the CPU and with
the same number of threads, with the same weights bit for bit as one that was never stopped.

A training's folder holds `resume.pt` (weights, optimiser, position in the epoch, history), `last.safetensors` and
`best.safetensors` (weights to use, with what they belong to), `epoch-NNN.safetensors` where asked for, and
`history.parquet`. Each is written aside and renamed.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import as_floats, as_whole_numbers
from ..errors import CheckpointError, ParameterError, TrainingError
from ..files import atomic_write, only_process, remove_parts
from ..identities import differences
from .streams import Streams, n_streams

RESUME = "resume.pt"
CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        epochs: passes over the training images.
        learning_rate: AdamW's, reached after the warm-up.
        min_learning_rate: what the cosine ends with.
        warmup_epochs: epochs, or a part of one, in which the rate rises in equal steps.
        weight_decay: AdamW's, of weights with two or more dimensions; biases and norms have none.
        gradient_clip: largest norm of all gradients together.
        patience: epochs without a better validation after which to stop; None never stops early.
    """

    epochs: int = 40
    learning_rate: float = 3e-3
    min_learning_rate: float = 0.0
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    patience: int | None = None

    def __post_init__(self) -> None:
        """Raise a `ParameterError` for a value that cannot be."""
        as_whole_numbers(self, {"epochs": 1, "patience": 1}, or_none=("patience",))
        as_floats(self, ("learning_rate", "gradient_clip"), above=True)
        as_floats(self, ("min_learning_rate", "warmup_epochs", "weight_decay"))
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


class Task(Protocol):
    """What is learned from what. `fit` trains `model`, whatever it is.

    Attributes:
        model: all of its parameters are trained.
        identity: everything besides the schedule that the result depends on; plain values.
        steps: batches an epoch.
        criterion: the figure of `validate` by which the best epoch is chosen; more is better.
    """

    model: nn.Module
    identity: Mapping[str, Any]
    steps: int
    criterion: str

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """The batches of an epoch from number `first` on, the same every time."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The loss of a batch, with gradient, and figures for the history as (sum, count): sum / count of an epoch.

        One of them is `loss`: its count is the batch's weight where several are averaged.
        """

    def parts(self, batch: Any, most: int) -> list[Any]:
        """The batch in at most so many parts, of whose losses the weighted mean is its own; itself if it has none."""

    def validate(self) -> dict[str, float]:
        """Figures on images that are not trained on."""

    def describe(self, batch: Any) -> str:
        """Names what is in a batch, for an error."""

    def state(self) -> dict[str, Tensor]:
        """What the task itself keeps over a restart."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def save(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write weights for use, with what they belong to."""


@dataclass(frozen=True)
class Training:
    """A training that came to its end.

    Attributes:
        folder: where its files lie.
        history: a row an epoch, 0 for the untrained model: epoch, step, learning_rate (of its last step), the figures
            of `Task.loss` and `Task.validate`.
        best_epoch: with the best validation; of equals the first.
        seconds: of this call: 0 where nothing was left to do.
        resumed_at: step at which this call took up an earlier one; None where it began anew.
        stopped_early: patience ran out.
    """

    folder: Path
    history: pd.DataFrame
    best_epoch: int
    seconds: float
    resumed_at: int | None
    stopped_early: bool

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.folder / "last.safetensors"

    def kept(self, epoch: int) -> Path:
        """Weights of an epoch that was asked for with `keep_epochs`."""
        return _epoch_path(self.folder, epoch)


def fit(
    task: Task,
    schedule: Schedule,
    folder: str | Path,
    *,
    keep_epochs: Sequence[int] = (),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    description: str = "training",
    after_step: Callable[[], object] | None = None,
) -> Training:
    """Train, or go on with a training that was stopped.

    AdamW; gradients clipped by their common norm; bfloat16 autocast on CUDA cards that have it, float32 elsewhere.

    Args:
        task: what is learned.
        schedule: how long and how fast.
        folder: of this training alone; one that was stopped there, of the same task and schedule, is gone on with.
        keep_epochs: epochs whose weights are kept as files of their own; 0 is the untrained model.
        checkpoint_seconds: at least so long between two checkpoints; 0 writes one after every step.
        description: of the progress bar.
        after_step: called after each step, in place of a bar; what it raises ends the training.

    Raises:
        TrainingError: no batch, or a loss or gradient that is not finite: the weights before that step are kept.
        CheckpointError: the folder holds a training of something else, or a damaged one.
        OutputError: the folder cannot be written, or another process trains there.
    """
    if task.steps < 1:
        raise TrainingError("there is no box to learn from: give a split with annotated images")
    folder = Path(folder)
    with only_process(folder, "trains"):
        remove_parts(folder)
        loop = _Loop(task, schedule, folder, keep_epochs, checkpoint_seconds)
        return loop.run(description, after_step)


class _Loop:
    """The state of a training between two steps."""

    def __init__(
        self, task: Task, schedule: Schedule, folder: Path, keep_epochs: Sequence[int], checkpoint_seconds: float
    ) -> None:
        self.task, self.schedule, self.folder = task, schedule, folder
        self.keep_epochs, self.checkpoint_seconds = set(keep_epochs), checkpoint_seconds
        self.identity = {**task.identity, "schedule": asdict(schedule), "keep_epochs": sorted(self.keep_epochs)}
        self.optimizer = optimizer_of(task.model, schedule)
        self.epoch, self.done = 0, 0  # epochs finished (0: not even the untrained model measured), steps of this epoch
        self.sums: dict[str, list[float]] = {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": -1, "value": -math.inf, "weights": {}}
        self.finished = self.stopped_early = False
        self.resumed_at = self._resume()

    def run(self, description: str, after_step: Callable[[], object] | None) -> Training:
        started = time.monotonic()
        if not self.finished:
            self._train(description, after_step)
        elif not all((self.folder / name).is_file() for name in ("last.safetensors", "best.safetensors")):
            self._checkpoint()  # somebody has deleted them
        gone = [epoch for epoch in self.keep_epochs if not self._kept_or_never_reached(epoch)]
        if gone:
            raise CheckpointError(
                f"{_epoch_path(self.folder, gone[0]).name} is gone from {self.folder}; delete the folder to train anew"
            )
        history = pd.DataFrame(self.history)
        seconds = time.monotonic() - started
        return Training(self.folder, history, self.best["epoch"], seconds, self.resumed_at, self.stopped_early)

    def _kept_or_never_reached(self, epoch: int) -> bool:
        return epoch > self.history[-1]["epoch"] or _epoch_path(self.folder, epoch).is_file()

    def _train(self, description: str, after_step: Callable[[], object] | None) -> None:
        task, steps = self.task, self.task.steps
        self.saved = time.monotonic()
        if not self.history:
            self._end_epoch(0)
        total = self.schedule.epochs * steps
        first = self.epoch * steps + self.done
        with (
            Streams(n_streams(next(task.model.parameters()).device)) as streams,
            tqdm(
                total=total, initial=first, desc=description, unit="step", delay=2, mininterval=0.5,
                disable=after_step is not None,
            ) as bar,
        ):  # fmt: skip
            while self.epoch < self.schedule.epochs and not self.stopped_early:
                for batch in task.batches(self.epoch + 1, self.done):
                    self._step(batch, streams)
                    (after_step or bar.update)()
                    if self.done < steps:
                        self._checkpoint_when_due()
                self.epoch, self.done = self.epoch + 1, 0
                self._end_epoch(self.epoch)
                # not drawn at once: a bar that is, before its delay, has no end of line when Ctrl-C stops it
                bar.set_postfix_str(f"{task.criterion} {self.history[-1][task.criterion]:.3f}", refresh=False)
                self._checkpoint_when_due()
        self.finished = True
        self._checkpoint()

    def _step(self, batch: Any, streams: Streams) -> None:
        rate = self.schedule.rate(self.epoch * self.task.steps + self.done, self.task.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            figures = train_step(self.task, self.optimizer, batch, clip=self.schedule.gradient_clip, streams=streams)
        except FloatingPointError as error:
            self._checkpoint()  # of the weights before this step, which are good
            raise TrainingError(
                f"{error} in epoch {self.epoch + 1}, batch {self.done + 1} of {self.task.steps} "
                f"({self.task.describe(batch)}): the weights before it are in {self.folder}; lower the learning rate "
                f"(now {rate:.2g}), or look at those images"
            ) from None
        self.done += 1
        for name, (value, count) in figures.items():
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0] += value
            sums[1] += count

    def _end_epoch(self, epoch: int) -> None:
        """Validate, add to the history, keep what is to be kept."""
        task = self.task
        step = epoch * task.steps
        rate = self.schedule.rate(step - 1, task.steps) if epoch else math.nan
        means = {name: value / count if count else math.nan for name, (value, count) in self.sums.items()}
        task.model.eval()
        validation = task.validate()
        self.history.append({"epoch": epoch, "step": step, "learning_rate": rate, **means, **validation})
        self.sums = {}
        if validation[task.criterion] > self.best["value"] or self.best["epoch"] < 0:
            self.best = {"epoch": epoch, "value": validation[task.criterion], "weights": _copied(task.model)}
        elif self.schedule.patience is not None and epoch - self.best["epoch"] >= self.schedule.patience:
            self.stopped_early = True
        if epoch in self.keep_epochs:
            task.save(_epoch_path(self.folder, epoch), _copied(task.model), self._about(epoch))

    def _about(self, epoch: int) -> dict[str, Any]:
        row = next(row for row in self.history if row["epoch"] == epoch)
        return {"epoch": epoch, "schedule": asdict(self.schedule), "validation": row[self.task.criterion]}

    def _checkpoint_when_due(self) -> None:
        if time.monotonic() - self.saved >= self.checkpoint_seconds:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Everything that a later run needs. `resume.pt` comes last: the others can be made again from it."""
        epoch = int(self.history[-1]["epoch"])
        if self.done == 0:  # between two epochs: the weights are those that were validated
            self.task.save(self.folder / "last.safetensors", _copied(self.task.model), self._about(epoch))
        self.task.save(self.folder / "best.safetensors", self.best["weights"], self._about(self.best["epoch"]))
        atomic_write(self.folder / "history.parquet", pd.DataFrame(self.history).to_parquet(index=False))
        state = {
            "identity": self.identity,
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state(),
            "best": self.best,
            "epoch": self.epoch,
            "done": self.done,
            "sums": self.sums,
            "history": self.history,
            "finished": self.finished,
            "stopped_early": self.stopped_early,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self.folder / RESUME, buffer.getvalue())
        self.saved = time.monotonic()

    def _resume(self) -> int | None:
        """Take up the training in the folder; the step to go on with, or None where there is none."""
        state = _read_state(self.folder / RESUME)
        if state is None:
            return None
        if different := differences(state["identity"], self.identity):
            raise CheckpointError(
                f"{self.folder} holds a training of something else ({different}); choose another folder or delete it"
            )
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.restore(state["task"])
        for name in ("best", "epoch", "done", "sums", "history", "finished", "stopped_early"):
            setattr(self, name, state[name])
        return self.epoch * self.task.steps + self.done


def train_step(
    task: Task, optimizer: torch.optim.Optimizer, batch: Any, *, clip: float, streams: Streams | None = None
) -> dict[str, tuple[float, float]]:
    """One step of the optimiser on one batch; returns the figures of `Task.loss`.

    Args:
        task: what is learned.
        optimizer: of its model's parameters.
        batch: one of `task.batches`.
        clip: largest norm of all gradients together.
        streams: each takes a part of the batch; None leaves it whole.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; the weights are as they were.
    """
    task.model.train()
    parameters = list(task.model.parameters())

    def of_part(part: Any) -> tuple[float, tuple[Tensor | None, ...], dict[str, tuple[float, float]]]:
        with _mixed_precision(parameters[0].device):
            loss, figures = task.loss(part)
        return float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True), figures

    losses, gradients, figures = zip(
        *([of_part(batch)] if streams is None else streams.map(of_part, task.parts(batch, streams.count))), strict=True
    )
    together = {name: tuple(map(sum, zip(*(of[name] for of in figures), strict=True))) for name in figures[0]}
    count = together["loss"][1]
    weights = [of["loss"][1] / count if count else 1 / len(losses) for of in figures]
    for parameter, of_parts in zip(parameters, zip(*gradients, strict=True), strict=True):
        shares = [weight * part for weight, part in zip(weights, of_parts, strict=True) if part is not None]
        parameter.grad = sum(shares[1:], shares[0]) if shares else None
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    value = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    if not math.isfinite(norm) or not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value:g} and its gradient {norm:g}")
    optimizer.step()
    return together


def progress_of(folder: str | Path) -> tuple[int, bool] | None:
    """How far the training in a folder has come: (epochs finished, whether it is at its end); None where there is none.

    Raises:
        CheckpointError: a damaged checkpoint.
    """
    state = _read_state(Path(folder) / RESUME)
    return None if state is None else (state["epoch"], state["finished"])


def _read_state(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")  # pickled code is never run
        if not isinstance(state, dict) or "identity" not in state:
            raise ValueError("it holds no training")
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} cannot be read ({reason}); delete it to train anew") from error
    return state


def optimizer_of(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.learning_rate, fused=True)


def _mixed_precision(device: torch.device) -> contextlib.AbstractContextManager:
    # bfloat16 has float32's range: no loss scaling whose state a checkpoint would have to carry
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _epoch_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:03d}.safetensors"
