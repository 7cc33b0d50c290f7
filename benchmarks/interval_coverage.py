"""How often do 95 % intervals of mAP on few images hold the value on many?

    python benchmarks/interval_coverage.py [--scenes 1500] [--images 120] [--draws 80] [--out data/coverage]

A large set of scenes stands for the population: its mAP is taken as the true one. Small sets are drawn from it, and
the basic interval (which the workbook reports) and the percentile interval of each are held against the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from surgerylib import DetectionSettings, average_precision, detect, load_clip, load_dataset
from surgerylib.metrics import bootstrap_map, mean_average_precision
from surgerylib.scenes import write_scenes
from surgerylib.summary import PROTOCOLS, present_only

IOU_THRESHOLDS = (0.05, 0.15, 0.5)
KINDS = ("standard", "vv_mixed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1500, help="size of the population")
    parser.add_argument("--images", type=int, default=120, help="size of a drawn set")
    parser.add_argument("--draws", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("data/coverage"))
    options = parser.parse_args()

    folder = write_scenes(options.out, num_train=1, num_val=1, num_test=options.scenes, seed=5)
    data = load_dataset(folder, "test")
    clip = load_clip("embedded", device="cpu")
    detections = detect(clip, data, DetectionSettings(kinds=KINDS), cache_dir=options.out.with_suffix(".cache"))
    for protocol in PROTOCOLS:
        for kind in KINDS:
            found = detections[detections["kind"] == kind].drop(columns="kind").reset_index(drop=True)
            if protocol == "present":
                found = present_only(found, data.boxes)
            coverage(f"{protocol:8s} {kind:9s}", found, data.boxes, data.images["image_id"].to_numpy(), options)


def coverage(
    name: str, detections: pd.DataFrame, truth: pd.DataFrame, image_ids: np.ndarray, options: argparse.Namespace
) -> None:
    """Print the mAP of the population, the mean of the small sets, and the share of intervals that hold the former."""
    precision = average_precision(detections, truth, iou_thresholds=IOU_THRESHOLDS)
    true_map = mean_average_precision(precision)["map"].to_numpy()
    rng = np.random.default_rng(1)
    by_image, truth_by_image = (dict(list(frame.groupby("image_id"))) for frame in (detections, truth))
    estimates, basic, percentile = [], [], []
    for draw in tqdm(range(options.draws), desc=name, leave=False):
        ids = rng.choice(image_ids, options.images, replace=False)
        result = bootstrap_map(
            pd.concat([by_image[i] for i in ids if i in by_image]),
            pd.concat([truth_by_image[i] for i in ids if i in truth_by_image]),
            image_ids=ids,
            iou_thresholds=IOU_THRESHOLDS,
            seed=draw,
        )
        summary = result.summary()
        basic.append((summary["low"].to_numpy() <= true_map) & (true_map <= summary["high"].to_numpy()))
        low, high = np.quantile(result.map_samples, [0.025, 0.975], axis=0)
        percentile.append((low <= true_map) & (true_map <= high))
        estimates.append(result.map)
    rows = {
        "true mAP": true_map,
        f"mean on {options.images} images": np.mean(estimates, axis=0),
        "basic interval holds": np.mean(basic, axis=0),
        "percentile interval holds": np.mean(percentile, axis=0),
    }
    for label, values in rows.items():
        cells = "  ".join(
            f"@{threshold:.2f} {value:.3f}" for threshold, value in zip(IOU_THRESHOLDS, values, strict=True)
        )
        print(f"{name} {label:27s} {cells}")


if __name__ == "__main__":
    main()
