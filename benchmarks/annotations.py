"""Reading the annotations of a split of DIOR's size against parsing their XML and nothing else.

    python benchmarks/annotations.py [--annotations DIR]

23,463 files with 192,518 boxes, as DIOR writes them: drawn, and as crowded as DIOR's, or with `--annotations` (a
dataset's folder in DIOR's layout) its own. The reference is xml.etree's parser in C,
over the same files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import harness
import numpy as np
from tqdm import tqdm

from surgerylib.datasets import Dataset, load_dataset
from surgerylib.words import DIOR_CLASSES

N_FILES, N_BOXES, SIDE = 23_463, 192_518, 800
FOLDER = "Annotations/Horizontal Bounding Boxes"
COLUMNS = ("xmin", "ymin", "xmax", "ymax")
FILE = """<annotation>
\t<filename>{image_id}.jpg</filename>
\t<source>
\t\t<database>DIOR</database>
\t</source>
\t<size>
\t\t<width>800</width>
\t\t<height>800</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """\t<object>
\t\t<name>{}</name>
\t\t<pose>Unspecified</pose>
\t\t<bndbox>
\t\t\t<xmin>{}</xmin>
\t\t\t<ymin>{}</ymin>
\t\t\t<xmax>{}</xmax>
\t\t\t<ymax>{}</ymax>
\t\t</bndbox>
\t</object>
"""


def write_annotations(folder: Path) -> None:
    """Files in DIOR's form, the same at each call: boxes of whole pixels; some images hold hundreds."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.2, N_FILES)
    counts = 1 + rng.multinomial(N_BOXES - N_FILES, share / share.sum())
    side = np.exp(rng.normal(3.5, 1.0, (N_BOXES, 2))).clip(4, 600)
    low = rng.random((N_BOXES, 2)) * (SIDE - side)
    names = np.array(DIOR_CLASSES, dtype=object)[rng.integers(0, len(DIOR_CLASSES), N_BOXES)]
    corners = np.hstack([low, low + side]).round().astype(int).tolist()
    objects = [OBJECT.format(name, *box) for name, box in zip(names, corners, strict=True)]
    for number, (end, count) in enumerate(zip(counts.cumsum(), counts, strict=True), start=1):
        text = FILE.format(image_id=f"{number:05d}", objects="".join(objects[end - count : end]))
        (folder / f"{number:05d}.xml").write_bytes(text.replace("\n", "\r\n").encode())


def make_dataset(root: Path, annotations: str | None) -> list[Path]:
    """A dataset whose split `all` names every file there is; returns the files."""
    folder = root / FOLDER
    if annotations is None:
        write_annotations(folder)
    else:  # theirs is left as it is: the split file lies in a folder of our own
        folder.parent.mkdir()
        folder.symlink_to(Path(annotations) / FOLDER, target_is_directory=True)
    files = sorted(folder.glob("*.xml"))
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/all.txt").write_text("".join(f"{path.stem}\n" for path in files))
    return files


def of_path(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def of_bytes(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_bytes())


def parse_alone(parse: Callable[[Path], ElementTree.Element], files: list[Path]) -> None:
    for path in files:
        parse(path)


def check(dataset: Dataset, files: list[Path]) -> None:
    """As many boxes with the same sums as in the trees, whose boxes are cut at the image as the dataset's are."""
    boxes, sizes = [], []
    for path in files:
        root = of_path(path)
        found = [[box.findtext(tag) for tag in COLUMNS] for box in root.iterfind("object/bndbox")]
        boxes += found
        sizes += [[root.findtext("size/width"), root.findtext("size/height")] * 2] * len(found)
    clipped = np.clip(np.array(boxes, float), 0, np.array(sizes, float))
    kept = clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)]
    assert len(dataset.boxes) + dataset.n_dropped == len(boxes)
    np.testing.assert_array_equal(dataset.boxes[list(COLUMNS)].sum(), kept.sum(axis=0))


def rows(annotations: str | None = None) -> Iterator[harness.Row]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = make_dataset(root, annotations)
        quiet = partial(tqdm, disable=True)
        read = partial(load_dataset, root, "all", require_images=False, progress=quiet)

        check(read(), files)

        few = files[:: len(files) // 2000 + 1]
        seconds = {parse: harness.timed(partial(parse_alone, parse, few)) for parse in (of_path, of_bytes)}
        parse = partial(parse_alone, min(seconds, key=seconds.get), files)
        stage, reference = f"reading {len(files):,} XML", "xml.etree, parsing alone"
        yield harness.compare(stage, read, reference, parse, rounds=3, limit=1.5, warm=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--annotations", type=lambda path: str(Path(path).resolve()))
    known, rest = parser.parse_known_args()
    harness.main(partial(rows, known.annotations), __doc__, rest)
