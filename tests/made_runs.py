"""Folders of finished runs, made by the project's own functions without executing a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from judged_frames import judged

from surgerylib.engine.localizer_training import METHODS, summarise
from surgerylib.heatmaps import Setting
from surgerylib.matching import BOX_COLUMNS
from surgerylib.study import summary
from surgerylib.study.evaluation_tables import verdict
from surgerylib.study.localizer_tables import plain_methods
from surgerylib.study.tables import plain
from surgerylib.workbook.run_files import RUN_FORMAT, write_frames

CLASSES = ("ship", "dam", "airport")
KINDS = ("standard", "vv_mixed")
THRESHOLDS = (0.1, 0.5)


@dataclass(frozen=True)
class Made:
    """What a run was made of; `hits` of its boxes are found by each kind."""

    n_images: int = 16
    hits: float = 0.3
    label: str = "ship"  # of each image's second box
    classes: tuple[str, ...] = CLASSES
    order: int = 1  # -1: the images in the reverse order
    interpolation: str = "11point"
    iou_thresholds: tuple[float, ...] = THRESHOLDS
    provenance: dict = field(default_factory=dict)

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """images, ground truth and detections: each image has a dam and another box."""
        truth, found = [], []
        names = [f"{image:03d}" for image in range(self.n_images)][:: self.order]
        for image in names:
            for label in ("dam", self.label):
                corner = np.random.default_rng([int(image), label == "dam"]).uniform(0, 60, 2)
                truth.append((image, label, *corner, *(corner + 30)))
                for place, kind in enumerate(KINDS):
                    draw = np.random.default_rng([int(image), place, label == "dam", 5]).random()
                    shifted = corner + (3 if draw < self.hits + place / 5 else 200)
                    found.append((image, label, *shifted, *(shifted + 30), draw, kind))
        columns = ["image_id", "label", *BOX_COLUMNS]
        images = pd.DataFrame({"image_id": names, "width": 320, "height": 320})
        return images, pd.DataFrame(truth, columns=columns), pd.DataFrame(found, columns=[*columns, "score", "kind"])

    def ious(self) -> pd.DataFrame:
        """IoUs of notebook 04: the head finds more with more hits, the guesses stay."""
        boxes = self.frames()[1][["image_id", "label"]]
        draws = [np.random.default_rng([int(row.image_id), row.label == "dam", 9]) for row in boxes.itertuples()]
        learned = {name: [draw.random() ** (1 - self.hits) for draw in draws] for name in METHODS[:4]}
        fixed = {name: [draw.random() / 4 for draw in draws] for name in METHODS[4:]}
        return boxes.assign(box_row=np.arange(len(boxes)), row=0, column=0, **learned, **fixed)


def write_run(folder: Path, made: Made = Made(), *, evaluated: bool = True, **record: object) -> Path:
    """The folder of a run of notebook 01, and of 04 if evaluated; `record` goes into its `run.json`."""
    folder.mkdir(parents=True)
    images, truth, found = made.frames()
    provenance = {
        "model": "embedded", "weights": "shipped", "weights_sha256": "a1" * 32, "dataset": "scenes", "split": "test",
        "annotations_sha256": f"{hash((*images['image_id'], *truth['label'])):x}",
        "images_sha256": f"{hash(tuple(images['image_id'])):x}", "classes": list(made.classes), "seed": 0,
        "versions": {"torch": "2.13.0"}, "seconds": np.random.default_rng().random(), **made.provenance,
    }  # fmt: skip
    judgement = judged(
        found, truth, image_ids=list(images["image_id"]), classes=made.classes, kinds=KINDS,
        iou_thresholds=made.iou_thresholds, interpolation=made.interpolation, n_resamples=50,
    )  # fmt: skip
    frames = {"detections.parquet": found, "ground_truth.parquet": truth, "images.parquet": images}
    maps = summary.map_results(
        judgement, settings={**Setting().parameters(), "description": Setting().describe()}, notes=[],
        files=write_frames(folder, frames), provenance=provenance,
        counts={"n_images": len(images), "n_boxes": len(truth), "n_classes": 2},
    )  # fmt: skip
    written = {"01_maps": ("map_results.json", maps)}
    if evaluated:
        figures = summarise(made.ious())
        head = {"verdict": plain(asdict(verdict(figures))), "methods": plain_methods(figures)}
        head |= {"finding": "found", "n_boxes": len(truth), "n_images": len(images), "provenance": provenance}
        head["files"] = write_frames(folder, {"gt_class_localization.parquet": made.ious()})
        written["04_evaluation"] = ("evaluation_results.json", head)
    entries = []
    for name, (file, results) in written.items():
        (folder / file).write_text(json.dumps(results))
        entries.append({"name": name, "title": name, "status": "ok", "seconds": 1.0, "message": "", "files": [file]})
    run = {"format": RUN_FORMAT, "name": folder.name, "status": "ok", "started": "2026-03-04T05:06:07+00:00"}
    run |= {"seconds": 61, "parameters": {}, "library_sha256": "b2" * 32, "platform": "Linux", "notebooks": entries}
    run["versions"] = {"python": "3.11"}
    (folder / "run.json").write_text(json.dumps(run | record))
    (folder / "index.html").write_text("<p>the run</p>")
    return folder


def change(path: Path, edit: Callable[[dict], object]) -> None:
    """Of a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
