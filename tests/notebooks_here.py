"""Notebooks executed in this process, which takes no kernel: what is the kernel's own is tested elsewhere."""

from __future__ import annotations

import contextlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output
from nbformat.v4 import new_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from surgerylib.workbook import run as workbook
from surgerylib.workbook.execution import NotebookFailure
from surgerylib.workbook.run import RunResult, run_workbook


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """While it lasts, `run_workbook` executes notebooks here, with their outputs and failures as of a kernel."""
    execute, kernels = workbook.execute_notebook, workbook.Kernels
    workbook.execute_notebook, workbook.Kernels = _execute, lambda *_: contextlib.nullcontext()
    try:
        yield
    finally:
        workbook.execute_notebook, workbook.Kernels = execute, kernels


def run_here(config: Mapping, out: Path, **options: object) -> RunResult:
    with in_this_process():
        return run_workbook(config, out, **options)


def _execute(path: Path, output: Path, parameters: Mapping, *_: object) -> None:
    node = parameterize_notebook(
        load_notebook_node(str(path)), dict(parameters), kernel_name="python3", language="python"
    )
    shell = InteractiveShell.instance()
    for name in [name for name in shell.user_ns if not name.startswith("_")]:
        del shell.user_ns[name]
    try:
        for cell in node.cells:
            if cell.cell_type == "code":
                with capture_output() as captured:
                    ended = shell.run_cell(cell.source)
                said = [new_output("stream", name="stdout", text=captured.stdout)] if captured.stdout else []
                cell.outputs = said + [_shown(output) for output in captured.outputs]
                if (error := ended.error_before_exec or ended.error_in_exec) is not None:
                    raise NotebookFailure(f"{type(error).__name__}: {error}")
    finally:
        nbformat.write(node, output)


def _shown(output: RichOutput) -> nbformat.NotebookNode:
    data = {kind: b64encode(of).decode() if isinstance(of, bytes) else of for kind, of in output.data.items()}
    return new_output("display_data", data=data, metadata=output.metadata or {})
