"""The supply chain: every dependency declared, used, pinned exactly and installed so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
import pytest
from dependency_rules import (
    Installed,
    constraints,
    declared,
    imports,
    inexact,
    needed,
    stale,
    undeclared,
    unpinned,
    unused,
)
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement

from surgerylib.files import PROJECT_ROOT

HERE = Installed()


def test_every_declared_dependency_is_used() -> None:
    assert unused(PROJECT_ROOT) == []


def test_every_import_is_a_declared_dependency() -> None:
    assert undeclared(PROJECT_ROOT) == []
    assert {"torch", "IPython", "papermill"} <= set(imports(PROJECT_ROOT, ["surgerylib", "notebooks"]))


def test_constraints_are_exact() -> None:
    assert inexact(PROJECT_ROOT) == []


def test_what_is_installed_is_what_the_constraints_say() -> None:
    """Fails, rather than being skipped, where pip installed without them: those versions are not the tested ones."""
    wrong = unpinned(PROJECT_ROOT, HERE)
    assert not wrong, "; ".join(wrong) + "; install with pip install -c constraints.txt -e .[dev]"


def test_no_constraint_is_left_over() -> None:
    assert stale(PROJECT_ROOT, HERE) == []


def test_pip_check() -> None:
    found = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("extra", ["fuzz", "bench"])
def test_an_extra_is_pinned_though_not_installed_by_default(extra: str) -> None:
    (only,) = declared(PROJECT_ROOT)[extra]
    assert constraints(PROJECT_ROOT)[only.name].specifier
    assert only.name not in needed(declared(PROJECT_ROOT)["dev"], HERE)


# the rules must be able to fail: a made-up project that keeps them, and one change at a time

PYPROJECT = """\
[project]
name = "made-up"
dependencies = ["numpy", "Pillow>=10", "jupyterlab", "pyarrow"]
[project.optional-dependencies]
dev = ["pytest", "ruff", "nbstripout", "voila", "coverage"]
"""
PINS = {
    "numpy": "2.0", "pillow": "12.0", "jupyterlab": "4.0", "pyarrow": "20.0", "pytest": "9.0", "ruff": "0.9",
    "nbstripout": "0.9", "coverage": "7.10", "voila": "0.5", "tornado": "6.5", "pluggy": "1.6",
}  # fmt: skip
REQUIRES = {
    "jupyterlab": ["tornado>=6; extra != 'none'", "pytest-jupyter; extra == 'test'", "win; sys_platform == 'win32'"],
    "pytest": ["pluggy"],
    "numpy": ["cuda-lib==12.1"],
}


class MadeUp(Installed):
    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = {**versions, "cuda-lib": "12.1"}

    def version(self, name: str) -> str | None:
        return self.versions.get(name)

    def requires(self, name: str, extras: Iterable[str], *, every_platform: bool = False) -> list[Requirement]:
        found = map(Requirement, REQUIRES.get(name, []))
        return [one for one in found if "win32" not in str(one) and "test" not in str(one.marker)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("surgerylib", "notebooks", "tests", "benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    lines = ["# tested", *(f"{name}=={version}" for name, version in PINS.items())]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    source = "import os\nfrom . import boxes\n\n\ndef f():\n    import numpy.linalg\n"
    (tmp_path / "surgerylib" / "maps.py").write_text(source)
    write_notebook(tmp_path, "%matplotlib inline\n!ls\nfrom PIL import Image\nfrom surgerylib import maps")
    (tmp_path / "tests" / "helper.py").write_text("")
    (tmp_path / "tests" / "test_maps.py").write_text("import helper\nimport numpy\nimport pytest\n")
    return tmp_path


def write_notebook(root: Path, source: str) -> None:
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), root / "notebooks" / "01_a.ipynb")


def everything_wrong(root: Path, versions: dict[str, str] = PINS) -> list[str]:
    here = MadeUp(versions)
    return [*unused(root), *undeclared(root), *inexact(root), *unpinned(root, here), *stale(root, here)]


def test_a_project_that_keeps_the_rules(project: Path) -> None:
    assert everything_wrong(project) == []


def append(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text((root / name).read_text() + text)


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (append("surgerylib/maps.py", "import yaml\n"), "surgerylib/maps.py imports yaml, which is not declared"),
        (append("surgerylib/maps.py", "from pytest import fixture\n"), "surgerylib/maps.py imports pytest"),
        (append("tests/test_maps.py", "import yaml.nodes\n"), "tests/test_maps.py imports yaml"),
        (lambda root: write_notebook(root, "if True:\n    import PIL, bs4"), "notebooks/01_a.ipynb imports bs4"),
        (lambda root: write_notebook(root, "x = 1"), "Pillow (runtime) is imported nowhere in surgerylib, notebooks"),
        (replace("tests/test_maps.py", "import pytest", ""), "pytest (dev) is imported nowhere in tests"),
        (replace("pyproject.toml", '"pyarrow"', '"pyarrow", "scipy"'), "scipy (runtime) is imported nowhere"),
        (replace("pyproject.toml", '"ruff", ', ""), "ruff is given a reason but not declared"),
        (replace("constraints.txt", "numpy==2.0", "numpy>=2.0"), "numpy>=2.0 is not of the form name==version"),
        (replace("constraints.txt", "numpy==2.0", "numpy==2.*"), "numpy==2.* is not of the form name==version"),
        (replace("constraints.txt", "numpy==2.0", "numpy"), "numpy is not of the form name==version"),
        (replace("constraints.txt", "pluggy==1.6", ""), "pluggy is needed but has no line in constraints.txt"),
        (replace("constraints.txt", "tornado==6.5", "tornado==6.4"), "tornado 6.5 is installed, constraints.txt says"),
        (append("constraints.txt", "\nleftover==1.0"), "leftover==1.0 is needed by nothing"),
    ],
)
def test_each_rule_can_fail(project: Path, change: Callable[[Path], None], wrong: str) -> None:
    change(project)
    assert wrong in "; ".join(everything_wrong(project))


def test_what_is_not_installed_or_at_another_version(project: Path) -> None:
    without = {name: version for name, version in PINS.items() if name != "tornado"}
    assert everything_wrong(project, without) == ["tornado is needed but not installed"]
    assert everything_wrong(project, {**PINS, "numpy": "2.0+cpu"}) == []  # a build of that version
    wrong = ["numpy 2.0.1 is installed, constraints.txt says numpy==2.0"]
    assert everything_wrong(project, {**PINS, "numpy": "2.0.1"}) == wrong
