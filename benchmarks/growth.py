"""Time and memory of each stage at 500, 2,000 and 8,000 images: the exponents of a power fitted to the CPU seconds.

    python benchmarks/growth.py [--sizes 500,2000,8000] [--stages maps,boxes] [--out build/growth.json]

800 x 800 pictures in DIOR's layout (few different ones under many names), the embedded model, 8 boxes an image. Each
stage of each size runs in a process of its own, worker processes included in the CPU seconds; memory is what the
process (without its workers) grew by at most during the stage, beside what it keeps at the end, its result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import pandas as pd

from surgerylib.heatmaps import Setting

STAGES = ("annotations", "maps", "boxes", "features", "detections", "average precision", "half-samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="500,2000,8000")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--out", type=Path, default=Path("build/growth.json"))
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "ROOT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measured(options.one[0], Path(options.one[1]), int(options.one[2]))))
        return
    sizes = [int(size) for size in options.sizes.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), sizes)
        for stage in options.stages.split(","):
            found[stage] = [_in_a_process(stage, folder, size) for size in sizes]
            print(_line(stage, sizes, found[stage]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"sizes": sizes, "cores": os.cpu_count(), "stages": found}, indent=1))


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Of the power of the size that fits best, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _line(stage: str, sizes: list[int], rows: list[dict]) -> str:
    cpu = ", ".join(f"{row['cpu']:.2f}" for row in rows)
    memory = ", ".join(f"{row['memory']:.0f} ({row['kept']:.0f})" for row in rows)
    power = exponent(sizes, [row["cpu"] for row in rows])
    return f"{stage:18s} CPU s {cpu}; exponent {power:.2f}; MB at most (kept) {memory}"


def _write(folder: Path, sizes: list[int]) -> None:
    from end_to_end import write_dataset

    write_dataset(folder / "data", max(sizes))
    splits = folder / "data/ImageSets/Main"
    ids = (splits / "test.txt").read_text().split()
    for size in sizes:
        (splits / f"first{size}.txt").write_text("\n".join(ids[:size]))


def _in_a_process(stage: str, folder: str, size: int) -> dict:
    command = [sys.executable, __file__, "--one", stage, folder, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout)


def _measured(stage: str, folder: Path, size: int) -> dict:
    call = _prepared(stage, folder, size)
    harness.stop_workers()  # what they did to prepare is not counted
    harness.start_of_peak()
    before, started = harness.status("VmRSS"), os.times()
    result = call()
    harness.stop_workers()  # their CPU seconds are told once they have ended
    ended = os.times()
    kept = harness.status("VmRSS") - before
    del result
    return {
        "cpu": sum(ended[:4]) - sum(started[:4]), "wall": ended[4] - started[4],
        "memory": harness.status("VmHWM") - before, "kept": max(kept, 0.0),
    }  # fmt: skip


def _prepared(stage: str, folder: Path, size: int) -> Callable[[], object]:
    """The stage as a call; what comes before it is there, or is made now."""
    from surgerylib import DetectionSettings, detect, load_clip, load_dataset
    from surgerylib.engine.caches import FeatureCache
    from surgerylib.engine.finding import boxes_of
    from surgerylib.engine.store import HeatmapStore
    from surgerylib.metrics import average_precision, bootstrap_map

    root, cache = folder / "data", folder / f"cache-{size}"
    if stage == "annotations":
        return lambda: load_dataset(root, f"first{size}")
    data = load_dataset(root, f"first{size}")
    clip = load_clip("embedded", device="cpu")
    clip.encode_image(clip.preprocess(np.zeros((8, 8, 3), np.uint8))[None])
    store = HeatmapStore(clip, data, cache)
    if stage == "maps":
        return store.compute
    if stage == "features":
        return FeatureCache(clip, data, cache).compute
    store.compute()
    if stage == "boxes":
        return lambda: boxes_of(store.shards, [Setting("standard"), Setting("vv_mixed")], [Setting()])
    if stage == "detections":
        return lambda: detect(clip, data, DetectionSettings(), cache_dir=cache)
    if not (made := cache / "detections.parquet").is_file():
        detect(clip, data, DetectionSettings(kinds=("vv_mixed",)), cache_dir=cache).to_parquet(made)
    frame = pd.read_parquet(made).drop(columns="kind")
    if stage == "average precision":
        return lambda: average_precision(frame, data.boxes, classes=data.classes)
    return lambda: bootstrap_map(frame, data.boxes, image_ids=data.images["image_id"], classes=data.classes)


if __name__ == "__main__":
    main()
