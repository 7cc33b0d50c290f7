"""One notebook from start to end, in a kernel of this interpreter."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets import default
from zmq import ZMQError

from .files import DISK_IS_FULL


class NotebookFailure(Exception):
    """A notebook stopped before its end; the message is one line."""


class ThisInterpreter(AsyncKernelManager):
    """Kernels of the interpreter that runs this, whatever a user's kernelspec called python3 points to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # with MPLBACKEND=Agg in the user's shell the figures would silently be missing from the report
        environment = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        return KernelSpec(**get_kernel_dict() | {"env": environment})

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"  # otherwise ipykernel prints a warning into the middle of the progress lines

    async def start_kernel(self, **kwargs: Any) -> None:
        """Start without the kernel process's own messages; what cells print comes through the notebook."""
        # how a cell ended that Ctrl-C had stopped is nobody's to hear, and else nothing is said there
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await super().start_kernel(stderr=subprocess.DEVNULL, **kwargs)


def execute_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, Any], root: Path, time_limit: float
) -> None:
    """Run a notebook with papermill in a kernel of this interpreter, with one deadline for the whole of it.

    Args:
        notebook: the source.
        output: the executed one, also when it stops before its end.
        parameters: put behind its cell of parameters.
        root: the kernel's working directory.
        time_limit: seconds.

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
            kernel_manager_class=ThisInterpreter,
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


def _literal(path: Path) -> str:
    """A path that papermill, which fills `{name}` in paths, takes as it stands."""
    return str(path).replace("{", "{{").replace("}", "}}")
