"""The first page of a run's folder: what was asked of which model and data, what came out, and where it lies."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from PIL import Image

from .report import TEMPLATES, content_security_policy, read_json, readable_date, readable_seconds
from .summary import INTERVAL_NOTE

MAX_KEY_FIGURES = 8


def index_html(run_dir: Path) -> str:
    """The first page of a run's folder, from its `run.json` and from what the notebooks left there."""
    run = read_json(run_dir / "run.json")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, TEMPLATES / "report"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # what a notebook did not leave is left out
    )
    environment.filters.update(url=quote, duration=readable_seconds, date=readable_date)
    # only what this run's notebooks vouch for: a failed notebook leaves an earlier run's files in the folder
    valid = [entry for entry in run.get("notebooks", []) if entry["status"] in ("ok", "outdated")]
    owners = {name: entry for entry in valid for name in entry["files"]}
    results = read_json(run_dir / "map_results.json") if "map_results.json" in owners else {}
    return environment.get_template("run_index.html.j2").render(
        run=run,
        notebooks=run.get("notebooks", []),
        results=results,
        provenance=results.get("provenance", {}),
        tables=_map_tables(results),
        recommendation=_recommendation(run_dir, owners),
        outdated=results and owners["map_results.json"]["status"] == "outdated",
        figures=_key_figures(run_dir, sorted(owners)),
        files=_file_groups(run_dir, run),
        interval_note=INTERVAL_NOTE,
        csp=content_security_policy(),
    )


def _map_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`map_results.json` as tables to print: one a protocol, a row a kind, a column an IoU threshold."""
    n_classes = len((results.get("provenance") or {}).get("classes") or []) or ""
    captions = {
        "present": "Asked only for the classes annotated in each image (protocol “present”)",
        "all": f"Asked for all {n_classes} classes on every image (protocol “all”)",
    }
    paired = results.get("paired_difference") or {}
    tables = []
    for protocol, by_kind in (results.get("protocols") or {}).items():
        thresholds = results.get("iou_thresholds") or []
        values = {
            kind: {entry["iou_threshold"]: entry for entry in by_kind.get(kind, [])}
            for kind in results.get("kinds") or by_kind
        }
        best = {
            threshold: max((row[threshold]["map"] or 0 for row in values.values() if threshold in row), default=None)
            for threshold in thresholds
        }
        rows = [
            {
                "name": kind,
                "difference": False,
                "cells": [
                    _cell(row.get(t), "map") | {"strong": t in row and (row[t]["map"] or 0) == best[t] > 0}
                    for t in thresholds
                ],
            }
            for kind, row in values.items()
        ]
        differences = {e["iou_threshold"]: e for e in (paired.get("protocols") or {}).get(protocol, [])}
        if differences:
            cells = []
            for threshold in thresholds:
                entry = differences.get(threshold)
                known = entry is not None and entry.get("low") is not None and entry.get("high") is not None
                sure = known and (entry["low"] > 0 or entry["high"] < 0)
                cells.append(_cell(entry, "difference", sign=True) | {"strong": sure})
            rows.append({"name": f"{paired['a']} − {paired['b']}", "cells": cells, "difference": True})
        tables.append({"caption": captions.get(protocol, protocol), "thresholds": thresholds, "rows": rows})
    return tables


def _recommendation(run_dir: Path, owners: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The setting that the sweep chose beside the default, on the split of the report; empty without a sweep."""
    name = "multi_iou_results.json"
    found = read_json(run_dir / name) if name in owners else {}
    report = found.get("report") or {}
    if not report:
        return {}
    thresholds = report.get("iou_thresholds") or []
    same = (found.get("choice") or {}).get("default_stays")
    tables = []
    for protocol in report["recommended"]["protocols"]:
        rows = {"default": (report["default"]["protocols"][protocol], "map")}
        if not same:
            rows["recommended"] = (report["recommended"]["protocols"][protocol], "map")
            rows["recommended − default"] = (report["difference"][protocol], "difference")
        tables.append({
            "corner": "setting",
            "caption": f"On {report.get('split')} (protocol “{protocol}”)",
            "thresholds": [*thresholds, None],
            "rows": [_recommendation_row(row, *of_row, [*thresholds, None]) for row, of_row in rows.items()],
        })  # fmt: skip
    return {
        "finding": found.get("finding"),
        "warnings": found.get("warnings") or [],
        "tables": tables,
        "outdated": owners[name]["status"] == "outdated",
        "file": "recommended.yaml" if "recommended.yaml" in owners else None,
    }


def _recommendation_row(
    name: str, entries: Iterable[Mapping[str, Any]], field: str, thresholds: Iterable[float | None]
) -> dict[str, Any]:
    by_threshold = {entry["iou_threshold"]: entry for entry in entries}
    difference = field == "difference"
    cells = []
    for threshold in thresholds:
        entry = by_threshold.get(threshold) or {}
        known = entry.get("low") is not None and entry.get("high") is not None
        sure = difference and known and (entry["low"] > 0 or entry["high"] < 0)
        cells.append(_cell(entry, field, sign=difference) | {"strong": sure})
    return {"name": name, "difference": difference, "cells": cells}


def _cell(entry: Mapping[str, Any] | None, field: str, *, sign: bool = False) -> dict[str, Any]:
    """A number and its interval as text; a dash where there is none."""
    number = "{:+.3f}" if sign else "{:.3f}"
    if entry is None or entry.get(field) is None:
        return {"value": "–", "interval": ""}
    low, high = entry.get("low"), entry.get("high")
    interval = "" if low is None or high is None else f"{number.format(low)} to {number.format(high)}"
    return {"value": number.format(entry[field]).replace("-", "−"), "interval": interval.replace("-", "−")}


def _key_figures(run_dir: Path, names: Iterable[str]) -> list[dict[str, str]]:
    """The first pictures of `figures/summary`, embedded; their text is the PNG's own description."""
    summary = [name for name in names if re.fullmatch(r"figures/summary/[^/]+\.png", name)]
    figures = []
    for path in [run_dir / name for name in summary if (run_dir / name).exists()][:MAX_KEY_FIGURES]:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            text = image.info.get("Description") or image.info.get("Title")
        alt = text or re.sub(r"[_-]+", " ", path.stem)
        figures.append({"alt": alt, "src": f"data:image/png;base64,{base64.b64encode(data).decode()}"})
    return figures


def _file_groups(run_dir: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that notebooks left: those at the top one by one, the others by folder."""
    names = sorted({name for entry in run.get("notebooks", []) for name in entry["files"] if (run_dir / name).exists()})
    groups = [{"name": n, "href": n, "note": _readable_size(run_dir / n)} for n in names if "/" not in n]
    folders: dict[str, int] = {}
    for name in names:
        if "/" in name:
            folder = name.rsplit("/", 1)[0] + "/"
            folders[folder] = folders.get(folder, 0) + 1
    return groups + [
        {"name": folder, "href": folder, "note": f"{count} file{'s' if count > 1 else ''}"}
        for folder, count in folders.items()
    ]


def _readable_size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
