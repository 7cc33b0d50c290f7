"""Reading the annotations of a split of DIOR's size against parsing their XML and nothing else.

    python benchmarks/annotations.py

23,463 files with 192,518 boxes, as DIOR writes them and as crowded as DIOR's. The reference is xml.etree's parser in C,
over the same files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import harness
import numpy as np
from pictures import write_annotations
from tqdm import tqdm

from surgerylib import Dataset, load_dataset

N_FILES, N_BOXES = 23_463, 192_518
COLUMNS = ("xmin", "ymin", "xmax", "ymax")


def parse(files: list[Path]) -> None:
    for path in files:
        ElementTree.fromstring(path.read_bytes())


def check(dataset: Dataset, files: list[Path]) -> None:
    """As many boxes with the same sums as in the trees, whose boxes are cut at the image as the dataset's are."""
    boxes, sizes = [], []
    for path in files:
        root = ElementTree.fromstring(path.read_bytes())
        found = [[box.findtext(tag) for tag in COLUMNS] for box in root.iterfind("object/bndbox")]
        boxes += found
        sizes += [[root.findtext("size/width"), root.findtext("size/height")] * 2] * len(found)
    clipped = np.clip(np.array(boxes, float), 0, np.array(sizes, float))
    kept = clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)]
    assert len(dataset.boxes) + dataset.n_dropped == len(boxes)
    np.testing.assert_array_equal(dataset.boxes[list(COLUMNS)].sum(), kept.sum(axis=0))


def rows() -> Iterator[harness.Row]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = write_annotations(root, N_FILES, N_BOXES, "all")
        read = partial(load_dataset, root, "all", require_images=False, progress=partial(tqdm, disable=True))
        check(read(), files)
        yield harness.compare(
            f"reading {len(files):,} XML", read, "xml.etree, parsing alone", partial(parse, files),
            rounds=3, limit=2.0, warm=False,
        )  # fmt: skip


if __name__ == "__main__":
    harness.main(rows, __doc__)
