"""The model on several batches at once, a thread and a share of the cores for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def in_streams(function: Callable[[Batch], Result], batches: Iterable[Batch], streams: int) -> Iterator[Result]:
    """`function` of each batch, in order, computed in threads that divide torch's own threads between them.

    Args:
        function: what it raises is raised in its batch's turn.
        batches: one more than are being computed is taken ahead.
        streams: batches at once.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            streams, initializer=torch.set_num_threads, initargs=(max(threads // streams, 1),)
        ) as pool:
            pending: deque[Future] = deque()
            try:
                for batch in batches:
                    pending.append(pool.submit(function, batch))
                    if len(pending) > streams:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(threads)  # it is also what threads that start later begin with
