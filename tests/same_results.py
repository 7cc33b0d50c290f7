"""Whether two runs' folders hold the same: bytes, or all but the clock where there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import torch

from surgerylib.datasets.damage import MEMORY

# keys of JSON files whose values are of a clock, of a process, or hashes of files that hold one
_OF_THE_CLOCK = {"seconds", "started", "finished", "pid"}
_DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]+ \d{4}, \d\d:\d\d\b")
_DURATION = re.compile(r"\b(?:\d+ h )?(?:\d+ min )?\d+ s\b")
_RESUMED = re.compile(r"; \d+ of \d+ files were there already, made of [^\n<]*|, of which [\d,]+ were there already")
# in a line of its own: a training that was taken up, or figures that were there
_TAKEN_UP = re.compile(": taken up behind epoch |figures: [0-9]+ of [0-9]+ settings were there already, made of ")
# on a page; the notebook is asked for it
_PRINTED = re.compile(r'<pre class="stream".*?</pre>|<details class="fold messages">.*?</details>', re.DOTALL)
_SECONDS_ROW = re.compile(r"(\bseconds)\s*(</th>\s*<td[^>]*>)?\s*[\d.]+")


def differing(whole: Path, other: Path) -> list[str]:
    """Files, by their names below the two folders, that are in one alone or not the same.

    The folders have the same name, and paths of the same length: tables of text are as wide as their longest cell.
    The memory of images that were looked at is no result: it is there where its folder was there before.
    """
    files = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
             - {f"cache/{MEMORY}"} for folder in (whole, other)]  # fmt: skip
    alone = [f"{name}: in one alone" for name in sorted(files[0] ^ files[1])]
    return alone + [name for name in sorted(files[0] & files[1]) if _of(whole, name) != _of(other, name)]


def _of(folder: Path, name: str) -> Any:
    path = folder / name
    if name.endswith(".lock"):
        return None  # holds the number of the last process
    return _READERS[path.suffix](path, folder) if path.suffix in _READERS else path.read_bytes()


def _state(path: Path, folder: Path) -> Any:
    """Contents alone: one that was loaded once is pickled in other words."""
    return _plain(torch.load(path, weights_only=True))


def _plain(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.dtype, content.shape, content.numpy().tobytes()
    if isinstance(content, dict):
        return [(key, _plain(value)) for key, value in content.items()]
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else repr(content)


def _json(path: Path, folder: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in content.get("notebooks", []) if path.name == "run.json" else []:
        # hashes of JSON files, which hold a clock and are compared themselves
        entry["read"] = {name: digest for name, digest in entry.get("read", {}).items() if not name.endswith(".json")}
    return _without_clock(content, folder)


def _notebook(path: Path, folder: Path) -> Any:
    content = nbformat.read(path, as_version=4)  # which joins the lines of an output
    content["metadata"].pop("papermill")
    for cell in content["cells"]:
        for times in ("papermill", "execution"):
            cell["metadata"].pop(times, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell.pop("id")  # drawn at random
        if "outputs" in cell:
            cell["outputs"] = _without_bars(cell["outputs"])
    return _without_clock(content, folder)


def _page(path: Path, folder: Path) -> str:
    text = _PRINTED.sub("", path.read_text(encoding="utf-8"))
    return _without_clock(_DATE.sub("DATE", " ".join(text.split())), folder)


def _without_bars(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without progress bars, which appear where it took long; what is printed around them in one piece."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if _TAKEN_UP.search(output.get("text", "")):
            kept = [line for line in output["text"].split("\n") if not _TAKEN_UP.search(line)]
            output = {**output, "text": "\n".join(kept)}
            if not output["text"].strip():
                continue
        parts = re.split(r"[\r\n]", output["text"]) if output.get("name") == "stderr" else ["printed"]
        if all("%|" in part or not part.strip() for part in parts):
            continue
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + output["text"]}
        else:
            joined.append(output)
    return joined


def _without_clock(content: Any, folder: Path) -> Any:
    """Without what a clock or a process gave; every text without the folder's name, and where work was taken up."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in _OF_THE_CLOCK}
        return {key: _without_clock(value, folder) for key, value in kept.items()}
    if isinstance(content, list):
        return [_without_clock(value, folder) for value in content]
    if not isinstance(content, str):
        return content
    text = content.replace(str(folder), "FOLDER")
    return _SECONDS_ROW.sub(r"\1 \2 N", _RESUMED.sub("", _DURATION.sub("N s", text)))


_READERS: dict[str, Callable[[Path, Path], Any]] = {".json": _json, ".ipynb": _notebook, ".html": _page, ".pt": _state}
