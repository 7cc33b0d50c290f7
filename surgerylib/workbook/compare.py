"""Finished runs side by side on one page: what was set otherwise, what came out, and which difference is real.

Every number comes from the runs' folders. A difference is taken only between runs on the same images and boxes,
resample by resample; where they are not the same, the page says what differs instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ..engine import localization_difference
from ..errors import OutputError, ParameterError, ResultsError
from ..files import PROJECT_ROOT, atomic_write, file_sha256
from ..heatmaps import HEATMAP_KINDS
from ..matching import BOX_COLUMNS
from ..metrics import BootstrapResult, bootstrap_map, paired_difference
from ..study import FIGURES, SHARE, average_precision_text, plain, present_only
from ..words import METHOD_NAMES, PROTOCOLS
from .check import check_writable
from .page import by_threshold, iou_columns, read_json, rendered, shown_value
from .parameters import find_notebooks, known_parameters, with_defaults
from .run_files import RUN_FORMAT, read_results, valid_files

MAPS, EVALUATION = "map_results.json", "evaluation_results.json"
RESULTS = (MAPS, "multi_iou_results.json", "training_results.json", EVALUATION)  # of notebooks 01 to 04
COLUMNS = {
    "detections.parquet": ["image_id", "label", *BOX_COLUMNS, "score", "kind"],
    "ground_truth.parquet": ["image_id", "label", *BOX_COLUMNS],
    "images.parquet": ["image_id", "width", "height"],
    "gt_class_localization.parquet": ["image_id", "label", "box_row"],
}
DETECTIONS, TRUTH, IMAGES, IOUS = COLUMNS
SHOWN_FIGURES = {figure: FIGURES[figure] for figure in ("mean", SHARE)}
SAME_IN_ALL = ("whole_image", "centre_box")  # the same guess in every run: no difference to take
# of a provenance; versions and parameters stand alone, what was skipped shows in the number of images
NO_DIFFERENCE = ("seconds", "self_check_error", "versions", "parameters", "skipped", "chosen_on")
MAX_NAME = 120
MARK = '<meta name="generator" content="surgerylib compare">'


class NotPaired(Exception):
    """Why no paired difference of two runs is taken, in one line."""


class Run:
    """A finished run, with what its valid notebooks left.

    Attributes:
        folder: of the run.
        label: its name on the page.
        record: `run.json`.
        results: JSON file -> what it holds, of those that valid notebooks left.
        outdated: those of these files that earlier parameters, data or code made.
        maps: (protocol, kind) -> IoU threshold -> map, low, high.
        methods: method -> figure -> value, low, high, of the GT-class evaluation.
        frames, evaluated: what was read and computed of it so far.
    """

    def __init__(self, folder: Path, label: str, record: Mapping[str, Any]) -> None:
        """Read what is there; a `ResultsError` where it is damaged, or of another run."""
        owners = valid_files(record["notebooks"])
        self.folder, self.label, self.record = folder, label, record
        self.results = results = {name: read_results(folder / name) for name in RESULTS if name in owners}
        if not results:
            raise ResultsError(f"{folder} holds no result of any notebook; run the workbook into it again")
        self.outdated = {name for name in results if owners[name]["status"] == "outdated"}
        self.frames: dict[str, pd.DataFrame] = {}
        self.evaluated: list[tuple[pd.DataFrame, BootstrapResult]] = []
        try:
            self._check_files()
            self.maps = {
                (protocol, kind): {float(e["iou_threshold"]): _numbers(e, "map") for e in entries}
                for protocol, by_kind in (results[MAPS]["protocols"] if MAPS in results else {}).items()
                for kind, entries in by_kind.items()
            }
            self.methods = {
                method: {figure: _numbers(entry, "value") for figure, entry in figures.items()}
                for method, figures in (results[EVALUATION]["methods"] if EVALUATION in results else {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError):  # JSON, but of another shape
            raise ResultsError(f"{MAPS} or {EVALUATION} in {folder} is damaged; run its notebook again") from None

    def _check_files(self) -> None:
        for name, content in self.results.items():
            for file, sha256 in (content.get("files") or {}).items():
                path = self.folder / file
                if file in COLUMNS and path.is_file() and file_sha256(path) != sha256:
                    raise ResultsError(
                        f"{self.folder} holds files of another run: {file} is not that of {name}; run it again"
                    )

    @property
    def thresholds(self) -> list[float]:
        """The IoU thresholds in `maps`."""
        return sorted({threshold for cells in self.maps.values() for threshold in cells})

    def provenance(self, name: str = "") -> Mapping[str, Any]:
        """Of a file in `results`; by default of the first."""
        return self.results[name or next(iter(self.results))]["provenance"]

    def data(self, name: str) -> list[str | None]:
        """The hashes of annotations and image files that a file in `results` was made of."""
        return [self.provenance(name).get(key) for key in ("annotations_sha256", "images_sha256")]

    def frame(self, name: str) -> pd.DataFrame:
        """A parquet file of the run, read once; `NotPaired` where it is not there, or no results answer for it."""
        stated = self.results[EVALUATION if name == IOUS else MAPS].get("files") or {}
        path = self.folder / name
        if name not in stated or not path.is_file():
            raise NotPaired(f"Not paired: {self.label} lacks {name}, as older runs do; give its command again.")
        if name not in self.frames:
            try:
                columns = COLUMNS[name] + (list(self.methods) if name == IOUS else [])
                self.frames[name] = pd.read_parquet(path, columns=columns)
            except (OSError, ValueError):
                raise ResultsError(f"{path} is damaged, or lacks a column; run its notebook again") from None
        return self.frames[name]

    def bootstrap(self, protocol: str, kind: str, seed: int) -> BootstrapResult:
        """Average precision of a kind, as notebook 01 takes it."""
        truth, boxes = self.frame(TRUTH), self.frame(DETECTIONS)
        boxes = boxes[boxes["kind"] == kind].drop(columns="kind").reset_index(drop=True)
        boxes = present_only(boxes, truth) if protocol == "present" else boxes
        # kinds with the same maps have the same boxes, and the first run is asked once for each other run
        result = next((known for frame, known in self.evaluated if frame.equals(boxes)), None)
        if result is None:
            result = bootstrap_map(
                boxes, truth, image_ids=self.frame(IMAGES)["image_id"], iou_thresholds=self.thresholds, seed=seed,
                interpolation=self.results[MAPS].get("interpolation"), classes=self.provenance(MAPS).get("classes"),
            )  # fmt: skip
            self.evaluated.append((boxes, result))
        return result


def compare_runs(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained page that puts finished runs side by side, and return its path.

    Args:
        runs: folders of two or more runs, or the `index.html` or `run.json` in them; differences are to the first.
        out: the page, in the place of an earlier one; by default `reports/compare-NAME-NAME.html` in the project.

    Raises:
        SurgeryError: fewer than two runs, or one that is not finished, or damaged; a page that cannot be written.
    """
    paths = [Path(run).expanduser() for run in runs]
    folders = [(path.parent if path.name in ("index.html", "run.json") else path).resolve() for path in paths]
    if len(folders) < 2:
        raise ParameterError(f"compare takes two runs or more, not {len(folders)}; name their folders")
    if twice := [folder for folder, count in Counter(folders).items() if count > 1]:
        raise ParameterError(f"the run {twice[0]} is named twice; name each run once")
    records = [_record(folder) for folder in folders]
    labels = _labels(records, folders)
    page = _default_output(labels, folders) if out is None else Path(out).expanduser().resolve()
    _check_output(page)
    opened = [Run(*each) for each in zip(folders, labels, records, strict=True)]
    notebooks = find_notebooks()
    html = rendered(
        "compare.html.j2",
        mark=MARK,
        runs=opened,
        links=[_link(folder / "index.html", page.parent) for folder in folders],
        known=known_parameters(notebooks),
        parameters=_differing([_settings(run, notebooks) for run in opened]),
        made_of=_differing([_made_of(run) for run in opened]),
        tables=_headline_tables(opened),
        pairs=[_pair(opened[0], run) for run in opened[1:]],
    )
    return atomic_write(page, html)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise ResultsError(f"{folder} holds no run.json, so it is no run's folder; name one that 'run' has written")
    record = read_json(path)
    if record and record.get("format") != RUN_FORMAT:
        raise ResultsError(f"{folder} was written by another version of this workbook; give its command again")
    entries = record.get("notebooks")
    whole = isinstance(record.get("parameters"), dict) and isinstance(entries, list) and "status" in record
    if not whole or not all(isinstance(e, dict) and {"name", "status", "files"} <= e.keys() for e in entries):
        raise ResultsError(f"{path} is damaged; run the workbook into {folder} again")
    if record["status"] == "running":
        raise ResultsError(f"the run in {folder} is running, or was killed: wait for it, or give its command again")
    return record


def _numbers(entry: Mapping[str, Any], value: str) -> dict[str, float | None]:
    return {name: None if entry.get(name) is None else float(entry[name]) for name in (value, "low", "high")}


def _labels(records: Iterable[Mapping[str, Any]], folders: Sequence[Path]) -> list[str]:
    """The runs' names; where two are the same, as much of the folders' paths as tells all apart."""
    labels, depth = [str(of.get("name") or path.name) for of, path in zip(records, folders, strict=True)], 0
    while len(set(labels)) < len(labels):
        depth += 1
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
    return labels


def _default_output(labels: Iterable[str], folders: Iterable[Path]) -> Path:
    name = "-".join(["compare", *labels])
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:MAX_NAME]
    if plain != name:  # other runs' names may become the same
        plain += "-" + hashlib.sha256("\0".join(map(str, folders)).encode()).hexdigest()[:8]
    return PROJECT_ROOT / "reports" / f"{plain}.html"


def _check_output(page: Path) -> None:
    try:
        if page.is_dir():
            raise OutputError(f"--out {page} is a folder; name a file, such as {page / 'compare.html'}")
        if page.exists() and not (page.is_file() and MARK.encode() in page.read_bytes()):
            raise OutputError(f"{page} is there and was not written by compare; choose another --out")
        check_writable(page.parent, "another --out")
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror}; choose another --out") from None


def _link(index: Path, folder: Path) -> str:
    try:
        return quote(Path(os.path.relpath(index, folder)).as_posix()) if index.is_file() else ""
    except ValueError:  # on another drive
        return index.as_uri()


def _differing(of_runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The names of which not all runs have the same value, with every run's."""
    rows = {name: [values.get(name) for values in of_runs] for of in of_runs for name in of}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _settings(run: Run, notebooks: Sequence[Path]) -> dict[str, Any]:
    """Every parameter: as it was set, or else the default of the notebook as it was executed, or as it is now."""
    executed = [path if path.is_file() else here for here in notebooks for path in [run.folder / here.name]]
    known = known_parameters(notebooks)
    with contextlib.suppress(AttributeError, KeyError, SyntaxError, ValueError):  # of a damaged notebook
        known |= known_parameters(executed)
    return with_defaults(run.record["parameters"], known)


def _made_of(run: Run) -> dict[str, Any]:
    """Model, data, versions and code."""
    own = {name: value for name, value in run.provenance().items() if name not in NO_DIFFERENCE}
    head = (run.results.get(EVALUATION, {}).get("head") or {}).get("sha256")
    versions = run.provenance().get("versions") or run.record.get("versions") or {}
    record = {name: run.record.get(name) for name in ("platform", "library_sha256")}
    return own | {"trained_head_sha256": head} | versions | record


def _headline_tables(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The figures of every run, a row a run: mAP by kind, GT-class localisation by method."""
    columns = iou_columns(sorted({threshold for run in runs for threshold in run.thresholds}))
    tables: dict[str, list] = {"maps": [], "localization": []}
    for protocol, caption in PROTOCOLS.items():
        groups = {kind: {run.label: run.maps.get((protocol, kind)) for run in runs} for kind in HEATMAP_KINDS}
        tables["maps"].append(_table(f"{caption}{_definition(runs)}", "run", columns, groups))
    groups = {name: {run.label: run.methods.get(method) for run in runs} for method, name in METHOD_NAMES.items()}
    tables["localization"].append(_table("IoU of ground truth boxes, their class given", "run", SHOWN_FIGURES, groups))
    return tables


def _definition(runs: Sequence[Run]) -> str:
    """How average precision is defined, for a caption: where runs differ, each says so above."""
    texts = {average_precision_text(run.results[MAPS]["interpolation"]) for run in runs if MAPS in run.results}
    return f"; AP: {texts.pop()}" if len(texts) == 1 else "; AP as each run says above" if texts else ""


def _table(caption: str, corner: str, columns: Mapping, groups: Mapping[str, Mapping]) -> dict[str, Any]:
    """For the macro `numbers`: column -> heading, and group -> name of a row -> column -> figures."""
    groups = {name: rows for name, rows in groups.items() if any(rows.values())}
    return {"caption": caption, "corner": corner, "columns": columns, "groups": groups}


def _pair(first: Run, run: Run) -> dict[str, Any]:
    """Tables of `run` minus `first`, or why there are none."""
    pair: dict[str, Any] = {"label": run.label}
    parts = ("maps", MAPS, "01", _map_differences), ("localization", EVALUATION, "04", _localization_differences)
    for part, name, number, tables in parts:
        try:
            if without := [of.label for of in (first, run) if name not in of.results]:
                raise NotPaired(f"Not measured: there are no results of notebook {number} in {' and '.join(without)}.")
            pair[part] = {"tables": tables(first, run)}
        except NotPaired as reason:
            pair[part] = {"reason": str(reason)}
    run.frames.clear()  # the boxes of a large data set take gigabytes
    run.evaluated.clear()
    return pair


def _map_differences(first: Run, run: Run) -> list[dict[str, Any]]:
    alike = {"split": lambda of: of.provenance(MAPS).get("split"), "IoU thresholds": lambda of: of.thresholds}
    alike["interpolation"] = lambda of: of.results[MAPS].get("interpolation")
    _check_alike(first, run, alike)
    _check_data(first, run)
    kinds = [kind for kind in HEATMAP_KINDS if all(("all", kind) in of.maps for of in (first, run))]
    if not kinds:
        raise NotPaired("Not measured: the two runs have no kind in common.")
    seed = first.provenance(MAPS).get("seed", 0)
    tables = []
    for protocol, caption in PROTOCOLS.items():
        pairs = {kind: [of.bootstrap(protocol, kind, seed) for of in (run, first)] for kind in kinds}
        rows = {kind: by_threshold(plain(paired_difference(*pair).summary())) for kind, pair in pairs.items()}
        caption = f"{caption}{_definition([first])}; {len(first.frame(IMAGES)):,} images"
        tables.append(_table(caption, "kind", iou_columns(first.thresholds), {"": rows}))
    return tables


def _localization_differences(first: Run, run: Run) -> list[dict[str, Any]]:
    _check_alike(first, run, {"split": lambda of: of.provenance(EVALUATION).get("split")})
    if first.data(EVALUATION) != run.data(EVALUATION):
        if any(MAPS not in of.results or of.data(MAPS) != of.data(EVALUATION) for of in (first, run)):
            _check_alike(first, run, {"sha256 of annotations and images": lambda of: of.data(EVALUATION)})
        _check_data(first, run)  # the same images in another order have other hashes
    frames = {of.label: of.frame(IOUS).sort_values(["image_id", "box_row"]) for of in (first, run)}
    boxes = {label: list(zip(frame["image_id"], frame["label"], strict=True)) for label, frame in frames.items()}
    _check_alike(first, run, {"boxes": lambda of: Counter(boxes[of.label])})
    _check_alike(first, run, {"order of an image's boxes": lambda of: boxes[of.label]})
    in_both = first.methods.keys() & run.methods.keys()
    methods = [name for name in METHOD_NAMES if name in in_both and name not in SAME_IN_ALL]
    ious = [frames[of.label][methods] for of in (run, first)]
    ids, seed = frames[first.label]["image_id"], first.provenance(EVALUATION).get("seed", 0)
    rows: dict[str, dict] = {METHOD_NAMES[name]: {} for name in methods}
    for row in plain(localization_difference(*ious, ids, seed=seed)):
        rows[METHOD_NAMES[row["method"]]][row["figure"]] = row
    caption = f"IoU of the same {len(ious[0]):,} ground truth boxes, their class given"
    return [_table(caption, "method", SHOWN_FIGURES, {"": rows})]


def _check_data(first: Run, run: Run) -> None:
    """`NotPaired` unless both runs evaluated the same classes on the same boxes of the same images."""
    _check_alike(first, run, {
        "classes": lambda of: Counter((name,) for name in of.provenance(MAPS).get("classes") or []),
        "images": lambda of: Counter(of.frame(IMAGES).itertuples(index=False, name=None)),
        "ground truth boxes": lambda of: Counter(of.frame(TRUTH).itertuples(index=False, name=None)),
    })  # fmt: skip
    if list(first.frame(IMAGES)["image_id"]) == list(run.frame(IMAGES)["image_id"]):  # they are hashed in this order
        _check_alike(first, run, {"sha256 of the image files": lambda of: of.data(MAPS)[1]})


def _check_alike(first: Run, run: Run, alike: Mapping[str, Callable[[Run], Any]]) -> None:
    """`NotPaired` with both values unless two runs have something in common; of counters, with an item that differs."""
    different = []
    for what, of in alike.items():
        texts = []
        for mine, other in ((first, run), (run, first)):
            own, others = of(mine), of(other)
            only = own - others if isinstance(own, Counter) else {}
            item = ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in next(iter(only), ()))
            more = f" ({only.total():,} only there, such as {item})" if only else ""
            texts.append(f"{own.total() if isinstance(own, Counter) else shown_value(own)} in {mine.label}{more}")
        if own != others:
            different.append(f"{what}: {', '.join(texts)}")
    if different:
        raise NotPaired(f"Not paired: {'; '.join(different)}.")
