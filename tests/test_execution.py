"""Kernels that are started ahead: the same notebook comes out, and none is left behind."""

from __future__ import annotations

import nbformat
import psutil
import pytest
from tiny_notebooks import write_notebook

from surgerylib.workbook.execution import Kernels, NotebookFailure, execute_notebook, package_imports
from surgerylib.workbook.parameters import find_notebooks

SOURCE = """\
import os, sys
print(os.getcwd(), __name__, os.environ['MPLBACKEND'], 'surgerylib.errors' in sys.modules, 'SurgeryError' in globals())
from surgerylib import files
from surgerylib.errors import SurgeryError
print(os.getpid(), hasattr(files, 'left'))
files.left = 1
"""


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_each_notebook_has_a_kernel_of_its_own_that_has_imported_already(tmp_path):
    path = write_notebook(tmp_path / "01_made.ipynb", SOURCE)
    pids = []
    with Kernels([path, path], tmp_path) as kernels:
        for round_ in ("ahead", "killed", "new"):
            if round_ == "killed":  # one that was killed while it waited is replaced
                kernels._next.provisioner.process.kill()
                kernels._next.provisioner.process.wait()
            execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, kernels)
            outputs = nbformat.read(tmp_path / "done.ipynb", as_version=4).cells[-1].outputs
            backend = "module://matplotlib_inline.backend_inline"
            first, second = "".join(output["text"] for output in outputs).splitlines()
            assert first == f"{tmp_path} __main__ {backend} {round_ == 'ahead'} False"
            pid, left = second.split()
            assert left == "False"
            pids.append(int(pid))
    assert len(set(pids)) == 3
    assert all(map(is_gone, pids))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "limit", "said"),
    [
        ("import os\nos._exit(3)", 120, "the kernel died"),
        ("import time\ntime.sleep(100)", 5, "time limit of 0.08"),
        ("from surgerylib.there_is_no import such", 120, "ModuleNotFoundError"),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_kernel(tmp_path, source, limit, said):
    path = write_notebook(tmp_path / "01_made.ipynb", "import os\nopen('pid', 'w').write(str(os.getpid()))", source)
    with Kernels([path], tmp_path) as kernels, pytest.raises(NotebookFailure, match=said):
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, limit, kernels)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_only_this_packages_modules_are_imported_ahead(tmp_path):
    others = "import numpy\nfrom .. import x\nfrom pandas import DataFrame"
    expected = "from surgerylib import files\nfrom surgerylib.errors import SurgeryError"
    assert package_imports(write_notebook(tmp_path / "01_made.ipynb", SOURCE, others)) == expected
    assert package_imports(write_notebook(tmp_path / "01_made.ipynb", "%magic or worse")) == ""
    assert all("surgerylib.workbook" in package_imports(path) for path in find_notebooks())
