"""What a heatmap adapter is worth for classes that it was not trained on: a quarter of the classes left out in turn.

Trained on the embedded `train` split and measured on `val`, without a look at `test`: by this the anchor, the rank and
the balance of notebook 03 were chosen. The four classes that notebook 03 leaves out are left out of all of this.

    python benchmarks/adapter_classes.py [--only NAME ...] [--epochs 60]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.adapter_training import AdapterSettings, train_adapter
from surgerylib.engine.adapters import load_adapters
from surgerylib.engine.caches import TokenCache
from surgerylib.engine.store import HeatmapStore
from surgerylib.heatmaps import Setting
from surgerylib.locations import dataset_folder
from surgerylib.study.adaptation import compare_adapted, states_of
from surgerylib.study.training import NOVEL_CLASSES, AdapterPlan

FOLDS, KIND = 4, "vv_mixed"
FLOORS = (0.04, 0.1, 0.15, 0.2)
DEFAULT = AdapterSettings()
VARIANTS = {
    "as it is": DEFAULT,
    "anchor 0": replace(DEFAULT, anchor_weight=0.0),
    "anchor 1": replace(DEFAULT, anchor_weight=1.0),
    "anchor 10": replace(DEFAULT, anchor_weight=10.0),
    "rank 8": replace(DEFAULT, rank=8),
    "no balance": replace(DEFAULT, positive_weight=1.0),
    "covered patches x 3": replace(DEFAULT, positive_weight=3.0),
    "covered patches x 30": replace(DEFAULT, positive_weight=30.0),
    "focal, gamma 2": replace(DEFAULT, positive_weight=1.0, focal_gamma=2.0),
}


def main(arguments: argparse.Namespace) -> None:
    folder = write_scenes(dataset_folder("embedded")[0])
    clip = load_clip("embedded", device="cpu")
    train, val = (load_dataset(folder, split) for split in ("train", "val"))
    known = [name for name in val.classes if name not in NOVEL_CLASSES]
    folds = [known[place::FOLDS] for place in range(FOLDS)]
    schedule = replace(AdapterPlan(adapter_epochs=arguments.epochs).schedule)
    source, boxes = Setting(KIND), Setting()
    print(f"{'variant':24s} {'trained on':>10s} {'left out':>9s} {'false boxes':>12s}   mean mAP under all, val")
    scratch = Path(tempfile.mkdtemp())
    try:
        tokens = [TokenCache(clip, data, scratch).compute() for data in (train, val)]

        def measure(store: HeatmapStore, setting: Setting, left_out: list[str]) -> tuple[float, float, float]:
            groups = {"trained on": [name for name in known if name not in left_out], "left out": left_out}
            found = compare_adapted(store, {KIND: {"after": setting}}, groups, n_resamples=1)
            maps = found.maps[found.maps["protocol"] == "all"].groupby("group")["map"].mean()
            false = found.figures[found.figures["figure"] == "false_box_rate"].set_index("group")["value"]
            return maps["trained on"], maps["left out"], false["left out"]

        plain = HeatmapStore(clip, val, scratch).compute()
        for floor in (None, *FLOORS):
            rows = [measure(plain, Setting(source, replace(boxes, floor=floor)), left_out) for left_out in folds]
            show("no adapter" if floor is None else f"floor alone, {floor:g}", rows)
        for name in arguments.only or VARIANTS:
            rows = []
            for left_out in folds:
                seen = tuple(known_name for known_name in known if known_name not in left_out)
                settings = replace(VARIANTS[name], seen_classes=seen)
                _, training = train_adapter(*tokens, settings, schedule, scratch, kind=KIND)
                adapters = load_adapters(training.last, clip)
                store = HeatmapStore(clip, val, scratch, adapters=[adapters[KIND]]).compute()
                setting = states_of({KIND: source}, adapters, boxes)[KIND]["after"]
                rows.append(measure(store, setting, left_out))
            show(name, rows)
    finally:
        shutil.rmtree(scratch)


def show(name: str, rows: list[tuple[float, float, float]]) -> None:
    trained, left_out, false = np.mean(rows, axis=0)
    print(f"{name:24s} {trained:10.3f} {left_out:9.3f} {false:12.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="these variants alone")
    parser.add_argument("--epochs", type=int, default=60)
    sys.exit(main(parser.parse_args()))
