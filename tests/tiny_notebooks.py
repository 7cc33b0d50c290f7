"""Notebooks of a few cells, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def write_notebook(
    path: Path, *sources: str, parameters: str = "", title: str = "What is seen?", reads: Sequence[str] = ()
) -> Path:
    """A question, a cell of parameters, and one for each source; what it `reads` of others stands in its metadata."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# {title}"), tagged, *map(new_code_cell, sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"reads": list(reads)}), path)
    return path
