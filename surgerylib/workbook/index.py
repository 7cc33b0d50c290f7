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

from ..engine import BASELINES
from ..study import average_precision_text
from . import page
from .run_files import valid_files

MAX_KEY_FIGURES = 14
_RESULTS = {
    "results": "map_results.json",
    "evaluation": "evaluation_results.json",
    "per_class": "per_class_results.json",
    "sweep": "multi_iou_results.json",
    "adapter": "adapter_results.json",
}


def index_html(run_dir: Path) -> str:
    """The first page of a run's folder, from its `run.json` and from what the notebooks left there."""
    run = page.read_json(run_dir / "run.json")
    owners = valid_files(run.get("notebooks", []))
    contents = {what: page.read_json(run_dir / name) if name in owners else {} for what, name in _RESULTS.items()}
    methods = contents["evaluation"].get("methods") or {}
    guesses = {name: methods.get(name, {}).get("share>0.50", {}).get("value") for name in BASELINES}
    return page.rendered(
        "run_index.html.j2",
        run=run,
        **contents,
        owners=owners,
        best_guess=max((name for name in guesses if guesses[name] is not None), key=guesses.get, default=""),
        tables=_map_tables(contents["results"]),
        recommendation=_recommendation(contents["sweep"]),
        figures=_key_figures(run_dir, sorted(owners)),
        files=_file_groups(run_dir, run),
    )


def _map_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`map_results.json` as tables: one a protocol, a row a kind, a column an IoU threshold."""
    n_classes = len((results.get("provenance") or {}).get("classes") or []) or ""
    captions = {
        "present": "Asked only for the classes annotated in each image (protocol “present”)",
        "all": f"Asked for all {n_classes} classes on every image (protocol “all”)",
    }
    thresholds, paired = results.get("iou_thresholds") or [], results.get("paired_difference") or {}
    tables = []
    for protocol, by_kind in (results.get("protocols") or {}).items():
        rows = {kind: page.by_threshold(by_kind.get(kind, [])) for kind in results.get("kinds") or by_kind}
        best = {at: max((row[at]["map"] or 0 for row in rows.values() if at in row), default=0) for at in thresholds}
        if differences := (paired.get("protocols") or {}).get(protocol):
            rows[f"{paired['a']} − {paired['b']}"] = page.by_threshold(differences)
        caption = captions.get(protocol, protocol) + _definition(results.get("interpolation"))
        tables.append(_table(caption, "kind", thresholds, rows) | {"best": best})
    return tables


def _recommendation(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of the setting that the sweep chose beside the default, on the split of the report."""
    report = found.get("report") or {}
    interpolation = ((found.get("provenance") or {}).get("parameters") or {}).get("interpolation")
    tables = []
    for protocol in report["recommended"]["protocols"] if report else ():
        rows = {"default": report["default"]["protocols"][protocol]}
        if not (found.get("choice") or {}).get("default_stays"):
            rows["recommended"] = report["recommended"]["protocols"][protocol]
            rows["recommended − default"] = report["difference"][protocol]
        rows = {name: page.by_threshold(entries) for name, entries in rows.items()}
        caption = f"On {report.get('split')} (protocol “{protocol}”){_definition(interpolation)}"
        tables.append(_table(caption, "setting", [*(report.get("iou_thresholds") or []), None], rows))
    return tables


def _table(caption: str, corner: str, thresholds: Iterable[float | None], rows: Mapping) -> dict[str, Any]:
    """For the macro `numbers`."""
    return {"caption": caption, "corner": corner, "columns": page.iou_columns(thresholds), "groups": {"": rows}}


def _definition(interpolation: str | None) -> str:
    return f"; AP: {average_precision_text(interpolation)}" if interpolation else ""


def _key_figures(run_dir: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The first pictures of `figures/summary`, embedded; their text is the PNG's own description."""
    summary = [name for name in names if re.fullmatch(r"figures/summary/[^/]+\.png", name)]
    figures = []
    for path in [run_dir / name for name in summary if (run_dir / name).exists()][:MAX_KEY_FIGURES]:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            title, caption = (image.info.get(name) or "" for name in ("Title", "Description"))
        caption = page.held_together(caption or re.sub(r"[_-]+", " ", path.stem))
        alt = f"{title}. {caption}" if title else caption  # who sees the picture sees its title
        src = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        figures.append({"alt": alt, "caption": caption, "src": src, "size": page.image_size(data)})
    return figures


def _file_groups(run_dir: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that notebooks left: those at the top one by one, the others by folder."""
    names = sorted({name for entry in run.get("notebooks", []) for name in entry["files"] if (run_dir / name).exists()})
    top = [{"name": name, "note": _readable_size(run_dir / name)} for name in names if "/" not in name]
    folders = Counter(name.rpartition("/")[0] + "/" for name in names if "/" in name)
    return top + [{"name": name, "note": f"{n} file{'s' if n > 1 else ''}"} for name, n in folders.items()]


def _readable_size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
