"""Versions of what decides the numbers, without importing it."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "opencv-python-headless", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
