"""A run on a dataset that means harm, with damaged files and hostile names; what its report says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from dior_folders import annotation_dir, image_file, split_file
from notebooks_here import run_here

from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.errors import ImageReadError
from surgerylib.files import PACKAGES
from surgerylib.workbook.check import check
from surgerylib.workbook.parameters import find_notebooks, notebook_parameters
from surgerylib.workbook.run import RunResult, run_workbook

HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_TOO = "<script>alert(2)"
CHINESE = "航拍图像"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Scenes of which two images are damaged, and three have names that no author of a dataset would give."""
    root = write_scenes(tmp_path_factory.mktemp("hostile") / "scenes", num_train=7, num_val=5, num_test=8, size=96)
    names = split_file(root, "test").read_text().split()
    for old, new in zip(names, (HOSTILE, HOSTILE_TOO, CHINESE), strict=False):
        image = image_file(root, "test", old)
        image.rename(image.with_name(f"{new}.jpg"))
        xml = annotation_dir(root) / f"{old}.xml"
        xml.rename(xml.with_name(f"{new}.xml"))
    changed = [HOSTILE, HOSTILE_TOO, CHINESE, *names[3:]]
    split_file(root, "test").write_text("\n".join(changed), encoding="utf-8")
    for name in (HOSTILE_TOO, names[5]):
        path = image_file(root, "test", name)
        path.write_bytes(path.read_bytes()[:-300])
    return root


@pytest.fixture(scope="module")
def skipping(hostile, parameters, tiny_folder, tmp_path_factory) -> dict:
    """A configuration that leaves damaged images out, with weights whose name says what they have seen."""
    weights = tmp_path_factory.mktemp("weights") / "RemoteCLIP-ViT-tiny.safetensors"
    shutil.copy(tiny_folder / "model.safetensors", weights)
    return parameters | {"dataset": str(hostile), "on_bad_image": "skip", "checkpoint": str(weights)}


@pytest.fixture(scope="module")
def report(skipping, tmp_path_factory) -> RunResult:
    return run_here(skipping, tmp_path_factory.mktemp("report"), only="01,05")


def pages(report: RunResult) -> dict[str, BeautifulSoup]:
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in report.index.parent.glob("*.html")}


def test_damaged_images_are_left_out_of_every_number_and_listed_with_their_reasons(report, hostile):
    assert report.ok, report.notebooks
    folder = report.index.parent
    whole = load_dataset(hostile, "test")  # headers alone are whole
    results = json.loads((folder / "map_results.json").read_text())
    skipped = results["provenance"]["skipped"]
    assert skipped[0]["image_id"] == HOSTILE_TOO
    assert len(skipped) == 2
    assert all("cannot be read" in row["reason"] and str(hostile) not in row["reason"] for row in skipped)
    gone = {row["image_id"] for row in skipped}
    n_boxes = int((~whole.boxes["image_id"].isin(gone)).sum())
    assert (results["n_images"], results["n_boxes"]) == (6, n_boxes)
    assert sum(row["n_boxes"] for row in skipped) == len(whole.boxes) - n_boxes
    truth = pd.read_parquet(folder / "ground_truth.parquet")
    assert len(truth) == n_boxes
    assert not gone & set(truth["image_id"])
    assert not gone & set(pd.read_parquet(folder / "images.parquet")["image_id"])
    for name, page in pages(report).items():
        head = page.select_one("header.masthead").get_text(" ", strip=True)
        assert "2 damaged images (and" in head, name
        text = page.get_text(" ", strip=True)
        assert all(row["image_id"] in text and row["reason"] in text for row in skipped), name


def test_names_from_a_dataset_are_text_in_every_page(report):
    for name, page in pages(report).items():
        assert not page.find(onerror=True), name
        assert not [tag for tag in page.find_all("script") if re.search(r"alert\([12]\)", tag.get_text())], name
        assert not page.select("img[src=x]"), name
    text = pages(report)["05_per_class_analysis"].get_text()
    assert HOSTILE_TOO in text


def test_weights_that_saw_dior_are_flagged_in_every_head_and_never_called_zero_shot(report):
    for name, page in pages(report).items():
        assert "RemoteCLIP's pre-training data holds DIOR" in page.select_one("header.masthead").get_text(), name
    for path in report.index.parent.rglob("*"):
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
    of = {
        "01_heatmap_generation": "map_results.json", "02_threshold_sweep": "multi_iou_results.json",
        "03_training": "training_results.json", "04_gt_class_evaluation": "evaluation_results.json",
        "05_per_class_analysis": "per_class_results.json",
    }  # fmt: skip
    for path in find_notebooks():
        provenance = json.loads((folder / of[path.stem]).read_text())["provenance"]
        values = provenance["parameters"]
        assert set(values) == set(notebook_parameters(path))
        assert all(values[name] == value for name, value in parameters.items() if name in values)
        for name in ("weights_sha256", "annotations_sha256", "images_sha256", "library_sha256"):
            assert re.fullmatch("[0-9a-f]{64}", provenance[name])
        assert set(PACKAGES) | {"python"} == set(provenance["versions"])
        assert len(provenance["classes"]) == 20
        assert provenance["n_images"] == 6
        assert provenance["skipped"] == []
        page = (folder / f"{path.stem}.html").read_text()
        assert provenance["weights_sha256"] in page


def test_under_error_the_first_damaged_image_stops_before_anything_is_written(skipping, hostile, tmp_path):
    with pytest.raises(ImageReadError, match=r"cannot be read.*\(and 1 more\); on_bad_image=skip") as caught:
        run_workbook(skipping | {"on_bad_image": "error"}, tmp_path / "run", only="01")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_check_lists_what_would_be_skipped(skipping):
    text = str(check(skipping, only="01"))
    assert "6 images" in text
    assert "2 damaged images (and" in text
    assert f"skipped: {HOSTILE_TOO}: " in text
