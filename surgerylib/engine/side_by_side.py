"""Several small trainings at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from .training import Schedule, Task, Training, fit


class Job(NamedTuple):
    """One training of several: the arguments of `fit`."""

    task: Task
    schedule: Schedule
    folder: Path


def fit_side_by_side(jobs: Sequence[Job], *, description: str = "trainings") -> list[Training]:
    """`fit` of each job, on a CPU as many at a time as torch has threads, with one thread each.

    Small models leave most of what several threads could do to waiting for each other. The weights are those of one
    thread, however many cores there are. On other devices the jobs run one after the other.

    Args:
        jobs: with different folders.
        description: of the progress bar, which counts the steps of all.

    Raises:
        TrainingError, CheckpointError, OutputError: as `fit`, of the first job that fails; the others are stopped, and
            go on from their checkpoints the next time.
    """
    devices = {next(job.task.model.parameters()).device.type for job in jobs}
    n_threads = torch.get_num_threads()
    n_together = min(n_threads, len(jobs)) if devices == {"cpu"} else 1
    stop = threading.Event()
    total = sum(job.schedule.epochs * job.task.steps for job in jobs)
    if devices == {"cpu"}:
        torch.set_num_threads(1)
    try:
        with tqdm(total=total, desc=description, unit="step", delay=2, mininterval=0.5, leave=False) as bar:

            def after_step() -> None:
                if stop.is_set():
                    raise _Stopped
                bar.update()

            pool = ThreadPoolExecutor(max(n_together, 1))
            futures = [pool.submit(fit, *job, after_step=after_step) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after an error or Ctrl-C; otherwise nothing is left to be stopped
                stop.set()
                pool.shutdown(cancel_futures=True)
            errors = [future.exception() for future in futures if not future.cancelled()]
            for error in errors:
                if error is not None and not isinstance(error, _Stopped):
                    raise error
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(n_threads)


class _Stopped(Exception):
    """Another training beside this one has failed, or was interrupted."""
