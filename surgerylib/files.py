"""Writing files so that a name never stands for half a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputError


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that gets its name when the block ends well, and is gone when it doesn't.

    Args:
        path: the final name; its folder is made.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; free the disk or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # it has its name by now, or the folder is not to be written
                temporary.unlink()


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file aside, then rename it: under its name there is either the old file, the new one, or none.

    Args:
        path: the final name; its folder is made.
        content: bytes, or text for UTF-8.

    Raises:
        OutputError: as in `written_aside`.
    """
    with written_aside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def only_process(folder: Path, work: str, *, lock_name: str = ".lock") -> Iterator[None]:
    """One process at a time does this work in a folder, which is made; the lock of a process that died is no lock.

    Args:
        folder: of the work.
        work: what is done there, for the error: `trains`.
        lock_name: of the lock file.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    lock = FileLock(folder / lock_name, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(f"another process {work} in {folder}; wait for it or choose another folder") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
