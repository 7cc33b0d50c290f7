"""The command line in this process: bad input gives one line, exit status 2, and leaves nothing behind."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from dior_folders import write_dataset
from refusals import command_refused, refused
from tiny_models import Touch
from tiny_notebooks import write_notebook

from surgerylib import files
from surgerylib.errors import OutputError
from surgerylib.files import PROJECT_ROOT
from surgerylib.workbook import parameters
from surgerylib.workbook.check import check_cache
from surgerylib.workbook.cli import main


class Project:
    """A project of its own: one tiny notebook, a dataset, a model."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.data, self.out = root, write_dataset(root / "dior"), root / "reports" / "run"
        self.model, self.checkpoint = f"local-dir:{model}", root / "weights.safetensors"
        self.checkpoint.write_bytes((model / "model.safetensors").read_bytes())
        body = "import pathlib; pathlib.Path(out_dir, 'done.txt').write_text(f'{split} {percentile}')"
        real = parameters.notebook_parameters(PROJECT_ROOT / "notebooks" / "01_heatmap_generation.ipynb")
        cell = "\n".join(f"{name} = {parameter.default!r}" for name, parameter in real.items())
        write_notebook(root / "notebooks" / "01_a.ipynb", body, parameters=cell)
        (root / "notebooks" / "configs").mkdir()
        (root / "notebooks" / "configs" / "embedded.yaml").write_text("dataset: embedded\n")

    def arguments(self, command: str = "run") -> list[str]:
        words = [command, "--dataset", str(self.data), "--model", self.model, "--checkpoint", str(self.checkpoint)]
        words += ["-p", "depth=3"]
        return [*words, "--out", str(self.out)] if command == "run" else words

    def files(self) -> set[Path]:
        return set(self.root.rglob("*"))


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for module in (files, parameters):
        monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)
    return Project(tmp_path, tiny_folder)


@pytest.mark.slow
def test_run_takes_parameters_and_ends_with_the_index(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert main([*project.arguments(), "-p", "percentile=80", "--split", "val"]) == 0
    assert (project.out / "done.txt").read_text() == "val 80.0"
    assert capsys.readouterr().out.splitlines()[-1] == str(project.out / "index.html")


def test_check_says_what_it_found_and_changes_nothing(project: Project, capsys: pytest.CaptureFixture) -> None:
    before = project.files()
    assert main(project.arguments("check")) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["dataset", "images", "model", "self-check"]
    assert "3 images, 4 boxes" in said[0]
    assert project.files() == before


def test_check_does_not_draw_the_embedded_scenes(project: Project, capsys: pytest.CaptureFixture) -> None:
    words = ["check", "--model", project.model, "--checkpoint", str(project.checkpoint), "-p", "depth=3"]
    assert main(words) == 0
    assert "not in" in capsys.readouterr().out
    assert not (project.root / "data").exists()


def spoilt(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Project], object]:
    def spoil(project: Project) -> None:
        (path,) = project.root.rglob(name)
        path.write_bytes(edit(path.read_bytes()))

    return spoil


def output_is_a_file(project: Project) -> None:
    project.out = project.root / "dior" / "file"
    project.out.write_text("x")


SPOILT: dict[str, tuple[Callable[[Project], object], str]] = {
    "dataset folder missing": (lambda p: setattr(p, "data", p.root / "none"), "no dataset folder .*none"),
    "truncated JPEG": (spoilt("11726.jpg", lambda data: data[:-40]), r"11726\.jpg"),
    "class nobody knows": (spoilt("11726.xml", lambda xml: xml.replace(b"vehicle", b"vehicel", 1)), "vehicel.*vehicle"),
    "checkpoint missing": (lambda p: p.checkpoint.unlink(), r"weights\.safetensors"),
    "checkpoint with code": (
        lambda p: p.checkpoint.write_bytes(pickle.dumps({"state_dict": Touch(p.root / "code of it was run")})),
        r"weights\.safetensors",
    ),
    "output is a file": (output_is_a_file, "is a file"),
}
WRONG_WORDS = {
    "--split tset": "tset",
    "--model ViT-B-33": "ViT-B-32",
    "-p image_size=35": "multiple of the patch",
    "-p percentile=100": "between 0 and 100.*100",
    "-p kinds=[vv_mix]": "vv_mix.*standard, vv_qk, vv_vv, vv_mixed",
    "-p iou_thresholds=[0]": r"iou_thresholds is \[0\]",
    "-p device=gpu": "device 'gpu'",
    "-p last_layers=5": "last_layers must be at most",  # more than the value-value path has
    "-p batch_size=0": "batch_size.*at least 1.*0",
    "-p percentil=3": "percentil.*nearest: percentile",
    "--config none.yaml": r"none\.yaml",
}


@pytest.mark.parametrize("case", [*SPOILT, *WRONG_WORDS])
def test_bad_input_is_one_line_and_status_2(project: Project, case: str, capsys: pytest.CaptureFixture) -> None:
    spoil, said = SPOILT.get(case) or (lambda _: None, WRONG_WORDS[case])
    spoil(project)
    before = project.files()
    command_refused(capsys, [*project.arguments(), *(case.split() if case in WRONG_WORDS else [])], said)
    assert project.files() == before


@pytest.mark.parametrize(
    "words", [["run", "--time-limit", "0"], ["run", "--time-limit", "soon"], ["scenes"], [], ["rnu"]]
)
def test_a_wrong_command_line_is_status_2(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_scenes_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "scenes"
    words = ["scenes", "--out", str(out), "--train", "1", "--val", "0", "--test", "1", "--size", "96", "--seed", "3"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert len(list(out.rglob("*.jpg"))) == 2
    assert main(["scenes", "--out", str(out), "--size", "1"]) == 2


def test_main_leaves_ctrl_c_as_it_was(monkeypatch, capsys) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgerylib.embedded.write_scenes", stopped)
    before = signal.getsignal(signal.SIGINT)
    assert main(["scenes", "--out", "x"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_cache_folder_that_cannot_be_is_found_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        refused(check_cache, OutputError, "is a file", {"cache_dir": folder}, tmp_path)
    for folder in ("not/there/yet", None):
        check_cache({"cache_dir": folder}, tmp_path)
    assert not (tmp_path / "not").exists()
