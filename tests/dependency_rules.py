"""What pyproject.toml and constraints.txt promise of a project's dependencies, held against its files and against
what is installed. Each rule returns what is wrong, a line each; nothing wrong is an empty list."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Installed = Mapping[str, Distribution]  # by canonical name
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


def installed_in(*folders: Path) -> Installed:
    """What is installed in these folders, by default in this environment."""
    found = distributions(path=[str(folder) for folder in folders]) if folders else distributions()
    return {canonicalize_name(one.name): one for one in reversed([*found])}  # of two the first is imported


def imports(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Top-level names that are imported, of other projects -> one file that does it."""
    files = [path for name in folders for path in sorted((root / name).rglob("*")) if path.suffix in (".py", ".ipynb")]
    files = [path for path in files if ".ipynb_checkpoints" not in path.parts]
    own = {path.stem for path in files} | {path.parent.name for path in files} | {"surgerylib"}
    found: dict[str, str] = {}
    for path in files:
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell["source"] for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
            source = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "", "".join(cell)) for cell in cells)
        names = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
        found |= dict.fromkeys(names - own - sys.stdlib_module_names - set(found), str(path.relative_to(root)))
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


def needed(
    roots: Iterable[Requirement], installed: Installed, *, every_platform: bool = False
) -> dict[str, list[Requirement]]:
    """All that some requirements bring with them, here or anywhere: canonical name -> who asks for it, and how."""

    def applies(requirement: Requirement, extras: set[str]) -> bool:
        if requirement.marker is None:
            return True
        if every_platform:
            of_an_extra = set(re.findall(r'extra == "([^"]+)"', str(requirement.marker)))
            return not of_an_extra or bool(of_an_extra & extras)
        return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))

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


def unpinned(root: Path, installed: Installed) -> list[str]:
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


def stale(root: Path, installed: Installed) -> list[str]:
    """Constraints of packages that nothing needs, on any platform."""
    asked = needed([one for group in declared(root).values() for one in group], installed, every_platform=True)
    return [f"{one} is needed by nothing" for name, one in constraints(root).items() if name not in asked]
