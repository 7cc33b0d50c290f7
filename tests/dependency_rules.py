"""What pyproject.toml and constraints.txt promise of a project's dependencies, held against its files and against
what is installed. Each function returns what is wrong, a line each; nothing wrong is an empty list."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RUNTIME_FOLDERS = ("surgerylib", "notebooks")
DEV_FOLDERS = ("tests", "benchmarks", "docs")
# distribution -> the name it is imported by, where that is another
IMPORT_NAMES = {
    "axe-playwright-python": "axe_playwright_python", "beautifulsoup4": "bs4", "ipython": "IPython",
    "open-clip-torch": "open_clip", "opencv-python-headless": "cv2", "pillow": "PIL", "pytest-xdist": "xdist",
    "pyzmq": "zmq", "pyyaml": "yaml", "adjusttext": "adjustText",
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
    groups = {"runtime": project.get("dependencies", []), **project.get("optional-dependencies", {})}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


def imports(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Top-level names that are imported, of other projects -> one file that does it."""
    files = [path for name in folders for path in sorted((root / name).rglob("*")) if path.suffix in (".py", ".ipynb")]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    own = {path.stem for path in files if path.suffix == ".py"} | {path.parent.name for path in files} | set(folders)
    found: dict[str, str] = {}
    for path in files:
        for name in _imported(path) - own - {"surgerylib"} - sys.stdlib_module_names:
            found.setdefault(name, str(path.relative_to(root)))
    return found


def _imported(path: Path) -> set[str]:
    if path.suffix == ".py":
        sources = [path.read_text(encoding="utf-8")]
    else:
        cells = nbformat.read(path, as_version=4).cells
        sources = [re.sub(r"(?m)^\s*[%!].*$", "", cell.source) for cell in cells if cell.cell_type == "code"]
    names = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def import_name(requirement: Requirement) -> str:
    """The name that a distribution is imported by."""
    name = canonicalize_name(requirement.name)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def unused(root: Path) -> list[str]:
    """Declared requirements that nothing imports and that no reason is given for."""
    wrong, names = [], set()
    for group, requirements in declared(root).items():
        folders = RUNTIME_FOLDERS if group == "runtime" else DEV_FOLDERS
        seen = imports(root, folders)
        for requirement in requirements:
            names.add(name := canonicalize_name(requirement.name))
            if import_name(requirement) not in seen and name not in NEEDED_BY_NAME:
                wrong.append(f"{requirement.name} ({group}) is imported nowhere in {', '.join(folders)}")
    return wrong + [f"{name} is given a reason but not declared" for name in sorted(set(NEEDED_BY_NAME) - names)]


def undeclared(root: Path) -> list[str]:
    """Imports of other projects that the requirements do not name."""
    names = {group: {import_name(one) for one in requirements} for group, requirements in declared(root).items()}
    return [
        f"{file} imports {name}, which is not declared"
        for folders, known in ((RUNTIME_FOLDERS, names["runtime"]), (DEV_FOLDERS, set().union(*names.values())))
        for name, file in sorted(imports(root, folders).items())
        if name not in known
    ]


def constraints(root: Path) -> dict[str, Requirement]:
    """The lines of constraints.txt by canonical name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def is_exact(requirement: Requirement) -> bool:
    return bool(re.fullmatch(r"==[0-9][^*,]*", str(requirement.specifier)))


def inexact(root: Path) -> list[str]:
    """Constraints that leave more than one version."""
    return [
        f"{one} is not of the form name==version"
        for one in constraints(root).values()
        if not is_exact(one) or one.marker or one.extras
    ]


class Installed:
    """The requirements and versions of the distributions of this environment."""

    def version(self, name: str) -> str | None:
        """None when it is not installed."""
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def requires(self, name: str, extras: Iterable[str], *, every_platform: bool = False) -> list[Requirement]:
        """What a distribution requires with these extras, here or anywhere; nothing when it is not installed."""
        texts = (metadata.requires(name) or []) if self.version(name) else []
        return [found for found in map(Requirement, texts) if _applies(found, extras, every_platform)]


def _applies(requirement: Requirement, extras: Iterable[str], every_platform: bool) -> bool:
    if requirement.marker is None:
        return True
    if every_platform:
        of_an_extra = re.findall(r"extra == \"([^\"]+)\"", str(requirement.marker))
        return not of_an_extra or bool(set(of_an_extra) & set(extras))
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def needed(
    roots: Iterable[Requirement], installed: Installed, *, every_platform: bool = False
) -> dict[str, list[Requirement]]:
    """Everything that some requirements bring with them: canonical name -> the requirements that ask for it."""
    asked: dict[str, list[Requirement]] = {}
    queue, done = [root for root in roots if every_platform or _applies(root, (), False)], set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        asked.setdefault(name, []).append(requirement)
        wanted = (name, frozenset(requirement.extras))
        if wanted not in done:
            done.add(wanted)
            queue += installed.requires(name, requirement.extras, every_platform=every_platform)
    return asked


def unpinned(root: Path, installed: Installed) -> list[str]:
    """Packages that are needed here but not at the version that constraints.txt says.

    What a pinned package itself requires at one version needs no line: CUDA builds of torch name their libraries so.
    """
    pinned, own, wrong = constraints(root), declared(root), []
    for name, requirements in sorted(needed([*own["runtime"], *own["dev"]], installed).items()):
        version = installed.version(name)
        if name not in pinned and not any(map(is_exact, requirements)):
            wrong.append(f"{name} is needed but has no line in constraints.txt")
        elif version is None:
            wrong.append(f"{name} is needed but not installed")
        elif name in pinned and not pinned[name].specifier.contains(version, prereleases=True):
            wrong.append(f"{name} {version} is installed, constraints.txt says {pinned[name]}")
    return wrong


def stale(root: Path, installed: Installed) -> list[str]:
    """Constraints of packages that nothing needs, on any platform."""
    roots = [requirement for group in declared(root).values() for requirement in group]
    asked = needed(roots, installed, every_platform=True)
    return [
        f"{requirement} is needed by nothing" for name, requirement in constraints(root).items() if name not in asked
    ]
