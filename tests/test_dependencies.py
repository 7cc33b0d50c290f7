"""The supply chain: every dependency declared, used, pinned exactly and installed so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from dependency_rules import constraints, declared, inexact, installed_in, needed, stale, undeclared, unpinned, unused
from nbformat.v4 import new_code_cell, new_notebook

from surgerylib.files import PROJECT_ROOT

HERE = installed_in()


def test_every_declared_dependency_is_used() -> None:
    assert unused(PROJECT_ROOT) == []


def test_every_import_is_a_declared_dependency() -> None:
    assert undeclared(PROJECT_ROOT) == []


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

PINS = {
    "numpy": "2.0", "pillow": "12.0", "jupyterlab": "4.0", "pyarrow": "20.0", "pytest": "9.0", "ruff": "0.9",
    "nbstripout": "0.9", "coverage": "7.10", "voila": "0.5", "tornado": "6.5", "pluggy": "1.6",
}  # fmt: skip
REQUIRES = {
    "jupyterlab": ["tornado>=6; extra != 'none'", "pytest-jupyter; extra == 'test'", "win; sys_platform == 'win32'"],
    "pytest": ["pluggy"],
    "numpy": ["cuda-lib==12.1"],
}
FILES = {
    "pyproject.toml": """\
[project]
name = "made-up"
dependencies = ["numpy", "Pillow>=10", "jupyterlab", "pyarrow"]
[project.optional-dependencies]
dev = ["pytest", "ruff", "nbstripout", "voila", "coverage"]
""",
    "constraints.txt": "\n".join(["# tested", *(f"{name}=={version}" for name, version in PINS.items())]),
    "surgerylib/maps.py": "import os\nfrom . import boxes\n\n\ndef f():\n    import numpy.linalg\n",
    "notebooks/01_a.ipynb": nbformat.writes(
        new_notebook(cells=[new_code_cell("%matplotlib inline\n!ls\nfrom PIL import Image\nfrom surgerylib import x")])
    ),
    "tests/helper.py": "",
    "tests/test_maps.py": "import helper\nimport numpy\nimport pytest\n",
}


def everything_wrong(root: Path, *change: str, **installed: str) -> str:
    """What the rules say of the made-up project, where the first text of a file is replaced by the second."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        if change and name == change[0]:
            assert change[1] in text
            text = text.replace(*change[1:])
        (root / name).write_text(text)
    for name, version in {**PINS, "cuda-lib": "12.1", **installed}.items():
        if version:
            about = root / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
            about.parent.mkdir()
            asks = "".join(f"\nRequires-Dist: {one}" for one in REQUIRES.get(name, []))
            about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}{asks}\n")
    here = installed_in(root)
    return "; ".join([*unused(root), *undeclared(root), *inexact(root), *unpinned(root, here), *stale(root, here)])


@pytest.mark.parametrize(
    ("file", "old", "new", "wrong"),
    [
        ("surgerylib/maps.py", "os", "yaml", "surgerylib/maps.py imports yaml, which is not declared"),
        ("surgerylib/maps.py", "import os", "from pytest import fixture", "surgerylib/maps.py imports pytest"),
        ("tests/test_maps.py", "import helper", "import yaml.nodes", "tests/test_maps.py imports yaml"),
        ("notebooks/01_a.ipynb", "!ls", "if True:\\n    import PIL, bs4", "notebooks/01_a.ipynb imports bs4"),
        ("notebooks/01_a.ipynb", "PIL", "os", "Pillow (runtime) is imported nowhere in surgerylib, notebooks"),
        ("tests/test_maps.py", "import pytest", "", "pytest (dev) is imported nowhere in tests"),
        ("pyproject.toml", '"pyarrow"', '"pyarrow", "scipy"', "scipy (runtime) is imported nowhere"),
        ("pyproject.toml", '"ruff", ', "", "ruff is given a reason but not declared"),
        ("constraints.txt", "numpy==2.0", "numpy>=2.0", "numpy>=2.0 is not of the form name==version"),
        ("constraints.txt", "numpy==2.0", "numpy==2.*", "numpy==2.* is not of the form name==version"),
        ("constraints.txt", "numpy==2.0", "numpy", "numpy is not of the form name==version"),
        ("constraints.txt", "pluggy==1.6", "", "pluggy is needed but has no line in constraints.txt"),
        ("constraints.txt", "tornado==6.5", "tornado==6.4", "tornado 6.5 is installed, constraints.txt says"),
        ("constraints.txt", "# tested", "leftover==1.0", "leftover==1.0 is needed by nothing"),
    ],
)
def test_each_rule_can_fail(tmp_path: Path, file: str, old: str, new: str, wrong: str) -> None:
    assert wrong in everything_wrong(tmp_path, file, old, new)


@pytest.mark.parametrize(
    ("installed", "wrong"),
    [
        ({}, ""),
        ({"numpy": "2.0+cpu"}, ""),  # a build of that version
        ({"tornado": ""}, "tornado is needed but not installed"),
        ({"numpy": "2.0.1"}, "numpy 2.0.1 is installed, constraints.txt says numpy==2.0"),
    ],
)
def test_a_project_that_keeps_the_rules_where_others_are_installed(
    tmp_path: Path, installed: dict[str, str], wrong: str
) -> None:
    assert everything_wrong(tmp_path, **installed) == wrong
