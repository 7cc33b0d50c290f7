"""The key of a function from outside: another one for anything that decides what it gives, or none."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from surgerylib.boxes import box_iou
from surgerylib.engine import own
from surgerylib.engine.own import key_of
from surgerylib.engine.tasks import Schedule

TEXT = """
import math
import numpy as np
import torch
from surgerylib.losses import gt_class_localization_loss

SCALE = 2.0
TABLE = np.arange(4)
WEIGHTS = {"a": torch.ones(3), "b": [1, (2, None)]}

def helper(x):
    return x * 3

class Judge:
    factor = 4
    def __call__(self, x):
        return x * self.factor

def loss(pred, boxes, labels, *, radius=1.5):
    def inner(x):
        return helper(x) * SCALE + TABLE.sum() + Judge()(x) + WEIGHTS["a"].sum()
    return math.sqrt(inner(radius)) + gt_class_localization_loss(pred, boxes, labels).total
"""


def of_text(text: str, name: str = "loss", module: str = "__main__"):
    scope = {"__name__": module}
    exec(compile(text, "/tmp/anywhere.py", "exec", dont_inherit=True), scope)
    return scope[name]


def test_the_same_text_has_the_same_key_here_and_in_another_process(tmp_path):
    key = key_of(of_text(TEXT))
    assert len(key) == 64
    assert key_of(of_text("\n\n# a comment\n" + TEXT)) == key
    (tmp_path / "script.py").write_text(f"{TEXT}\nfrom surgerylib.engine.own import key_of\nprint(key_of(loss))")
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    said = subprocess.check_output([sys.executable, tmp_path / "script.py"], text=True, env=environment)
    assert said.strip() == key


def test_whatever_decides_the_result_changes_the_key():
    plain = key_of(of_text(TEXT))
    for old, new in (
        ("math.sqrt(inner(radius))", "math.exp(inner(radius))"), ("radius=1.5", "radius=1.6"),
        ("SCALE = 2.0", "SCALE = 2.5"), ("np.arange(4)", "np.arange(4.0)"), ("torch.ones(3)", "torch.zeros(3)"),
        ("x * 3", "x * 5"), ("factor = 4", "factor = 6"), ("* self.factor", "+ self.factor"),
        ("(2, None)", "(2, True)"), (".sum()\n    return", ".max()\n    return"),
        ("import gt_class_localization_loss", "import heatmap_loss as gt_class_localization_loss"),
    ):  # fmt: skip
        assert old in TEXT
        assert key_of(of_text(TEXT.replace(old, new))) not in (None, plain), new


def weighted(weight):
    return lambda x: x * weight


OBJECT = "class A:\n def __init__(self, w):\n  self.w = w\n def __call__(self, x):\n  return self.w"
MANAGER = "import contextlib\n@contextlib.contextmanager\ndef loss(x):\n    yield x * {}"
MUTUAL = "def loss(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != {} and loss(n - 1)"


@pytest.mark.parametrize(
    "make",
    [
        weighted,
        lambda n: of_text(f"def loss(x, y={n}):\n    return x"),
        lambda n: weighted((1, 1.0)[n - 1]),
        lambda n: weighted(Schedule(epochs=n + 5)),  # settings of the package
        lambda n: functools.partial(of_text(TEXT), radius=n),
        lambda n: of_text(OBJECT, "A")(n),
        lambda n: of_text(OBJECT, "A")(n).__call__,
        lambda n: (lambda x: x * 2, lambda x: x * 3)[n - 1],  # on one line
        lambda n: functools.wraps(np.mean)(lambda *a: n),  # has the name of a package's function
        lambda n: of_text(MANAGER.format(n)),  # a decorator of a package
        lambda n: of_text(MUTUAL.format(n)),  # functions that call each other
    ],
)
def test_a_function_counts_by_its_values_and_by_what_it_calls(make):
    assert key_of(make(1)) == key_of(make(1)) not in (key_of(make(2)), key_of(np.mean), None)


def test_functions_of_packages_count_by_name():
    for function in (torch.exp, torch.nn.functional.softmax, np.mean, np.add, np.linalg.norm, str.lower, len, box_iou):
        assert key_of(weighted(function)) not in (None, key_of(weighted(torch.sin)))
    assert key_of(weighted(torch.nn.Linear)) != key_of(weighted(torch.nn.Conv2d))


@pytest.mark.parametrize("use", ["import my_part\n", "", "from my_part import part\n"])
def test_a_module_of_ones_own_counts_by_what_is_taken_from_it(monkeypatch, use):
    call = "part(x)" if "from" in use else "my_part.part(x)"
    inside = "" if use else "    import my_part\n"
    text = f"{use}def loss(x):\n{inside}    return {call}"

    def with_part(source):
        module = types.ModuleType("my_part")
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, "my_part", module)
        return key_of(of_text(text))

    one = with_part("def part(x):\n    return x + 1\ndef other(x):\n    return 0")
    assert with_part("def part(x):\n    return x + 1") == one
    assert with_part("def part(x):\n    return x + 2") not in (one, None)


def test_what_cannot_be_told_or_reads_from_elsewhere_has_no_key():
    endless = []
    endless.append(endless)
    for value in (threading.Lock(), object(), np.array([object()]), torch.nn.Linear(2, 2), endless, iter([1])):
        assert key_of(weighted(value)) is None
    for body in ("open('w.txt').read()", "eval('SCALE')", "globals()['SCALE']"):
        assert key_of(of_text(f"SCALE = 2\ndef loss(x):\n    return {body}")) is None


def test_a_function_of_a_notebook_cell_has_a_key():
    shell = InteractiveShell.instance()
    try:

        def cell(text):
            assert shell.run_cell(text).success
            return key_of(shell.user_ns["loss"])

        first = cell("scale = 2\ndef loss(x):\n    return x * scale")
        assert first is not None
        assert cell("def loss(x):\n    return x * scale") == first
        assert cell("scale = 3") not in (None, first)
        assert cell("def loss(x):\n    return x + scale") not in (None, first)
    finally:
        InteractiveShell.clear_instance()


def test_a_file_of_the_package_edited_since_its_import_changes_nothing(monkeypatch):
    key = key_of(of_text(TEXT))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: b"edited")
    assert key_of(of_text(TEXT)) == key
    monkeypatch.setattr(own, "_IMPORTED", "another version")
    assert key_of(of_text(TEXT)) not in (None, key)
