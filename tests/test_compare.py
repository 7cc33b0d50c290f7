"""Finished runs side by side: what differs, which difference is real, and when there is none to take."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from judged_frames import judged
from made_runs import CLASSES, KINDS, THRESHOLDS, Made, change, write_run
from refusals import command_refused
from tiny_notebooks import write_notebook

from surgerylib.engine.localization import localization_difference
from surgerylib.engine.localizer_training import METHODS
from surgerylib.files import file_sha256
from surgerylib.metrics import paired_difference
from surgerylib.study import summary
from surgerylib.workbook import compare, parameters
from surgerylib.workbook.cli import main
from surgerylib.workbook.compare import compare_runs
from surgerylib.workbook.run_files import write_frames

HOSTILE = "<script>alert('x')</script>"
PARAMETERS = 'percentile = 75.0  # of the map\nkinds = ["standard", "vv_mixed"]\nseed = 0\nnum_images = None\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook, whose defaults the runs have."""
    for module in (compare, parameters):
        monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)
    write_notebook(tmp_path / "notebooks" / "01_maps.ipynb", parameters=PARAMETERS)
    return tmp_path


def page_of(*runs: Path) -> BeautifulSoup:
    return BeautifulSoup(compare_runs(runs).read_text(encoding="utf-8"), "html.parser")


def section(soup: BeautifulSoup, title: str) -> BeautifulSoup:
    return next(part for part in soup.find_all("section") if part.h2.get_text().startswith(title))


def rows(table: BeautifulSoup) -> dict[str, list[str]]:
    """Row -> its cells as `value` or `value [low, high]`."""
    found = {" ".join(row.th.stripped_strings): row.find_all("td") for row in table.select("tbody tr") if row.td}
    return {name: [" ".join(cell.stripped_strings) for cell in cells] for name, cells in found.items()}


def text_of(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def test_a_copy_and_the_same_images_in_another_order_differ_by_exactly_0(project: Path) -> None:
    base = write_run(project / "base")
    for other in (write_run(project / "other", Made(order=-1)), shutil.copytree(base, project / "copy")):
        soup = page_of(base, other)
        tables = section(soup, "Differences").find_all("table")
        assert len(tables) == 3
        cells = [cell for table in tables for row in rows(table).values() for cell in row]
        assert cells == ["+0.000 [+0.000, +0.000]"] * (2 * len(KINDS) * len(THRESHOLDS) + 2 * (len(METHODS) - 2))
        assert not section(soup, "Differences").select("td strong")
    assert "No parameter differs." in soup.get_text()
    assert "Model, data, versions and code are the same." in soup.get_text()
    # one name in both records: the folders tell them apart
    assert [link.get_text() for link in soup.select(".runs a")] == ["base", "copy"]


def test_a_better_run_has_the_differences_of_the_metrics(project: Path) -> None:
    worse, better = Made(), Made(hits=0.8)
    soup = page_of(write_run(project / "base", worse), write_run(project / "better", better))
    tables = section(soup, "Differences").find_all("table")
    assert "better − base" in section(soup, "Differences").h3.get_text()

    def figures(made: Made):
        images, truth, found = made.frames()
        given = {"image_ids": images["image_id"], "classes": CLASSES, "kinds": KINDS, "iou_thresholds": THRESHOLDS}
        return judged(found, truth, **given).figures

    of_better, of_worse = figures(better), figures(worse)
    for protocol, table in zip(("present", "all"), tables[:2], strict=True):
        caption = table.find_parent("figure").figcaption.get_text()
        assert caption.startswith(protocol)
        assert "AP: average precision at 11 recall points (VOC 2007), VOC matching" in caption
        for kind in KINDS:
            expected = paired_difference(of_better[kind, protocol].ap, of_worse[kind, protocol].ap).summary()
            assert rows(table)[kind] == [text_of(*row[1:4]) for row in expected.itertuples(index=False)]
            assert expected["difference"].max() > 0.1
    assert {cell.get_text()[0] for cell in tables[1].select("strong")} == {"+"}
    ious = [made.ious()[list(METHODS)] for made in (better, worse)]
    expected = localization_difference(*ious, worse.ious()["image_id"])
    shown = expected[(expected["method"] == "oracle") & expected["figure"].isin(["mean", "share>0.50"])]
    found = rows(tables[2])
    assert found["head, best cell (oracle)"] == [text_of(*row[2:5]) for row in shown.itertuples(index=False)]
    assert "class's mean box" in found
    assert "whole image" not in found


def test_headline_numbers_are_those_of_the_runs(project: Path) -> None:
    base, better = write_run(project / "base"), write_run(project / "better", Made(hits=0.8))
    soup = page_of(base, better)
    tables = section(soup, "Results").find_all("table")
    names = ["standard", "base", "better", "vv_mixed", "base", "better"]
    assert [row.th.get_text() for row in tables[0].select("tbody tr")] == names
    entry = json.loads((better / "map_results.json").read_text())["protocols"]["present"]["vv_mixed"][0]
    text = f"{entry['map']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    assert tables[0].select("tbody tr")[-1].td.get_text(" ") == text
    evaluation = json.loads((base / "evaluation_results.json").read_text())
    first = tables[2].select("tbody tr")[1]
    mean = evaluation["methods"]["oracle"]["mean"]["value"]
    assert [first.th.get_text(), first.td.get_text(" ")[:5]] == ["base", f"{mean:.3f}"]
    assert evaluation["verdict"]["sentence"] in soup.get_text().replace("\u00a0", " ")  # which holds an interval
    assert summary.INTERVAL_NOTE in soup.get_text()


UNLIKE = {
    "split: test in base, val in other": Made(provenance={"split": "val"}),
    r"ground truth boxes: 32 in base \(16 only there, such as 000, ship, .*32 in": Made(label="airport"),
    r"images: 16 in base \(1 only there, such as 015, 320, 320\), 15 in other;": Made(n_images=15),
    r"sha256 of the image files: \S+ in base, \S+ in other": Made(provenance={"images_sha256": "f1" * 32}),
    r"classes: 3 in base \(1 only there, such as airport\), 2 in other": Made(classes=CLASSES[:2]),
    "interpolation: 11point in base, area in other": Made(interpolation="area"),
    r"IoU thresholds: \[0.1, 0.5\] in base, \[0.1\] in other": Made(iou_thresholds=(0.1,)),
}


@pytest.mark.parametrize("said", UNLIKE)
def test_what_is_not_on_the_same_data_is_not_paired(project: Path, said: str) -> None:
    soup = page_of(write_run(project / "base"), write_run(project / "other", replace(UNLIKE[said], hits=0.8)))
    part = section(soup, "Differences")
    banners = [banner.get_text() for banner in part.select(".banner")]
    assert re.match(f"Not paired: .*{said}", banners[0]), banners
    # the boxes whose class is given may be the same all the same
    about_maps = said.startswith(("interpolation", "IoU thresholds", "classes"))
    assert len(part.find_all("table")) == about_maps
    assert about_maps or banners[1].startswith("Not paired: ")
    assert "Not all of these runs are known to be measured alike" in section(soup, "Results").get_text()


def test_an_older_run_is_not_paired_and_the_page_says_why(project: Path) -> None:
    old = write_run(project / "base", evaluated=False)
    change(old / "map_results.json", lambda results: results.update(files={}))
    (old / "images.parquet").unlink()
    soup = page_of(old, write_run(project / "new"))
    assert "Not paired: base lacks images.parquet, as older runs do" in section(soup, "Differences").get_text()
    assert not section(soup, "Differences").find("table")
    assert len(section(soup, "Results").find_all("table")) == 3


def test_without_notebook_04(project: Path) -> None:
    base, full = write_run(project / "base", evaluated=False), write_run(project / "full")
    soup = page_of(base, full)
    assert "not measured (notebook 04 has not run)" in soup.select(".runs li")[0].get_text()
    part = section(soup, "Differences")
    assert "Not measured: there are no results of notebook 04 in base." in part.get_text()
    assert len(part.find_all("table")) == 2
    failure = {"status": "failed", "message": f"KeyError: {HOSTILE}", "files": []}
    change(full / "run.json", lambda run: (run.update(status="failed"), run["notebooks"][1].update(failure)))
    soup = page_of(base, full)
    assert "not measured (notebook 04 failed)" in soup.select(".runs li")[1].get_text()
    assert f"full: 04_evaluation failed. KeyError: {HOSTILE}" in soup.select_one(".banner.failed").get_text()
    assert "notebook 04 has no results in any of the runs" in soup.get_text()


def test_what_a_run_did_not_set_has_the_default_of_the_notebook_it_executed(project: Path) -> None:
    base, other = write_run(project / "base", parameters={"percentile": 80.0}), write_run(project / "other")
    today = PARAMETERS.replace("75.0", "80.0") + "new = 1"
    for folder, source in (
        (base, PARAMETERS), (other, PARAMETERS.replace("seed = 0", "seed = 3")), (project / "notebooks", today)
    ):  # fmt: skip
        write_notebook(folder / "01_maps.ipynb", parameters=source)
    found = rows(section(page_of(base, other), "Parameters").table)
    assert found == {"percentile of the map": ["80.0", "75.0 default"], "seed": ["0 default", "3 default"]}
    (other / "01_maps.ipynb").write_text("{")
    assert "No parameter differs." in page_of(base, other).get_text()  # today's defaults stand in


def test_model_data_and_code_that_differ(project: Path) -> None:
    made = Made(provenance={"weights_sha256": "c3" * 32, "versions": {"torch": "2.14.0", "numpy": "2.4"}})
    base, other = write_run(project / "base"), write_run(project / "other", made, library_sha256="d4" * 32)
    change(other / "evaluation_results.json", lambda results: results.update(head={"sha256": "e5" * 32}))
    table = section(page_of(base, other), "Parameters").find_all("table")[-1]
    assert rows(table) == {
        "weights sha256": ["a1" * 8, "c3" * 8],
        "trained head sha256": ["–", "e5" * 8],
        "torch": ["2.13.0", "2.14.0"],
        "library sha256": ["b2" * 8, "d4" * 8],
        "numpy": ["–", "2.4"],
    }


def test_everything_of_the_runs_is_escaped(project: Path) -> None:
    base = write_run(project / f"a b {HOSTILE[:8]}", name=HOSTILE, parameters={"percentile": HOSTILE, HOSTILE: HOSTILE})
    made = Made(provenance={"model": HOSTILE, "split": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    other = write_run(project / "other", made)
    change(other / "evaluation_results.json", lambda results: results["verdict"].update(sentence=HOSTILE))
    change(other / "map_results.json", lambda results: results.update(warnings=[HOSTILE], description=HOSTILE))
    page = compare_runs([base, other], project / "out" / "page.html")
    assert "<script" not in page.read_text()
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.select_one(".runs a").get_text() == HOSTILE
    assert (page.parent / unquote(soup.select_one(".runs a")["href"])).resolve() == base / "index.html"
    assert soup.find("meta", attrs={"http-equiv": True})["content"].startswith("default-src 'none'")
    assert not soup.find_all(src=True)
    assert [link["href"] for link in soup.find_all("link")] == ["data:,"]


def test_the_page_lies_in_reports_and_is_written_again(project: Path, capsys: pytest.CaptureFixture) -> None:
    base, other = write_run(project / "base"), write_run(project / "other")
    for _ in range(2):
        assert main(["compare", str(base / "run.json"), str(other / "index.html")]) == 0
        page = project / "reports" / "compare-base-other.html"
        assert capsys.readouterr().out.strip() == str(page)
    assert [path.name for path in page.parent.iterdir()] == [page.name]
    href = BeautifulSoup(page.read_text(), "html.parser").select_one(".runs a")["href"]
    assert href == "../base/index.html"


def spoilt_frame(folder: Path) -> None:
    """Damaged, and yet the file that the results state."""
    (folder / "images.parquet").write_bytes(b"PAR1 no")
    sha256 = file_sha256(folder / "images.parquet")
    change(folder / "map_results.json", lambda results: results["files"].update({"images.parquet": sha256}))


def edited(name: str, edit: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / name, edit)


BAD_RUNS = {
    "holds no run.json": lambda folder: (folder / "run.json").unlink(),
    r"run\.json is damaged": lambda folder: (folder / "run.json").write_text("{"),
    r"run\.json is damaged; run": edited("run.json", lambda run: run.update(notebooks=[1])),
    "written by another version of this workbook; give": edited("run.json", lambda run: run.pop("format")),
    "is running, or was killed": edited("run.json", lambda run: run.update(status="running", pid=1)),
    "holds no result of any notebook": edited("run.json", lambda run: [e.update(files=[]) for e in run["notebooks"]]),
    r"map_results\.json cannot": lambda folder: (folder / "map_results.json").write_text("{"),
    "evaluation_results.json in .* is damaged": edited("map_results.json", lambda one: one.update(protocols=[1])),
    r"holds files of another run: detections\.parquet is not that of map_results\.json": lambda folder: write_frames(
        folder, {"detections.parquet": Made(hits=0.9).frames()[2]}
    ),
    r"images\.parquet is damaged": spoilt_frame,
}


@pytest.mark.parametrize("said", BAD_RUNS)
def test_a_run_that_cannot_be_compared_is_one_line_and_status_2(project: Path, said: str, capsys) -> None:
    base, other = write_run(project / "base"), write_run(project / "other")
    BAD_RUNS[said](other)
    command_refused(capsys, ["compare", base, other], said)
    assert not (project / "reports").exists()


def test_a_wrong_command_is_one_line_and_status_2(project: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "other"):
        write_run(project / name)
    (project / "sealed").mkdir()
    monkeypatch.chdir(project)
    # root, as in a container, may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "sealed")
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    for words, said in (
        ([], "two runs or more, not 0"),
        (["base"], "two runs or more, not 1"),
        (["base", "other", "base/index.html"], "base is named twice"),
        (["base", "other", "--out", "base"], "base is a folder"),
        (["base", "other", "--out", "base/index.html"], r"index\.html is there and was not written by compare"),
        (["base", "other", "--out", "base/run.json/page.html"], r"run\.json is a file"),
        (["base", "other", "--out", "sealed/new/page.html"], "no permission in .*sealed"),
        (["base", "other", "--out", "n" * 300], "File name too long"),
    ):
        command_refused(capsys, ["compare", *words], said)
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before
