"""Where things lie, what they were made of, and writing them so that a name never stands for half a file."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = "embedded"  # as a dataset: the procedural scenes; as a model: the small CLIP that is shipped
RUN_LOCK = ".run.lock"  # in a run's folder: held by the one process that writes there
ADAPTER_FILES = "adapter_*.safetensors"  # in a folder of trained heatmap adapters
EMBEDDED_MODEL = PROJECT_ROOT / "data" / "embedded"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scipy", "opencv-python-headless", "pillow",
            "matplotlib")  # fmt: skip
# of what name, and the machine and the number of the process that writes it; 8 letters are tempfile's
_ASIDE = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-[a-z0-9_]{8}\.part(?:ial)?")
# in 6 digits: on a shared disk other machines write, with numbers of their own
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_STARTED = time.time()
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def aside_prefix(name: str) -> str:
    """What the name of a file or folder begins with that is written aside to become `name`; `is_abandoned` reads it."""
    return f".{name}.{_MACHINE}-{os.getpid()}-"


def _remedy(error: OSError) -> str:
    free = "free the disk or " if error.errno in DISK_IS_FULL else ""
    return f"{error.strerror or error}; {free}choose another folder"


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that gets its name, in a folder that is made, when the block ends well; else it is gone.

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
    """Write bytes, or text as UTF-8, aside: under the name there is either the old file, the new one, or none."""
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
    if writer is None or writer[1] != _MACHINE:
        return False
    process = int(writer[2])
    try:
        if process == os.getpid():  # in a container every process may get the same number
            return path.stat().st_mtime < _STARTED
        if os.name == "posix":  # elsewhere the question would end the process
            os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # gone by now; somebody else's; or nobody's number: it isn't ours to delete
        pass
    return False


@contextlib.contextmanager
def only_process(folder: Path, work: str, *, lock_name: str = ".lock") -> Iterator[None]:
    """One process at a time does this work in a folder, which is made; the lock of a process that died is no lock.

    `work` is what is done there, for the error: `trains`.

    Raises:
        OutputError: another process holds it, the message says which; or the folder cannot be written.
    """
    lock = FileLock(folder / lock_name, timeout=0)
    # the number of the last process that had the lock. In a file of its own: the lock's may be locked against its own
    # process too, or mean something to the lock itself
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


def dataset_folder(dataset: str, root: Path = PROJECT_ROOT) -> tuple[Path, bool]:
    """Where a dataset lies, and whether it is the `embedded` one, which is drawn on demand into `data/scenes`."""
    embedded = root / "data" / "scenes"
    folder = embedded if dataset == EMBEDDED else project_path(dataset, root)
    return folder, folder == embedded


def project_path(path: str | Path, root: Path = PROJECT_ROOT) -> Path:
    """A path relative to the project or absolute; `~` is the user's home, and stays where it is nobody's."""
    with contextlib.suppress(RuntimeError):
        path = Path(path).expanduser()
    return root / path


def adapter_files(where: str, root: Path = PROJECT_ROOT) -> list[Path]:
    """The adapter files that a parameter names, relative to the project or absolute: one, or those in a folder."""
    with contextlib.suppress(OSError):  # too long for a name
        path = project_path(where, root)
        return [path] if path.is_file() else sorted(path.glob(ADAPTER_FILES))
    return []


def checkpoint_file(checkpoint: str | None, root: Path = PROJECT_ROOT) -> Path | None:
    """The file that a checkpoint names, relative to the project or absolute; None when it names no file."""
    with contextlib.suppress(OSError):  # too long for a name
        if checkpoint and (path := project_path(checkpoint, root)).is_file():
            return path
    return None


def short_hash(*values: Any) -> str:
    """16 digits that name plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two identities, short, with both values; empty when `there` has all of `here`."""
    others = [name for name in here if there.get(name) != here[name]]
    return "; ".join(_difference(name, there.get(name), here[name]) for name in others)


def _difference(name: str, there: object, here: object) -> str:
    """Of two lists or mappings, the first item that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        item = next((key for key in {**here, **there} if there.get(key) != here.get(key)), None)
        return _difference(str(item), there.get(item), here.get(item))
    if isinstance(there, list) and isinstance(here, list):
        item = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
        if item is None:
            return f"{name}: {len(there)} items there, {len(here)} here"
        name, there, here = f"{name}, item {item + 1}", there[item], here[item]
    return f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:16]}…{text[-16:]}"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def library_sha256() -> str:
    """A hash over everything in this package that shapes a result or a page: source and templates."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js", ".json")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
