"""The project's own notebooks, executed as a user's run does, on a tiny model and tiny scenes."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from dior_folders import split_file, write_dataset
from refusals import refused

from surgerylib.datasets import load_dataset
from surgerylib.engine.localizer_training import METHODS
from surgerylib.errors import CheckpointError, DatasetError, ParameterError
from surgerylib.figures import WIDTH
from surgerylib.files import PROJECT_ROOT
from surgerylib.heatmaps import HEATMAP_KINDS
from surgerylib.localizer import load_localizer
from surgerylib.workbook.check import check
from surgerylib.workbook.run import run_workbook

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def given(parameters: dict, folder: Path) -> dict:
    """The configuration of the run, which finds what the run computed."""
    return {**parameters, "cache_dir": str(folder / "cache")}


def results_of(folder: Path, name: str = "map_results") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def text_of(page: Path) -> str:
    """HTML with an interval as it is written elsewhere: with plain spaces, and not set small."""
    return html.unescape(page.read_text()).replace("\u00a0", " ").replace("<small>", "")


def run_well(given: dict, out: Path, only: str | None = None) -> list[str]:
    """The notebooks of a run, all of which end well."""
    result = run_workbook(given, out, only=only)
    assert result.ok, result.notebooks
    return [notebook.name for notebook in result.notebooks]


def test_the_maps_leave_what_they_promise_and_the_index_shows_them(run, folder):
    assert run.ok, run.notebooks
    names = {"detections.parquet", "ground_truth.parquet", "map_results.json", "evaluation_report.md", "run.json"}
    assert names <= {path.name for path in folder.iterdir()}
    for kind in HEATMAP_KINDS:
        assert len(list((folder / "figures" / kind).glob("*.png"))) == 2
    detections = pd.read_parquet(folder / "detections.parquet")
    truth = pd.read_parquet(folder / "ground_truth.parquet")
    assert list(truth.columns) == ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
    assert set(truth.columns) | {"score", "kind"} == set(detections.columns)
    assert set(detections["kind"]) == set(HEATMAP_KINDS)
    results = results_of(folder)
    page, index = ((folder / name).read_text() for name in ("01_heatmap_generation.html", "index.html"))
    assert results["finding"].split(":")[0] in page
    for by_kind in results["protocols"].values():
        assert all(f"{cell['map']:.3f}" in page for cell in by_kind["vv_mixed"])
    assert "Only 6 images" in page
    assert f"{results['protocols']['all']['vv_mixed'][0]['map']:.3f}" in index
    assert "01_heatmap_generation.html" in index


FIGURES = {"01_heatmap_generation": 6, "02_threshold_sweep": 5, "03_training": 6, "04_gt_class_evaluation": 4,
           "05_per_class_analysis": 4}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_page_is_question_answer_evidence_small_and_made_for_its_width(folder, name):
    page = folder / f"{name}.html"
    assert page.stat().st_size < 6e6
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.h1.get_text().endswith("?")
    answer = soup.select("main h2")[0]
    assert answer.get_text().startswith("Answer")
    # nothing stands between the question and the answer but what is asked, and a fold
    before = [part for part in answer.find_parent("section").find_previous_siblings() if part.name != "header"]
    assert [part["class"] for part in before] == [["fold", "setup"], ["prose"], ["fold", "contents"]]
    first = answer.find_next("section", class_="cell").find(class_="output")
    assert first.find("strong"), "the answer's first output is a sentence"
    # and an example for the card of each class with boxes
    cards = pd.read_parquet(folder / "ground_truth.parquet")["label"].nunique() if name.startswith("05") else 0
    assert len(soup.select("img")) == FIGURES[name] + cards
    assert all(len(image["alt"]) > 20 for image in soup.select("img"))
    for figure in soup.select("figure"):
        assert int(figure.img["width"]) <= 110 * WIDTH + 20
        assert figure.img["alt"].endswith(".")
        assert ".." not in figure.img["alt"]


def test_no_page_writes_an_interval_without_brackets(folder):
    for page in (folder / "index.html", *folder.glob("0*.html")):
        for cell in BeautifulSoup(page.read_text(), "html.parser").select("td.number, .numbers td"):
            row = cell.find_parent("tr").th
            ranges = row and row.get_text() == "similarity range"
            assert ranges or not re.search(r"\d to |\d, [+−\d.]+(?!.*\])|(?<!e)-\d", cell.get_text()), cell.get_text()


def test_a_second_run_executes_nothing(folder, parameters):
    again = run_workbook(parameters, folder)
    assert all(notebook.up_to_date for notebook in again.notebooks)


@pytest.mark.slow
def test_fewer_kinds_surgery_and_splits_without_a_single_box(folder, parameters, tmp_path, capsys):
    data = write_dataset(tmp_path / "empty", splits={"test": {"1": []}, "val": {"2": []}})
    given = {**parameters, "dataset": str(data), "kinds": ["vv_vv"], "similarity": "surgery", "last_layers": 2}
    given |= {"train_split": None, "localizer": str(folder / "localizer.safetensors")}
    run_well(given, tmp_path / "out")
    assert "03_training: left out, train_split is null" in capsys.readouterr().out
    for name, said in {
        "evaluation_results": "no image here holds a box", "per_class_results": "no class can be judged",
        "map_results": "nothing can be measured", "multi_iou_results": "nothing can be chosen",
    }.items():  # fmt: skip
        assert said in (tmp_path / "out" / f"{name}.json").read_text()


def test_what_cannot_be_run_is_refused_before_anything_is_written(parameters, tmp_path):
    data, out = shutil.copytree(parameters["dataset"], tmp_path / "scenes"), tmp_path / "out"
    split_file(data, "val").unlink()
    without_val = {"dataset": str(data)}
    for only, wrong, error, said in (
        (None, without_val, DatasetError, "no split 'val'"),
        ("03", {"train_split": None}, ParameterError, "nothing to run of 03_training"),
        ("04", {}, CheckpointError, "run notebook 03 into this folder first"),
        ("04", {"localizer": "nowhere.safetensors"}, CheckpointError, r"'nowhere.*' is no file"),
        ("04", {"train_split": None}, ParameterError, "or a trained head with localizer"),
        ("04", {"prompts": ["singel"]}, ParameterError, "unknown set of prompts 'singel'"),
        ("04", {"classes_evaluated": "sean"}, ParameterError, "classes_evaluated must be one of"),
    ):
        refused(run_workbook, error, said, parameters | wrong, out, only=only)
    assert not out.exists()
    assert "6 images" in check(parameters | without_val, only="01")  # which needs but one


def test_the_sweep_leaves_what_it_promises_and_the_index_shows_it(folder):
    frame = pd.read_parquet(folder / "sweep.parquet")
    grid = frame[(frame["role"] == "choice") & (frame["box_score"] == "mean") & frame["percentile"].notna()]
    assert set(grid["percentile"]) == {60, 75, 90}
    assert set(frame["split"]) == {"val", "test"}
    results = results_of(folder, "multi_iou_results")
    index, page = (folder / "index.html").read_text(), (folder / "02_threshold_sweep.html").read_text()
    for setting in ("default", "recommended"):
        for cell in itertools.chain(*results["report"][setting]["protocols"].values()):
            assert f"{cell['map']:.3f}" in index, setting
            assert f"{cell['map']:.3f}" in page
    assert "(percentile 90 of all values)" in page
    assert results["finding"] in text_of(folder / "index.html")
    analysis = results_of(folder, "heatmap_quality_analysis")
    assert set(analysis["kinds"]) == set(HEATMAP_KINDS)
    assert len(analysis["by_percentile"]["rows"]) == 3
    # the default's figures are those of the first notebook: same boxes, same images, same resamples
    for protocol, by_kind in results_of(folder)["protocols"].items():
        assert results["report"]["default"]["protocols"][protocol][:-1] == by_kind["vv_mixed"]


@pytest.mark.slow
def test_the_recommended_setting_runs_the_workbook(folder, given, tmp_path):
    given |= yaml.safe_load((folder / "recommended.yaml").read_text())
    run_well(given, tmp_path / "out")
    recommended = results_of(folder, "multi_iou_results")["report"]["recommended"]["protocols"]["all"][:-1]
    assert results_of(tmp_path / "out")["protocols"]["all"][given["kind"]] == recommended
    # the sweep starts from the plain five steps again, whatever the default is
    again = results_of(tmp_path / "out", "multi_iou_results")["choice"]["by_percentile"]["all"]
    assert {kind: len(rows) for kind, rows in again.items()} == dict.fromkeys(HEATMAP_KINDS, 3)


def test_the_training_leaves_what_it_promises_and_the_index_shows_it(folder):
    results = results_of(folder, "training_results")
    page = text_of(folder / "03_training.html")
    assert results["finding"] in text_of(folder / "index.html")
    assert set(results["methods"]) == set(METHODS)
    for figures in results["methods"].values():
        assert f"{figures['mean']['value']:.3f} [" in page
    assert [row["epoch"] for row in results["history"]] == [0, 1, 2]
    assert len(results["variants"]) == 5 * 2  # the best cell, and that at the peak
    assert len(results["positives_by_size"]) == 3 * 2
    history = pd.read_parquet(folder / "training_history.parquet")
    assert history["val_iou"].max() == results["history"][results["best_epoch"]]["val_iou"]
    _, about = load_localizer(folder / "localizer.safetensors")
    assert about["epoch"] == results["best_epoch"]


def test_the_adapters_leave_what_they_promise_and_the_index_shows_before_and_after(folder):
    results = results_of(folder, "adapter_results")
    page, index = text_of(folder / "03_training.html"), text_of(folder / "index.html")
    assert results["finding"] in index
    assert results["finding"] in page
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == [
        "adapter_standard.safetensors", "adapter_vv_mixed.safetensors",
    ]  # fmt: skip
    group = results["groups"]["all classes"]["kinds"]
    assert list(group) == list(HEATMAP_KINDS)
    for kind, state in itertools.product(HEATMAP_KINDS, ("before", "floor", "after")):
        for cell in itertools.chain(*group[kind][state]["protocols"].values()):
            assert f"{cell['map']:.3f} [" in page
    # judged by the images, boxes and setting of notebook 01
    for protocol, kinds in results_of(folder)["protocols"].items():
        for kind, cells in kinds.items():
            assert group[kind]["before"]["protocols"][protocol] == [pytest.approx(cell) for cell in cells]
    assert len(results["variants"]) == 7 + 5
    shown = "seen classes" if "seen classes" in results["groups"] else "all classes"
    for words in ("before training", "after", "difference, paired"):
        assert f"Heatmap adapter, {shown} " in index
        assert f"mAP@0.05 of vv_mixed, {words}</a>" in index
    history = pd.read_parquet(folder / "adapter_history.parquet")
    assert history.groupby("kind")["epoch"].max().to_dict() == {"standard": 3, "vv_mixed": 3}


@pytest.mark.slow
def test_notebooks_01_and_02_put_an_adapter_beside_their_maps(folder, given, tmp_path):
    run_well(given | {"adapter": str(folder / "adapters")}, tmp_path / "out", "01,02")
    for name, results in (("01_heatmap_generation", "map_results"), ("02_threshold_sweep", "multi_iou_results")):
        page = text_of(tmp_path / "out" / f"{name}.html")
        adapted = results_of(tmp_path / "out", results)["adapter"]
        cell = adapted["groups"]["all classes"]["kinds"]["vv_mixed"]["after"]["protocols"]["all"][0]
        assert f"{cell['map']:.3f} [" in page
        assert "after − before" in page
        assert "<em>No adapter was given" not in page
    alone = results_of(folder, "adapter_results")["groups"]["all classes"]["kinds"]
    maps = results_of(tmp_path / "out")["adapter"]["groups"]["all classes"]["kinds"]
    for kind in HEATMAP_KINDS:
        assert maps[kind]["after"] == alone[kind]["after"]


@pytest.mark.slow
def test_a_stage_and_comparisons_that_are_left_out_say_so(given, tmp_path, capsys):
    both = set.intersection(*(set(load_dataset(given["dataset"], split).boxes["label"]) for split in ("train", "val")))
    some = {"stage": "localizer", "seen_classes": sorted(both)[:2], "ablation_epochs": 0, "epochs": 1}
    run_well(given | some, tmp_path / "some", "03")
    page = (tmp_path / "some" / "03_training.html").read_text()
    assert "unseen classes" in page
    assert "Left out: ablation_epochs is 0." in page
    maps = {"stage": "heatmap", "adapter_ablation_epochs": 0, "unseen_classes": []}
    assert run_well(given | maps, tmp_path / "maps", "03,04") == ["03_training"]
    assert "04_gt_class_evaluation: left out, stage is heatmap" in capsys.readouterr().out
    assert "Left out: stage is heatmap." in text_of(tmp_path / "maps" / "03_training.html")
    assert not (tmp_path / "maps" / "localizer.safetensors").exists()
    assert (tmp_path / "maps" / "adapters" / "adapter_vv_mixed.safetensors").exists()


@pytest.mark.slow
def test_a_recommendation_for_the_images_to_train_on_leaves_the_training_out(parameters, tmp_path):
    """The recommendation of a run that reports on the training images could not be run."""
    given = {**parameters, "split": "train", "train_split": None}
    run_well(given, tmp_path / "out", "02")
    recommended = yaml.safe_load((tmp_path / "out" / "recommended.yaml").read_text())
    assert recommended["train_split"] is None
    check(given | recommended)


def test_the_evaluation_leaves_what_it_promises_and_the_index_opens_with_it(folder):
    results = results_of(folder, "evaluation_results")
    page, index = (text_of(folder / name) for name in ("04_gt_class_evaluation.html", "index.html"))
    assert results["verdict"]["sentence"] == results["finding"]
    assert results["finding"] in index.split("<h2")[0]  # the head of the page
    assert results["naming"] in index
    for method, figures in results["methods"].items():
        for entry in figures.values():
            assert f"{entry['value']:.3f} [" in page, method
    truth = pd.read_parquet(folder / "ground_truth.parquet")
    ious = pd.read_parquet(folder / "gt_class_localization.parquet")
    assert ious[["image_id", "label"]].to_numpy().tolist() == truth[["image_id", "label"]].to_numpy().tolist()
    assert (ious["oracle"] >= ious["cam_peak"]).all()
    # the same head on the same boxes as in the notebook that trained it
    trained = results_of(folder, "training_results")["methods"]
    for method, figures in trained.items():
        assert results["methods"][method]["mean"]["value"] == pytest.approx(figures["mean"]["value"], abs=1e-6)
    counts = truth["label"].value_counts()
    for name, of_class in results["by_class"].items():
        assert of_class["n_boxes"] == counts.get(name, 0)
        assert (of_class["methods"] is None) == (of_class["n_boxes"] == 0)


def test_the_per_class_analysis_leaves_what_it_promises_and_the_index_shows_it(folder):
    results = results_of(folder, "per_class_results")
    page, index = (text_of(folder / name) for name in ("05_per_class_analysis.html", "index.html"))
    assert len(results["failing"]) == 3
    for failure in results["failing"]:
        assert failure["sentence"] in page
        assert failure["sentence"].removeprefix(failure["label"]) in index
        assert f'05_per_class_analysis.html#{failure["label"].lower()}"' in index
    first = results_of(folder)
    ap = pd.read_parquet(folder / "ap_by_class.parquet")
    lowest = ap[(ap["protocol"] == "all") & (ap["kind"] == "vv_mixed") & (ap["iou_threshold"] == 0.05)]
    assert lowest["ap"].mean() == pytest.approx(first["protocols"]["all"]["vv_mixed"][0]["map"])
    # the decomposition starts from the very mAP of the first notebook
    for entry in first["protocols"]["all"]["vv_mixed"]:
        of_errors = [row for row in results["errors"] if row["foreground_iou"] == entry["iou_threshold"]]
        assert len(of_errors) == 6
        assert [row["map"] for row in of_errors] == pytest.approx([entry["map"]] * 6, abs=1e-12)
    evaluated = results_of(folder, "evaluation_results")["by_class"]
    for name, row in results["classes"].items():
        if row["n_boxes"]:
            assert row["oracle"] == evaluated[name]["methods"]["oracle"]["mean"]["value"]
            assert f"### {name}" not in page
            assert f">{name}<" in page
        else:
            assert row["mean_ap"] is None
    assert "No boxes in this split." in page
    assert 'class="sortable' in page


@pytest.mark.slow
def test_a_named_head_is_evaluated_where_nothing_is_trained(folder, given, tmp_path):
    given |= {"train_split": None, "num_images": 1, "prompts": ["ensemble"], "classes_evaluated": "seen"}
    head = {"localizer": str(folder / "localizer.safetensors")}
    assert run_well(given | head, tmp_path / "out", "03,04") == ["04_gt_class_evaluation"]
    verdict = results_of(tmp_path / "out", "evaluation_results")["verdict"]
    assert (verdict["outcome"], verdict["low"]) == ("not decided", None)
    page = (tmp_path / "out" / "04_gt_class_evaluation.html").read_text()
    every = "Not measured: the head was trained on every class evaluated here."
    assert all(words in page for words in ("interval not available", "Only 1 image ", every))


@pytest.mark.slow
def test_the_per_class_analysis_needs_no_head_and_refuses_results_of_another_run(folder, given, tmp_path):
    given["train_split"], out = None, tmp_path / "out"
    out.mkdir()
    stated = results_of(folder)
    for name in ("map_results.json", *stated["files"]):
        shutil.copy(folder / name, out)
    run_well(given, out, "05")
    page = (out / "05_per_class_analysis.html").read_text()
    assert "what a head finds when told the class is left out" in page
    results = results_of(out, "per_class_results")
    assert all(row["oracle"] is None for row in results["classes"].values())
    # boxes of another setting under the same name, and results on other images
    pd.read_parquet(out / "detections.parquet").iloc[::2].to_parquet(out / "detections.parquet")
    for more, said in (({}, "not the file that this run's results were"), ({"num_images": 3}, "of another run")):
        (failed,) = run_workbook(given | more, out, only="05", force=True).notebooks
        assert failed.status == "failed"
        assert re.match(f"ResultsError.*{said}", failed.message)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_opens_with_a_question(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 25
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\?$", first.source.splitlines()[0])
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in tagged[0].source.splitlines() if line]
    assert all(re.match(r"\w+ = .+  # .+", line) for line in lines)
