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
MODEL = "from surgerylib import extract_boxes, heatmaps, load_clip, read_image"


def rows() -> Iterator[harness.Row]:
    said = _run(MODEL + "\nimport sys; print('open_clip' in sys.modules and load_clip.__module__)")
    assert said.strip() == "surgerylib.clip", said
    for name, code in ((PACKAGE, PACKAGE), ("import load_clip, heatmaps, extract_boxes", MODEL)):
        yield harness.compare(name, _call(code), "import torch, open_clip", _call(OPEN_CLIP), rounds=7, limit=1.05)


def _call(code: str) -> Callable[[], str]:
    return lambda: _run(code)


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    harness.main(rows, __doc__)
