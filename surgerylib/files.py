"""Writing files so that a name never stands for half a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputError

_ASIDE = re.compile(r"\..*\.(\d+)-[^.]*\.part(ial)?")  # of what name, and the number of the process that writes it


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}-", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; free the disk or choose another folder"
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


def remove_parts(folder: Path) -> None:
    """Delete what `written_aside` left in a folder, and below it, when its process was killed."""
    for path in folder.rglob(".*.part"):
        if is_abandoned(path):
            with contextlib.suppress(OSError):  # it is in nobody's way
                path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether the process that wrote this aside is no more; its number is in the name (`.NAME.NUMBER-x.part`)."""
    writer = _ASIDE.fullmatch(path.name)
    if writer is None:
        return True
    if os.name != "posix":  # elsewhere the question would end the process
        return False
    try:
        os.kill(int(writer[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # somebody else's; or nobody's number, so that it isn't ours to delete
        return False
    return False


@contextlib.contextmanager
def only_process(folder: Path, work: str, *, lock_name: str = ".lock") -> Iterator[None]:
    """One process at a time does this work in a folder, which is made; the lock of a process that died is no lock.

    Args:
        folder: of the work.
        work: what is done there, for the error: `trains`.
        lock_name: of the lock file, which holds the number of the last process that had it.

    Raises:
        OutputError: another process holds it, the message says which; or the folder cannot be written.
    """
    path = folder / lock_name
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(str(os.getpid()))
    except Timeout:
        raise OutputError(
            f"another process{_holder(path)} {work} in {folder}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        lock.release()
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}; free the disk or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(lock.read_text())})"
    return ""


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
