"""Every stage against what a user would pick instead: one table, and the same as JSON.

    python benchmarks/bench.py [--out build/bench.json] [STAGE ...]

Each stage is a file of this folder and runs in a process of its own, one after the other. The status is 1 where a ratio
exceeds its limit, or where the two sides did not compute the same. Without a name all run but `report` (a whole
`make report`) and `explorer`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import harness

from surgerylib.files import atomic_write, versions

BY_DEFAULT = (
    "imports", "annotations", "reading", "forward", "similarity", "extraction", "training", "average_precision",
    "end_to_end",
)  # fmt: skip
STAGES = (*BY_DEFAULT, "explorer", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"some of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    if strangers := [name for name in options.stages if name not in STAGES]:
        parser.error(f"no stage {strangers[0]!r}; there are {', '.join(STAGES)}")
    started = time.monotonic()
    rows, failed = [], []
    for stage in options.stages or BY_DEFAULT:
        print(f"-- {stage} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
        found = measured(stage)
        rows += found
        failed += [] if found else [stage]
    print(f"\n{harness.HEAD}")
    for row in rows:
        print(row.line())
    for stage in failed:
        print(f"{stage}: FAILED, see above")
    missed = sum(not row.holds for row in rows)
    seconds = time.monotonic() - started
    print(f"{len(rows)} rows, {missed} over their limit, {len(failed)} stages failed; {seconds:.0f} s")
    about = {
        "date": time.strftime("%Y-%m-%d"), "seconds": round(seconds), "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "platform": platform.platform(), "versions": versions(), "failed": failed,
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    atomic_write(options.out, json.dumps(about, indent=1))
    print(f"written to {options.out}")
    sys.exit(1 if missed or failed else 0)


def measured(stage: str) -> list[harness.Row]:
    """The rows of one stage; none where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, str(Path(__file__).with_name(f"{stage}.py")), "--json", str(path)]
        # its progress bars would fill the table; what it prints is shown as it comes
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if not path.is_file():
            print(done.stderr.strip()[-2000:], file=sys.stderr)
            return []
        return [harness.Row(**values) for values in json.loads(path.read_text())]


if __name__ == "__main__":
    main()
