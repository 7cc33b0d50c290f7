"""What a notebook's result depends on, as hashes: by them a second run knows what it need not execute."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .locations import EMBEDDED, dataset_folder
from .parameters import SET_BY_RUNNER, notebook_parameters
from .versions import versions


def notebook_keys(notebooks: Iterable[Path], settings: Mapping[str, Any], root: Path) -> dict[Path, str]:
    """What each notebook's result depends on, as one hash; later notebooks read the files of earlier ones."""
    shared = {"library": library_sha256(), "versions": versions()}
    if "dataset" in settings:
        shared["dataset"] = _folder_fingerprint(dataset_folder(settings["dataset"], root)[0])
    if settings.get("model") == EMBEDDED:
        shared["model"] = _folder_fingerprint(root / "data" / "embedded")
    checkpoint = settings.get("checkpoint")
    if checkpoint and (root / checkpoint).is_file():
        shared["checkpoint"] = file_sha256(root / checkpoint)
    keys: dict[Path, str] = {}
    chain = json.dumps(shared, sort_keys=True)
    for path in notebooks:
        own = {name: settings[name] for name in sorted(notebook_parameters(path)) if name != SET_BY_RUNNER}
        text = f"{chain}\n{file_sha256(path)}\n{json.dumps(own, sort_keys=True, default=repr)}"
        chain = keys[path] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def _folder_fingerprint(folder: Path) -> str:
    """Names, sizes and times of all files below: cheap enough for 50,000 files, unlike their contents."""
    digest = hashlib.sha256()
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            with contextlib.suppress(OSError):  # a link to nowhere
                stat = path.stat()
                digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def library_sha256() -> str:
    """A hash over the source of this package, templates included."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".j2", ".css", ".js"):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
