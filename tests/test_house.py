"""The house keeps its plan: who may import whom."""

from __future__ import annotations

import ast
import functools
import json
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import surgerylib
from surgerylib.files import PROJECT_ROOT

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


@functools.cache
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


def test_a_room_is_entered_by_what_it_exports():
    """From outside, notebooks included: a name of its `__all__`, or a topic of `study` or `figures` as a whole."""
    asked = [(own, parts) for own in PACKAGE.rglob("*.py") if own.parent != PACKAGE for parts in imported(own)]
    for path in (PROJECT_ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        for node in [node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"])))]:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("surgerylib."):
                asked += [(path, (*node.module.split(".")[1:], alias.name)) for alias in node.names]
    wrong = []
    for path, parts in asked:
        entered = room(parts)
        if entered == CORE or path.is_relative_to(PACKAGE / entered):
            continue
        exported = set(import_module(f"surgerylib.{entered}").__all__)
        if entered in ("study", "figures"):
            exported |= {topic.stem for topic in (PACKAGE / entered).glob("*.py")}
        if len(parts) != 2 or parts[1] not in exported:
            wrong.append(f"{path.name} imports {'.'.join(parts)}")
    assert wrong == []


def test_no_circle_between_modules_not_even_through_types():
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    needs = {
        own: {parts if parts in modules else parts[:-1] for parts in imported(path)} & set(modules) - {own}
        for own, path in modules.items()
    }
    assert set(TopologicalSorter(needs).static_order()) == set(modules)  # a circle is an error, which names it
