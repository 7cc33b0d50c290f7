"""Versions of what decides the numbers, without importing it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scipy", "opencv-python-headless", "pillow",
    "matplotlib",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def source_sha256(modules: Iterable[str]) -> str:
    """A hash over the source of some modules of this package."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(name.encode() + b"\0" + (Path(__file__).parent / f"{name.replace('.', '/')}.py").read_bytes())
    return digest.hexdigest()


def library_sha256() -> str:
    """A hash over everything in this package that shapes a result or a page: source and templates."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js", ".json")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
