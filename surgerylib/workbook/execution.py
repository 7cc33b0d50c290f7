"""One notebook from start to end, in a kernel of this interpreter."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets import default
from zmq import ZMQError

from ..files import DISK_IS_FULL
from .ready_kernel import ReadyKernels
from .threads import waiting_threads_sleep


class NotebookFailure(Exception):
    """A notebook stopped before its end; the message is one line."""


class ThisInterpreter(AsyncKernelManager):
    """Kernels of the interpreter that runs this, whatever a user's kernelspec called python3 points to."""

    ready: ReadyKernels | None = None  # what has been started ahead

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict() | {"env": _environment()})

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"  # otherwise ipykernel prints a warning into the middle of the progress lines

    async def start_kernel(self, **kwargs: Any) -> None:
        """Start without the kernel process's own messages; what cells print comes through the notebook."""
        # how a cell ended that Ctrl-C had stopped is nobody's to hear, and else nothing is said there
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await super().start_kernel(stderr=subprocess.DEVNULL, **kwargs)

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Take a kernel that is ready, where there is one; jupyter_client's own place to launch otherwise."""
        process = self.ready.launch(kernel_cmd) if self.ready else None
        if process is None:
            await super()._async_launch_kernel(kernel_cmd, **kwargs)
            return
        self.provisioner.process, self.provisioner.pid = process, process.pid
        self.provisioner.pgid = process.pid if os.name == "posix" else None  # it leads a session of its own
        self._reconcile_connection_info(self.provisioner.connection_info)


def ready_kernels(notebooks: Sequence[Path], root: Path) -> ReadyKernels:
    """Kernels for `execute_notebook` that have imported what these notebooks import, or are about to.

    Args:
        notebooks, root: as there.
    """
    return ReadyKernels(notebooks, root, _environment())


def _environment() -> dict[str, str]:
    # with MPLBACKEND=Agg in the user's shell the figures would silently be missing from the report
    return {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **waiting_threads_sleep()}


def execute_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    root: Path,
    time_limit: float,
    ready: ReadyKernels | None = None,
) -> None:
    """Run a notebook with papermill in a kernel of this interpreter, with one deadline for the whole of it.

    Args:
        notebook: the source.
        output: the executed one, also when it stops before its end.
        parameters: put behind its cell of parameters.
        root: the kernel's working directory.
        time_limit: seconds.
        ready: gives the kernel; None starts one.

    Raises:
        NotebookFailure: it did not reach its end.
    """
    deadline = time.monotonic() + time_limit
    # papermill and nbclient log what is said here in one line
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(output),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(root),
            progress_bar={"desc": notebook.stem, "disable": None, "leave": False},
            kernel_manager_class=type("ReadyOrNew", (ThisInterpreter,), {"ready": ready}),
            timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
        )
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
    finally:
        if ready:
            ready.end_launched()


def _literal(path: Path) -> str:
    """A path that papermill, which fills `{name}` in paths, takes as it stands."""
    return str(path).replace("{", "{{").replace("}", "}}")
