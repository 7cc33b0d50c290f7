"""What importing the package costs over torch and open_clip, each in a fresh interpreter.

python benchmarks/imports.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import harness

# where torchvision's compiled operators are missing `import open_clip` fails without the package's help
OPEN_CLIP = """
import torch
try:
    import torchvision
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
"""
PACKAGE = "import surgerylib"
ROUNDS = 3
MODEL = "from surgerylib import extract_boxes, heatmaps, load_clip, read_image"


def rows() -> Iterator[harness.Row]:
    said = _run(MODEL + "\nimport sys; print('open_clip' in sys.modules and load_clip.__module__)")
    assert said.strip() == "surgerylib.clip", said
    pairs = {PACKAGE: [], "import load_clip, heatmaps, extract_boxes": []}
    for number in range(ROUNDS + 1):
        calls = [_call(PACKAGE), _call(MODEL), _call(OPEN_CLIP)]
        order = (0, 1, 2) if number % 2 else (2, 1, 0)
        seconds = {place: harness.timed(calls[place]) for place in order}
        for place, measured in enumerate(pairs.values()):
            measured += [(seconds[place], seconds[2])] if number else []  # the first reads the files from disk
    for name, measured in pairs.items():
        yield harness.row(name, "import torch, open_clip", measured, limit=1.05)


def _call(code: str) -> Callable[[], str]:
    return lambda: _run(code)


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    harness.main(rows, __doc__)
