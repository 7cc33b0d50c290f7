"""Two ways to do the same, measured in turns in one run: the ratio holds where the machine's speed does not.

A benchmark is a file that yields `Row`s and ends in `main(rows)`; `bench.py` runs the files and prints one table.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One stage against its reference: ours by theirs, below 1 where ours is better.

    Attributes:
        stage, reference: what is compared.
        ours, theirs: medians, in `unit`.
        ratio, low, high: median and quartiles of ours by theirs over the rounds.
        limit: what the ratio must not exceed; None where nothing is promised.
        unit: `s` or `MB`.
    """

    stage: str
    reference: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    limit: float | None = None
    unit: str = "s"

    @property
    def holds(self) -> bool:
        return self.limit is None or self.ratio <= self.limit

    def line(self) -> str:
        limit = "" if self.limit is None else f"<= {self.limit:.3g}"
        return (
            f"{self.stage:58.58s} {_amount(self.ours, self.unit):>9s} {_amount(self.theirs, self.unit):>9s} "
            f"{self.ratio:7.3f} {limit:>9s} {self.low:6.3f} to {self.high:6.3f}{'' if self.holds else '  MISSED'}  "
            f"{self.reference}"
        )


HEAD = f"{'stage':58s} {'ours':>9s} {'reference':>9s} {'ratio':>7s} {'limit':>9s} {'quartiles':>16s}  reference"


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
        seconds = [timed(side) for side in sides]
        pairs.append(seconds if number % 2 else seconds[::-1])
    return row(stage, reference, pairs, limit=limit)


def row(
    stage: str, reference: str, pairs: Sequence[Sequence[float]], *, limit: float | None = None, unit: str = "s"
) -> Row:
    """A row of pairs (ours, theirs) that were measured in turns."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [mine / other for mine, other in pairs]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Row(stage, reference, ours, theirs, statistics.median(ratios), low, high, limit, unit)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def extra_memory(call: Callable[[], object]) -> float:
    """MB by which the process grows at most while this is called (Linux)."""
    gc.collect()
    start_of_peak()
    before = status("VmRSS")
    call()
    return max(status("VmHWM") - before, 0.0)


def start_of_peak() -> None:
    """The peak of this process's memory counts from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> float:
    """A figure of this process's status in MB: VmRSS is its memory now, VmHWM at its peak (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def stop_workers() -> None:
    """End the worker processes that joblib keeps for the next work, so that their CPU seconds are counted."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def main(rows: Callable[[], Iterator[Row]], description: str | None, arguments: Sequence[str] | None = None) -> None:
    """The command line of a benchmark: its table, and with `--json FILE` the same for `bench.py`.

    Args:
        rows: measures.
        description: its docstring.
        arguments: of the command line; None takes all.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args(arguments)
    print(HEAD)
    found = []
    for each in rows():
        print(each.line(), flush=True)
        found.append(each)
    if options.json:
        options.json.write_text(json.dumps([as_plain(each) for each in found], indent=1))
    sys.exit(0 if all(each.holds for each in found) else 1)


def as_plain(row: Row) -> dict:
    """For a JSON file."""
    return asdict(row) | {"holds": row.holds}


def from_plain(values: dict) -> Row:
    """What `as_plain` was made of."""
    return Row(**{name: value for name, value in values.items() if name != "holds"})


def _amount(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} {unit}"
