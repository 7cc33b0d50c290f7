"""The model on several batches at once, or on several parts of one: a thread and a share of the cores for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

_MOST = 4  # each holds a batch's activations
Batch = TypeVar("Batch")
Result = TypeVar("Result")


def n_streams(device: torch.device) -> int:
    """How many batches to compute at once: on a CPU one for each thread that torch may use, up to 4; else one.

    Threads that share one operation wait for the slowest of them after each; those with a batch of their own don't.
    """
    return min(torch.get_num_threads(), _MOST) if device.type == "cpu" else 1


class Streams(AbstractContextManager):
    """Threads that divide torch's own threads between them, for as long as the block lasts.

    Attributes:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        """Args:
        count: 1 or more.
        """
        self.count, self._threads = count, torch.get_num_threads()
        each = max(self._threads // count, 1)
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))

    def submit(self, function: Callable[[Batch], Result], batch: Batch) -> Future[Result]:
        """Begin with one when a thread is free."""
        return self._pool.submit(function, batch)

    def map(self, function: Callable[[Batch], Result], parts: Sequence[Batch]) -> list[Result]:
        """`function` of each part; a single one stays in the thread that asks."""
        return [function(part) for part in parts] if len(parts) == 1 else list(self._pool.map(function, parts))

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # it is also what threads that start later begin with


def in_streams(function: Callable[[Batch], Result], batches: Iterable[Batch], count: int) -> Iterator[Result]:
    """`function` of each batch, in order, computed in `Streams`.

    Args:
        function: what it raises is raised in its batch's turn.
        batches: one more than are being computed is taken ahead.
        count: batches at once.
    """
    with Streams(count) as streams:
        pending: deque[Future] = deque()
        for batch in batches:
            pending.append(streams.submit(function, batch))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
