from __future__ import annotations

import os

import pytest

from surgerylib.errors import OutputError
from surgerylib.files import atomic_write, only_process, written_aside


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path):
    assert atomic_write(tmp_path / "a" / "b.txt", "é").read_bytes() == "é".encode()
    assert atomic_write(tmp_path / "a" / "b.txt", b"new").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "x.json", "old")

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "x.json", "")


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with written_aside(tmp_path / "x.bin") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_do_the_same_work(tmp_path):
    with only_process(tmp_path / "a", "trains"):
        assert (tmp_path / "a").is_dir()
        with (
            pytest.raises(OutputError, match=rf"another process \({os.getpid()}\) trains"),
            only_process(tmp_path / "a", "trains"),
        ):
            pass
    with only_process(tmp_path / "a", "trains"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), only_process(tmp_path / "file", "trains"):
        pass
