"""`make report` on the embedded default, into an empty folder, against starting its kernels and importing.

    python benchmarks/report.py

The reference is a kernel for each numbered notebook that runs the imports of its first cell, and nothing else: started
one after the other, as papermill does. Ours is the whole workbook, from the command to the index page; the scenes are
drawn once before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import harness
import nbformat

from surgerylib.embedded.scenes import write_scenes
from surgerylib.locations import PROJECT_ROOT
from surgerylib.workbook.execution import execute_notebook
from surgerylib.workbook.parameters import find_notebooks

CONFIG, MOST_SECONDS = PROJECT_ROOT / "notebooks/configs/embedded.yaml", 150


def rows() -> Iterator[harness.Row]:
    write_scenes(PROJECT_ROOT / "data/scenes")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report"
        imports = list(_only_imports(find_notebooks(), Path(folder)))
        start = partial(_start_all, imports)
        starts = harness.timed(start)
        ours = harness.timed(partial(_report, out))
        run = json.loads((out / "run.json").read_text())
        assert run["status"] == "ok", run["status"]
        assert len(run["notebooks"]) == len(imports)
        for notebook in run["notebooks"]:
            print(f"  {notebook['name']}: {notebook['seconds']:.0f} s")
        reference = f"kernels and imports of {len(imports)} notebooks"
        yield harness.row("make report, embedded default", reference, [(ours, starts)], limit=4.0)
        yield harness.row("make report, against the seconds it may take", "a clock", [(ours, MOST_SECONDS)], limit=1.0)


def _only_imports(notebooks: list[Path], folder: Path) -> Iterator[Path]:
    """Notebooks with the imports of each one's first cell of code, by the names of theirs."""
    for path in notebooks:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        source = next(source for source in cells if "from surgerylib" in source)
        imports = source.partition("\n\nsession = ")[0]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(imports)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / path.name)
        yield folder / path.name


def _start_all(notebooks: list[Path]) -> None:
    for path in notebooks:
        execute_notebook(path, path.with_suffix(".done.ipynb"), {}, PROJECT_ROOT, 600)


def _report(out: Path) -> None:
    command = [sys.executable, "-m", "surgerylib", "run", "--config", str(CONFIG), "--out", str(out)]
    subprocess.run(command, check=True, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    harness.main(rows, __doc__)
