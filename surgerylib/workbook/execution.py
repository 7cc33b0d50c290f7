"""One notebook from start to end, in a kernel of this interpreter; the next one's kernel imports meanwhile."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import run_sync
from traitlets import default
from zmq import ZMQError

from ..files import DISK_IS_FULL

_PACKAGE = __name__.partition(".")[0]
_IMPORTS_MAY_TAKE = 600  # seconds, from a slow disk; a kernel that dies of them is noticed at once


class NotebookFailure(Exception):
    """A notebook stopped before its end; the message is one line."""


class _Kernel(AsyncKernelManager):
    """A kernel of the interpreter that runs this, whatever a user's kernelspec called python3 points to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # with Agg, as it may be in the user's shell, the figures would silently be missing from the report
        environment = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # as in `cli.shell`
        return KernelSpec(**get_kernel_dict() | {"env": environment})

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"  # otherwise ipykernel prints a warning into the middle of the progress lines

    async def begin(self, root: Path, imports: str) -> _Kernel:
        # how a cell ended that Ctrl-C had stopped is nobody's to hear, and else nothing is said there
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        self.opened: list[Any] = []
        ahead = f"--IPKernelApp.exec_lines={[f'exec({imports!r}, dict())']}"
        # without the kernel process's own messages; what cells print comes through the notebook
        await self.start_kernel(cwd=str(root), stderr=subprocess.DEVNULL, extra_arguments=[ahead] if imports else [])
        return self

    def client(self, **kwargs: Any) -> Any:
        self.opened.append(super().client(**kwargs))
        return self.opened[-1]

    async def end(self) -> None:
        for client in self.opened:
            client.stop_channels()
        await self.shutdown_kernel(now=True)


class Kernels(contextlib.AbstractContextManager):
    """Kernels for some notebooks, one after the other, each started while the notebook before works.

    Importing torch and open_clip takes longer than much of what a notebook does, so a kernel is told at once to import
    what its notebook imports of this package: into no namespace, and nothing else is done ahead. What fails there the
    notebook will meet, and say so.
    """

    def __init__(self, notebooks: Iterable[Path], root: Path) -> None:
        self._left, self._root = list(notebooks), root
        self._next: _Kernel | None = None
        self._start_next()

    def take(self) -> _Kernel:
        """The kernel that is ready, or a new one where none is left or it was killed; the next one is started."""
        kernel, self._next = self._next, None
        if kernel is not None and not run_sync(kernel.is_alive)():
            run_sync(kernel.end)()
            kernel = None
        self._start_next()
        return kernel or run_sync(_Kernel().begin)(self._root, "")

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            run_sync(self._next.end)()

    def _start_next(self) -> None:
        if self._left:
            self._next = run_sync(_Kernel().begin)(self._root, package_imports(self._left.pop(0)))


def package_imports(notebook: Path) -> str:
    """The statements by which a notebook imports from this package; none of one that does not parse."""
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    with contextlib.suppress(SyntaxError, ValueError):
        nodes = [node for source in cells for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        return "\n".join(ast.unparse(node) for node in nodes if (node.module or "").split(".")[0] == _PACKAGE)
    return ""


def execute_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, Any], root: Path, time_limit: float, kernels: Kernels | None
) -> None:
    """Run a notebook, with `parameters` behind its cell of them, by papermill in a kernel of `kernels`, or a new one.

    `output` is the executed one, also when it stops before its end, a `NotebookFailure`; `root` is the working
    directory, and `time_limit` is seconds for the whole of it.
    """
    deadline = time.monotonic() + time_limit
    # papermill and nbclient log what is said here in one line
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        kernel = (kernels or Kernels([], root)).take()
        try:
            papermill.execute_notebook(
                *map(_literal, (notebook, output)), parameters=dict(parameters), kernel_name="python3",
                language="python", cwd=str(root), progress_bar={"desc": notebook.stem, "disable": None, "leave": False},
                km=kernel, start_timeout=_IMPORTS_MAY_TAKE,
                timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
            )  # fmt: skip
        finally:
            run_sync(kernel.end)()
    except papermill.PapermillExecutionError as error:
        lines = str(error.evalue).strip().splitlines() or ["(no message)"]
        raise NotebookFailure(f"{error.ename}: {lines[0]}") from None
    except CellTimeoutError:
        raise NotebookFailure(
            f"the time limit of {time_limit / 60:g} minutes was reached; a longer one: --time-limit MINUTES"
        ) from None
    except DeadKernelError:
        raise NotebookFailure("the kernel died; the usual cause is that memory ran out") from None
    except (OSError, ZMQError) as error:  # of papermill, which writes the notebook after each cell, or of the kernel
        free = "; free the disk" if error.errno in DISK_IS_FULL else ""
        where = getattr(error, "filename", None) or output.name
        raise NotebookFailure(f"{where}: {error.strerror or error}{free}") from None
    except RuntimeError as error:  # of jupyter_client, when the kernel does not come up
        raise NotebookFailure(f"the kernel did not start: {str(error).splitlines()[0]}") from None


def _literal(path: Path) -> str:
    """A path that papermill, which fills `{name}` in paths, takes as it stands."""
    return str(path).replace("{", "{{").replace("}", "}}")
