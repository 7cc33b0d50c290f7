"""Kernels that are started ahead: the same notebook comes out, and none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from surgerylib import workbook
from surgerylib.execution import NotebookFailure, execute_notebook, ready_interpreter
from surgerylib.ready_kernel import ReadyInterpreter, package_imports

SOURCE = """\
import os, sys
from surgerylib import files, kinds
from surgerylib.errors import SurgeryError as E
early = 'surgerylib.kinds' in sys.modules
print(os.getcwd(), __name__, os.environ['MPLBACKEND'], E.__name__)
print(repr(sys.stdin.read(1)) if False else 'said')
"""
FIGURE = """\
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.show()
print(plt.rcParams['figure.dpi'])
"""


def written(folder: Path, *sources: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "01_made.ipynb"
    nbformat.write(notebook, path)
    return path


def outputs(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [[{k: v for k, v in output.items() if k != "execution_count"} for output in cell.outputs] for cell in cells]


def is_gone(process: subprocess.Popen) -> bool:
    return process.poll() is not None


def test_a_notebook_is_the_same_in_a_kernel_that_was_started_ahead(tmp_path):
    path = written(tmp_path, SOURCE, FIGURE)
    ready = ready_interpreter(path, tmp_path)
    try:
        execute_notebook(path, tmp_path / "ahead.ipynb", {}, tmp_path, 120, ready)
        assert is_gone(ready.process)
    finally:
        ready.close()
    execute_notebook(path, tmp_path / "anew.ipynb", {}, tmp_path, 120)
    ahead = outputs(tmp_path / "ahead.ipynb")
    assert ahead == outputs(tmp_path / "anew.ipynb")
    assert ahead[0][0]["text"] == f"{tmp_path} __main__ module://matplotlib_inline.backend_inline SurgeryError\nsaid\n"


def test_the_kernel_is_the_interpreter_that_was_ready(tmp_path):
    path = written(tmp_path, "import os\nprint(os.getpid())")
    ready = ready_interpreter(path, tmp_path)
    try:
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    finally:
        ready.close()
    assert outputs(tmp_path / "done.ipynb")[0][0]["text"] == f"{ready.process.pid}\n"


def test_one_that_has_died_is_replaced_by_a_new_kernel(tmp_path):
    path = written(tmp_path, "print('here')")
    ready = ready_interpreter(path, tmp_path)
    ready.close()
    execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    assert outputs(tmp_path / "done.ipynb")[0][0]["text"] == "here\n"


def test_a_kernel_that_was_ready_and_dies_is_told_as_any_other(tmp_path):
    path = written(tmp_path, "import os\nos._exit(3)")
    ready = ready_interpreter(path, tmp_path)
    try:
        with pytest.raises(NotebookFailure, match="the kernel died"):
            execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    finally:
        ready.close()


def test_an_import_that_fails_is_the_notebooks_to_tell(tmp_path):
    ready = ReadyInterpreter(["surgerylib.there_is_no_such_module"], tmp_path, {})
    path = written(tmp_path, "import surgerylib.there_is_no_such_module")
    try:
        with pytest.raises(NotebookFailure, match="ModuleNotFoundError"):
            execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    finally:
        ready.close()


def test_another_command_than_a_kernels_of_this_interpreter_is_left_alone(tmp_path):
    ready = ReadyInterpreter([], tmp_path, {})
    try:
        assert not ready.become(["/usr/bin/other", "-m", "ipykernel_launcher", "-f", "file"])
        assert not ready.become([sys.executable, "-m", "other_kernel"])
        assert not is_gone(ready.process)
    finally:
        ready.close()
    assert is_gone(ready.process)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_one_that_waits_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom surgerylib.ready_kernel import ReadyInterpreter\n"
        "ready = ReadyInterpreter([], Path(sys.argv[1]), {})\nprint(ready.process.pid, flush=True)\ntime.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    waits = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = Path(f"/proc/{waits}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it still waits")


def test_only_this_packages_modules_are_imported_ahead(tmp_path):
    others = "import surgerylib.plots as p, numpy\nfrom .. import x\nfrom pandas import DataFrame"
    assert package_imports(written(tmp_path, SOURCE, others)) == [
        "surgerylib", "surgerylib.files", "surgerylib.kinds", "surgerylib.errors", "surgerylib.plots",
    ]  # fmt: skip
    assert package_imports(written(tmp_path, "%magic or worse")) == []
    assert package_imports(tmp_path / "no.ipynb") == []


def test_the_numbered_notebooks_take_torch_from_what_was_imported_ahead():
    for path in workbook.find_notebooks():
        assert "surgerylib.session" in package_imports(path)
