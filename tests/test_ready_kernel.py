"""Kernels that are started ahead: the same notebook comes out, and none is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch

from surgerylib.workbook.execution import NotebookFailure, execute_notebook, ready_kernels
from surgerylib.workbook.ready_kernel import ReadyKernels, package_imports
from surgerylib.workbook.run import run as workbook

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


def written(folder: Path, *sources: str, name: str = "01_made.ipynb") -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / name
    nbformat.write(notebook, path)
    return path


def outputs(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [[{k: v for k, v in output.items() if k != "execution_count"} for output in cell.outputs] for cell in cells]


def is_gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not holds():
        time.sleep(0.1)
    return holds()


@pytest.fixture(params=["forked", "itself"])
def how(request, monkeypatch) -> str:
    """Both ways of becoming a kernel; the second is that of a torch with CUDA."""
    if request.param == "forked" and not (sys.platform == "linux" and torch.version.cuda is None):
        pytest.skip("processes are not forked here")
    if request.param == "itself":
        code = "import torch.version as v; v.cuda = '13.0'; from surgerylib.workbook.ready_kernel import main; main()"
        popen = subprocess.Popen
        monkeypatch.setattr(
            "surgerylib.workbook.ready_kernel.subprocess.Popen",
            lambda command, **kwargs: popen(
                [command[0], "-c", code, *command[3:]] if "surgerylib.workbook.ready_kernel" in command else command,
                **kwargs,
            ),
        )
    return request.param


def test_a_notebook_is_the_same_in_a_kernel_that_was_started_ahead(tmp_path, how):
    path = written(tmp_path, SOURCE, FIGURE)
    with ready_kernels([path], tmp_path) as ready:
        execute_notebook(path, tmp_path / "ahead.ipynb", {}, tmp_path, 120, ready)
    execute_notebook(path, tmp_path / "anew.ipynb", {}, tmp_path, 120)
    ahead = outputs(tmp_path / "ahead.ipynb")
    assert ahead == outputs(tmp_path / "anew.ipynb")
    assert ahead[0][0]["text"] == f"{tmp_path} __main__ module://matplotlib_inline.backend_inline SurgeryError\nsaid\n"


def test_each_notebook_has_a_kernel_of_its_own_that_has_imported_already(tmp_path, how):
    """Two after the other: what the first has left in memory is not there in the second."""
    says = "import os, sys\nfrom surgerylib import kinds\nprint(os.getpid(), hasattr(kinds, 'left'))\nkinds.left = 1"
    asks = "import sys\nprint('surgerylib.kinds' in sys.modules)"
    path, pids = written(tmp_path, asks, says), []
    with ready_kernels([path, path], tmp_path) as ready:
        for name in ("first", "second"):
            waits = ready._interpreter.process.pid
            execute_notebook(path, tmp_path / f"{name}.ipynb", {}, tmp_path, 120, ready)
            early, said = (output[0]["text"] for output in outputs(tmp_path / f"{name}.ipynb"))
            assert early == "True\n"
            pid, left = said.split()
            assert left == "False"
            assert (int(pid) == waits) == (how == "itself")
            pids += [int(pid), waits]
            assert is_gone(int(pid))
    assert len(set(pids)) == (3 if how == "forked" else 2)
    assert all(map(is_gone, pids))


def test_torch_computes_with_its_threads_in_a_kernel_that_was_forked(tmp_path, how):
    """Threads do not come along: one that had been started before would be waited for without end."""
    computes = (
        "import torch, numpy, cv2\na = torch.ones(512, 512)\n"
        "(torch.nn.functional.conv2d(a[None, None], a[None, None, :9,"
        " :9], padding=4) @ a).sum()\nb = numpy.ones((512, 512)); (b @ b).sum(); cv2.blur(b, (9, 9))\n"
        "torch.ones(3, requires_grad=True).sum().backward()\nprint(torch.get_num_threads())"
    )
    path = written(tmp_path, "from surgerylib import clip, plots", computes)
    with ready_kernels([path], tmp_path) as ready:
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    assert outputs(tmp_path / "done.ipynb")[1][0]["text"] == f"{torch.get_num_threads()}\n"


def test_a_kernel_that_was_forked_has_worker_processes(tmp_path, how):
    """Its parent ignores how children end; it does not."""
    path = written(
        tmp_path,
        "import subprocess, sys\nfrom surgerylib.engine.parallel import in_processes\n"
        "print(list(in_processes(abs, [-1, -2, -3], workers=2, description='test')))\n"
        "print(subprocess.run([sys.executable, '-c', 'raise SystemExit(3)']).returncode)",
    )
    with ready_kernels([path], tmp_path) as ready:
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    assert outputs(tmp_path / "done.ipynb")[0][0]["text"] == "[1, 2, 3]\n3\n"


def test_one_that_has_died_is_replaced_by_a_new_kernel(tmp_path, how):
    path = written(tmp_path, "print('here')")
    with ready_kernels([path], tmp_path) as ready:
        ready._interpreter.process.kill()
        ready._interpreter.process.wait()
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
    assert outputs(tmp_path / "done.ipynb")[0][0]["text"] == "here\n"


def test_a_kernel_that_was_ready_and_dies_is_told_as_any_other(tmp_path, how):
    path = written(tmp_path, "import os\nos._exit(3)")
    good = written(tmp_path, "print('here')", name="02_good.ipynb")
    with ready_kernels([path, good], tmp_path) as ready:
        with pytest.raises(NotebookFailure, match="the kernel died"):
            execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)
        execute_notebook(good, tmp_path / "good_done.ipynb", {}, tmp_path, 120, ready)
    assert outputs(tmp_path / "good_done.ipynb")[0][0]["text"] == "here\n"


def test_a_kernel_that_does_not_end_in_time_is_ended(tmp_path, how):
    path = written(tmp_path, "import os\nprint(os.getpid(), flush=True)\nimport time\ntime.sleep(100)")
    with ready_kernels([path], tmp_path) as ready:
        with pytest.raises(NotebookFailure, match="time limit"):
            execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 5, ready)
        assert is_gone(int(outputs(tmp_path / "done.ipynb")[0][0]["text"]))


def test_an_import_that_fails_is_the_notebooks_to_tell(tmp_path, how):
    path = written(tmp_path, "import surgerylib.there_is_no_such_module")
    with ready_kernels([path], tmp_path) as ready, pytest.raises(NotebookFailure, match="ModuleNotFoundError"):
        execute_notebook(path, tmp_path / "done.ipynb", {}, tmp_path, 120, ready)


def test_another_command_than_a_kernels_of_this_interpreter_is_left_alone(tmp_path):
    with ReadyKernels([tmp_path / "01_any.ipynb"], tmp_path, {}) as ready:
        waits = ready._interpreter.process
        assert ready.launch(["/usr/bin/other", "-m", "ipykernel_launcher", "-f", "file"]) is None
        assert ready.launch([sys.executable, "-m", "other_kernel"]) is None
        assert waits.poll() is None
    assert waits.poll() is not None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes")
def test_what_waits_and_what_runs_ends_with_the_process_that_started_it(tmp_path):
    """Killed, it could not say so."""
    path = written(tmp_path, "import os, time\nopen('pid', 'w').write(f'{os.getpid()} ')\ntime.sleep(100)")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from surgerylib.workbook.execution import execute_notebook, ready_kernels\n"
        "path, folder = Path(sys.argv[1]), Path(sys.argv[2])\nready = ready_kernels([path, path], folder)\n"
        "print(ready._interpreter.process.pid, flush=True)\n"
        "execute_notebook(path, folder / 'done.ipynb', {}, folder, 120, ready)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path)]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    waits, said = int(starter.stdout.readline()), tmp_path / "pid"
    assert within(60, lambda: said.exists() and said.read_text().endswith(" "))
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert within(30, lambda: is_gone(waits))
    assert within(30, lambda: is_gone(int(said.read_text())))


def test_only_this_packages_modules_are_imported_ahead(tmp_path):
    others = "import surgerylib.figures.maps as p, numpy\nfrom .. import x\nfrom pandas import DataFrame"
    assert package_imports(written(tmp_path, SOURCE, others)) == [
        "surgerylib", "surgerylib.files", "surgerylib.kinds", "surgerylib.errors", "surgerylib.figures.maps",
    ]  # fmt: skip
    assert package_imports(written(tmp_path, "%magic or worse")) == []
    assert package_imports(tmp_path / "no.ipynb") == []


def test_the_numbered_notebooks_take_torch_from_what_was_imported_ahead():
    for path in workbook.find_notebooks():
        assert "surgerylib.workbook.session" in package_imports(path)
