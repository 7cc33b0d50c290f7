"""What a notebook's result depends on, as hashes: by them a second run knows what it need not execute."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import EMBEDDED, adapter_files, checkpoint_file, dataset_folder, file_sha256, library_sha256, versions
from .parameters import notebook_parameters


def notebook_keys(notebooks: Iterable[Path], settings: Mapping[str, Any], root: Path) -> dict[Path, str]:
    """What each notebook's result depends on, as one hash; later notebooks read the files of earlier ones."""
    shared = {"library": library_sha256(), "versions": versions()}
    if "dataset" in settings:
        shared["dataset"] = _folder_fingerprint(dataset_folder(settings["dataset"], root)[0])
    model = settings.get("model", "")
    if model == EMBEDDED:
        shared["model"] = _folder_fingerprint(root / "data" / "embedded")
    elif model.startswith("local-dir:"):
        shared["model"] = _folder_fingerprint(Path(model.removeprefix("local-dir:")))
    if weights := checkpoint_file(settings.get("checkpoint"), root):
        shared["checkpoint"] = file_sha256(weights)
    keys: dict[Path, str] = {}
    chain = json.dumps(shared, sort_keys=True)
    for path in notebooks:
        own = {name: settings[name] for name in sorted(notebook_parameters(path)) if name != "out_dir"}
        if head := checkpoint_file(own.get("localizer"), root):
            own["localizer_sha256"] = file_sha256(head)
        if adapter := own.get("adapter"):
            own["adapter_sha256"] = [file_sha256(file) for file in adapter_files(adapter, root)]
        text = f"{chain}\n{file_sha256(path)}\n{json.dumps(own, sort_keys=True, default=repr)}"
        chain = keys[path] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def _folder_fingerprint(folder: Path) -> str:
    """Names, sizes and times of all files below: cheap enough for 50,000 files, unlike their contents."""
    digest, seen = hashlib.sha256(), set()
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
