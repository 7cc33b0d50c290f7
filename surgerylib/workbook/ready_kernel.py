"""An interpreter that has imported what the notebooks import, and becomes the kernels of a run.

Importing torch and open_clip takes longer than much of what a notebook does. So a process is started ahead that imports
them; it waits at its standard input for a line, and ends when that closes, as it does when the process that started it
is gone, however it went. Where a process may be forked with all that is loaded, on Linux under a torch without CUDA (a
driver that has been asked for its devices does not survive a fork), each line forks one kernel off, and the imports are
made once a run. Elsewhere the process itself becomes the kernel, and the next one is started then.

Nothing else is done ahead: no figure (its backend needs the kernel), no model. Of a notebook's imports only this
package's are made, for others' may do more than import.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat

_LAUNCHER = "ipykernel_launcher"


class ReadyKernels(contextlib.AbstractContextManager):
    """Kernels for some notebooks, one after the other; what they import is under way from the start."""

    def __init__(self, notebooks: Sequence[Path], root: Path, environment: Mapping[str, str]) -> None:
        """Start an interpreter; this returns at once.

        Args:
            notebooks: about to run. Any other can be run as well, and imports for itself what is lacking.
            root: working directory of the kernels.
            environment: what the kernelspec adds to this process's own.
        """
        self._root, self._environment, self._left = root, environment, len(notebooks)
        self._imports = list(dict.fromkeys(name for path in notebooks for name in package_imports(path)))
        self._launched: list[subprocess.Popen | ForkedKernel] = []
        self._interpreter: ReadyInterpreter | None = None
        self._start()

    def launch(self, command: Sequence[str]) -> subprocess.Popen | ForkedKernel | None:
        """A process that is the kernel of a command; None where it cannot be: of another kind, or none is ready.

        Args:
            command: of a kernelspec, formatted.
        """
        if list(command[:1]) != [sys.executable] or _LAUNCHER not in command or self._interpreter is None:
            return None
        kernel = self._interpreter.become(list(command[command.index(_LAUNCHER) + 1 :]))
        self._left -= 1
        if kernel is not None:
            self._launched.append(kernel)
        if not isinstance(kernel, ForkedKernel):
            if kernel is None:
                self._interpreter.close()
            self._interpreter = None
            self._start()
        return kernel

    def end_launched(self) -> None:
        """End the kernels that still run."""
        while self._launched:
            kernel = self._launched.pop()
            kernel.kill()
            kernel.wait()
            for stream in filter(None, (kernel.stdin, kernel.stdout)):
                with contextlib.suppress(OSError):
                    stream.close()

    def __exit__(self, *_: object) -> None:
        self.end_launched()
        if self._interpreter is not None:
            self._interpreter.close()

    def _start(self) -> None:
        if self._left > 0:
            self._interpreter = ReadyInterpreter(self._imports, self._root, self._environment)


class ReadyInterpreter:
    """A process that imports, and waits to be told which kernel to be, or to fork off."""

    def __init__(self, imports: Sequence[str], root: Path, environment: Mapping[str, str]) -> None:
        """Start it; this returns at once.

        Args:
            imports: names of modules.
            root, environment: as for `ReadyKernels`.
        """
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, *imports], cwd=root, env={**os.environ, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def become(self, arguments: Sequence[str]) -> subprocess.Popen | ForkedKernel | None:
        """A process that is the kernel with these arguments of ipykernel's; None where none comes of it.

        This waits for the imports.
        """
        try:
            self.process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()  # empty of one that has died
            pid = int(answer or 0)
            return (self.process if pid == self.process.pid else ForkedKernel(pid)) if pid else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End it; kernels that it has forked off end soon after."""
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self.process.kill()
        self.process.wait()


class ForkedKernel:
    """A process that is another's child, to be used as a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        """Raise an `OSError` where it has ended already."""
        self.pid = pid
        self._handle = os.pidfd_open(pid)  # its number may be another's when it has ended, this is not
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """None while it runs, then 0: only its parent is told how it ended."""
        if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
            self.returncode = 0
            os.close(self._handle)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended; raises `subprocess.TimeoutExpired` after so many seconds."""
        if self.returncode is None and not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"kernel {self.pid}", timeout or 0)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def package_imports(notebook: Path) -> list[str]:
    """Names of this package's modules that a notebook imports; none of one that does not parse."""
    package = __name__.partition(".")[0]
    found: dict[str, None] = {}
    with contextlib.suppress(OSError, ValueError, SyntaxError, KeyError, AttributeError):
        for cell in nbformat.read(notebook, as_version=4).cells:
            for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
                if isinstance(node, ast.ImportFrom) and not node.level:
                    inside = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == package else []
                    found |= dict.fromkeys([node.module, *(name for name in inside if find_spec(name))])
                elif isinstance(node, ast.Import):
                    found |= dict.fromkeys(alias.name for alias in node.names)
    return [name for name in found if name.partition(".")[0] == package]


def main() -> None:
    """In the new process: import; for each line fork a kernel off, or be one."""
    answers = os.dup(1)
    _open_nothing(1)
    for name in ("ipykernel.kernelapp", *sys.argv[1:]):
        with contextlib.suppress(Exception):  # the notebook will meet it, and say so
            import_module(name)
    forks = _may_fork()
    if forks:  # what is loaded stays: looking at it for garbage would copy its memory into each fork
        gc.collect()
        gc.freeze()
    for line in sys.stdin.buffer:
        pid = _fork() if forks else 0
        if pid:
            os.write(answers, b"%d\n" % pid)
            continue
        if not forks:
            os.write(answers, b"%d\n" % os.getpid())
        os.close(answers)
        _open_nothing(0)  # a kernel reads no standard input
        _be_kernel(json.loads(line))
        return


def _fork() -> int:
    """As `os.fork`; the child leads a session of its own, and this process need not ask how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pid = os.fork()
    if not pid:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return pid


def _be_kernel(arguments: list[str]) -> None:
    sys.argv = [_LAUNCHER, *arguments]
    # it ends with its parent, which ends when its standard input closes
    ends_with = {"parent_handle": os.getppid()} if os.name == "posix" else {}
    import_module("ipykernel.kernelapp").IPKernelApp.launch_instance(**ends_with)


def _may_fork() -> bool:
    """Whether this process can be forked with what it has imported, and its forks be looked after by another."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    version = getattr(sys.modules.get("torch"), "version", None)
    return version is None or not any(getattr(version, name, None) for name in ("cuda", "hip", "xpu"))


def _open_nothing(number: int) -> None:
    """Put the null device in the place of an open file."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, number)
    os.close(nothing)


if __name__ == "__main__":
    main()
