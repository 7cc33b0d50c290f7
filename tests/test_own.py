"""A researcher's own idea in place of a part: a few lines, as good as built in, and never served for another.

Its key is another one for anything that decides what it gives, or none.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from surgerylib.boxes import box_iou, extract_boxes
from surgerylib.datasets import load_dataset
from surgerylib.engine import finding
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.own import key_of
from surgerylib.engine.store import HeatmapStore
from surgerylib.engine.tasks import Schedule
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, heatmaps

FAST = {"n_resamples": 20, "workers": 1}


@pytest.fixture(scope="module")
def store(tiny, training_root, tmp_path_factory) -> HeatmapStore:
    return HeatmapStore(tiny, load_dataset(training_root, "test"), tmp_path_factory.mktemp("own")).compute()


def cell(text: str, name: str = "f"):
    """What a notebook's cell defines: nobody can import it."""
    names = {"__name__": "__main__"}
    exec(compile(text, "<ipython-input-1>", "exec", dont_inherit=True), names)
    return names[name]


def assert_same(own, built_in) -> None:
    pd.testing.assert_frame_equal(own.detections.drop(columns="kind"), built_in.detections.drop(columns="kind"),
                                  check_exact=False, atol=1e-5)  # fmt: skip
    columns = ["protocol", "iou_threshold", "map", "low", "high"]
    pd.testing.assert_frame_equal(own.summary()[columns], built_in.summary()[columns], atol=1e-6)


# --------------------------------------------------------------------- each idea in a few lines, as a cell has them

SIMILARITY = "def f(similarities):\n    return similarities[-1, 1, :, 1:]"  # last layer, VV path, without CLS
TOKENS = "def f(tokens, text):\n    return (tokens.vv[-1, 0, 1:] @ text.T).T"
BOXES = """
from surgerylib.boxes import extract_boxes
PERCENTILE = 80
def f(heatmap, size_wh):
    return extract_boxes(heatmap, size_wh, percentile=PERCENTILE)
"""


@pytest.mark.parametrize(("heatmap", "setting"), [
    (cell(SIMILARITY), Setting("vv_mixed")),
    (cell(TOKENS), Setting("vv_mixed")),
    (lambda tokens, text: heatmaps(tokens, text, "vv_qk", similarity="surgery"), Setting("standard", "surgery", 3)),
])  # fmt: skip
def test_an_own_map_is_the_built_in_one(store, heatmap, setting):
    own = evaluate(store, heatmap=heatmap, name="my own", **FAST)
    assert list(own.settings) == ["my own"]
    assert len(own.detections) > 0
    assert_same(own, evaluate(store, {"": setting}, **FAST))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_own_box_function_is_the_built_in_one_in_worker_processes_too(store, workers, monkeypatch):
    monkeypatch.setattr(finding, "_PIECE", 2)  # three pieces: more than one process has work
    own = evaluate(store, boxes=cell(BOXES), n_resamples=20, workers=workers)
    assert_same(own, evaluate(store, {"": Setting(percentile=80)}, **FAST))


def test_own_maps_and_own_boxes_go_together_under_several_settings(store):
    named = {"a": Setting(percentile=60), "b": Setting(percentile=90), "c": Setting("standard")}
    own = evaluate(store, named, boxes=cell(BOXES), **FAST)
    pd.testing.assert_frame_equal(*(own.of([n]).detections.drop(columns="kind") for n in "ab"))
    assert own.difference("a", "b", "all") == (0, 0, 0)
    both = evaluate(store, heatmap=cell(SIMILARITY), boxes=cell(BOXES), **FAST)
    assert_same(both, evaluate(store, {"": Setting(percentile=80)}, **FAST))
    cut = evaluate(store, {f"{p}": Setting(percentile=p) for p in (60, 90)}, heatmap=cell(TOKENS), **FAST)
    assert_same(cut.of(["90"]), evaluate(store, {"": Setting(percentile=90)}, **FAST))


def test_functions_that_find_nothing(store):
    found = evaluate(store, boxes=lambda heatmap, size_wh: [], **FAST)
    assert found.detections.empty
    assert (found.summary()["map"] == 0).all()
    flat = evaluate(store, heatmap=lambda similarities: torch.zeros(similarities.shape[2], 4, 4), **FAST)
    assert flat.detections.empty


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(("functions", "message"), [
    ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:].T}, r"\[20, 4, 4\].*got \[16, 20\]"),
    ({"heatmap": lambda similarities: "a map"}, "got str"),
    ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:] / 0}, "NaN or infinite"),
    ({"heatmap": lambda tokens, text: tokens.vv[-1, 0] @ text.T}, r"got \[17, 20\]"),
    ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, 1]]}, r"finite \[K, 5\].*got \[1, 4\]"),
    ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, np.nan, 1]]}, "finite"),
    ({"boxes": lambda heatmap, size_wh: "x"}, "got str"),
    ({"iou_threshold": [0.5]}, "'iou_threshold'; nearest: iou_thresholds"),
    ({"iou_thresholds": [1.2]}, "iou_thresholds"),
    ({"iou_thresholds": [0.5, 0.5]}, "iou_thresholds"),
    ({"interpolation": "12point"}, "11point"),
    ({"settings": {}}, "no settings"),
])  # fmt: skip
def test_a_wrong_shape_or_name_is_one_line(store, functions, message):
    refused(evaluate, ParameterError, message, store, **functions, **FAST)


def test_an_unknown_name_of_a_setting_raises_with_the_nearest():
    refused(Setting, ParameterError, "there is no setting 'layer'; nearest: layers", layer=2)
    refused(extract_boxes, ParameterError, "nearest: percentile", np.eye(4), (9, 9), percentiles=3)


# -------------------------------------------------------------------------- never an old result for a new idea


WEIGHTED = "A = {}\ndef f(tokens, text):\n    return {} * (tokens.vv[-1, 0, 1:] @ text.T).T\n"


def test_a_changed_function_is_never_served_what_the_one_before_gave(store, tmp_path):
    found = {}
    for w in (1, -1, 1):
        f = cell(WEIGHTED.format(w, "A"))
        kept = evaluate(store, heatmap=f, details=False, cache_dir=tmp_path, **FAST).summary()
        found.setdefault(w, []).append((kept, evaluate(store, heatmap=f, **FAST).detections["score"].mean()))
    assert len(list(tmp_path.glob("figures-*"))) == 2
    (first, score), (again, _) = found[1]
    pd.testing.assert_frame_equal(first, again)
    assert score != pytest.approx(found[-1][0][1])


def test_nothing_of_a_function_that_cannot_be_told_stays_on_disk(store, tmp_path):
    before = sorted(store.folder.parent.iterdir())
    f = cell(WEIGHTED.format("[object()]", "len(A)"))
    own = evaluate(store, heatmap=f, details=False, cache_dir=tmp_path, **FAST).summary()
    assert sorted(store.folder.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
    pd.testing.assert_frame_equal(own.drop(columns="kind"), evaluate(store, **FAST).summary().drop(columns="kind"))


def test_maps_of_tokens_are_computed_once_and_a_rerun_says_so(store, tiny, monkeypatch, capsys):
    f = cell(TOKENS.replace("tokens.vv", "2 * tokens.vv"))
    first = evaluate(store, heatmap=f, **FAST)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(tiny, "encode_image", lambda *_: pytest.fail("the model was used"))
    pd.testing.assert_frame_equal(evaluate(store, heatmap=f, **FAST).summary(), first.summary())
    assert re.search("own-maps of 4 of 4 .* 1 of 1 files were there already, made of", capsys.readouterr().out)


# ----------------------------------------------------------------------------------------- the key of a function

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

def f(pred, boxes, labels, *, radius=1.5):
    def inner(x):
        return helper(x) * SCALE + TABLE.sum() + Judge()(x) + WEIGHTS["a"].sum()
    return math.sqrt(inner(radius)) + gt_class_localization_loss(pred, boxes, labels).total
"""


def test_the_same_text_has_the_same_key_here_and_in_another_process(tmp_path):
    key = key_of(cell(TEXT))
    assert len(key) == 64
    assert key_of(cell("\n\n# a comment\n" + TEXT)) == key
    (tmp_path / "script.py").write_text(f"{TEXT}\nfrom surgerylib.engine.own import key_of\nprint(key_of(f))")
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    said = subprocess.check_output([sys.executable, tmp_path / "script.py"], text=True, env=environment)
    assert said.strip() == key


def test_whatever_decides_the_result_changes_the_key():
    plain = key_of(cell(TEXT))
    for old, new in (
        ("math.sqrt(inner(radius))", "math.exp(inner(radius))"), ("radius=1.5", "radius=1.6"),
        ("SCALE = 2.0", "SCALE = 2.5"), ("np.arange(4)", "np.arange(4.0)"), ("torch.ones(3)", "torch.zeros(3)"),
        ("x * 3", "x * 5"), ("factor = 4", "factor = 6"), ("* self.factor", "+ self.factor"),
        ("(2, None)", "(2, True)"), (".sum()\n    return", ".max()\n    return"),
        ("import gt_class_localization_loss", "import heatmap_loss as gt_class_localization_loss"),
    ):  # fmt: skip
        assert old in TEXT
        assert key_of(cell(TEXT.replace(old, new))) not in (None, plain), new


def weighted(weight):
    return lambda x: x * weight


OBJECT = "class A:\n def __init__(self, w):\n  self.w = w\n def __call__(self, x):\n  return self.w"
MANAGER = "import contextlib\n@contextlib.contextmanager\ndef f(x):\n    yield x * {}"
MUTUAL = "def f(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != {} and f(n - 1)"


@pytest.mark.parametrize(
    "make",
    [
        weighted,
        lambda n: cell(f"def f(x, y={n}):\n    return x"),
        lambda n: weighted((1, 1.0)[n - 1]),
        lambda n: weighted(Schedule(epochs=n + 5)),  # settings of the package
        lambda n: functools.partial(cell(TEXT), radius=n),
        lambda n: cell(OBJECT, "A")(n),
        lambda n: cell(OBJECT, "A")(n).__call__,
        lambda n: (lambda x: x * 2, lambda x: x * 3)[n - 1],  # on one line
        lambda n: functools.wraps(np.mean)(lambda *a: n),  # has the name of a package's function
        lambda n: cell(MANAGER.format(n)),  # a decorator of a package
        lambda n: cell(MUTUAL.format(n)),  # functions that call each other
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
    text = f"{use}def f(x):\n{inside}    return {call}"

    def with_part(source):
        module = types.ModuleType("my_part")
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, "my_part", module)
        return key_of(cell(text))

    one = with_part("def part(x):\n    return x + 1\ndef other(x):\n    return 0")
    assert with_part("def part(x):\n    return x + 1") == one
    assert with_part("def part(x):\n    return x + 2") not in (one, None)


def test_what_cannot_be_told_or_reads_from_elsewhere_has_no_key():
    endless = []
    endless.append(endless)
    for value in (threading.Lock(), object(), np.array([object()]), torch.nn.Linear(2, 2), endless, iter([1])):
        assert key_of(weighted(value)) is None
    for body in ("open('w.txt').read()", "eval('SCALE')", "globals()['SCALE']"):
        assert key_of(cell(f"SCALE = 2\ndef f(x):\n    return {body}")) is None


def test_a_file_of_the_package_edited_since_its_import_changes_nothing(monkeypatch):
    key = key_of(cell(TEXT))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: b"edited")
    assert key_of(cell(TEXT)) == key
    monkeypatch.setattr("surgerylib.engine.own._IMPORTED", "another version")
    assert key_of(cell(TEXT)) not in (None, key)
