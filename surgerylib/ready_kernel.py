"""An interpreter that has imported what the notebooks import, and then becomes the kernel that it is told to be.

Importing torch and open_clip takes longer than much of what a notebook does. `ReadyInterpreter` starts one ahead, while
the notebook before it runs; it waits at its standard input for one line, and ends when that closes, as it does when the
process that started it is gone, however it went.

Nothing else is done ahead: no figure (its backend needs the kernel), no model. Of a notebook's imports only this
package's are made, for others' may do more than import.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat

_LAUNCHER = "ipykernel_launcher"


class ReadyInterpreter:
    """A process that imports, and waits. One that is not used ends with `close`, or with this process."""

    def __init__(self, imports: Sequence[str], root: Path, environment: Mapping[str, str]) -> None:
        """Start it; this returns at once.

        Args:
            imports: of `package_imports`.
            root: working directory of the kernel that it becomes.
            environment: what the kernelspec adds to this process's own.
        """
        # ipykernel reads whose child it is while it is imported
        own = {**os.environ, **environment, "JPY_PARENT_PID": str(os.getpid())}
        command = [sys.executable, "-m", __name__, *imports]
        self.process = subprocess.Popen(
            command, cwd=root, env=own, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def become(self, command: Sequence[str]) -> bool:
        """Make it the kernel of a command; False where it cannot be: it has died, or this is another kind of kernel.

        Args:
            command: of a kernelspec, formatted.
        """
        if list(command[:1]) != [sys.executable] or _LAUNCHER not in command or self.process.poll() is not None:
            return False
        arguments = list(command[command.index(_LAUNCHER) + 1 :])
        try:
            self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End it, also where it has become a kernel."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()


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
    """In the new process: import, wait for the one line, be the kernel."""
    for name in ("ipykernel.kernelapp", *sys.argv[1:]):
        with contextlib.suppress(Exception):  # the notebook will meet it, and say so
            import_module(name)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    nothing = os.open(os.devnull, os.O_RDONLY)  # a kernel reads no standard input
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = [_LAUNCHER, *json.loads(line)]
    import_module("ipykernel.kernelapp").launch_new_instance()


if __name__ == "__main__":
    main()
