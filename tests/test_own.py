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
from surgerylib.engine.training import Schedule

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
    script = f"{TEXT}\nfrom surgerylib.engine.own import key_of\nprint(key_of(loss))"
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == key


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.sqrt(inner(radius))", "math.exp(inner(radius))"),
        ("radius=1.5", "radius=1.6"),
        ("SCALE = 2.0", "SCALE = 2.5"),
        ("np.arange(4)", "np.arange(4.0)"),
        ("torch.ones(3)", "torch.zeros(3)"),
        ("x * 3", "x * 5"),
        ("factor = 4", "factor = 6"),
        ("* self.factor", "+ self.factor"),
        ("(2, None)", "(2, True)"),
        ("import gt_class_localization_loss", "import heatmap_loss as gt_class_localization_loss"),
        (".sum()\n    return", ".max()\n    return"),
    ],
)
def test_whatever_decides_the_result_changes_the_key(old, new):
    assert old in TEXT
    assert key_of(of_text(TEXT.replace(old, new))) not in (None, key_of(of_text(TEXT)))


def weighted(weight):
    return lambda x: x * weight


def test_closure_partial_method_and_callable_object_count_by_their_values():
    assert key_of(weighted(1)) == key_of(weighted(1)) != key_of(weighted(2))
    assert key_of(weighted(1)) != key_of(weighted(1.0))
    plain = functools.partial(of_text(TEXT), radius=2)
    assert key_of(plain) == key_of(functools.partial(of_text(TEXT), radius=2))
    assert key_of(plain) != key_of(functools.partial(of_text(TEXT), radius=3))
    text = "class A:\n    def __init__(self, w):\n        self.w = w\n    def __call__(self, x):\n        return self.w"
    made = of_text(text, "A")
    assert key_of(made(1)) == key_of(made(1)) != key_of(made(2))
    assert key_of(made(1).__call__) != key_of(made(2).__call__)
    two, three = lambda x: x * 2, lambda x: x * 3  # on one line
    assert key_of(two) != key_of(three)


def test_settings_of_the_package_count_by_their_values():
    assert key_of(weighted(Schedule())) == key_of(weighted(Schedule())) != key_of(weighted(Schedule(epochs=2)))
    assert key_of(weighted(Schedule())) is not None


def test_functions_of_packages_count_by_name():
    for function in (torch.exp, torch.nn.functional.softmax, np.mean, np.add, np.linalg.norm, str.lower, len, box_iou):
        assert key_of(weighted(function)) not in (None, key_of(weighted(torch.sin)))
    assert key_of(weighted(torch.nn.Linear)) != key_of(weighted(torch.nn.Conv2d))


def test_a_wrapper_with_the_name_of_a_packages_function_is_none():
    def mine(x):
        return functools.wraps(np.mean)(lambda *a: x)

    assert key_of(mine(1)) not in (key_of(mine(2)), key_of(np.mean), None)


def test_what_a_decorator_of_a_package_wraps_counts():
    text = "import functools, contextlib\n@contextlib.contextmanager\ndef loss(x):\n    yield x * 2"
    assert key_of(of_text(text)) not in (None, key_of(of_text(text.replace("2", "3"))))


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


def test_functions_that_call_each_other_have_a_key():
    text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)"
    assert key_of(of_text(text, "even")) not in (None, key_of(of_text(text.replace("!=", ">"), "even")))


def endless():
    values = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    "value", [threading.Lock(), object(), np.array([object()]), torch.nn.Linear(2, 2), endless(), iter([1])]
)
def test_what_cannot_be_told_has_no_key(value):
    assert key_of(weighted(value)) is None


@pytest.mark.parametrize("body", ["open('w.txt').read()", "eval('SCALE')", "globals()['SCALE']"])
def test_what_reads_from_elsewhere_has_no_key(body):
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
