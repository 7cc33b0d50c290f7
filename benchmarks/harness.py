"""Two ways to do the same, measured in turns in one run: the ratio holds where the machine's speed does not.

A benchmark is a file that yields `Row`s and ends in `main(rows)`; `bench.py` runs the files and prints one table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil


@dataclass(frozen=True)
class Row:
    """One stage against its reference: ours by theirs, below 1 where ours is better.

    Attributes:
        stage, reference: what is compared.
        ours, theirs: medians, wall seconds.
        ratio, low, high: median and quartiles of ours by theirs over the rounds.
        cpu: median of the same ratio of CPU seconds, worker processes included: what others on the machine change
            least, and what does not say how well the cores are used.
        limit: what `ratio` must not exceed; None where nothing is promised.
    """

    stage: str
    reference: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    cpu: float
    limit: float | None = None

    @property
    def holds(self) -> bool:
        return self.limit is None or self.ratio <= self.limit

    def line(self) -> str:
        limit = "" if self.limit is None else f"<= {self.limit:.3g}"
        return (
            f"{self.stage:58.58s} {_seconds(self.ours):>9s} {_seconds(self.theirs):>9s} {self.ratio:7.3f} {limit:>9s} "
            f"{self.low:6.3f} to {self.high:6.3f} {self.cpu:7.3f}  {self.reference}{'' if self.holds else '  MISSED'}"
        )


HEAD = f"{'stage':58s} {'ours':>9s} {'reference':>9s} {'ratio':>7s} {'limit':>9s} {'quartiles':>16s} {'of CPU':>7s}"


class Spent(NamedTuple):
    """Wall and CPU seconds."""

    wall: float
    cpu: float


def compare(
    stage: str,
    call: Callable[[], object],
    reference: str,
    other: Callable[[], object],
    *,
    rounds: int,
    limit: float | None = None,
    warm: bool = True,
) -> Row:
    """Time of `call` against time of `other`, in turns: which of the two goes first changes each round.

    Args:
        stage, reference: their names.
        call, other: the two sides.
        rounds: so many times each, after one call of each to warm up where `warm`.
        limit: what the ratio must not exceed.
    """
    if warm:
        call(), other()
    pairs = []
    for number in range(rounds):
        sides = (call, other) if number % 2 else (other, call)
        spent = [timed(side) for side in sides]
        pairs.append(spent if number % 2 else spent[::-1])
    return row(stage, reference, pairs, limit=limit)


def row(stage: str, reference: str, pairs: Sequence[Sequence[Spent]], *, limit: float | None = None) -> Row:
    """A row of pairs (ours, theirs) that were measured in turns."""
    ours, theirs = (statistics.median(spent.wall for spent in side) for side in zip(*pairs, strict=True))
    ratios = [mine.wall / other.wall for mine, other in pairs]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    cpu = statistics.median(mine.cpu / max(other.cpu, 1e-9) for mine, other in pairs)
    return Row(stage, reference, ours, theirs, statistics.median(ratios), low, high, cpu, limit)


def timed(call: Callable[[], object]) -> Spent:
    """What one call takes."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    call()
    wall = time.perf_counter() - wall
    return Spent(wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Of this process, of its children that have ended, and of those that work still."""
    ended = os.times()
    seconds = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:  # it has just ended
            continue
    return seconds


def main(rows: Callable[[], Iterator[Row]], description: str) -> None:
    """The command line of a benchmark: its table, and with `--json FILE` the same for `bench.py`.

    Args:
        rows: measures.
        description: its docstring.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    print(HEAD)
    found = []
    for each in rows():
        print(each.line(), flush=True)
        found.append(each)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1))
    sys.exit(0 if all(each.holds for each in found) else 1)


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
