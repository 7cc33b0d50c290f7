"""The first page of a run's folder: what was asked of which model and data, what came out, and where it lies."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..study.summary import INTERVAL_NOTE, average_precision_text
from .page import content_security_policy, figure_cell, held_together, image_size, page_environment, read_json

MAX_KEY_FIGURES = 14
_GIVEN = {"present": "Classes of the image given", "all": "Neither given"}
_RESULTS = ("map_results.json", "evaluation_results.json", "per_class_results.json")
_SWEEP = "multi_iou_results.json"


def index_html(run_dir: Path) -> str:
    """The first page of a run's folder, from its `run.json` and from what the notebooks left there."""
    run = read_json(run_dir / "run.json")
    # only what this run's notebooks vouch for: a failed notebook leaves an earlier run's files in the folder
    valid = [entry for entry in run.get("notebooks", []) if entry["status"] in ("ok", "outdated")]
    owners = {name: entry for entry in valid for name in entry["files"]}
    results, evaluation, per_class, sweep, adapter = (
        read_json(run_dir / name) if name in owners else {} for name in (*_RESULTS, _SWEEP, "adapter_results.json")
    )
    html = page_environment().get_template("run_index.html.j2")
    return html.render(
        run=run,
        notebooks=run.get("notebooks", []),
        results=results,
        provenance=results.get("provenance", {}),
        tables=_map_tables(results),
        evaluation=evaluation,
        per_class=per_class,
        headline=_headline(results, evaluation, sweep, adapter),
        adapter=adapter,
        recommendation=_recommendation(sweep, owners),
        outdated=[entry["name"] for entry in valid if entry["status"] == "outdated"],
        figures=_key_figures(run_dir, sorted(owners)),
        files=_file_groups(run_dir, run),
        interval_note=INTERVAL_NOTE,
        average_precision=average_precision_text(results["interpolation"]) if results.get("interpolation") else "",
        csp=content_security_policy(),
    )


def _headline(
    results: Mapping[str, Any], evaluation: Mapping[str, Any], sweep: Mapping[str, Any], adapter: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The run in a few rows: finding, naming, detection, before and after training; unmeasured things have no row."""
    rows = []

    def add(text: str, entry: Mapping[str, Any] | None, notebook: str, field: str = "value") -> None:
        if entry and entry.get(field) is not None:
            rows.append({"text": text, "notebook": notebook, **figure_cell(entry, field)})

    found_at, by_notebook = "share>0.50", "04_gt_class_evaluation"
    methods = evaluation.get("methods") or {}
    for method, text in (
        ("oracle", "Class given: boxes that some cell of the head meets with IoU > 0.5 (oracle)"),
        ("cam_peak", "Class given: boxes met so in the cell of the CAM's peak"),
    ):
        add(text, (methods.get(method) or {}).get(found_at), by_notebook)
    guesses = {name: methods[name][found_at] for name in ("whole_image", "centre_box", "class_mean") if name in methods}
    if known := {name: entry for name, entry in guesses.items() if entry["value"] is not None}:
        best = max(known, key=lambda name: known[name]["value"])
        add(f"Class given: boxes met so by the best guess ({best.replace('_', ' ')})", known[best], by_notebook)
    kind = evaluation.get("kind")
    accuracy = ((evaluation.get("classification") or {}).get(kind) or {}).get("accuracy") or {}
    n_classes = len((evaluation.get("provenance") or {}).get("classes") or [])
    text = f"Box given: boxes whose class comes first of {n_classes} ({kind} maps)"
    add(text, accuracy.get("top1"), by_notebook)
    for protocol, by_kind in (results.get("protocols") or {}).items():
        for name in dict.fromkeys(("standard", results.get("kind"))):
            if by_kind.get(name):
                entry = by_kind[name][0]
                text = f"{_GIVEN[protocol]}: mAP@{entry['iou_threshold']:.2f} of {name}, protocol “{protocol}”"
                add(text, entry, "01_heatmap_generation", "map")
    recommended = ((sweep.get("report") or {}).get("recommended") or {}).get("protocols") or {}
    for protocol, entries in recommended.items():
        text = f"{_GIVEN[protocol]}: mean mAP of the recommended setting, protocol “{protocol}”"
        add(text, entries[-1], "02_threshold_sweep", "map")
    kind, groups = adapter.get("kind"), adapter.get("groups") or {}

    def trained(group: str, state: str) -> Mapping[str, Any]:
        return ((groups[group].get("kinds") or {}).get(kind) or {}).get(state) or {}

    states = {"before": "before training", "after": "after", "after - before": "difference, paired"}
    for group in [group for group in groups if group != "all classes"] or groups:
        name = f"Heatmap adapter, {group} ({len(groups[group].get('classes') or [])})"
        for state, words in states.items():
            for entry in ((trained(group, state).get("protocols") or {}).get("all") or [])[:1]:
                text = f"{name}: mAP@{entry['iou_threshold']:.2f} of {kind}, {words}"
                add(text, entry, "03_training", "difference" if "-" in state else "map")
    for state in ("before", "after") if "all classes" in groups else ():
        figure = (trained("all classes", state).get("figures") or {}).get("false_box_rate")
        add(f"Heatmap adapter: classes not in an image that get a box there, {states[state]}", figure, "03_training")
    return rows


def _map_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`map_results.json` as tables to print: one a protocol, a row a kind, a column an IoU threshold."""
    n_classes = len((results.get("provenance") or {}).get("classes") or []) or ""
    captions = {
        "present": "Asked only for the classes annotated in each image (protocol “present”)",
        "all": f"Asked for all {n_classes} classes on every image (protocol “all”)",
    }
    if interpolation := results.get("interpolation"):
        captions = {name: f"{text}; AP: {average_precision_text(interpolation)}" for name, text in captions.items()}
    paired = results.get("paired_difference") or {}
    tables = []
    for protocol, by_kind in (results.get("protocols") or {}).items():
        thresholds = results.get("iou_thresholds") or []
        rows = [_figure_row(kind, by_kind.get(kind, []), "map", thresholds) for kind in results.get("kinds") or by_kind]
        for column, threshold in enumerate(thresholds):
            cells = [(kind, entry) for kind in by_kind for entry in by_kind[kind]]
            values = {kind: entry["map"] or 0 for kind, entry in cells if entry["iou_threshold"] == threshold}
            for row in rows:
                row["cells"][column]["strong"] = values.get(row["name"], 0) == max(values.values(), default=0) > 0
        if differences := (paired.get("protocols") or {}).get(protocol):
            rows.append(_figure_row(f"{paired['a']} − {paired['b']}", differences, "difference", thresholds))
        tables.append({"caption": captions.get(protocol, protocol), "thresholds": thresholds, "rows": rows})
    return tables


def _recommendation(found: Mapping[str, Any], owners: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The setting that the sweep chose beside the default, on the split of the report; empty without a sweep."""
    report = found.get("report") or {}
    if not report:
        return {}
    columns = [*(report.get("iou_thresholds") or []), None]
    same = (found.get("choice") or {}).get("default_stays")
    interpolation = ((found.get("provenance") or {}).get("parameters") or {}).get("interpolation")
    definition = f"; AP: {average_precision_text(interpolation)}" if interpolation else ""
    tables = []
    for protocol in report["recommended"]["protocols"]:
        rows = {"default": (report["default"]["protocols"][protocol], "map")}
        if not same:
            rows["recommended"] = (report["recommended"]["protocols"][protocol], "map")
            rows["recommended − default"] = (report["difference"][protocol], "difference")
        tables.append({
            "corner": "setting",
            "caption": f"On {report.get('split')} (protocol “{protocol}”){definition}",
            "thresholds": columns,
            "rows": [_figure_row(row, *of_row, columns) for row, of_row in rows.items()],
        })  # fmt: skip
    return {
        "finding": found.get("finding"),
        "warnings": found.get("warnings") or [],
        "tables": tables,
        "outdated": owners[_SWEEP]["status"] == "outdated",
        "file": "recommended.yaml" if "recommended.yaml" in owners else None,
    }


def _figure_row(name: str, entries: Iterable[Mapping[str, Any]], field: str, columns: Iterable[float | None]) -> dict:
    """A row of a table with a column an IoU threshold, None for their mean."""
    by_threshold = {entry["iou_threshold"]: entry for entry in entries}
    cells = [figure_cell(by_threshold.get(column), field) for column in columns]
    return {"name": name, "difference": field == "difference", "cells": cells}


def _key_figures(run_dir: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The first pictures of `figures/summary`, embedded; their text is the PNG's own description."""
    summary = [name for name in names if re.fullmatch(r"figures/summary/[^/]+\.png", name)]
    figures = []
    for path in [run_dir / name for name in summary if (run_dir / name).exists()][:MAX_KEY_FIGURES]:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            title, caption = (image.info.get(name) or "" for name in ("Title", "Description"))
        caption = held_together(caption or re.sub(r"[_-]+", " ", path.stem))
        alt = f"{title}. {caption}" if title else caption  # who sees the picture sees its title
        src = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        figures.append({"alt": alt, "caption": caption, "src": src, "size": image_size(data)})
    return figures


def _file_groups(run_dir: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that notebooks left: those at the top one by one, the others by folder."""
    names = sorted({name for entry in run.get("notebooks", []) for name in entry["files"] if (run_dir / name).exists()})
    top = [{"name": name, "href": name, "note": _readable_size(run_dir / name)} for name in names if "/" not in name]
    folders = Counter(name.rpartition("/")[0] + "/" for name in names if "/" in name)
    return top + [
        {"name": folder, "href": folder, "note": f"{count} file{'s' if count > 1 else ''}"}
        for folder, count in folders.items()
    ]


def _readable_size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
