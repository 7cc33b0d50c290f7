"""What importing the package costs over torch and open_clip, each in a fresh interpreter.

python benchmarks/imports.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

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
MODEL = "from surgerylib import extract_boxes, heatmaps, load_clip, read_image"


def rows() -> Iterator[harness.Row]:
    said = run(MODEL + "\nimport sys; print('open_clip' in sys.modules and load_clip.__module__)")
    assert said.strip() == "surgerylib.clip", said
    for name, code, limit in ((PACKAGE, PACKAGE, 0.25), ("import load_clip, heatmaps, extract_boxes", MODEL, 1.25)):
        # the first calls read the files from disk
        yield harness.compare(
            name, partial(run, code), "import torch, open_clip", partial(run, OPEN_CLIP), rounds=3, limit=limit
        )


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    harness.main(rows, __doc__)
