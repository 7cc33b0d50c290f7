from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_runs import Made, write_run
from refusals import refused

from surgerylib.errors import ResultsError
from surgerylib.workbook.run_files import read_frame, read_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", evaluated=False)


def test_what_belongs_together_is_read_and_results_of_another_run_are_refused(folder):
    path = folder / "map_results.json"
    own = read_results(path)["provenance"]
    results = read_results(path, own | {"seconds": 9, "threads": 4})
    pd.testing.assert_frame_equal(read_frame(folder, results, "images.parquet"), Made().frames()[0])
    for name, value in {"weights_sha256": "zz", "split": "val", "images_sha256": "zz", "classes": ["x"]}.items():
        refused(read_results, ResultsError, f"of another run .*{name}", path, own | {name: value})


def test_a_file_of_another_run_is_refused(folder):
    results = read_results(folder / "map_results.json")
    pd.DataFrame({"iou": [0.9]}).to_parquet(folder / "images.parquet")
    (folder / "detections.parquet").unlink()
    for name, said in {
        "images": "not the file that this run's results were made with", "detections": "not there",
        "others": "no results state",
    }.items():  # fmt: skip
        refused(read_frame, ResultsError, said, folder, results, f"{name}.parquet")


def test_a_damaged_file_and_none_are_one_line(folder, tmp_path):
    for content in ("", "{", "[1]", "{}", '{"provenance": 3}'):
        (folder / "map_results.json").write_text(content)
        refused(read_results, ResultsError, "run its notebook again", folder / "map_results.json")
    refused(read_results, ResultsError, "run the notebook that writes it", tmp_path / "results.json")
    refused(read_results, ResultsError, "run notebook 01 into this folder first", tmp_path / "map_results.json")
