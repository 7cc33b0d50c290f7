"""What the explorer's answers cost in the kernel, from the control's value to the last message to the browser.

    python benchmarks/explorer.py

ViT-B-32 with random weights, 800 x 800 scenes, the 20 classes of DIOR; the reference is the stock model's forward of
one image. What the browser adds is measured by the browser tests.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import harness
import torch

from surgerylib import SurgeryWarning, load_clip
from surgerylib.embedded import write_scenes
from surgerylib.explorer import ALL_KINDS, Explorer

MODEL = "ViT-B-32"


def rows() -> Iterator[harness.Row]:
    warnings.simplefilter("ignore", SurgeryWarning)
    clip = load_clip(MODEL, "random", device="cpu")
    pixels = torch.randn(1, 3, clip.image_size, clip.image_size)
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder) / "scenes", num_train=1, num_val=1, num_test=2, size=800)
        explorer = Explorer(dataset=str(scenes), model=MODEL, checkpoint="random", device="cpu")
        explorer.wait()
        controls, numbers = explorer.controls, itertools.count()
        percentiles = itertools.cycle((60.0, 75.0, 90.0, 95.0))

        @torch.no_grad()
        def stock() -> None:
            clip.model.encode_image(pixels)

        def threshold() -> None:
            controls.percentile.value = next(percentiles)

        def image() -> None:
            controls.next.click()
            explorer.wait()

        def phrase() -> None:
            controls.words.value = f"red roof {next(numbers)}"

        def patch() -> None:
            number = next(numbers)
            explorer.stage.photo.pointed = [number % 7, number // 7 % 7]

        def compared(name: str, call) -> harness.Row:
            return harness.compare(f"explorer: {name}", call, "stock encode_image of one image", stock, rounds=10)

        yield compared("threshold, one kind", threshold)
        yield compared("patch pointed at", patch)
        yield compared("another image, one kind", image)
        controls.kind.value = ALL_KINDS
        yield compared("threshold, four kinds", threshold)
        yield compared("another image, four kinds", image)
        controls.kind.value, controls.ask.value = "vv_mixed", "own words"
        yield compared("new phrase, one kind", phrase)


if __name__ == "__main__":
    harness.main(rows, __doc__)
