"""What one image costs, part by part, and from that what a whole data set costs on other machines: docs/scale.md.

    python benchmarks/scale_parts.py [--data DATA] [--models ViT-B-32,ViT-L-14] [--images 64]

Everything runs in one thread and is counted in CPU seconds, which others on the machine change least. Pictures are
those of `benchmarks/scale.py pictures` (or random ones, written to a temporary folder, without `--data`); weights are
random. The operations of a forward are counted by the formula of `multiply_adds` and by torch's own counter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from surgerylib import DIOR_CLASSES, load_clip, prompt_names
from surgerylib.datasets import read_image
from surgerylib.engine.finding import MapShard, shard_boxes
from surgerylib.engine.store import STORED_LAYERS
from surgerylib.heatmaps import PATHS, Setting

PERCENTILES = (30, 50, 60, 70, 75, 80, 85, 90, 95)
SIZE_WH = (800, 800)
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with JPEGImages-test/")
    parser.add_argument("--models", default="ViT-B-32,ViT-L-14")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, help="a JSON file of the same numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(options.data, Path(folder), options.images)
        size = statistics.mean(path.stat().st_size for path in paths)
        print(f"{len(paths)} pictures of {size / 1e3:.0f} kB; milliseconds of one core an image")
        found = {name: parts_of(name, paths, Path(folder)) for name in options.models.split(",")}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def pictures(data: Path | None, folder: Path, count: int) -> list[Path]:
    if data is not None:
        return sorted((data / "JPEGImages-test").iterdir())[:count]
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, SIZE_WH, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return sorted(folder.glob("*.jpg"))


@torch.no_grad()
def parts_of(name: str, paths: list[Path], folder: Path) -> dict[str, float]:
    """Milliseconds an image of each part."""
    clip = load_clip(name, "random", device="cpu")
    images = [read_image(path) for path in paths]
    pixels = torch.stack([clip.preprocess(image) for image in images])
    text = clip.encode_text(prompt_names(DIOR_CLASSES))
    few = pixels[:BATCH]
    with FlopCounterMode(display=False) as counter:
        clip.encode_image(few[:1], STORED_LAYERS)
    tokens = clip.encode_image(few, STORED_LAYERS)
    both = torch.stack([getattr(tokens, path) for path in PATHS]) @ text.T
    path = folder / f"{name}.npy"
    np.save(path, both.permute(2, 1, 0, 4, 3).contiguous().numpy())
    shard = MapShard(str(path), clip.grid, 0, (SIZE_WH,) * len(few))
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "decode": (len(paths), lambda: [read_image(path) for path in paths]),
        "resize, normalise": (len(paths), lambda: [clip.preprocess(image) for image in images]),
        "stock encode_image": (len(few), lambda: clip.model.encode_image(few)),
        f"both paths, {STORED_LAYERS} layers": (len(few), lambda: clip.encode_image(few, STORED_LAYERS)),
        "boxes of 20 classes, 1 map, 1 setting": (
            len(few), lambda: shard_boxes(shard, Setting(), [Setting(75.0)]),
        ),
        f"boxes of 20 classes, 1 map, {len(PERCENTILES)} settings": (
            len(few), lambda: shard_boxes(shard, Setting(), [Setting(float(p)) for p in PERCENTILES]),
        ),
    }  # fmt: skip
    counted = multiply_adds(clip)
    print(
        f"{name}: {2 * counted / 1e9:.2f} GFLOP an image by the formula, {counter.get_total_flops() / 1e9:.2f} counted "
        "by torch"
    )
    found = {"gflop": 2 * counted / 1e9, "gflop_torch": counter.get_total_flops() / 1e9}
    for part, (count, call) in calls.items():
        found[part] = 1000 * cpu_seconds(call) / count
        print(f"  {part:42s} {found[part]:8.2f}")
    return found


def multiply_adds(clip) -> int:
    """Multiplications with an addition of one image's forward along both paths, `STORED_LAYERS` layers projected.

    A block of the stock path: 12·T·W² in its six matrices (query, key, value, output, two of the MLP of 4·W), 2·T²·W in
    its attention. The value-value path adds, in each of the last `depth` blocks, an output matrix and an attention.
    """
    visual = clip.model.visual
    patches, width, dim = clip.grid[0] * clip.grid[1], clip.feature_dim, clip.embed_dim
    tokens = patches + 1
    hidden = visual.transformer.resblocks[0].mlp[0].out_features
    matrices, attention = tokens * width * (4 * width + 2 * hidden), 2 * tokens**2 * width
    embedding = patches * 3 * clip.patch_size**2 * width
    value_value = clip.depth * (tokens * width**2 + attention)
    return embedding + clip.num_layers * (matrices + attention) + value_value + 2 * STORED_LAYERS * tokens * width * dim


def cpu_seconds(call: Callable[[], object], rounds: int = 3) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
