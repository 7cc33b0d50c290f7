"""Notebooks 01, 02 and 04 on a data set of real size: time, memory and disk by stage, and how they grow with it.

    python benchmarks/scale.py pictures --annotations DIR --data DATA
    python benchmarks/scale.py measure --data DATA --localizer FILE --out OUT [--sizes 500,2000,11738] [--only 01,02,04]
    python benchmarks/scale.py table --out OUT

`--annotations` holds DIOR's ImageSets/Main/ and either Annotations/ or Annotations.zip; `pictures` draws what is not
there: a procedural ground with each annotated box as a textured rectangle. `measure` runs `python -m surgerylib run
--only NN` with the embedded model on random parts of the test split, and with so many images of val to choose on as are
in proportion; one notebook a run, so that what is finished counts. The tree of processes is looked at from outside once
a second: CPU seconds, and the memory that no file backs, in shares of pages (PSS: what processes share counts once;
Linux). Stages are told apart by the executed notebook's times of cells, inside a cell by the times of shard files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import cv2
import nbformat
import numpy as np
import psutil
from pictures import ANNOTATIONS, N_GROUNDS, QUALITY, SPLITS, ground

from surgerylib import DIOR_CLASSES
from surgerylib.datasets import read_annotation
from surgerylib.engine import in_processes
from surgerylib.files import PROJECT_ROOT

FOLDERS = {"test": "JPEGImages-test", "val": "JPEGImages-trainval"}
# the first call found in a cell names its stage
CELLS = {
    "open_session(": "opening: data, model", "evaluate(": "boxes, mAP, intervals", "evaluate_head(": "head, naming",
    "stores = {": "maps", "sweep(": "sweep", "map_quality(": "map quality", "prompted(": "wordings",
    "session.provenance()": "hashing, files",
}  # fmt: skip
CHOOSES, PIECE = "02", 50


def draw_all(annotations: Path, data: Path) -> None:
    """Annotations, split files, and every picture that is not there yet."""
    (data / SPLITS).mkdir(parents=True, exist_ok=True)
    for path in (annotations / SPLITS).glob("*.txt"):
        (data / SPLITS / path.name).write_bytes(path.read_bytes())
    if not (data / ANNOTATIONS).exists() and (annotations / ANNOTATIONS).is_dir():
        (data / ANNOTATIONS).parent.mkdir(parents=True, exist_ok=True)
        (data / ANNOTATIONS).symlink_to((annotations / ANNOTATIONS).resolve())
    elif not (data / ANNOTATIONS).exists():
        with zipfile.ZipFile(annotations / "Annotations.zip") as archive:
            archive.extractall(data)
    for split, name in FOLDERS.items():
        (data / name).mkdir(exist_ok=True)
        ids = (data / SPLITS / f"{split}.txt").read_text().split()
        missing = [image_id for image_id in ids if not (data / name / f"{image_id}.jpg").exists()]
        pieces = [missing[k : k + PIECE] for k in range(0, len(missing), PIECE)]
        work = partial(draw, annotations=data / ANNOTATIONS, folder=data / name)
        list(in_processes(work, pieces, description=f"pictures of {split}", sizes=list(map(len, pieces))))


def draw(ids: list[str], annotations: Path, folder: Path) -> None:
    cv2.setNumThreads(1)
    for image_id in ids:
        annotation = read_annotation(annotations / f"{image_id}.xml", DIOR_CLASSES)
        width, height = annotation.size_wh
        rng = np.random.default_rng(int(image_id))
        picture, texture = (ground(int(rng.integers(N_GROUNDS)), height, width).copy() for _ in range(2))
        for label, box in zip(annotation.labels, annotation.boxes_xyxy, strict=True):
            xmin, ymin, xmax, ymax = (round(side) for side in box)
            colour = np.random.default_rng(DIOR_CLASSES.index(label)).integers(30, 226, 3)
            patch = picture[max(ymin, 0) : ymax, max(xmin, 0) : xmax]
            own = texture[: patch.shape[0], : patch.shape[1]].astype(np.int16)
            patch[:] = np.clip((own - 128) // 2 + colour, 0, 255)
        part = folder / f".{image_id}.part"  # renamed when whole: a killed process leaves no half picture
        part.write_bytes(cv2.imencode(".jpg", picture, QUALITY)[1].tobytes())
        part.replace(folder / f"{image_id}.jpg")


def measure(options: argparse.Namespace) -> None:
    """Run, watch, and add to scale.json what was seen."""
    for size in map(int, options.sizes.split(",")):
        data, n_choice = part_of(options.data, options.out, size, options.choice)
        for notebook in options.only.split(","):
            folder = options.out / f"run-{size}"
            parameters = {"dataset": data, "split": "test", "model": "embedded"}
            if notebook == "04":
                parameters["localizer"] = options.localizer.resolve()
            given = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
            command = [sys.executable, "-m", "surgerylib", "run", "--only", notebook, "--out", str(folder), *given]
            with (options.out / f"run-{size}-{notebook}.log").open("wb") as log:
                process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=log, stderr=subprocess.STDOUT)
                watch = Watch(process.pid)
                code = process.wait()
                watch.stop()
            of = n_choice if notebook == CHOOSES else size
            found = {"notebook": notebook, "images": of, "exit": code, "disk": disk_of(folder)}
            found["stages"] = stages(folder, notebook, watch) if code == 0 else []
            path = options.out / "scale.json"
            runs = json.loads(path.read_text()) if path.exists() else []
            path.write_text(json.dumps([*runs, found], indent=1))
            print(f"{notebook}, {of:,} images: exit {code}, {found['disk']} MB", flush=True)
    table(options)


def part_of(data: Path, out: Path, size: int, most: int | None) -> tuple[Path, int]:
    """A folder in DIOR's layout with a random part of test and of val, pictures from `data`, and how many of val."""
    part = out / f"data-{size}" / "DIOR"
    (part / SPLITS).mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", *FOLDERS.values()):
        if not (part / name).exists():
            (part / name).symlink_to((data / name).resolve())
    ids = {split: (data / SPLITS / f"{split}.txt").read_text().split() for split in FOLDERS}
    in_proportion = round(size * len(ids["val"]) / len(ids["test"]))
    counts = {"test": size, "val": min(in_proportion, most or in_proportion)}
    for split, names in ids.items():
        chosen = np.sort(np.random.default_rng(0).permutation(len(names))[: counts[split]])
        (part / SPLITS / f"{split}.txt").write_text("".join(f"{names[place]}\n" for place in chosen))
    return part, counts["val"]


class Watch:
    """Looks at a process and all below it, once a second, until it is stopped."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, float, float]] = []  # time, CPU seconds since the start, MB
        self._cpu: dict[tuple[int, float], float] = {}  # of those that have ended too
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, args=(psutil.Process(pid),), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look_on(self, root: psutil.Process) -> None:
        while not self._ended.is_set():
            memory = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error, OSError, IndexError):  # it has just ended
                        self._cpu[process.pid, process.create_time()] = sum(process.cpu_times()[:2])
                        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                        memory += next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
            self.samples.append((time.time(), sum(self._cpu.values()), memory / 1024))
            self._ended.wait(1.0)

    def between(self, start: float, end: float) -> dict[str, float]:
        """Wall and CPU seconds and most memory of a stretch of time."""
        times, seconds, memory = np.array(self.samples).T
        cpu = np.interp([start, end], times, seconds)
        first, last = np.searchsorted(times, [start, end])
        return {"wall": end - start, "cpu": cpu[1] - cpu[0], "memory": memory[max(first - 1, 0) : last + 1].max()}


def stages(folder: Path, notebook: str, watch: Watch) -> dict[str, dict[str, float]]:
    """What each stage of a finished notebook took, in order; stages of one name are put together."""
    cells = nbformat.read(next(folder.glob(f"{notebook}_*.ipynb")), as_version=4).cells
    first, last = watch.samples[0][0], watch.samples[-1][0]
    stretches, end = [], first
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        ran = cell.metadata["papermill"]
        start, stop = (datetime.fromisoformat(ran[key]).timestamp() for key in ("start_time", "end_time"))
        if end == first:
            stretches.append(("look at the input", first, start))
        name = next((name for call, name in CELLS.items() if call in cell.source), "tables, figures")
        stretches += split_cell(folder, name, start, stop)
        end = stop
    found: dict[str, dict[str, float]] = {"all": watch.between(first, last)}
    for name, start, stop in (*stretches, ("rendering", end, last)):
        own, before = watch.between(start, stop), found.get(name, dict.fromkeys(("wall", "cpu", "memory"), 0.0))
        added = {key: before[key] + own[key] for key in ("wall", "cpu")}
        found[name] = added | {"memory": max(before["memory"], own["memory"])}
    return found


def split_cell(folder: Path, name: str, start: float, end: float) -> Iterator[tuple[str, float, float]]:
    """Stores that were written in this cell, each until its last shard, and the rest under the cell's own name."""
    written: dict[str, float] = {}
    for path in (folder / "cache").glob("*/*.npy"):
        if start < (moment := path.stat().st_mtime) <= end:
            what = path.parent.name.rsplit("-", 1)[0]
            written[what] = max(written.get(what, start), moment)
    for what, moment in sorted(written.items(), key=lambda item: item[1]):
        yield f"maps: {what}", start, moment
        start = moment
    yield name, start, end


def disk_of(folder: Path) -> dict[str, float]:
    """MB of the run's stores by what they hold, and of the whole run."""
    sizes = {"run": 0.0}
    for path in folder.rglob("*"):
        if path.is_file():
            sizes["run"] += path.stat().st_size / 1e6
            if path.suffix == ".npy":
                what = path.parent.name.rsplit("-", 1)[0]
                sizes[what] = sizes.get(what, 0.0) + path.stat().st_size / 1e6
    return {what: round(size, 1) for what, size in sizes.items()}


def table(options: argparse.Namespace) -> None:
    """For each notebook and stage: what it took at each size, and the exponent of its CPU seconds' growth."""
    runs = [run for run in json.loads((options.out / "scale.json").read_text()) if run["exit"] == 0]
    latest = {(run["notebook"], run["images"]): run["stages"] for run in runs}
    for notebook in sorted({name for name, _ in latest}):
        sizes = sorted(size for name, size in latest if name == notebook)
        of = "images to choose on" if notebook == CHOOSES else "images"
        print(f"\n{notebook}: wall s / CPU s / most MB at {', '.join(f'{size:,}' for size in sizes)} {of}")
        for name in latest[notebook, sizes[-1]]:
            found = [latest[notebook, size].get(name) for size in sizes]
            if all(found):
                values = "  ".join(f"{of['wall']:7.1f} /{of['cpu']:8.1f} /{of['memory']:6,.0f}" for of in found)
                logs = np.log(sizes), np.log([max(of["cpu"], 1e-3) for of in found])
                growth = f"exponent {np.polyfit(*logs, 1)[0]:.2f}" if len(sizes) > 1 else ""
                print(f"  {name:22s} {values}   {growth}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("pictures", "measure", "table"))
    parser.add_argument("--annotations", type=Path, help="folder with DIOR's annotations and splits")
    parser.add_argument("--data", type=Path, help="folder of the data set that `pictures` makes")
    parser.add_argument("--localizer", type=Path, help="a head of the embedded model")
    parser.add_argument("--out", type=lambda path: Path(path).resolve(), help="folder of the runs and of scale.json")
    parser.add_argument("--sizes", default="500,2000,11738")
    parser.add_argument("--only", default="01,02,04")
    parser.add_argument("--choice", type=int, help="images of val at most")
    options = parser.parse_args()
    if options.command == "pictures":
        draw_all(options.annotations, options.data)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    {"measure": measure, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
