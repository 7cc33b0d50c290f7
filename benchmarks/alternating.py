"""Two ways to do the same, timed in turns in one run: the ratio holds where the machine's speed does not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def ratio(reference: Callable[[], object], call: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Time of `call` by time of `reference`: median and quartiles over the rounds, after one call to warm up."""
    call()
    ratios = []
    for _ in range(rounds):
        seconds = []
        for side in (reference, call):
            start = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    low, _, high = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), low, high
