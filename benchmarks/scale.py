"""Notebooks 01, 02 and 04 on a data set of real size: time, memory and disk by stage, and how they grow with it.

    python benchmarks/scale.py pictures --annotations DIR --data DATA
    python benchmarks/scale.py measure --data DATA --localizer FILE --out DIR [--sizes 500,2000,11738] [--only 01,02,04]
    python benchmarks/scale.py resume --data DATA --out DIR [--size 2000]
    python benchmarks/scale.py table --out DIR

`--annotations` holds DIOR's ImageSets/Main/ and either Annotations/ or Annotations.zip; `pictures` draws what is not
there. `measure` runs `python -m surgerylib run --only NN` with the embedded model on random parts of the test split,
and with so many images of val to choose on as are in proportion; one notebook a run, so that what is finished counts.
The tree of processes is looked at from outside: CPU seconds, memory as shares of pages (PSS, so that what processes
share counts once) and that part of it that no file backs. Stages are told apart by the executed notebook's times of
cells, inside a cell by the times of shard files and by the work of the worker processes. `resume` kills a run among its
maps and looks which files the next one leaves as they are (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import psutil
from scale_pictures import draw, image_folder, unpack

PROJECT = Path(__file__).resolve().parent.parent
SPLITS = ("test", "val")
STORES = ("heatmaps", "features", "prompts")
# the first call found in a cell names its stage
CELLS = {
    "open_session(": "opening: data, model",
    "detect(": "mAP and intervals",
    "evaluate_head(": "head, naming",
    "stores = {": "maps",
    "sweep(": "sweep",
    "map_quality(": "map quality",
    "PromptStore(": "wordings",
    "session.provenance()": "hashing, files",
}
OTHER = "tables, figures"
CHOOSES = "02"
SECONDS_BETWEEN = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("pictures")
    pictures.add_argument("--annotations", type=Path, required=True, help="folder with DIOR's annotations and splits")
    pictures.add_argument("--data", type=Path, required=True, help="folder of the data set, made here")
    for name in ("measure", "resume", "table"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="folder of the runs and of scale.json")
        if name == "table":
            continue
        command.add_argument("--data", type=Path, required=True, help="folder that `pictures` made")
        command.add_argument("--time-limit", default="1000", help="minutes a notebook")
        if name == "measure":
            command.add_argument("--localizer", type=Path, required=True, help="a head of the embedded model")
            command.add_argument("--sizes", default="500,2000,11738")
            command.add_argument("--only", default="01,02,04")
            command.add_argument("--choice", type=int, help="images of val at most")
        else:
            command.add_argument("--size", type=int, default=2000)
    options = parser.parse_args()
    if options.command == "pictures":
        unpack(options.annotations, options.data)
        for split in SPLITS:
            draw(options.data, split)
        return
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    {"measure": measure, "resume": resume, "table": table}[options.command](options)


def measure(options: argparse.Namespace) -> None:
    """Run, watch, and add to scale.json what was seen."""
    for size in map(int, options.sizes.split(",")):
        data = part_of(options.data, options.out, size, options.choice)
        for notebook in options.only.split(","):
            own = (["-p", f"localizer={options.localizer.resolve()}"] if notebook == "04" else [])  # fmt: skip
            folder = options.out / f"run-{size}"
            command = [*run_command(data, folder, notebook, options.time_limit), *own]
            with (options.out / f"run-{size}-{notebook}.log").open("wb") as log:
                process = start(command, log)
                watch = Watch(process.pid)
                watch.start()
                code = process.wait()
                watch.stop()
            measured = {
                "notebook": notebook,
                "images": size,
                "choice_images": len((data / "ImageSets/Main/val.txt").read_text().split()),
                "exit": code,
                **watch.summary(),
                "disk": disk_of(folder),
                "stages": stages(folder, notebook, watch) if code == 0 else [],
            }
            record(options.out / "scale.json", measured)
            print(text_of(measured), flush=True)


def part_of(data: Path, out: Path, size: int, most: int | None) -> Path:
    """A folder in DIOR's layout with a random part of test and of val, its pictures those of `data`."""
    part = out / f"data-{size}" / "DIOR"
    (part / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", *map(image_folder, SPLITS)):
        if not (part / name).exists():
            (part / name).symlink_to((data / name).resolve())
    ids = {split: (data / f"ImageSets/Main/{split}.txt").read_text().split() for split in SPLITS}
    counts = {"test": size, "val": round(size * len(ids["val"]) / len(ids["test"]))}
    counts["val"] = min(counts["val"], most or counts["val"])
    for split, names in ids.items():
        chosen = np.random.default_rng(0).permutation(len(names))[: counts[split]]
        text = "\n".join(names[place] for place in np.sort(chosen))
        (part / f"ImageSets/Main/{split}.txt").write_text(text + "\n")
    return part


def run_command(data: Path, folder: Path, notebook: str, time_limit: str) -> list[str]:
    parameters = {"dataset": data, "split": "test", "model": "embedded"}
    return [
        sys.executable, "-m", "surgerylib", "run", "--only", notebook, "--out", str(folder), "--time-limit", time_limit,
        *(word for name, value in parameters.items() for word in ("-p", f"{name}={value}")),
    ]  # fmt: skip


def start(command: Sequence[str], log: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT)


@dataclass(frozen=True)
class Sample:
    """One look at a tree of processes: memory in bytes, CPU seconds since the start by role."""

    time: float
    pss: int
    anonymous: int
    cpu: dict[str, float]
    load: float


@dataclass
class Watch:
    """Looks at a process and all below it until it is stopped."""

    pid: int
    samples: list[Sample] = field(default_factory=list)

    def start(self) -> None:
        self.seen: dict[tuple[int, float], tuple[str, float]] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look_on, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _look_on(self) -> None:
        root = psutil.Process(self.pid)
        while not self.ended.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.samples.append(self._look([root, *root.children(recursive=True)]))
            self.ended.wait(SECONDS_BETWEEN)

    def _look(self, processes: Sequence[psutil.Process]) -> Sample:
        pss = anonymous = 0
        for process in processes:
            try:
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                if key not in self.seen:
                    self.seen[key] = (role_of(process.cmdline()), 0.0)
                self.seen[key] = (self.seen[key][0], times.user + times.system)
                rollup = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                )
            except (psutil.Error, OSError):  # it has just ended
                continue
            pss += 1024 * int(rollup["Pss"].split()[0])
            anonymous += 1024 * int(rollup["Pss_Anon"].split()[0])
        cpu: dict[str, float] = {}
        for role, seconds in self.seen.values():  # those that have ended too
            cpu[role] = cpu.get(role, 0.0) + seconds
        return Sample(time.time(), pss, anonymous, cpu, os.getloadavg()[0])

    def between(self, start: float, end: float) -> dict[str, float]:
        """Figures of a stretch of time."""
        times = np.array([sample.time for sample in self.samples])
        inside = [sample for sample in self.samples if start <= sample.time <= end]
        if not inside:  # shorter than the time between two looks
            inside = [self.samples[int(np.abs(times - (start + end) / 2).argmin())]]
        roles = sorted({role for sample in self.samples for role in sample.cpu})
        cpu = {}
        for role in roles:
            own = np.array([sample.cpu.get(role, 0.0) for sample in self.samples])
            cpu[role] = float(np.interp(end, times, own) - np.interp(start, times, own))
        return {
            "seconds": end - start,
            "cpu_seconds": sum(cpu.values()),
            **{f"cpu_{role}": seconds for role, seconds in cpu.items()},
            "peak_pss": max(sample.pss for sample in inside),
            "peak_anonymous": max(sample.anonymous for sample in inside),
            "load": float(np.mean([sample.load for sample in inside])),
        }

    def summary(self) -> dict[str, float]:
        return self.between(self.samples[0].time, self.samples[-1].time)

    def last_work(self, role: str, start: float, end: float) -> float:
        """When processes of a role last used the CPU in this stretch; `start` if they did not."""
        last = start
        for before, after in zip(self.samples, self.samples[1:], strict=False):
            if start <= after.time <= end and after.cpu.get(role, 0.0) - before.cpu.get(role, 0.0) > 0.1:
                last = after.time
        return last


def role_of(words: Sequence[str]) -> str:
    line = " ".join(words)
    return "workers" if "loky" in line else "kernel" if "ipykernel" in line else "runner"


def stages(folder: Path, notebook: str, watch: Watch) -> list[dict]:
    """What each stage of a finished notebook took, in order; stages of one name are put together."""
    executed = nbformat.read(next(folder.glob(f"{notebook}_*.ipynb")), as_version=4)
    cells = [
        (name_of(cell["source"]), *(moment(cell["metadata"]["papermill"][key]) for key in ("start_time", "end_time")))
        for cell in executed["cells"]
        if cell["cell_type"] == "code"
    ]
    stretches = [("look at the input", watch.samples[0].time, cells[0][1])]
    for name, start, end in cells:
        stretches += split_cell(folder, name, start, end, watch)
    stretches.append(("rendering", cells[-1][2], watch.samples[-1].time))
    together: dict[str, list[dict]] = {}
    for name, start, end in stretches:
        together.setdefault(name, []).append(watch.between(start, end))
    return [
        {"stage": name}
        | {key: (max if key.startswith(("peak", "load")) else sum)(part[key] for part in parts) for key in parts[0]}
        for name, parts in together.items()
    ]


def split_cell(folder: Path, name: str, start: float, end: float, watch: Watch) -> Iterator[tuple[str, float, float]]:
    """Stores that were written in this cell, boxes cut in processes, and the rest under the cell's own name."""
    if name not in ("mAP and intervals", "head, naming", "maps", "wordings"):
        yield name, start, end
        return
    for store in STORES:
        written = [path.stat().st_mtime for path in (folder / "cache").glob(f"{store}-*/*.npy")]
        if written := [moment for moment in written if start < moment <= end]:
            yield f"maps: {store}", start, max(written)
            start = max(written)
    if (worked := watch.last_work("workers", start, end)) > start:
        yield "boxes", start, worked
        start = worked
    yield name, start, end


def name_of(source: str) -> str:
    return next((name for call, name in CELLS.items() if call in source), OTHER)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def disk_of(folder: Path) -> dict[str, int]:
    """Bytes of the run's stores by what they hold, and of the whole run."""
    sizes: dict[str, int] = {}
    for path in (folder / "cache").iterdir():
        name = path.name.rsplit("-", 1)[0]
        sizes[name] = sizes.get(name, 0) + folder_bytes(path)
    return sizes | {"run": folder_bytes(folder)}


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def record(path: Path, measured: dict) -> None:
    runs = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*runs, measured], indent=1))


def text_of(measured: dict) -> str:
    lines = [
        f"{measured['notebook']}, {measured['images']:,} images: {measured['seconds']:.0f} s, "
        f"CPU {measured['cpu_seconds']:.0f} s, peak {measured['peak_pss'] / 1e6:,.0f} MB "
        f"({measured['peak_anonymous'] / 1e6:,.0f} MB anonymous), load {measured['load']:.1f}, exit {measured['exit']}"
    ]
    lines += [
        f"  {stage['stage']:22s} {stage['seconds']:8.1f} s  CPU {stage['cpu_seconds']:8.1f} s  "
        f"{stage['peak_anonymous'] / 1e6:7,.0f} MB  load {stage['load']:.1f}"
        for stage in measured["stages"]
    ]
    lines.append("  disk: " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in measured["disk"].items()))
    return "\n".join(lines)


def table(options: argparse.Namespace) -> None:
    """For each notebook and stage: seconds and CPU seconds at each size, and the exponent of their growth."""
    runs = [run for run in json.loads((options.out / "scale.json").read_text()) if run["exit"] == 0]
    latest = {(run["notebook"], size_of(run)): run for run in runs}
    for notebook in sorted({name for name, _ in latest}):
        sizes = sorted(size for name, size in latest if name == notebook)
        own = [latest[notebook, size] for size in sizes]
        of = "images to choose on" if notebook == CHOOSES else "images"
        print(f"\n{notebook}: wall s / CPU s / peak anonymous MB at {', '.join(f'{size:,}' for size in sizes)} {of}")
        rows = {"all": own}
        for name in dict.fromkeys(stage["stage"] for run in own for stage in run["stages"]):
            found = [next((stage for stage in run["stages"] if stage["stage"] == name), None) for run in own]
            if all(found):
                rows[name] = found
        for name, figures in rows.items():
            values = "  ".join(
                f"{of['seconds']:7.1f} /{of['cpu_seconds']:8.1f} /{of['peak_anonymous'] / 1e6:6,.0f}" for of in figures
            )
            print(f"  {name:22s} {values}   {growth(sizes, figures)}")


def size_of(run: dict) -> int:
    """Of how many images most of the work is."""
    return run["choice_images" if run["notebook"] == CHOOSES else "images"]


def growth(sizes: Sequence[int], figures: Sequence[dict]) -> str:
    """Exponents of wall time, CPU time and memory: of the fit over all sizes, and between the two largest."""
    if len(sizes) < 2:
        return ""
    parts = []
    for key in ("seconds", "cpu_seconds", "peak_anonymous"):
        x, y = np.log(sizes), np.log([max(of[key], 1e-3) for of in figures])
        parts.append(f"{np.polyfit(x, y, 1)[0]:.2f} ({(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f})")
    return "exponents " + ", ".join(parts)


def resume(options: argparse.Namespace) -> None:
    """Kill a run of notebook 01 among its maps, run it again, and compare the files."""
    data = part_of(options.data, options.out, options.size, None)
    folder = options.out / f"resume-{options.size}"
    shutil.rmtree(folder, ignore_errors=True)
    command = run_command(data, folder, "01", options.time_limit)
    with (options.out / f"resume-{options.size}.log").open("wb") as log:
        process = start(command, log)
        n_shards = -(-options.size // 64)
        while len(shards_in(folder)) < n_shards // 2 and process.poll() is None:
            time.sleep(0.02)
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            one.send_signal(signal.SIGKILL)
        process.wait()
        before = shards_in(folder)
        parts = [path.name for path in folder.glob("cache/heatmaps-*/.*")]
        started = time.time()
        print(f"killed with {len(before)} of {n_shards} shards whole, beside them {parts or 'nothing'}", flush=True)
        code = start(command, log).wait()
    after = shards_in(folder)
    kept = sum(after.get(name) == stamp for name, stamp in before.items())
    computed = [stamp[1] / 1e9 for name, stamp in after.items() if before.get(name) != stamp]
    print(
        f"run again: exit {code}, {kept} of {len(before)} shards are the files of before (inode, time), "
        f"{len(computed)} of {len(after)} new, the first {min(computed) - started:.0f} s after the start; "
        f"{time.time() - started:.0f} s in all"
    )


def shards_in(folder: Path) -> dict[str, tuple[int, int]]:
    """name -> (inode, time) of every whole shard of maps."""
    found = {path.name: path.stat() for path in folder.glob("cache/heatmaps-*/heatmaps-*.npy")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


if __name__ == "__main__":
    main()
