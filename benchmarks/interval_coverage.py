"""How often do 95 % intervals of mAP on few images hold the value on many?

    python benchmarks/interval_coverage.py [--scenes 1500] [--images 120] [--draws 200] [--out data/coverage]

A large set of scenes stands for the population: its mAP is taken as the true one. Small sets are drawn from it with
replacement (copies count as images of their own), as from a population without end. Held against the truth are the
interval the workbook reports, and what it replaced: the basic and the percentile interval of a bootstrap.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from tqdm import tqdm

from surgerylib import DetectionSettings, average_precision, detect, load_clip, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.intervals import basic_interval, bootstrap_weights
from surgerylib.metrics import BootstrapResult, bootstrap_map, mean_average_precision, paired_difference
from surgerylib.study.summary import PROTOCOLS, present_only

IOU_THRESHOLDS = (0.05, 0.15, 0.5)
KINDS = ("standard", "vv_mixed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1500, help="size of the population")
    parser.add_argument("--images", type=int, default=120, help="size of a drawn set")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--interpolation", default="11point")
    parser.add_argument("--out", type=Path, default=Path("data/coverage"))
    options = parser.parse_args()

    folder = write_scenes(options.out, num_train=1, num_val=1, num_test=options.scenes, seed=5)
    data = load_dataset(folder, "test")
    clip = load_clip("embedded", device="cpu")
    detections = detect(clip, data, DetectionSettings(kinds=KINDS), cache_dir=options.out.with_suffix(".cache"))
    image_ids = data.images["image_id"].to_numpy()
    for protocol in PROTOCOLS:
        found = [detections[detections["kind"] == kind].drop(columns="kind") for kind in KINDS]
        if protocol == "present":
            found = [present_only(boxes, data.boxes) for boxes in found]
        print(coverage([data.boxes, *found], image_ids, options).assign(protocol=protocol).to_string(index=False))


def coverage(frames: list[pd.DataFrame], image_ids: np.ndarray, options: argparse.Namespace) -> pd.DataFrame:
    """Share of draws whose interval holds the population's value, and mean width, by kind, method and threshold."""
    settings = {"iou_thresholds": IOU_THRESHOLDS, "interpolation": options.interpolation}
    a, b = (
        mean_average_precision(average_precision(found, frames[0], **settings))["map"].to_numpy()
        for found in frames[1:]
    )
    true = dict(zip((*KINDS, "difference"), (a, b, b - a), strict=True))
    rng = np.random.default_rng(1)
    by_image = [dict(list(frame.groupby("image_id"))) for frame in frames]
    held, widths = defaultdict(list), defaultdict(list)
    for seed in tqdm(range(options.draws), leave=False):
        drawn = rng.choice(image_ids, options.images)
        names = [f"{n} {i}" for n, i in enumerate(drawn)]
        truth, *found = (
            pd.concat([rows[i].assign(image_id=name) for name, i in zip(names, drawn, strict=True) if i in rows])
            for rows in by_image
        )
        for method, result in methods(found, truth, image_ids=names, seed=seed, **settings):
            for kind, (low, high) in result.items():
                held[kind, method].append((low <= true[kind]) & (true[kind] <= high))
                widths[kind, method].append(high - low)
    rows = []
    for kind, method in held:
        shares, mean_widths = np.mean(held[kind, method], axis=0), np.mean(widths[kind, method], axis=0)
        cells = [f"{share:.0%} width {width:.3f}" for share, width in zip(shares, mean_widths, strict=True)]
        columns = [f"@{threshold}" for threshold in IOU_THRESHOLDS]
        rows.append({"kind": kind, "interval": method, **dict(zip(columns, cells, strict=True))})
    return pd.DataFrame(rows)


def methods(found: list[pd.DataFrame], truth: pd.DataFrame, **options):
    """Each method's name and its low and high ends by kind."""
    results = evaluated(found, truth, **options)
    frames = {kind: result.summary() for kind, result in results.items()}
    yield "reported", {kind: (frame["low"].to_numpy(), frame["high"].to_numpy()) for kind, frame in frames.items()}
    as_drawn = patch("surgerylib.metrics.keep_mean_at_zero", lambda samples, *_: samples)
    with patch("surgerylib.metrics.half_samples", bootstrap_weights), as_drawn:
        results = evaluated(found, truth, **options)
    yield "basic", {kind: basic_interval(r.map, r.map_samples, r.n_images) for kind, r in results.items()}
    yield "percentile", {kind: np.quantile(r.map_samples, [0.025, 0.975], axis=0) for kind, r in results.items()}


def evaluated(found: list[pd.DataFrame], truth: pd.DataFrame, **options) -> dict[str, BootstrapResult]:
    a, b = (bootstrap_map(boxes, truth, **options) for boxes in found)
    return dict(zip((*KINDS, "difference"), (a, b, paired_difference(b, a)), strict=True))


if __name__ == "__main__":
    main()
