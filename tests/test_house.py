"""The house keeps its plan: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import surgerylib

PACKAGE = Path(surgerylib.__file__).parent
CORE, BELOW = "", {"", "datasets", "embedded", "engine", "study", "figures"}
MAY_IMPORT = {
    CORE: set(),
    "datasets": {CORE},
    "embedded": {CORE, "datasets"},
    "engine": {CORE, "datasets"},
    "study": {CORE, "datasets", "engine"},
    "figures": {CORE},
    "explorer": BELOW,
    "workbook": BELOW,
}


def imported(path: Path) -> list[tuple[str, ...]]:
    """Modules of the package that a module names in imports, those for types too: their parts below the package."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = (*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else ()))
            found += [(*parts, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if name.split(".")[0] == "surgerylib"], f"{path}: import relatively"
    return found


def room(parts: tuple[str, ...]) -> str:
    return parts[0] if parts[0] in MAY_IMPORT else CORE


def test_a_room_imports_what_the_table_allows():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts
        if own in (("__init__.py",), ("__main__.py",)):  # the doors: they name what is inside
            continue
        wrong += [
            f"{'/'.join(own)} imports {'.'.join(parts)}"
            for parts in imported(path)
            if room(parts) not in MAY_IMPORT[room(own)] | {room(own)}
        ]
    assert wrong == []
