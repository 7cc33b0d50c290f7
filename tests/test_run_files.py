from __future__ import annotations

import json
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


def test_what_belongs_together_is_read(folder):
    own = read_results(folder / "map_results.json")["provenance"]
    results = read_results(folder / "map_results.json", own | {"seconds": 9, "threads": 4})
    pd.testing.assert_frame_equal(read_frame(folder, results, "images.parquet"), Made().frames()[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights_sha256", "zz"), ("split", "val"), ("images_sha256", "zz"), ("classes", ["ship"]), ("depth", 3)],
)
def test_results_of_another_run_are_refused(folder, name, value):
    own = read_results(folder / "map_results.json")["provenance"] | {name: value}
    refused(lambda: read_results(folder / "map_results.json", own), ResultsError, f"of another run .*{name}")


def test_a_file_of_another_run_is_refused(folder):
    results = read_results(folder / "map_results.json")
    pd.DataFrame({"iou": [0.9]}).to_parquet(folder / "images.parquet")
    (folder / "detections.parquet").unlink()
    for name, said in {
        "images.parquet": "not the file that this run's results were made with",
        "detections.parquet": "not there",
        "others.parquet": "no results state",
    }.items():
        refused(lambda name=name: read_frame(folder, results, name), ResultsError, said)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"provenance": 3}'])
def test_a_damaged_file_is_one_line(folder, content):
    own = json.loads((folder / "map_results.json").read_text())["provenance"]
    (folder / "map_results.json").write_text(content)
    refused(lambda: read_results(folder / "map_results.json", own), ResultsError, "run its notebook again")


def test_no_file(tmp_path):
    for name, said in {
        "results.json": "run the notebook that writes it",
        "map_results.json": "run notebook 01 into this folder first",
    }.items():
        refused(lambda name=name: read_results(tmp_path / name, None), ResultsError, said)
