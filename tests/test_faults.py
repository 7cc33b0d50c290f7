"""Faults from outside: disk full, read-only output, a kernel that dies, Ctrl-C, two at once.

Each ends with one line and its exit status, leaves no part of a file under a final name, and the rerun finishes.
SIGKILL at random moments over the whole workbook is in `slow/test_kills.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import nbformat
import pytest
from disturbed import INTERRUPTED, Project, assert_whole, leftovers, small_disk
from nbformat.v4 import new_output
from refusals import command_refused

from surgerylib.files import PROJECT_ROOT
from surgerylib.workbook import run as workbook

WRITES = '(folder / \'first.json\').write_text(\'{"finding": "seen", "provenance": {}}\')'
WAITS = "(folder / 'begun').write_text('')\nimport time\ntime.sleep(0 if (folder / 'go').exists() else 60)"


# for the second notebook's kernel and page a megabyte and a half is more than enough, and less than what it writes
@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "written", "status", "said"),
    [
        (0, 10, 2, r"^error: .*run\.json cannot be written: No space left on device; free the disk"),
        (100_000, 10, 2, r"^error: .*02_some\.html cannot be written: No space left on device; free the disk"),
        (1_500_000, 2_000_000, 1, r"^02_some: failed: OutputError: .*second\.txt cannot be written: No space left"),
    ],
)
def test_a_disk_that_is_full_in_the_middle_of_a_run_is_one_line(tmp_path, left, written, status, said):
    """Papermill finds it out, the page does, or the notebook itself."""
    with small_disk(tmp_path / "disk", "5m") as disk:
        # what is said is part of the notebook, and of its page once more
        says = "from surgerylib.files import atomic_write\nprint('x' * 40_000)"
        writes = f"atomic_write(folder / 'second.txt', 'x' * {written} + '\\n')"
        project = Project(tmp_path, WRITES, f"{says}\n{writes}", out=disk / "out")
        command = project.start(f"""
import surgerylib.workbook.run as workbook
execute = workbook.execute_notebook
def disturbed(path, *args):
    if path.stem == '02_some':
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from disturbed import fill
        fill(pathlib.Path({str(disk)!r}), but={left})
    execute(path, *args)
workbook.execute_notebook = disturbed
""")
        assert command.end() == status, command.errors
        (line,) = command.errors
        assert re.search(said, line), line
        assert "01_some: ok" in command.said[1]
        assert_whole(project.out)
        assert not (project.out / "second.txt").exists() or written == 10
        (disk / "filler").unlink()
        project.assert_a_rerun_finishes()
        assert (project.out / "second.txt").stat().st_size == written + 1


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    """What a run says goes where the user sends it, perhaps to the same disk."""
    words = ["scenes", "--out", tmp_path / "s", "--train", "1", "--val", "0", "--test", "0", "--size", "96"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "surgerylib", *map(str, words)], cwd=PROJECT_ROOT, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1:] == ["error: output: No space left on device; free the disk"]
    assert "Traceback" not in done.stderr


def test_a_read_only_output_is_one_line_and_status_2(tmp_path, capsys):
    with small_disk(tmp_path / "disk", options=",ro") as disk:
        for words in (
            ["run", "--out", disk],
            ["run", "--out", disk / "below" / "it"],
            ["run", "--out", tmp_path / "out", "-p", f"cache_dir={disk}"],
            ["train", "--out", disk],
            ["features", "--out", disk],
            ["scenes", "--out", disk / "scenes"],
        ):
            command_refused(capsys, words, rf"(?=.*{disk}).*(cannot be written|cannot write)")
        assert list(disk.iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True], ids=["the start of the kernel", "a cell"])
def test_ctrl_c_is_one_line_and_status_130(tmp_path, begun):
    project = Project(tmp_path, WRITES, WAITS)
    command = project.start()
    command.wait_until(lambda: command.says("02_some: started"))
    if begun:
        command.wait_until((project.out / "begun").exists)
    command.interrupt(times=2)
    assert command.end(60) == 130, command.errors
    assert command.errors == [INTERRUPTED]
    command.assert_alone_gone(10)
    assert project.statuses() == ["ok", "interrupted"]
    assert "was interrupted" in (project.out / "index.html").read_text()
    assert_whole(project.out)
    (project.out / "go").touch()
    project.assert_a_rerun_finishes()


class _Killed(BaseException):
    """What nobody catches, as nobody catches SIGKILL."""


# for two notebooks: record, [executed], ipynb, html, record; at the end record and index
@pytest.mark.parametrize("error", [KeyboardInterrupt, _Killed])
@pytest.mark.parametrize(
    ("function", "call"),
    [*(("atomic_write", call) for call in range(1, 11, 2)), ("notebook_html", 2), ("_files", 2), ("_finding", 2),
     ("index_html", 1)],
)  # fmt: skip
def test_stopped_while_a_page_is_made_nothing_is_taken_for_finished(tmp_path, monkeypatch, function, call, error):
    """A notebook that was stopped while its page was drawn counted as done, with the page of an earlier run; a run
    that was killed behind its last notebook kept an earlier index for ever.
    """
    project, executed = Project(tmp_path, WRITES, WRITES), []
    out = project.out

    def execute(path: Path, output: Path, parameters: dict, *_: object) -> None:
        notebook, said = nbformat.read(path, as_version=4), f"seed {parameters['seed']}"
        notebook.cells[-1].outputs = [new_output("stream", text=said)]
        nbformat.write(notebook, output)
        (out / "first.json").write_text(json.dumps({"finding": said, "provenance": {}}))
        executed.append(path.stem)

    def run(seed: int) -> workbook.RunResult:
        return workbook.run_workbook({"seed": seed}, out, notebooks_dir=project.root / "notebooks")

    monkeypatch.setattr(workbook, "execute_notebook", execute)
    monkeypatch.setattr(workbook, "Kernels", lambda *_: contextlib.nullcontext())
    assert run(1).ok
    effects = itertools.chain([DEFAULT] * (call - 1), [error], itertools.repeat(DEFAULT))
    with monkeypatch.context() as patched:
        patched.setattr(workbook, function, Mock(wraps=getattr(workbook, function), side_effect=effects))
        with pytest.raises(error):
            run(2)
    assert_whole(out)
    entries = json.loads((out / "run.json").read_text())["notebooks"]
    finished = [entry for entry in entries if entry["status"] == "ok" and entry["parameters"]["seed"] == 2]

    executed.clear()
    assert run(2).ok
    assert len(executed) == 2 - len(finished)  # what was finished is not done twice
    assert leftovers(out) == []
    for name, suffix in itertools.product(("01_some", "02_some"), ("ipynb", "html")):
        assert "seed 2" in (out / f"{name}.{suffix}").read_text()
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], "pid" in record) == ("ok", False)
    assert [(entry["status"], entry["files"]) for entry in record["notebooks"]] == [("ok", ["first.json"])] * 2
    assert (out / "index.html").read_text() == workbook.index_html(out)


@pytest.mark.slow
def test_a_killed_command_takes_its_kernel_and_busy_workers_with_it(tmp_path):
    """Idle workers waited for a minute, busy ones for the end of their work, and their memory was missing meanwhile.

    Killed, the command can tell nobody: what waits and what runs notices it alone.
    """
    busy = """\
from surgerylib.engine.parallel import in_processes
def busy(number):
    import time
    (folder / f"worker-{number}.txt").write_text("busy\\n")
    time.sleep(0 if (folder / "go").exists() else 60)
list(in_processes(busy, [1, 2], sizes=[1, 1], workers=2, description="work"))"""
    project = Project(tmp_path, busy, WRITES)
    command = project.start()
    command.wait_until(lambda: len(list(project.out.glob("worker-*.txt"))) == 2)
    assert len(command.processes()) >= 5  # itself, the kernel, the next one's, two workers
    command.kill(everything=False)
    command.assert_alone_gone(15)
    (project.out / "go").touch()
    project.assert_a_rerun_finishes()


@pytest.mark.slow
def test_a_second_run_into_a_folder_names_the_first_and_stops(tmp_path):
    project = Project(tmp_path, WAITS)
    first = project.start()
    first.wait_until((project.out / "begun").exists)
    before = {path: path.stat().st_mtime_ns for path in project.out.rglob("*")}
    second = project.start()
    assert second.end() == 2
    (line,) = second.errors
    assert re.search(rf"^error: another process \({first.process.pid}\) writes in .*out; wait for it or choose", line)
    assert second.said == []
    assert {path: path.stat().st_mtime_ns for path in project.out.rglob("*")} == before
    first.interrupt()
    assert first.end(60) == 130
    (project.out / "go").write_text("")
    project.assert_a_rerun_finishes()
