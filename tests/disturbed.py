"""Commands in processes of their own, to be killed, interrupted and starved; and what they may leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_notebooks import write_notebook

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
    """`python -m surgerylib ...`, running; what it says goes into `logs`, so that it never waits for its reader.

    `project`: where its notebooks lie, if elsewhere; there a `prelude`, Python, may be run first.
    """

    def __init__(self, logs: Path, *words: object, project: Path | None = None, prelude: str = "") -> None:
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

    def says(self, text: str) -> bool:
        return text in self._out.read_text()

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

    def interrupt(self, *, times: int = 1) -> None:
        """Ctrl-C, as the terminal sends it: to the command's process group."""
        for number in range(times):
            time.sleep(0.05 if number else 0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)


def stop(
    monkeypatch: pytest.MonkeyPatch, target: object, name: str, number: int, error: BaseException | None = None
) -> list[int]:
    """Ctrl-C, or an error, at the end of the `number`-th call of a function; gives what grows with each call."""
    method, calls = getattr(target, name), []

    def stopped(*args, **options):
        found = method(*args, **options)
        calls.append(1)
        if len(calls) == number:
            raise error or KeyboardInterrupt
        return found

    monkeypatch.setattr(target, name, stopped)
    return calls


def killed_at(place: str, number: int, work: Callable, *arguments: object) -> None:
    """Some work in a process of its own, killed as it calls a function (`module:name`) for the `number`-th time."""
    process = get_context("spawn").Process(target=_until_killed, args=(place, number, work, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _until_killed(place: str, number: int, work: Callable, arguments: tuple) -> None:
    function, calls = pkgutil.resolve_name(place), count(1)

    def reached(*args, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    pytest.MonkeyPatch().setattr(place.replace(":", "."), reached)
    work(*arguments)


class Project:
    """Notebooks of a few lines, which run in the time that a kernel takes to start.

    Each is the code of one cell, with `out_dir` and `folder`, a Path, above it.
    """

    def __init__(self, root: Path, *notebooks: str, out: Path | None = None) -> None:
        self.root, self.out, self.logs = root / "project", out or root / "out", root / "logs"
        for number, code in enumerate(notebooks, start=1):
            path = self.root / "notebooks" / f"{number:02d}_some.ipynb"
            opening = "import os, pathlib\nfolder = pathlib.Path(out_dir)"
            write_notebook(path, opening, code, parameters='seed = 0  # any\nout_dir = "x"  # folder')
        (self.root / "none.yaml").write_text("seed: 1\n")

    def start(self, prelude: str = "") -> Command:
        arguments = ["run", "--config", self.root / "none.yaml", "--out", self.out]
        return Command(self.logs, *arguments, project=self.root, prelude=prelude)

    def statuses(self) -> list[str]:
        return [entry["status"] for entry in json.loads((self.out / "run.json").read_text())["notebooks"]]

    def assert_a_rerun_finishes(self) -> None:
        command = self.start()
        assert (command.end(), command.errors) == (0, []), command.said
        assert set(self.statuses()) == {"ok"}
        assert_whole(self.out)
        assert leftovers(self.out) == []


def leftovers(folder: Path) -> list[Path]:
    """What is written aside and has not got its name."""
    return [path for path in folder.rglob(".*") if path.is_file() and not path.name.endswith(".lock")]


def assert_whole(folder: Path) -> int:
    """Every file under a final name can be read to its end; how many there are."""
    paths = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    for path in paths:
        try:
            _READERS.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:
            raise AssertionError(f"{path} is no whole file: {error}") from error
    return len(paths)


def _page(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


_READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".ipynb": lambda path: nbformat.validate(nbformat.read(path, as_version=4)),
    ".html": _page,
    ".parquet": pd.read_parquet,
    ".safetensors": load_file,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": lambda path: [*np.load(path, allow_pickle=False).values()],
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".png": lambda path: Image.open(path).load(),
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
