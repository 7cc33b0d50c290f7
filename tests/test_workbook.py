"""Running notebooks: parameters, kernel, failure, what is up to date, interruption, one run at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebooks_here import in_this_process

from surgerylib.errors import OutputError, ParameterError
from surgerylib.workbook import parameters
from surgerylib.workbook.fingerprints import notebook_keys
from surgerylib.workbook.run import run_workbook
from surgerylib.workbook.run_files import RUN_FORMAT

PARAMETERS = """\
seed = 0  # keeps the draw (seed = 0) the same
rate = 0.5  # a number
kinds = ["standard"]
name = "x"  # text
limit = None  # all images
out_dir = "reports/run"  # the run's folder"""

FIRST = """\
import json, os, pathlib, sys
import matplotlib
pathlib.Path(out_dir, "first.json").write_text(json.dumps({
    "finding": f"seed {seed}", "executable": sys.executable, "cwd": os.getcwd(), "backend": matplotlib.get_backend(),
    "provenance": {"seed": seed}}))"""


def write_notebook(
    path: Path, title: str, *sources: str, parameters: str = PARAMETERS, reads: Sequence[str] = ()
) -> None:
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# {title}"), tagged, *(new_code_cell(source) for source in sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"reads": list(reads)}), path)


@pytest.fixture
def in_process() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "notebooks"
    write_notebook(folder / "01_first.ipynb", "Which seed?", FIRST)
    return folder


def status(out: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in json.loads((out / "run.json").read_text())["notebooks"]}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", "three", "whole number .*'three'"),
        ("seed", True, "whole number .*True"),
        ("seed", 1.5, r"whole number .*1\.5"),
        ("rate", "fast", "a number .*'fast'"),
        ("rate", None, "a number .*null"),
        ("kinds", "standard", "a list .*'standard'"),
        ("name", 3, "text .*3"),
        ("out_dir", "/x", "--out"),
    ],
)
def test_a_value_of_another_type_is_an_error(notebooks: Path, name: str, value: object, said: str) -> None:
    known = parameters.known_parameters(parameters.find_notebooks(notebooks))
    with pytest.raises(ParameterError, match=said):
        parameters.validate({name: value}, known)


def test_values_that_fit_are_taken(notebooks: Path) -> None:
    known = parameters.known_parameters(parameters.find_notebooks(notebooks))
    given = {"rate": 1, "kinds": [], "limit": 5, "seed": 3}
    assert parameters.validate(given, known) == given
    assert parameters.validate({"rate": "1e-3"}, known) == {"rate": 0.001}  # YAML reads it as text


def test_a_comment_with_an_equals_sign_hides_no_parameter(notebooks: Path) -> None:
    parsed = parameters.parse_assignments(PARAMETERS)
    assert parsed["seed"].default == 0
    assert parsed["seed"].comment == "keeps the draw (seed = 0) the same"
    assert parsed["limit"].default is None


def test_overrides_are_yaml_and_text_stays_text(notebooks: Path, tmp_path: Path, monkeypatch) -> None:
    known = parameters.known_parameters(parameters.find_notebooks(notebooks))
    (tmp_path / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    items = ["kinds=[standard, vv_qk]", "limit=null", "name=2024", "checkpoint=weights.pt", "name=a=b"]
    assert parameters.apply_overrides({"seed": 1}, items, known) == {
        "seed": 1, "kinds": ["standard", "vv_qk"], "limit": None, "name": "a=b",
        "checkpoint": str(tmp_path / "weights.pt"),
    }  # fmt: skip
    with pytest.raises(ParameterError, match="name=value"):
        parameters.apply_overrides({}, ["seed"], known)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "3\n", "1: 2\n"])
def test_a_configuration_that_is_no_flat_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ParameterError, match=r"c\.yaml"):
        parameters.load_config(tmp_path / "c.yaml")


def test_only_takes_numbers_and_names(notebooks: Path) -> None:
    write_notebook(notebooks / "02_second.ipynb", "Second")
    names = [path.stem for path in parameters.find_notebooks(notebooks, "2, 01_first")]
    assert names == ["01_first", "02_second"]
    with pytest.raises(ParameterError, match="there are: 01_first, 02_second"):
        parameters.find_notebooks(notebooks, "07")


@pytest.mark.slow
def test_run_failure_repair_and_second_time(notebooks: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A whole life of a run's folder, in one test because every kernel costs two seconds."""
    write_notebook(notebooks / "02_second.ipynb", "Second", "print('before')", "raise ValueError('no <b>such</b> map')")
    write_notebook(notebooks / "03_third.ipynb", "Third", "print(1)", parameters="factor = 2")
    kernels = tmp_path / "user" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    out = tmp_path / "a {run} <i>"

    result = run_workbook({"seed": 4, "factor": 3}, out, notebooks_dir=notebooks)

    assert not result.ok
    assert [notebook.status for notebook in result.notebooks] == ["ok", "failed", "not run"]
    assert result.index == out / "index.html"
    first = json.loads((out / "first.json").read_text())
    assert Path(first["executable"]).samefile(sys.executable)
    assert first["cwd"] == str(notebooks.parent)
    assert "inline" in first["backend"]
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "failed"
    assert run["results"] == {"first.json": {"seed": 4}}
    assert run["notebooks"][0]["parameters"] == {"seed": 4, "out_dir": str(out)}
    assert run["notebooks"][0]["files"] == ["first.json"]
    partial = (out / "02_second.html").read_text()
    assert "before" in partial
    assert partial.index("ValueError: no &lt;b&gt;such") < partial.index("Where it stopped")
    index = result.index.read_text()
    assert "02_second failed" in index
    assert "seed 4" in index
    assert "a {run} &lt;i&gt;" in index
    assert not list(out.glob(".*.ipynb"))

    write_notebook(notebooks / "02_second.ipynb", "Second", "print('mended')")
    capsys.readouterr()
    assert run_workbook({"seed": 4, "factor": 3}, out, notebooks_dir=notebooks).ok
    said = capsys.readouterr().out
    assert "01_first: up to date" in said
    assert "02_second: ok" in said
    assert "03_third: ok" in said

    again = run_workbook({"seed": 4, "factor": 3}, out, notebooks_dir=notebooks)
    assert all(notebook.up_to_date for notebook in again.notebooks)

    forced = run_workbook({"seed": 4, "factor": 3}, out, only="03", force=True, notebooks_dir=notebooks)
    assert [(notebook.name, notebook.up_to_date) for notebook in forced.notebooks] == [("03_third", False)]
    assert status(out) == {"01_first": "ok", "02_second": "ok", "03_third": "ok"}

    (out / "first.json").unlink()
    run_workbook({"seed": 5, "factor": 3}, out, only="01", notebooks_dir=notebooks)
    assert json.loads((out / "first.json").read_text())["finding"] == "seed 5"
    assert status(out) == {"01_first": "ok", "02_second": "outdated", "03_third": "outdated"}

    run_workbook({"seed": 4, "factor": 3}, out, only="01", notebooks_dir=notebooks)
    capsys.readouterr()
    run_workbook({"seed": 4, "factor": 3}, out, notebooks_dir=notebooks)
    assert capsys.readouterr().out.count("up to date") == 3
    assert status(out) == {"01_first": "ok", "02_second": "ok", "03_third": "ok"}


def test_the_key_follows_source_parameters_data_and_checkpoint(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(notebooks / "02_second.ipynb", "Second", parameters="other = 1")
    paths = parameters.find_notebooks(notebooks)
    data = tmp_path / "data"
    data.mkdir()
    (data / "loop").symlink_to(data)
    (tmp_path / "weights.pt").write_bytes(b"1")
    settings = {"seed": 1, "rate": 0.5, "kinds": [], "name": "", "limit": None, "out_dir": "a", "other": 1}
    settings |= {"dataset": str(data), "checkpoint": str(tmp_path / "weights.pt"), "model": "ViT-B-32"}

    def keys(**changes: object) -> list[str]:
        return list(notebook_keys(paths, settings | changes, notebooks.parent).values())

    before = keys()
    assert keys() == before
    assert keys(out_dir="b") == before
    first, second = keys(other=2)
    assert first == before[0]
    assert second != before[1]
    assert all(a != b for a, b in zip(keys(seed=2), before, strict=True))  # the second reads what the first wrote
    (data / "a.jpg").write_bytes(b"1")
    assert keys()[0] != before[0]
    before = keys()
    (tmp_path / "weights.pt").write_bytes(b"2")
    assert keys()[0] != before[0]


@pytest.mark.usefixtures("in_process")
def test_a_killed_run_is_executed_again(notebooks: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    run_workbook({}, out, notebooks_dir=notebooks)
    run = json.loads((out / "run.json").read_text())
    run["notebooks"][0]["status"] = "running"  # what a killed process leaves
    (out / "run.json").write_text(json.dumps(run | {"status": "running", "pid": 1}))
    capsys.readouterr()
    run_workbook({}, out, notebooks_dir=notebooks)
    assert "01_first: ok" in capsys.readouterr().out


def test_a_folder_with_somebody_elses_page_is_left_alone(notebooks: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(OutputError, match=r"no run\.json"):
        run_workbook({}, tmp_path, notebooks_dir=notebooks)
    assert (tmp_path / "index.html").read_text() == "mine"


@pytest.mark.usefixtures("in_process")
def test_a_notebook_runs_again_when_what_it_reads_of_another_has_changed(notebooks: Path, tmp_path: Path) -> None:
    """A head that was trained anew by itself left the evaluation of the old one up to date."""
    source = "open(out_dir + '/second.txt', 'w').write('x')"
    write_notebook(notebooks / "02_second.ipynb", "What was read?", source, reads=["head.bin", "later.json"])
    out = tmp_path / "out"

    def executed() -> list[bool]:
        return [not result.up_to_date for result in run_workbook(None, out, notebooks_dir=notebooks).notebooks]

    assert executed() == [True, True]
    for change in (
        lambda: (out / "head.bin").write_bytes(b"1"), lambda: (out / "head.bin").write_bytes(b"2"),
        lambda: (out / "later.json").write_text("{}"), (out / "head.bin").unlink,
    ):  # fmt: skip
        assert executed() == [False, False]
        change()
        assert executed() == [False, True]
    assert executed() == [False, False]


@pytest.mark.usefixtures("in_process")
def test_what_is_made_of_an_outdated_notebook_is_outdated_too(notebooks: Path, tmp_path: Path) -> None:
    """The index showed results of one setting beside those of another, and blamed neither."""
    source, out = "open(out_dir + '/second.txt', 'w').write(str(seed))", tmp_path / "out"
    write_notebook(notebooks / "02_second.ipynb", "What was read?", source, reads=["first.json"])
    run_workbook(None, out, notebooks_dir=notebooks)
    assert status(out) == {"01_first": "ok", "02_second": "ok"}
    # the second alone, with another seed: it read what the first had made of the old one
    run_workbook({"seed": 1}, out, only="02", notebooks_dir=notebooks)
    assert status(out) == {"01_first": "outdated", "02_second": "outdated"}
    assert "first.json of 01_first" in json.loads((out / "run.json").read_text())["notebooks"][1]["message"]
    # the first alone: the second is still made of the old file
    run_workbook({"seed": 1}, out, only="01", notebooks_dir=notebooks)
    assert status(out) == {"01_first": "ok", "02_second": "outdated"}
    run_workbook({"seed": 1}, out, notebooks_dir=notebooks)
    assert status(out) == {"01_first": "ok", "02_second": "ok"}


@pytest.mark.usefixtures("in_process")
def test_a_folder_of_another_version_is_made_again_and_says_so(notebooks: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    run_workbook(None, out, notebooks_dir=notebooks)
    run = json.loads((out / "run.json").read_text())
    assert run.pop("format") == RUN_FORMAT
    (out / "run.json").write_text(json.dumps(run))
    capsys.readouterr()
    assert not run_workbook(None, out, notebooks_dir=notebooks).notebooks[0].up_to_date
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{out} was written by another version of this workbook: everything in it is made again"
    assert run_workbook(None, out, notebooks_dir=notebooks).notebooks[0].up_to_date
