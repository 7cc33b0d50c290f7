"""Commands in processes of their own, to be killed, interrupted and starved; and what they may leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from safetensors.torch import load_file

from surgerylib.files import PROJECT_ROOT

INTERRUPTED = "interrupted; the same command goes on where this stopped"
_MARK = "SURGERYLIB_TEST"  # in the environment of a command and of all that it starts
_IN_PROJECT = """\
import os, pathlib, signal, sys, threading, time
import surgerylib.files, surgerylib.workbook.parameters
surgerylib.workbook.parameters.PROJECT_ROOT = surgerylib.files.PROJECT_ROOT = pathlib.Path(sys.argv[1])
from surgerylib.workbook.cli import shell
{prelude}
sys.exit(shell(sys.argv[2:]))
"""


class Command:
    """`python -m surgerylib ...`, running; what it says goes into files, so that it never waits for its reader."""

    def __init__(self, logs: Path, *words: object, project: Path | None = None, prelude: str = "") -> None:
        """Start it.

        Args:
            logs: folder for what it says.
            words: behind `surgerylib`.
            project: where its notebooks lie; the project's own when None.
            prelude: Python, run first; only with `project`.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self._out, self._err = logs / f"{self.mark}.out", logs / f"{self.mark}.err"
        program = ["-m", "surgerylib"] if project is None else ["-c", _IN_PROJECT.format(prelude=prelude), str(project)]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, words)],
                cwd=PROJECT_ROOT,
                env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), _MARK: self.mark},
                stdout=out,
                stderr=err,
                start_new_session=True,
                # where the tests run in the background Ctrl-C is ignored, and would be so here
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def errors(self) -> list[str]:
        return self._err.read_text().splitlines()

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> bool:
        """Whether it came true while the command ran."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, f"waited in vain\n{self.said}\n{self.errors}"
            time.sleep(0.005)
        return bool(condition())

    def end(self, seconds: float = 300) -> int:
        """Its exit status."""
        return self.process.wait(seconds)

    def kill(self, *, everything: bool) -> None:
        """SIGKILL to the command alone, or to its kernel and workers too, as when the power fails."""
        self.process.kill()
        while everything and (processes := self.processes()):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """What it started, as far as it still runs; itself too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def assert_alone_gone(self, seconds: float = 30) -> None:
        """Kernel and workers end by themselves."""
        deadline = time.monotonic() + seconds
        while processes := self.processes():
            assert time.monotonic() < deadline, [process.cmdline() for process in processes]
            time.sleep(0.1)


class Project:
    """Notebooks of a few lines, which run in the time that a kernel takes to start."""

    def __init__(self, root: Path, *notebooks: str, out: Path | None = None) -> None:
        """Write the notebooks: each the code of one cell, with `out_dir` and `folder`, a Path, above it."""
        self.root, self.out, self.logs = root / "project", out or root / "out", root / "logs"
        for number, code in enumerate(notebooks, start=1):
            self.write(number, code)
        (self.root / "none.yaml").write_text("seed: 1\n")

    def write(self, number: int, code: str) -> None:
        path = self.root / "notebooks" / f"{number:02d}_some.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        parameters = 'seed = 0  # any\nout_dir = "x"  # folder'
        cells = [
            new_markdown_cell("# What is seen?"),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            new_code_cell("import os, pathlib\nfolder = pathlib.Path(out_dir)\nprint('begun')"),
            new_code_cell(code),
        ]
        nbformat.write(new_notebook(cells=cells), path)

    def start(self, prelude: str = "", *words: str) -> Command:
        arguments = ["run", "--config", self.root / "none.yaml", "--out", self.out, *words]
        return Command(self.logs, *arguments, project=self.root, prelude=prelude)

    def run(self, prelude: str = "", *words: str) -> tuple[int, Command]:
        """Exit status, and what ended with it."""
        command = self.start(prelude, *words)
        return command.end(), command

    def statuses(self) -> list[str]:
        return [entry["status"] for entry in json.loads((self.out / "run.json").read_text())["notebooks"]]

    def assert_a_rerun_finishes(self) -> None:
        status, command = self.run()
        assert (status, command.errors) == (0, []), command.said
        assert set(self.statuses()) == {"ok"}
        assert_whole(self.out)
        assert leftovers(self.out) == []


def leftovers(folder: Path) -> list[Path]:
    """What is written aside and has not got its name."""
    return [path for path in folder.rglob(".*") if path.is_file() and not path.name.endswith(".lock")]


def assert_whole(folder: Path) -> int:
    """Every file under a final name can be read to its end; how many there are."""
    number = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            read_whole(path)
            number += 1
    return number


def read_whole(path: Path) -> None:
    try:
        _READERS.get(path.suffix, Path.read_bytes)(path)
    except Exception as error:
        raise AssertionError(f"{path} is no whole file: {error}") from error


def _page(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def _picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _archive(path: Path) -> None:
    with np.load(path, allow_pickle=False) as stored:
        assert [stored[name] for name in stored.files]


_READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".ipynb": lambda path: nbformat.validate(nbformat.read(path, as_version=4)),
    ".html": _page,
    ".parquet": pd.read_parquet,
    ".safetensors": load_file,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": _archive,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".png": _picture,
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
}


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "4m", *, options: str = "") -> Iterator[Path]:
    """A file system of its own; skips the test where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, but: int = 0) -> Path:
    """Take all of a small disk with one file, but for some bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(filler.stat().st_size - but, 0))
    return filler


def interrupt(command: Command, *, times: int = 1, apart: float = 0.05) -> None:
    """Ctrl-C, as the terminal sends it: to the command's process group."""
    for number in range(times):
        if number:
            time.sleep(apart)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGINT)
