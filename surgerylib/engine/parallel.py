"""Work spread over processes, with a progress bar, or read ahead by threads; results come in order."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from ..errors import OutputError, worker_count

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    sizes: Sequence[int],
    workers: int | None = None,
    description: str,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Result]:
    """`function(task)` for each task, in the order of the tasks; results wait in memory until they are asked for.

    Args:
        function: what it imports is loaded once in each worker; one of a notebook's own goes there by its code.
        tasks: picklable arguments, asked for as they are needed.
        sizes: how many units each task is.
        workers: processes; None takes the CPU's cores. 1, or a single task, stays in this process.
        description: of the progress bar, which appears after two seconds.
        progress: called with a task's units when it is done, in place of a bar.

    Raises:
        OutputError: a worker process was killed.
        ParameterError: `workers` is no whole number of at least 1.
    """
    # joblib's processes start without the caller's __main__, which a notebook or a script without a guard can't give,
    # and are not forked: a fork after torch has started its threads hangs
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # one number for all work: ending some of the processes and starting them again takes longer than a short task
    n_jobs = worker_count(workers) if len(sizes) > 1 else 1
    pool = Parallel(
        n_jobs=n_jobs, backend="loky", return_as="generator", idle_worker_timeout=60,
        initializer=_end_with_parent, initargs=(os.getpid(),),
    )  # fmt: skip
    with tqdm(
        total=sum(sizes), desc=description, unit="image", delay=2, leave=False, disable=progress is not None
    ) as bar:
        try:
            for result, size in zip(pool(delayed(function)(task) for task in tasks), sizes, strict=True):
                (progress or bar.update)(size)
                yield result
        except TerminatedWorkerError as error:
            raise OutputError(
                f"a worker process died during: {description}; the usual cause is that memory ran out: use fewer "
                "workers"
            ) from error


def _end_with_parent(parent: int) -> None:
    """In a worker: end soon after a parent that was killed, which can't say so; idle ones would wait for their time."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the number of a parent that is gone
        threading.Thread(target=watch, daemon=True).start()


def read_ahead(
    read: Callable[[Task], Result], asked: Iterable[Task], *, threads: int = 1, ahead: int = 1
) -> Iterator[Result]:
    """`read` of each, in order; threads read so many of the next ones while the present one is used."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for one in asked:
            pending.append(pool.submit(read, one))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
