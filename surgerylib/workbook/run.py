"""Run the numbered notebooks with papermill and leave a folder that can be sent to a colleague.

A run's folder holds, for each notebook, `NN_name.ipynb` (executed) and `NN_name.html`, then what the notebooks wrote,
`index.html`, and `run.json`, which says what was run on what, and by which the next run knows what is up to date.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

from ..embedded import write_scenes
from ..errors import OutputError, ParameterError
from ..files import (
    RUN_LOCK,
    atomic_write,
    dataset_folder,
    file_sha256,
    library_sha256,
    only_process,
    remove_parts,
    versions,
)
from .check import check_cache, check_head, check_input, check_output, check_values
from .execution import Kernels, NotebookFailure, execute_notebook
from .fingerprints import notebook_keys
from .index import index_html
from .page import notebook_html, read_json, title
from .parameters import find_notebooks, known_parameters, load_config, notebook_parameters, notebook_reads, validate
from .run_files import RUN_FORMAT

_PARTIAL = ".partial.ipynb"
_STOPPED = "stopped by the user"


@dataclass(frozen=True)
class NotebookResult:
    """How one notebook ended: `ok`, `failed`, `interrupted` or `not run`, and whether it had to be executed."""

    name: str
    status: str
    seconds: float
    up_to_date: bool = False
    message: str = ""


@dataclass(frozen=True)
class RunResult:
    """What `run_workbook` leaves: the page to open, and how each notebook ended."""

    index: Path
    ok: bool
    notebooks: tuple[NotebookResult, ...]


def run_workbook(
    config: Mapping[str, Any] | str | Path | None,
    out_dir: str | Path,
    *,
    only: str | None = None,
    time_limit: float = 24 * 3600.0,
    force: bool = False,
    notebooks_dir: str | Path | None = None,
) -> RunResult:
    """Execute the numbered notebooks in order, render them, and write the run's index.

    A notebook whose source, parameters, data, weights and library are those of its last good run is not executed
    again. The first notebook that fails ends the run; its partial page is kept.

    Args:
        config: Notebook parameters: a flat mapping, a YAML file of one, or None for the notebooks' defaults.
        out_dir: The run's folder, made when missing.
        only: Which notebooks: numbers or names, separated by commas; all by default.
        time_limit: Seconds that one notebook may take as a whole; the longest takes a night, see docs/scale.md.
        force: Execute even what is up to date.
        notebooks_dir: Where the notebooks lie; its parent is their working directory. By default the project's own.

    Returns:
        The index page, and the status and seconds of each notebook.

    Raises:
        SurgeryError: Bad input, found before anything is written.
        KeyboardInterrupt: After `run.json` and the index have said so.
    """
    notebooks = find_notebooks(notebooks_dir)
    chosen = find_notebooks(notebooks_dir, only)
    known = known_parameters(notebooks)
    given = validate(load_config(config), known)
    settings = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    chosen = _without_left_out(chosen, settings)
    if not time_limit > 0:
        raise ParameterError(f"the time limit must be more than 0, not {time_limit!r}")
    root = notebooks[0].resolve().parent.parent
    out = Path(out_dir).expanduser().resolve()
    check_output(out)
    if (out / RUN_LOCK).exists():  # who holds it is said before every image is looked at
        with only_process(out, "writes", lock_name=RUN_LOCK):
            pass

    before = _previous_run(out)
    with contextlib.ExitStack() as stack:
        # torch is imported here and there at once
        kernels = stack.enter_context(Kernels(chosen, root)) if force or not before else None
        check_values(settings)
        check_cache(settings, root)
        check_head(chosen, settings, out, root)
        run = _Run(out, root, given, notebook_keys(notebooks, settings, root), before)
        # the look at the input comes second: it takes longer than to see that nothing has changed
        if outdated := [path for path in chosen if force or not run.is_up_to_date(path)]:
            kernels = kernels or stack.enter_context(Kernels(outdated, root))
            check_input(settings, chosen)
            scenes, embedded = dataset_folder(settings.get("dataset", ""), root)
            if embedded:
                if not scenes.exists():
                    print(f"drawing the embedded scenes into {scenes} (once)", flush=True)
                write_scenes(scenes)
                run = _Run(out, root, given, notebook_keys(notebooks, settings, root), before)
        stack.enter_context(only_process(out, "writes", lock_name=RUN_LOCK))
        remove_parts(out)  # of a run that was killed
        for partial in out.glob(f".*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
        return run.execute(chosen, time_limit, force, kernels)


def _without_left_out(chosen: list[Path], settings: Mapping[str, Any]) -> list[Path]:
    """The notebooks that have what they need.

    `train_split: null` leaves out the training and what needs its head, `stage: heatmap` only the latter.
    """
    lacking = set() if settings.get("localizer") else {"localizer"}
    if settings.get("train_split", "") is None:
        lacking, reason = lacking | {"train_split"}, "train_split is null"
    elif settings.get("stage") == "heatmap" and any("train_split" in notebook_parameters(path) for path in chosen):
        reason = "stage is heatmap, which trains no head"
    else:
        return chosen
    left_out = [path for path in chosen if lacking & set(notebook_parameters(path))]
    if left_out == chosen:
        raise ParameterError(
            f"{reason}, so there is nothing to run of {left_out[0].stem}; name a split to train on, or a trained head "
            "with localizer"
        )
    for path in left_out:
        print(f"{path.stem}: left out, {reason}", flush=True)
    return [path for path in chosen if path not in left_out]


@dataclass
class _Run:
    """One run into its folder: `record` is what run.json holds, kept on disk after every step."""

    out: Path
    root: Path
    given: Mapping[str, Any]
    keys: Mapping[Path, str]
    previous: Mapping[str, Any]

    def __post_init__(self) -> None:
        before = {entry["name"]: entry for entry in self.previous.get("notebooks", [])}
        self.entries = {path: _entry(path, before.get(path.stem), key) for path, key in self.keys.items()}
        self.record: dict[str, Any] = {
            "format": RUN_FORMAT, "name": self.out.name, "status": "running", "pid": os.getpid(), "started": _now(),
            "parameters": dict(self.given), "versions": versions(), "platform": platform.platform(),
            "library_sha256": library_sha256(),
        }  # fmt: skip

    def is_up_to_date(self, path: Path) -> bool:
        """Whether a good run with this key left everything that it wrote and read, and it is all still there."""
        entry = self.entries[path]
        files = [f"{path.stem}.html", f"{path.stem}.ipynb", *entry["files"]]
        good = entry["status"] == "ok" and all((self.out / name).exists() for name in files)
        # what it read of earlier notebooks may be another's by now
        return good and _hashes(self.out, notebook_reads(path)) == entry.get("read", {})

    def execute(self, chosen: list[Path], time_limit: float, force: bool, kernels: Kernels | None) -> RunResult:
        started = time.monotonic()
        results: list[NotebookResult] = []
        try:
            for path in chosen:
                entry, up_to_date = self.entries[path], False
                if failed := [result.name for result in results if result.status == "failed"]:
                    entry.update(status="not run", message=f"{failed[0]} failed before it")
                elif not force and self.is_up_to_date(path):
                    print(f"{path.stem}: up to date", flush=True)
                    up_to_date = True
                else:
                    self._one(path, entry, time_limit, kernels)
                seconds = 0.0 if failed else entry["seconds"]
                results.append(NotebookResult(path.stem, entry["status"], seconds, up_to_date, entry["message"]))
        except KeyboardInterrupt:
            for entry in self.entries.values():
                if entry["status"] == "running":
                    entry.update(status="interrupted", message=_STOPPED)
            self._finish("interrupted", started)
            raise
        ok = all(result.status == "ok" for result in results)
        ended = self.previous.get("status") in ("ok", "failed")
        as_before = ended and list(self.entries.values()) == self.previous["notebooks"]
        if as_before and all(result.up_to_date for result in results):
            self._write_index()  # the record of the work done stays; the run may have been killed before its page
        else:
            self._finish("ok" if ok else "failed", started)
        return RunResult(self.out / "index.html", ok, tuple(results))

    def _one(self, path: Path, entry: dict[str, Any], time_limit: float, kernels: Kernels | None) -> None:
        """Execute and render one notebook; its entry says how it went."""
        accepted = notebook_parameters(path)
        parameters = {name: value for name, value in self.given.items() if name in accepted}
        if "out_dir" in accepted:
            inside = self.out.is_relative_to(self.root)
            parameters["out_dir"] = str(self.out.relative_to(self.root) if inside else self.out)
        before = _files(self.out)
        kept = entry["files"] if entry.get("key") == self.keys[path] else []
        entry.update(status="running", seconds=0.0, message="", files=[], finding="", parameters=parameters)
        entry.update(key=self.keys[path], sha256=file_sha256(path), started=_now())
        self._save()
        print(f"{path.stem}: started {datetime.now():%H:%M:%S}", flush=True)
        started = time.monotonic()
        # beside the final name: what is there from an earlier run stays whole until this one is
        partial = self.out / f".{path.stem}{_PARTIAL}"
        status, message = "ok", ""
        try:
            execute_notebook(path, partial, parameters, self.root, time_limit, kernels)
        except NotebookFailure as failure:
            status, message = "failed", str(failure)
        except KeyboardInterrupt:
            status, message = "interrupted", _STOPPED
        seconds = round(time.monotonic() - started, 2)
        try:
            self._keep(path, partial, date=entry["started"], seconds=seconds, failure=message)
        except KeyboardInterrupt:
            status, message = "interrupted", _STOPPED
        after = _files(self.out)
        files = sorted(name for name, stamp in after.items() if before.get(name) != stamp or name in kept)
        read = {"read": _hashes(self.out, notebook_reads(path))} if status == "ok" else {}
        # all at once, and last: what is stopped before it was not finished
        entry.update(
            status=status, message=message, seconds=seconds, files=files, finding=_finding(self.out, files), **read
        )
        self._save()
        outcome = status + (f": {message}" if message else "")
        said_to = sys.stderr if status == "failed" else sys.stdout
        print(f"{path.stem}: {outcome} ({seconds:.0f} s)", file=said_to, flush=True)
        if status == "interrupted":
            raise KeyboardInterrupt

    def _keep(self, path: Path, partial: Path, *, date: str, seconds: float, failure: str) -> None:
        """The notebook as far as it was executed, and its page, under their names."""
        try:
            content = partial.read_bytes()
            notebook = nbformat.reads(content.decode(), as_version=4)
        except (OSError, ValueError) as error:
            if failure:  # it did not begin, or papermill was stopped in the middle of writing it
                return
            raise OutputError(f"{partial} cannot be read ({error}); run it again") from error
        atomic_write(self.out / f"{path.stem}.ipynb", content)
        partial.unlink()
        about = {"run_name": self.out.name, "date": date, "seconds": seconds, "failure": failure}
        atomic_write(self.out / f"{path.stem}.html", notebook_html(notebook, **about, folder=self.out))

    def _mark_outdated(self) -> None:
        """A notebook made of another's files is no newer than they are, and no longer valid when they have changed."""
        owners = {name: entry for entry in self.entries.values() for name in entry["files"]}
        for path, entry in self.entries.items():
            read = entry.get("read", {}) if entry["status"] == "ok" else {}
            for name, digest in _hashes(self.out, read).items():
                # a head may come from the command `train`, results come from a notebook
                owner = owners.get(name)
                stale = owner["status"] != "ok" if owner else name.endswith(".json")
                if digest != read[name] or (stale and digest is not None):
                    of = f"{name} of {owner['name']}" if owner else name
                    message = f"made of {of}, which is from an earlier run or has changed"
                    entry.update(status="outdated", message=message)
                    print(f"{path.stem}: outdated, {message}", flush=True)
                    break

    def _finish(self, status: str, started: float) -> None:
        self._mark_outdated()
        self.record.update(status=status, finished=_now(), seconds=round(time.monotonic() - started, 2))
        self.record.pop("pid", None)
        self._save()
        self._write_index()

    def _write_index(self) -> None:
        path, page = self.out / "index.html", index_html(self.out)
        if not path.is_file() or path.read_text(encoding="utf-8") != page:
            atomic_write(path, page)

    def _save(self) -> None:
        names = sorted(name for entry in self.entries.values() for name in entry["files"] if name.endswith(".json"))
        contents = {name: read_json(self.out / name) for name in names}
        results = {name: content["provenance"] for name, content in contents.items() if "provenance" in content}
        record = self.record | {"notebooks": list(self.entries.values()), "results": results}
        atomic_write(self.out / "run.json", json.dumps(record, indent=2, ensure_ascii=False, default=str))


def _entry(path: Path, previous: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """The record of a notebook at the start of a run: what an earlier run left, marked when it no longer holds."""
    if previous is None:
        fresh = {"name": path.stem, "status": "not run", "seconds": 0.0, "message": "", "files": [], "finding": ""}
        return fresh | {"title": title(nbformat.read(path, as_version=4)) or path.stem}
    entry = dict(previous)
    if entry["status"] == "outdated" and entry.get("key") == key:  # back to what it was executed with
        entry.update(status="ok", message="")
    elif entry["status"] == "ok" and entry.get("key") != key:
        entry.update(status="outdated", message="from an earlier run: parameters, data or code are others now")
    elif entry["status"] == "running":
        entry.update(status="interrupted", message="the run was killed")
    return entry


def _hashes(out: Path, names: Iterable[str]) -> dict[str, str | None]:
    """sha256 of some files of the run's folder, None for one that is not there."""
    return {name: file_sha256(out / name) if (out / name).is_file() else None for name in names}


def _previous_run(out: Path) -> dict[str, Any]:
    """`run.json` of an earlier run; empty where there is none, or none of ours: then everything is executed."""
    run = read_json(out / "run.json")
    if run and run.get("format") != RUN_FORMAT:
        print(f"{out} was written by another version of this workbook: everything in it is made again", flush=True)
    elif run and all({"name", "status", "files"} <= entry.keys() for entry in run.get("notebooks", [])):
        return run
    return {}


def _files(out: Path) -> dict[str, tuple[int, int]]:
    """What notebooks leave in the run's folder, without their cache: relative name -> (size, time)."""
    found = {}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        own = name == "run.json" or (path.parent == out and path.suffix in (".html", ".ipynb"))
        if path.is_file() and not (own or path.name.startswith(".") or name.startswith("cache/")):
            found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def _finding(out: Path, files: Iterable[str]) -> str:
    """What a notebook found, in a sentence for each of its JSON files that has one."""
    contents = (read_json(out / name) for name in files if name.endswith(".json"))
    return " ".join(dict.fromkeys(str(content["finding"]) for content in contents if content.get("finding")))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
