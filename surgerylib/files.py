"""Writing files so that a name never stands for half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputError

# of what name, and the machine and the number of the process that writes it; 8 letters are tempfile's
_ASIDE = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-[a-z0-9_]{8}\.part(?:ial)?")
_STARTED = time.time()
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def aside_prefix(name: str) -> str:
    """What the name of a file or folder begins with that is written aside to become `name`; `is_abandoned` reads it."""
    return f".{name}.{_machine()}-{os.getpid()}-"


def _machine() -> str:
    """This machine in 6 digits: on a shared disk other machines write with numbers of their own."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _remedy(error: OSError) -> str:
    free = "free the disk or " if error.errno in DISK_IS_FULL else ""
    return f"{error.strerror or error}; {free}choose another folder"


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=aside_prefix(path.name), suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {_remedy(error)}") from error
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
    """Whether this was written aside here, by a process of this machine that is no more; anything else is not ours."""
    writer = _ASIDE.fullmatch(path.name)
    if writer is None or writer[1] != _machine():
        return False
    process = int(writer[2])
    if process == os.getpid():  # in a container every process may get the same number
        with contextlib.suppress(OSError):
            return path.stat().st_mtime < _STARTED
        return False
    if os.name != "posix":  # elsewhere the question would end the process
        return False
    try:
        os.kill(process, 0)
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
        lock_name: of the lock file; beside it lies the number of the last process that had it.

    Raises:
        OutputError: another process holds it, the message says which; or the folder cannot be written.
    """
    lock = FileLock(folder / lock_name, timeout=0)
    # a file of its own: the lock's may be locked against its own process too, or mean something to the lock itself
    holder = folder / f"{lock_name.removesuffix('.lock')}.holder.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(str(os.getpid()))
    except Timeout:
        raise OutputError(
            f"another process{_number(holder)} {work} in {folder}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        lock.release()
        raise OutputError(f"{folder} cannot be written: {_remedy(error)}") from error
    try:
        yield
    finally:
        lock.release()


def _number(holder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(holder.read_text())})"
    return ""


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
