"""`make report` on the embedded default, into an empty folder, against starting its kernels and importing.

    python benchmarks/report.py

The reference is a kernel for each numbered notebook that runs the imports of its first cell, and nothing else: started
one after the other, as papermill does. Ours is the whole workbook, from the command to the index page; the scenes are
drawn once before.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import harness
import nbformat
import papermill

from surgerylib.embedded import write_scenes
from surgerylib.files import PROJECT_ROOT

CONFIG = PROJECT_ROOT / "notebooks/configs/embedded.yaml"


def rows() -> Iterator[harness.Row]:
    write_scenes(PROJECT_ROOT / "data/scenes")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report"
        imports = [only_imports(path, Path(folder)) for path in sorted(PROJECT_ROOT.glob("notebooks/0*.ipynb"))]
        starts, ours = harness.timed(partial(start_all, imports)), harness.timed(partial(report, out))
        run = json.loads((out / "run.json").read_text())
        assert run["status"] == "ok", run["status"]
        assert len(run["notebooks"]) == len(imports)
        for notebook in run["notebooks"]:
            print(f"  {notebook['name']}: {notebook['seconds']:.0f} s")
        reference = f"kernels and imports of {len(imports)} notebooks"
        yield harness.row("make report, embedded default", reference, [(ours, starts)], limit=5.0)


def only_imports(path: Path, folder: Path) -> Path:
    """A notebook with the imports of that one, by its name."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.parse(source).body]
    found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(map(ast.unparse, found)))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def start_all(notebooks: list[Path]) -> None:
    for path in notebooks:
        papermill.execute_notebook(path, path.with_suffix(".done.ipynb"), cwd=PROJECT_ROOT, progress_bar=False)


def report(out: Path) -> None:
    command = [sys.executable, "-m", "surgerylib", "run", "--config", str(CONFIG), "--out", str(out)]
    subprocess.run(command, check=True, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    harness.main(rows, __doc__)
