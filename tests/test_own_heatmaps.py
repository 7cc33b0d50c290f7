"""A researcher's own idea in place of a part: a few lines, as good as built in, and never served for another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from surgerylib.boxes import extract_boxes
from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import finding
from surgerylib.engine.evaluation import evaluate
from surgerylib.engine.own import key_of
from surgerylib.engine.store import HeatmapStore
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting, heatmaps

FAST = {"n_resamples": 20, "workers": 1}


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory) -> HeatmapStore:
    folder = tmp_path_factory.mktemp("own")
    root = write_scenes(folder / "scenes", num_train=0, num_val=0, num_test=5, size=96)
    return HeatmapStore(tiny, load_dataset(root, "test"), folder / "cache").compute()


def cell(text: str) -> dict:
    """Names that a notebook's cell defines: nobody can import them."""
    names = {"__name__": "__main__"}
    exec(compile(text, "<ipython-input-1>", "exec", dont_inherit=True), names)
    return names


def assert_same(own, built_in) -> None:
    pd.testing.assert_frame_equal(own.detections.drop(columns="kind"), built_in.detections.drop(columns="kind"),
                                  check_exact=False, atol=1e-5)  # fmt: skip
    columns = ["protocol", "iou_threshold", "map", "low", "high"]
    pd.testing.assert_frame_equal(own.summary()[columns], built_in.summary()[columns], atol=1e-6)


# --------------------------------------------------------------------- each idea in a few lines, as a cell has them

SIMILARITY = """
def f(similarities):
    patches = similarities[-1:, 1, :, 1:]  # last layer, VV path, without CLS
    return patches.mean(dim=0)
"""
TOKENS = """
def f(tokens, text):
    return (tokens.vv[-1, 0, 1:] @ text.T).T
"""
BOXES = """
from surgerylib.boxes import extract_boxes
PERCENTILE = 80
def f(heatmap, size_wh):
    return extract_boxes(heatmap, size_wh, percentile=PERCENTILE)
"""


@pytest.mark.parametrize("text", [SIMILARITY, TOKENS])
def test_an_own_cosine_is_the_built_in_one(store, text):
    assert len(text.strip().splitlines()) <= 12
    own = evaluate(store, heatmap=cell(text)["f"], name="my cosine", **FAST)
    assert list(own.settings) == ["my cosine"]
    assert len(own.detections) > 0
    assert_same(own, evaluate(store, {"vv_mixed": Setting("vv_mixed")}, **FAST))


def test_heatmaps_of_the_package_may_be_called_on_the_tokens_of_an_image(store):
    own = evaluate(store, heatmap=lambda tokens, text: heatmaps(tokens, text, "vv_qk", similarity="surgery"), **FAST)
    assert_same(own, evaluate(store, {"": Setting("standard", "surgery", 3)}, **FAST))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_own_box_function_is_the_built_in_one_in_worker_processes_too(store, workers, monkeypatch):
    monkeypatch.setattr(finding, "_PIECE", 2)  # three pieces: more than one process has work
    own = evaluate(store, boxes=cell(BOXES)["f"], n_resamples=20, workers=workers)
    assert_same(own, evaluate(store, {"": Setting(percentile=80)}, **FAST))


def test_own_maps_and_own_boxes_go_together_under_several_settings(store):
    named = {"a": Setting(percentile=60), "b": Setting(percentile=90), "c": Setting("standard")}
    own = evaluate(store, named, boxes=cell(BOXES)["f"], **FAST)
    pd.testing.assert_frame_equal(*(own.of([n]).detections.drop(columns="kind") for n in "ab"))
    assert own.difference("a", "b", "all") == (0, 0, 0)
    both = evaluate(store, heatmap=cell(SIMILARITY)["f"], boxes=cell(BOXES)["f"], **FAST)
    assert_same(both, evaluate(store, {"": Setting(percentile=80)}, **FAST))
    cut = evaluate(store, {f"{p}": Setting(percentile=p) for p in (60, 90)}, heatmap=cell(TOKENS)["f"], **FAST)
    assert_same(cut.of(["90"]), evaluate(store, {"": Setting(percentile=90)}, **FAST))


def test_functions_that_find_nothing(store):
    found = evaluate(store, boxes=lambda heatmap, size_wh: [], **FAST)
    assert found.detections.empty
    assert (found.summary()["map"] == 0).all()
    flat = evaluate(store, heatmap=lambda similarities: torch.zeros(similarities.shape[2], 4, 4), **FAST)
    assert flat.detections.empty


def test_an_own_kind_beside_built_in_ones_has_a_paired_difference(store):
    own = evaluate(store, heatmap=lambda s: s[-1, 1, :, 1:].sigmoid(), name="sigmoid", **FAST)
    both = own.joined(evaluate(store, {"vv_mixed": Setting()}, **FAST))
    assert set(both.detections["kind"]) == {"sigmoid", "vv_mixed"}
    value, low, high = both.difference("sigmoid", "vv_mixed", "all", 0.05)
    assert low <= value <= high
    assert set(both.by_class()["kind"]) == {"sigmoid", "vv_mixed"}


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:].T}, r"\[20, 4, 4\].*got \[16, 20\]"),
        ({"heatmap": lambda similarities: similarities}, "heatmap= must give"),
        ({"heatmap": lambda similarities: "a map"}, "got str"),
        ({"heatmap": lambda similarities: None}, "got NoneType"),
        ({"heatmap": lambda similarities: similarities[-1, 1, :, 1:] / 0 - 1 / similarities[-1, 1, :, 1:] * 0},
         "NaN or infinite"),
        ({"heatmap": lambda tokens, text: tokens.vv[-1, 0, 1:] @ text.T}, r"got \[16, 20\]"),
        ({"heatmap": lambda tokens, text: tokens.vv[-1, 0] @ text.T}, r"got \[17, 20\]"),
        ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, 1]]}, r"finite \[K, 5\].*got \[1, 4\]"),
        ({"boxes": lambda heatmap, size_wh: [[0, 0, 1, np.nan, 1]]}, "finite"),
        ({"boxes": lambda heatmap, size_wh: "x"}, "got str"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_one_line(store, functions, message):
    with pytest.raises(ParameterError, match=message) as raised:
        evaluate(store, **functions, **FAST)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: Setting(box_score="means"), "box_score must be 'mean', .*got 'means'"),
        (lambda store: Setting(layer=2), "there is no setting 'layer'; nearest: layers"),
        (lambda store: extract_boxes(np.eye(4), (9, 9), percentiles=3), "nearest: percentile"),
        (lambda store: evaluate(store, iou_threshold=[0.5]), "'iou_threshold'; nearest: iou_thresholds"),
        (lambda store: evaluate(store, interpolation="12point"), "11point"),
        (lambda store: evaluate(store, {}), "no settings"),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(store, call, message):
    with pytest.raises(ParameterError, match=message) as raised:
        call(store)
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------- never an old result for a new idea


def test_a_changed_function_is_never_served_what_the_one_before_gave(store, tmp_path):
    """Constant, closure, default, helper: each is part of what a function is."""
    text = "W = {w}\ndef f(tokens, text):\n    return W * (tokens.vv[-1, 0, 1:] @ text.T).T\n"
    found = {}
    for w in (1, -1, 1):
        own = evaluate(store, heatmap=cell(text.format(w=w))["f"], details=False, cache_dir=tmp_path, **FAST)
        found.setdefault(w, []).append(own.summary())
    assert len(list(tmp_path.glob("figures-*"))) == 2
    pd.testing.assert_frame_equal(*found[1])
    one, other = (evaluate(store, heatmap=cell(text.format(w=w))["f"], **FAST).detections["score"] for w in (1, -1))
    assert one.mean() != pytest.approx(other.mean())

    def scaled(by: float):
        return lambda similarities: by * similarities[-1, 1, :, 1:]

    assert key_of(scaled(1.0)) == key_of(scaled(1.0)) != key_of(scaled(2.0))


def test_the_same_text_is_the_same_key_in_another_process_and_any_change_another():
    texts = {
        "plain": "def f(x):\n    return x + 1\n",
        "comment": "def f(x):\n    # the same\n\n    return x + 1\n",
        "constant": "def f(x):\n    return x + 2\n",
        "default": "def f(x, y=1):\n    return x + 1\n",
        "helper": "def g(x):\n    return x + 1\ndef f(x):\n    return g(x)\n",
        "changed": "def g(x):\n    return x + 2\ndef f(x):\n    return g(x)\n",
        "array": "import numpy as np\nA = np.arange(3)\ndef f(x):\n    return x + A\n",
        "other_array": "import numpy as np\nA = np.arange(3) + 1\ndef f(x):\n    return x + A\n",
        "tensor": "import torch\nA = torch.ones(3)\ndef f(x):\n    return x + A\n",
        "other_tensor": "import torch\nA = torch.ones(3) + 1\ndef f(x):\n    return x + A\n",
        "method": "class C:\n    w = 1\n    def g(self, x):\n        return self.w * x\nf = C().g\n",
        "other_method": "class C:\n    w = 2\n    def g(self, x):\n        return self.w * x\nf = C().g\n",
        "call": "class C:\n    def __call__(self, x):\n        return x\nf = C()\n",
        "partial": "from functools import partial\nf = partial(max, 1)\n",
        "other_partial": "from functools import partial\nf = partial(max, 2)\n",
        "recursive": "def f(x):\n    return f(x - 1) if x else 0\n",
        "of_package": "import torch\ndef f(x):\n    return torch.relu(x)\n",
        "other_of_package": "import torch\ndef f(x):\n    return torch.exp(x)\n",
    }
    own = {name: key_of(cell(text)["f"]) for name, text in texts.items()}
    assert all(own.values())
    assert own.pop("comment") == own["plain"]
    assert len(set(own.values())) == len(own)
    code = "from surgerylib.engine.own import key_of\ndef f(x):\n    return x + 1\nprint(key_of(f))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == own["plain"], done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return open('weights.txt').read()\n",
        "def f(x):\n    return eval('x')\n",
        "import io\nstream = io.StringIO()\ndef f(x):\n    return stream\n",
        "A = [object()]\ndef f(x):\n    return A\n",
    ],
)
def test_what_cannot_be_told_is_not_kept(text):
    assert key_of(cell(text)["f"]) is None


def test_nothing_of_a_function_that_cannot_be_told_stays_on_disk(store, tmp_path):
    text = "A = [object()]\ndef f(tokens, text):\n    return len(A) * (tokens.vv[-1, 0, 1:] @ text.T).T\n"
    before = sorted(store.folder.parent.iterdir())
    own = evaluate(store, heatmap=cell(text)["f"], details=False, cache_dir=tmp_path, **FAST)
    assert sorted(store.folder.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
    pd.testing.assert_frame_equal(own.summary().drop(columns="kind"),
                                  evaluate(store, **FAST).summary().drop(columns="kind"))  # fmt: skip


def test_maps_of_tokens_are_computed_once(store, tiny, monkeypatch):
    f = cell(TOKENS.replace("tokens.vv", "2 * tokens.vv"))["f"]
    first = evaluate(store, heatmap=f, **FAST)
    monkeypatch.setattr(tiny, "encode_image", lambda *_: pytest.fail("the model was used"))
    pd.testing.assert_frame_equal(evaluate(store, heatmap=f, **FAST).summary(), first.summary())
