"""Running notebooks: parameters, kernel, failure, what is up to date, interruption, one run at a time."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from made_runs import change
from refusals import refused
from tiny_notebooks import write_notebook

from surgerylib.errors import OutputError, ParameterError
from surgerylib.workbook import parameters
from surgerylib.workbook import run as workbook
from surgerylib.workbook.fingerprints import notebook_keys
from surgerylib.workbook.run import RunResult, run_workbook

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


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    return write_notebook(
        tmp_path / "project" / "notebooks" / "01_first.ipynb", FIRST, parameters=PARAMETERS, title="Which seed?"
    ).parent


def execute_here(path: Path, output: Path, given: dict, *_: object) -> None:
    notebook, namespace = nbformat.read(path, as_version=4), {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
            namespace |= given if "parameters" in cell.metadata.get("tags", []) else {}
    nbformat.write(notebook, output)


@pytest.fixture
def run(notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """A run of these notebooks into one folder; cells are executed in this process, which takes no kernel."""
    monkeypatch.setattr(workbook, "execute_notebook", execute_here)
    monkeypatch.setattr(workbook, "Kernels", lambda *_: contextlib.nullcontext())
    return lambda config=None, **options: run_workbook(config, tmp_path / "out", notebooks_dir=notebooks, **options)


def record_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def status(out: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in record_of(out)["notebooks"]}


def test_values_of_the_defaults_types_are_taken_and_others_are_an_error() -> None:
    known = parameters.parse_assignments(PARAMETERS)
    assert (known["seed"].default, known["seed"].comment) == (0, "keeps the draw (seed = 0) the same")
    given = {"rate": 1, "kinds": [], "limit": 5, "seed": 3}
    assert parameters.validate(given, known) == given
    assert parameters.validate({"rate": "1e-3"}, known) == {"rate": 0.001}  # YAML reads it as text
    for name, value, said in (
        ("seed", "three", "whole number .*'three'"), ("seed", True, "whole number .*True"),
        ("seed", 1.5, r"whole number .*1\.5"), ("rate", "fast", "a number .*'fast'"), ("rate", None, "a number .*null"),
        ("kinds", "standard", "a list .*'standard'"), ("name", 3, "text .*3"), ("out_dir", "/x", "--out"),
    ):  # fmt: skip
        refused(parameters.validate, ParameterError, said, {name: value}, known)


def test_overrides_are_yaml_and_text_stays_text(tmp_path: Path, monkeypatch) -> None:
    known = parameters.parse_assignments(PARAMETERS)
    (tmp_path / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    items = ["kinds=[standard, vv_qk]", "limit=null", "name=2024", "checkpoint=weights.pt", "name=a=b"]
    assert parameters.apply_overrides({"seed": 1}, items, known) == {
        "seed": 1, "kinds": ["standard", "vv_qk"], "limit": None, "name": "a=b",
        "checkpoint": str(tmp_path / "weights.pt"),
    }  # fmt: skip
    refused(parameters.apply_overrides, ParameterError, "name=value", {}, ["seed"], known)


def test_a_configuration_that_is_no_flat_mapping_is_an_error(tmp_path: Path) -> None:
    for text in ("- a\n- b\n", "a: [1\n", "3\n", "1: 2\n"):
        (tmp_path / "c.yaml").write_text(text)
        refused(parameters.load_config, ParameterError, r"c\.yaml", tmp_path / "c.yaml")


def test_only_takes_numbers_and_names(notebooks: Path) -> None:
    write_notebook(notebooks / "02_second.ipynb")
    names = [path.stem for path in parameters.find_notebooks(notebooks, "2, 01_first")]
    assert names == ["01_first", "02_second"]
    refused(parameters.find_notebooks, ParameterError, "there are: 01_first, 02_second", notebooks, "07")


@pytest.mark.slow
def test_run_failure_repair_and_second_time(notebooks: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A whole life of a run's folder, in one test because every kernel costs two seconds."""
    second = notebooks / "02_second.ipynb"
    write_notebook(second, "print('before')", "raise ValueError('no <b>such</b> map')", parameters=PARAMETERS)
    write_notebook(notebooks / "03_third.ipynb", "print(1)", parameters="factor = 2")
    kernels = tmp_path / "user" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    out = tmp_path / "a {run} <i>"

    def executed(only: str | None = None, **options: object) -> list[str]:
        result = run_workbook({"seed": 4, "factor": 3}, out, only=only, notebooks_dir=notebooks, **options)
        assert result.index == out / "index.html"
        return [notebook.name for notebook in result.notebooks if not notebook.up_to_date]

    executed()
    assert status(out) == {"01_first": "ok", "02_second": "failed", "03_third": "not run"}
    first = json.loads((out / "first.json").read_text())
    assert Path(first["executable"]).samefile(sys.executable)
    assert first["cwd"] == str(notebooks.parent)
    assert "inline" in first["backend"]
    record = record_of(out)
    assert (record["status"], record["results"]) == ("failed", {"first.json": {"seed": 4}})
    assert record["notebooks"][0]["parameters"] == {"seed": 4, "out_dir": str(out)}
    assert record["notebooks"][0]["files"] == ["first.json"]
    partial = (out / "02_second.html").read_text()
    assert "before" in partial
    assert partial.index("ValueError: no &lt;b&gt;such") < partial.index("Where it stopped")
    index = (out / "index.html").read_text()
    assert all(text in index for text in ("02_second failed", "seed 4", "a {run} &lt;i&gt;"))
    assert not list(out.glob(".*.ipynb"))

    write_notebook(second, "print('mended')", parameters=PARAMETERS)
    capsys.readouterr()
    assert executed() == ["02_second", "03_third"]
    said = capsys.readouterr().out
    assert all(text in said for text in ("01_first: up to date", "02_second: ok", "03_third: ok"))
    assert executed() == []
    assert executed("03", force=True) == ["03_third"]
    assert status(out) == dict.fromkeys(("01_first", "02_second", "03_third"), "ok")


def test_the_key_follows_source_parameters_data_and_checkpoint(notebooks: Path, tmp_path: Path) -> None:
    write_notebook(notebooks / "02_second.ipynb", parameters="other = 1")
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


def test_a_folder_with_somebody_elses_page_is_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    refused(run, OutputError, r"no run\.json")
    assert (tmp_path / "out" / "index.html").read_text() == "mine"


def test_a_notebook_runs_again_when_what_it_reads_of_another_has_changed(run, notebooks: Path, tmp_path: Path) -> None:
    """A head that was trained anew by itself left the evaluation of the old one up to date."""
    source = "open(out_dir + '/second.txt', 'w').write('x')"
    write_notebook(notebooks / "02_second.ipynb", source, parameters=PARAMETERS, reads=["head.bin", "later.json"])
    head, later = tmp_path / "out" / "head.bin", tmp_path / "out" / "later.json"

    def executed() -> list[bool]:
        return [not result.up_to_date for result in run().notebooks]

    assert executed() == [True, True]
    for act in (lambda: head.write_bytes(b"1"), lambda: head.write_bytes(b"2"), lambda: later.write_text("{}")):
        assert executed() == [False, False]
        act()
        assert executed() == [False, True]


def test_what_is_made_of_an_outdated_notebook_is_outdated_too(run, notebooks: Path, tmp_path: Path) -> None:
    """The index showed results of one setting beside those of another, and blamed neither."""
    source, out = "open(out_dir + '/second.txt', 'w').write(str(seed))", tmp_path / "out"
    write_notebook(notebooks / "02_second.ipynb", source, parameters=PARAMETERS, reads=["first.json"])
    for config, only, first, second in (
        (None, None, "ok", "ok"),
        # the second alone, with another seed: it read what the first had made of the old one
        ({"seed": 1}, "02", "outdated", "outdated"),
        # the first alone: the second is still made of the old file
        ({"seed": 1}, "01", "ok", "outdated"),
        ({"seed": 1}, None, "ok", "ok"),
    ):
        run(config, only=only)
        assert status(out) == {"01_first": first, "02_second": second}
        if only == "02":
            assert "first.json of 01_first" in record_of(out)["notebooks"][1]["message"]


def test_a_folder_of_another_version_is_made_again_and_says_so(run, tmp_path: Path, capsys) -> None:
    out = run().index.parent
    change(out / "run.json", lambda record: record.pop("format"))
    capsys.readouterr()
    assert not run().notebooks[0].up_to_date
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{out} was written by another version of this workbook: everything in it is made again"
    assert run().notebooks[0].up_to_date
