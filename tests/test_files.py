from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from refusals import refused

from surgerylib.errors import OutputError
from surgerylib.files import aside_prefix, atomic_write, only_process, remove_parts, written_aside


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path):
    assert atomic_write(tmp_path / "a" / "b.txt", "é").read_bytes() == "é".encode()
    assert atomic_write(tmp_path / "a" / "b.txt", b"new").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "x.json", "old")
    with contextlib.suppress(KeyError), written_aside(path) as file:
        file.write(b"half")
        raise KeyError

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    refused(atomic_write, OutputError, "No space left", path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_do_not_do_the_same_work(tmp_path):
    def work(name: str) -> None:
        with only_process(tmp_path / name, "trains"):
            assert (tmp_path / name).is_dir()

    with only_process(tmp_path / "a", "trains"):
        refused(work, OutputError, rf"another process \({os.getpid()}\) trains", "a")
    work("a")
    (tmp_path / "file").write_text("")
    refused(work, OutputError, "cannot be written", "file")
    refused(atomic_write, OutputError, "cannot be written", tmp_path / "file" / "x.json", "")


def test_bug_what_others_wrote_aside_was_deleted(tmp_path):
    """A folder that a user names may hold downloads of a browser, and parts that another machine writes.

    What a process with our number left is removed: in a container every process may have the same number.
    """
    ours = f"{aside_prefix('x.json')}abcdefgh.part"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = ours.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-")
    machine = aside_prefix("x").split(".")[2].split("-")[0]
    elsewhere = dead.replace(machine, "0a0a0a" if machine != "0a0a0a" else "1a1a1a")
    others = {".film.mkv.part", ".x.json.3-abcdefgh.part", f"{aside_prefix('x.json')}ABC.part", ours, elsewhere}
    for name in {dead, *others}:
        atomic_write(tmp_path / "deep" / name, "")
    remove_parts(tmp_path)
    assert {path.name for path in (tmp_path / "deep").iterdir()} == others
    os.utime(tmp_path / "deep" / ours, (1, 1))
    remove_parts(tmp_path)
    assert not (tmp_path / "deep" / ours).exists()
