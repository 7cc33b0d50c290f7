"""The supply chain: every dependency declared, used, pinned exactly and installed so.

Each rule returns what is wrong with the project in a folder, a line each; nothing wrong is an empty list.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from surgerylib.files import PROJECT_ROOT

# by canonical name; of two the first is imported
INSTALLED = {canonicalize_name(one.name): one for one in reversed([*distributions()])}
RUNTIME_FOLDERS = ("surgerylib", "notebooks")
DEV_FOLDERS = ("tests", "benchmarks", "docs")
# distribution -> the name it is imported by, where that is another
IMPORT_NAMES = {
    "beautifulsoup4": "bs4", "ipython": "IPython", "opencv-python-headless": "cv2", "open-clip-torch": "open_clip",
    "pillow": "PIL", "pytest-xdist": "xdist", "pyzmq": "zmq", "pyyaml": "yaml", "adjusttext": "adjustText",
}  # fmt: skip
# distribution -> why it is needed although nothing imports it
NEEDED_BY_NAME = {
    "jupyterlab": "make lab starts it, and the explorer's widgets live in it",
    "pyarrow": "pandas reads and writes the tables of a run (parquet) with it",
    "nbstripout": "make lint",
    "coverage": "make coverage",
    "ruff": "make lint",
    "voila": "the explorer as a page; its test starts it",
}


def declared(root: Path) -> dict[str, list[Requirement]]:
    """The project's requirements: `runtime`, and each extra by its name."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"runtime": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


def constraints(root: Path) -> dict[str, Requirement]:
    """The lines of constraints.txt by canonical name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


@functools.cache
def imported(path: Path) -> set[str]:
    """Top-level names that a module or a notebook imports."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        source = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "", "".join(cell)) for cell in cells)
    nodes = [*ast.walk(ast.parse(source))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


def imports(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Top-level names that are imported, of other projects -> one file that does it."""
    files = [path for name in folders for path in sorted((root / name).rglob("*")) if path.suffix in (".py", ".ipynb")]
    files = [path for path in files if ".ipynb_checkpoints" not in path.parts]
    own = {path.stem for path in files} | {path.parent.name for path in files} | {"surgerylib"}
    found: dict[str, str] = {}
    for path in files:
        names = imported(path.resolve()) - own - sys.stdlib_module_names - set(found)
        found |= dict.fromkeys(names, str(path.relative_to(root)))
    return found


def import_name(requirement: Requirement) -> str:
    """The name that a distribution is imported by."""
    name = canonicalize_name(requirement.name)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def unused(root: Path) -> list[str]:
    """Declared requirements that nothing imports and that no reason is given for."""
    wrong, reasons = [], set(NEEDED_BY_NAME)
    for group, requirements in declared(root).items():
        folders = RUNTIME_FOLDERS if group == "runtime" else DEV_FOLDERS
        seen = imports(root, folders)
        for one in requirements:
            if import_name(one) not in seen and one.name not in NEEDED_BY_NAME:
                wrong.append(f"{one.name} ({group}) is imported nowhere in {', '.join(folders)}")
            reasons.discard(one.name)
    return wrong + [f"{name} is given a reason but not declared" for name in sorted(reasons)]


def undeclared(root: Path) -> list[str]:
    """Imports of other projects that the requirements do not name."""
    names = {group: {import_name(one) for one in requirements} for group, requirements in declared(root).items()}
    return [
        f"{file} imports {name}, which is not declared"
        for folders, known in ((RUNTIME_FOLDERS, names["runtime"]), (DEV_FOLDERS, set().union(*names.values())))
        for name, file in sorted(imports(root, folders).items())
        if name not in known
    ]


def is_exact(requirement: Requirement) -> bool:
    return bool(re.fullmatch(r"==[0-9][^*,]*", str(requirement.specifier)))


def inexact(root: Path) -> list[str]:
    """Constraints that leave more than one version."""
    return [
        f"{one} is not of the form name==version"
        for one in constraints(root).values()
        if not is_exact(one) or one.marker or one.extras
    ]


def needed(roots: Iterable[Requirement], installed: Mapping[str, Distribution]) -> dict[str, list[Requirement]]:
    """All that some requirements bring with them here: canonical name -> who asks for it, and how."""

    def applies(one: Requirement, extras: set[str]) -> bool:
        return one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))

    asked: dict[str, list[Requirement]] = {}
    queue, done = [root for root in roots if applies(root, set())], set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        asked.setdefault(name, []).append(requirement)
        wanted = (name, frozenset(requirement.extras))
        if wanted not in done and name in installed:
            done.add(wanted)
            texts = map(Requirement, installed[name].requires or [])
            queue += [text for text in texts if applies(text, requirement.extras)]
    return asked


def unpinned(root: Path, installed: Mapping[str, Distribution] = INSTALLED) -> list[str]:
    """Packages that are needed here but not at the version that constraints.txt says.

    What a pinned package itself requires at one version needs no line: CUDA builds of torch name their libraries so.
    """
    pinned, own, wrong = constraints(root), declared(root), []
    for name, requirements in sorted(needed([*own["runtime"], *own["dev"]], installed).items()):
        if name not in pinned and not any(map(is_exact, requirements)):
            wrong.append(f"{name} is needed but has no line in constraints.txt")
        elif name not in installed:
            wrong.append(f"{name} is needed but not installed")
        elif name in pinned and not pinned[name].specifier.contains(installed[name].version, prereleases=True):
            wrong.append(f"{name} {installed[name].version} is installed, constraints.txt says {pinned[name]}")
    return wrong


def test_every_declared_dependency_is_used() -> None:
    assert unused(PROJECT_ROOT) == []


def test_every_import_is_a_declared_dependency() -> None:
    assert undeclared(PROJECT_ROOT) == []
    assert imports(PROJECT_ROOT, ["notebooks"])


def test_constraints_are_exact() -> None:
    assert inexact(PROJECT_ROOT) == []


def test_what_is_installed_is_what_the_constraints_say() -> None:
    """Fails, rather than being skipped, where pip installed without them: those versions are not the tested ones."""
    wrong = unpinned(PROJECT_ROOT)
    assert not wrong, "; ".join(wrong) + "; install with pip install -c constraints.txt -e .[dev]"
    lacking = {name: one for name, one in INSTALLED.items() if name != "tornado"}
    assert unpinned(PROJECT_ROOT, lacking) == ["tornado is needed but not installed"]


@pytest.mark.parametrize("extra", ["fuzz", "bench"])
def test_an_extra_is_pinned_though_not_installed_by_default(extra: str) -> None:
    (only,) = declared(PROJECT_ROOT)[extra]
    assert constraints(PROJECT_ROOT)[only.name].specifier
    assert only.name not in needed(declared(PROJECT_ROOT)["dev"], INSTALLED)


@pytest.mark.parametrize(
    ("rule", "file", "old", "new", "wrong"),
    [
        (undeclared, "pyproject.toml", '"filelock",', "", "surgerylib/files.py imports filelock, which is not"),
        (undeclared, "pyproject.toml", '"hypothesis", ', "", "imports hypothesis, which is not declared"),
        (unused, "pyproject.toml", '"scipy",', '"scipy", "flask",', "flask (runtime) is imported nowhere"),
        (unused, "pyproject.toml", '"ruff", ', "", "ruff is given a reason but not declared"),
        (inexact, "constraints.txt", r"\npluggy==", "\npluggy>=", "is not of the form name==version"),
        (inexact, "constraints.txt", r"\npluggy==.*", "\npluggy==1.*", "pluggy==1.* is not of the form name==version"),
        (unpinned, "constraints.txt", r"\npluggy==.*", "", "pluggy is needed but has no line in constraints.txt"),
        (unpinned, "constraints.txt", r"\npluggy==.*", "\npluggy==0.1", "installed, constraints.txt says pluggy==0.1"),
    ],
)  # fmt: skip
def test_each_rule_can_fail(tmp_path: Path, rule: Callable, file: str, old: str, new: str, wrong: str) -> None:
    for name in ("pyproject.toml", "constraints.txt", *RUNTIME_FOLDERS, *DEV_FOLDERS):
        (tmp_path / name).symlink_to(PROJECT_ROOT / name)
    text, n_changed = re.subn(old, new, (tmp_path / file).read_text())
    assert n_changed == 1
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(text)
    assert wrong in "; ".join(rule(tmp_path))
