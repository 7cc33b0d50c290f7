"""Writing files so that a name never stands for half a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from .errors import OutputError


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file aside, then rename it: under its name there is either the old file, the new one, or none.

    Args:
        path: the final name; its folder is made.
        content: bytes, or text for UTF-8.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; free the disk or choose another folder"
        ) from error
    return path
