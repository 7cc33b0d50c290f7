"""The training loop: warm-up and cosine by step, validation each epoch, and a run that survives being killed.

What is trained is a `Task`: the localiser, the heatmap adapter. Nothing random is kept between steps: order and
augmentation of an epoch follow from (seed, epoch), so a run that goes on from a checkpoint ends, on the CPU and with
the same number of threads, with the same weights bit for bit as one that was never stopped.

A training's folder holds `resume.pt` (weights, optimiser, position, history; written after each epoch and on Ctrl-C)
and, once the training has come to an end or was stopped, `last.safetensors` and `best.safetensors` (weights to use,
with what they belong to) and `history.parquet`; `epoch-NNN.safetensors` where asked for. Each is written aside and
renamed.
"""

from __future__ import annotations

import io
import math
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError, TrainingError
from ..files import atomic_write, differences, only_process, remove_parts, short_hash
from .tasks import Schedule, Task

# counted up when the same data and settings give other weights than before; a golden test says when
TRAINING_VERSION = 1
RESUME = "resume.pt"
_EPOCH = "epoch-{:03d}.safetensors"
_KEPT = ("best", "epoch", "done", "sums", "history", "finished", "stopped_early")  # of a loop, in a checkpoint


@dataclass(frozen=True)
class Training:
    """A training that came to its end."""

    folder: Path  # where its files lie
    # a row an epoch, 0 for the untrained model: epoch, step, learning_rate (of its last step), the figures of
    # `Task.loss` and `Task.validate`
    history: pd.DataFrame
    best_epoch: int  # with the best validation; of equals the first
    seconds: float = 0.0  # of this call: 0 where nothing was left to do
    resumed_at: int | None = None  # step at which this call took up an earlier one; None where it began anew
    stopped_early: bool = False  # patience ran out
    scratch: tempfile.TemporaryDirectory | None = None  # where the training is not kept: the folder goes with this

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
        return self.folder / _EPOCH.format(epoch)


def fit(
    task: Task,
    schedule: Schedule,
    trainings_dir: str | Path,
    *,
    keep_epochs: Sequence[int] = (),
    description: str = "training",
) -> Training:
    """Train, or go on with a training that was stopped; one line says so.

    AdamW; gradients clipped by their common norm; bfloat16 autocast on CUDA cards that have it, float32 elsewhere.

    Args:
        task: what is learned.
        schedule: how long and how fast.
        trainings_dir: folder of trainings, a subfolder each (`folder_of`); one of this very task and schedule that is
            there is gone on with. A task with a loss that cannot be told from others is trained in a temporary folder.
        keep_epochs: epochs whose weights are kept as files of their own; 0 is the untrained model.
        description: of the progress bar, and of the line.

    Raises:
        TrainingError: no batch, or a loss or gradient that is not finite: the weights before that step are kept.
        CheckpointError: the folder holds a training of something else, or a damaged one.
        OutputError: the folder cannot be written, or another process trains there.
    """
    if task.steps < 1:
        raise TrainingError("there is no box to learn from: give a split with annotated images")
    scratch = None if task.identity["loss"] else tempfile.TemporaryDirectory(prefix="training-")
    folder = folder_of(task, schedule, scratch.name if scratch else trainings_dir)
    with only_process(folder, "trains"):
        remove_parts(folder)
        loop = _Loop(task, schedule, folder, keep_epochs)
        if loop.resumed_at is not None:
            made_of = (f"{name} {value[:24]}" for name, value in task.identity.items() if isinstance(value, str))
            print(f"{description}: taken up behind epoch {loop.epoch} of {schedule.epochs}; {', '.join(made_of)}")
        return replace(loop.run(description), scratch=scratch)


def folder_of(task: Task, schedule: Schedule, trainings_dir: str | Path) -> Path:
    """The folder of a training: named after all that it depends on, so that no two share one."""
    return Path(trainings_dir) / f"{task.name}-{short_hash(_identity(task, schedule))}"


def progress_of(folder: str | Path) -> tuple[int, bool] | None:
    """How far the training in a folder has come: (epochs finished, is it at its end); None where there is none."""
    state = _read_state(Path(folder) / RESUME)
    return None if state is None else (state["epoch"], state["finished"])


def _identity(task: Task, schedule: Schedule) -> dict[str, Any]:
    return {"version": TRAINING_VERSION, **task.identity, "schedule": asdict(schedule)}


class _Loop:
    """The state of a training between two steps."""

    def __init__(self, task: Task, schedule: Schedule, folder: Path, keep_epochs: Sequence[int]) -> None:
        self.task, self.schedule, self.folder, self.keep_epochs = task, schedule, folder, keep_epochs
        self.identity = _identity(task, schedule)
        self.optimizer = _optimizer(task.model, schedule)
        self.epoch, self.done = 0, 0  # epochs finished (0: not even the untrained model measured), steps of this epoch
        self.sums: dict[str, list[float]] = {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": -1, "value": -math.inf, "weights": {}}
        self.finished = self.stopped_early = False
        self.whole = False  # weights and position belong together
        self.resumed_at = self._resume()

    def run(self, description: str) -> Training:
        started = time.monotonic()
        if not self.finished:
            self._train(description)
        elif not all((self.folder / name).is_file() for name in ("last.safetensors", "best.safetensors")):
            self._write_for_use()  # somebody has deleted them
        for name in [_EPOCH.format(epoch) for epoch in self.keep_epochs if epoch <= self.history[-1]["epoch"]]:
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{name} is gone from {self.folder}; delete the folder to train anew")
        seconds = time.monotonic() - started
        return Training(
            self.folder, pd.DataFrame(self.history), self.best["epoch"], seconds, self.resumed_at, self.stopped_early
        )

    def _train(self, description: str) -> None:
        steps = self.task.steps
        total, first = self.schedule.epochs * steps, self.epoch * steps + self.done
        if not self.history:
            self._end_epoch(0)
        with tqdm(total=total, initial=first, desc=description, unit="step", delay=2, mininterval=0.5) as bar:
            try:
                while self.epoch < self.schedule.epochs and not self.stopped_early:
                    self.whole = True
                    for batch in self.task.batches(self.epoch + 1, self.done):
                        self._step(batch)
                        bar.update()
                    self.whole = False
                    self.epoch, self.done = self.epoch + 1, 0
                    self._end_epoch(self.epoch)
                    # not drawn at once: a bar that is, before its delay, has no end of line when Ctrl-C stops it
                    criterion = self.task.criterion
                    bar.set_postfix_str(f"{criterion} {self.history[-1][criterion]:.3f}", refresh=False)
            except KeyboardInterrupt:
                if self.whole:  # else the checkpoint of the epoch before stands
                    self._checkpoint()
                raise
        self._write_for_use()
        self.finished = True
        self._checkpoint()

    def _step(self, batch: Any) -> None:
        rate = self.schedule.rate(self.epoch * self.task.steps + self.done, self.task.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        model, parameters = self.task.model.train(), list(self.task.model.parameters())
        model.zero_grad()
        # bfloat16 has float32's range: no loss scaling whose state a checkpoint would have to carry
        mixed = parameters[0].is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=mixed):
            loss, figures = self.task.loss(batch)
        loss.backward()
        value, norm = float(loss.detach()), float(nn.utils.clip_grad_norm_(parameters, self.schedule.gradient_clip))
        if not math.isfinite(norm) or not math.isfinite(value):
            self._write_for_use()
            self._checkpoint()  # of the weights before this step, which are good
            raise TrainingError(
                f"the loss is {value:g} and its gradient {norm:g} in epoch {self.epoch + 1}, batch {self.done + 1} of "
                f"{self.task.steps} ({self.task.describe(batch)}): the weights before it are in {self.folder}; lower "
                f"the learning rate (now {rate:.2g}), or look at those images"
            )
        self.whole = False
        self.optimizer.step()
        self.done += 1
        for name, (value, count) in figures.items():
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0] += value
            sums[1] += count
        self.whole = True

    def _end_epoch(self, epoch: int) -> None:
        """Validate, add to the history, keep what is to be kept, and write a checkpoint."""
        task, step = self.task, epoch * self.task.steps
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
            task.save(self.folder / _EPOCH.format(epoch), _copied(task.model), self._about(epoch))
        self._checkpoint()

    def _about(self, epoch: int) -> dict[str, Any]:
        validation = self.history[epoch][self.task.criterion]
        return {"epoch": epoch, "schedule": asdict(self.schedule), "validation": validation}

    def _write_for_use(self) -> None:
        if self.done == 0:  # between two epochs: the weights are those that were validated
            epoch = int(self.history[-1]["epoch"])
            self.task.save(self.folder / "last.safetensors", _copied(self.task.model), self._about(epoch))
        self.task.save(self.folder / "best.safetensors", self.best["weights"], self._about(self.best["epoch"]))
        atomic_write(self.folder / "history.parquet", pd.DataFrame(self.history).to_parquet(index=False))

    def _checkpoint(self) -> None:
        """Everything that a later run needs."""
        state = {
            "identity": self.identity,
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.kept,
            **{name: getattr(self, name) for name in _KEPT},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self.folder / RESUME, buffer.getvalue())

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
        self.task.kept.update(state["task"])
        for name in _KEPT:
            setattr(self, name, state[name])
        return self.epoch * self.task.steps + self.done


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


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    decay, none = ([p for p in model.parameters() if (p.ndim >= 2) == is_decayed] for is_decayed in (True, False))
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": none, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.learning_rate, fused=True)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
