from __future__ import annotations

import json

import pandas as pd
import pytest

from surgerylib.errors import ResultsError
from surgerylib.workbook.run_files import read_frame, read_results, write_frames

OWN = {
    "model": "m", "weights_sha256": "ab", "depth": 6, "image_size": 224, "dataset": "d", "split": "test",
    "annotations_sha256": "cd", "images_sha256": "ef", "classes": ["ship", "dam"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    files = write_frames(tmp_path, {"boxes.parquet": pd.DataFrame({"iou": [0.5]})})
    (tmp_path / "results.json").write_text(json.dumps({"provenance": OWN | {"seconds": 3}, "files": files}))
    return tmp_path


def test_what_belongs_together_is_read(folder):
    results = read_results(folder / "results.json", OWN | {"seconds": 9, "threads": 4})
    pd.testing.assert_frame_equal(read_frame(folder, results, "boxes.parquet"), pd.DataFrame({"iou": [0.5]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights_sha256", "zz"), ("split", "val"), ("images_sha256", "zz"), ("classes", ["ship"]), ("depth", 3)],
)
def test_results_of_another_run_are_refused(folder, name, value):
    with pytest.raises(ResultsError, match=f"of another run .*{name}"):
        read_results(folder / "results.json", OWN | {name: value})


def test_a_file_of_another_run_is_refused(folder):
    results = read_results(folder / "results.json")
    pd.DataFrame({"iou": [0.9]}).to_parquet(folder / "boxes.parquet")
    with pytest.raises(ResultsError, match="not the file that this run's results were made with"):
        read_frame(folder, results, "boxes.parquet")
    (folder / "boxes.parquet").unlink()
    with pytest.raises(ResultsError, match="not there"):
        read_frame(folder, results, "boxes.parquet")
    with pytest.raises(ResultsError, match="no results state"):
        read_frame(folder, results, "others.parquet")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"provenance": 3}'])
def test_a_damaged_file_is_one_line(folder, content):
    (folder / "results.json").write_text(content)
    with pytest.raises(ResultsError, match="run its notebook again"):
        read_results(folder / "results.json", OWN)


def test_no_file(tmp_path):
    with pytest.raises(ResultsError, match="run the notebook that writes it"):
        read_results(tmp_path / "results.json", OWN)
    with pytest.raises(ResultsError, match="run notebook 01 into this folder first"):
        read_results(tmp_path / "map_results.json", OWN)
