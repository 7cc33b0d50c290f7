"""The run of the workbook is on a dataset that means harm, with damaged files and hostile names: what it says."""

from __future__ import annotations

import json
import re

import pandas as pd
from bs4 import BeautifulSoup
from hostile_scenes import DAMAGED
from refusals import refused

from surgerylib.datasets import load_dataset
from surgerylib.errors import ImageReadError
from surgerylib.files import PACKAGES
from surgerylib.workbook.check import check
from surgerylib.workbook.parameters import find_notebooks, notebook_parameters
from surgerylib.workbook.run import RunResult, run_workbook


def pages(run: RunResult) -> dict[str, BeautifulSoup]:
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in run.index.parent.glob("*.html")}


def test_damaged_images_are_left_out_of_every_number_and_listed_with_their_reasons(run, hostile):
    assert run.ok, run.notebooks
    folder = run.index.parent
    whole = load_dataset(hostile, "test")  # headers alone are whole
    results = json.loads((folder / "map_results.json").read_text())
    skipped = results["provenance"]["skipped"]
    assert skipped[0]["image_id"] == DAMAGED
    assert len(skipped) == 2
    assert all("cannot be read" in row["reason"] and str(hostile) not in row["reason"] for row in skipped)
    gone = {row["image_id"] for row in skipped}
    n_boxes = int((~whole.boxes["image_id"].isin(gone)).sum())
    assert (results["n_images"], results["n_boxes"]) == (6, n_boxes)
    assert sum(row["n_boxes"] for row in skipped) == len(whole.boxes) - n_boxes
    truth = pd.read_parquet(folder / "ground_truth.parquet")
    assert len(truth) == n_boxes
    assert not gone & {*truth["image_id"], *pd.read_parquet(folder / "images.parquet")["image_id"]}
    for name, page in pages(run).items():
        head = page.select_one("header.masthead").get_text(" ", strip=True)
        assert "2 damaged images (and" in head, name
        text = page.get_text(" ", strip=True)
        assert all(row["image_id"] in text and row["reason"] in text for row in skipped), name


def test_names_from_a_dataset_are_text_in_every_page(run):
    for name, page in pages(run).items():
        assert not page.find(onerror=True), name
        assert not [tag for tag in page.find_all("script") if re.search(r"alert\([12]\)", tag.get_text())], name
        assert not page.select("img[src=x]"), name
    text = pages(run)["05_per_class_analysis"].get_text()
    assert DAMAGED in text


def test_weights_that_saw_dior_are_flagged_in_every_head_and_never_called_zero_shot(run):
    for name, page in pages(run).items():
        assert "RemoteCLIP's pre-training data holds DIOR" in page.select_one("header.masthead").get_text(), name
    for path in run.index.parent.rglob("*"):
        if path.suffix in (".html", ".json", ".md", ".yaml", ".ipynb"):
            assert not re.search("zero.?shot", path.read_text(), re.IGNORECASE), path.name


def test_every_table_of_average_precision_says_protocol_and_definition(run):
    seen = 0
    for name, page in pages(run).items():
        for table in page.find_all("table"):
            if table.find_parent("details", class_="parameters") or not re.search(r"\bm?AP\b", table.get_text(" ")):
                continue
            seen += 1
            figure = table.find_parent("figure")
            caption = (table.find("caption") or figure.find("figcaption")).get_text(" ", strip=True)
            assert "average precision at 11 recall points (VOC 2007), VOC matching" in caption, (name, caption)
            assert re.search("protocol|Of images, ranked", caption, re.IGNORECASE), (name, caption)
    assert seen > 20


def test_the_provenance_holds_what_is_needed_to_repeat(run, parameters):
    folder = run.index.parent
    files = ("map_results", "multi_iou_results", "training_results", "evaluation_results", "per_class_results")
    for path, name in zip(find_notebooks(), files, strict=True):
        provenance = json.loads((folder / f"{name}.json").read_text())["provenance"]
        values = provenance["parameters"]
        assert set(values) == set(notebook_parameters(path))
        assert all(values[name] == value for name, value in parameters.items() if name in values)
        for name in ("weights_sha256", "annotations_sha256", "images_sha256", "library_sha256"):
            assert re.fullmatch("[0-9a-f]{64}", provenance[name])
        assert set(PACKAGES) | {"python"} == set(provenance["versions"])
        assert len(provenance["classes"]) == 20
        assert provenance["n_images"] == 6
        page = (folder / f"{path.stem}.html").read_text()
        assert provenance["weights_sha256"] in page


def test_under_error_the_first_damaged_image_stops_before_anything_is_written(parameters, tmp_path):
    given, said = parameters | {"on_bad_image": "error"}, r"cannot be read.*\(and 1 more\); on_bad_image=skip"
    refused(run_workbook, ImageReadError, said, given, tmp_path / "run", only="01")
    assert not (tmp_path / "run").exists()


def test_check_lists_what_would_be_skipped(parameters):
    text = str(check(parameters, only="01"))
    assert "6 images" in text
    assert "2 damaged images (and" in text
    assert f"skipped: {DAMAGED}: " in text
