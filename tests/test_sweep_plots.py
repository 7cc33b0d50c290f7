"""Figures of the sweep: what they say of ordinary data, and that they draw whatever data there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from surgerylib.boxes import extract_many
from surgerylib.figures import style
from surgerylib.figures import sweep as sweep_plots
from surgerylib.heatmaps import Setting
from surgerylib.matching import BOX_COLUMNS

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ("standard", "vv_qk", "vv_vv", "vv_mixed")
PERCENTILES = (30, 50, 60, 70, 75, 80, 85, 90, 95)
TITLES = {"present": "labels given", "all": "every class asked"}
# an image, a map with one bright blob, and the ground truth round it
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (80, 120, 3), dtype=np.uint8)
Y, X = np.mgrid[:14, :14]
HEATMAP = (np.exp(-((X - 4) ** 2 + (Y - 5) ** 2) / 8) + RNG.normal(0, 0.02, (14, 14))).astype(np.float32)
TRUTH = pd.DataFrame([("ship", 20, 15, 60, 50), ("dam", 70, 10, 90, 30)], columns=["label", *BOX_COLUMNS])
DIFFERENCES = pd.DataFrame(
    [("NMS", 0.012, 0.004, 0.02), ("sides", -0.015, -0.022, -0.008), ("Otsu", 0.001, -0.002, 0.004),
     ("no interval", 0.003, np.nan, np.nan), ("not known", np.nan, np.nan, np.nan), ("equal", 0.0, 0.0, 0.0)],
    columns=["name", "difference", "low", "high"],
)  # fmt: skip


def texts(letters: Iterable[Text]) -> list[str]:
    return [text.get_text() for text in letters]


def sweep_rows(percentiles=PERCENTILES, kinds=KINDS, scale: float = 1.0, interval: float = 0.02) -> pd.DataFrame:
    """`vv_qk` equals `standard` and `vv_vv` equals `vv_mixed`, as under cosine similarity."""
    rows = pd.DataFrame(product(TITLES, kinds, percentiles), columns=["protocol", "kind", "percentile"])
    better, worse = 0.05 * rows["kind"].isin(KINDS[2:]), 0.05 * (rows["protocol"] == "all")
    value = scale * (0.1 + rows["percentile"].astype(float) / 1000 + better - worse)
    return rows.assign(value=value, low=value - interval, high=value + interval)


def curves(rows: pd.DataFrame, **marks: tuple) -> Figure:
    marks = marks or {"default": (75, "vv_mixed")}
    return sweep_plots.percentile_curves(rows, TITLES, value_label="mAP", marks=marks)


def table(percentiles=PERCENTILES, ious=(0.1, 0.3, 0.5)) -> pd.DataFrame:
    return pd.DataFrame(np.subtract.outer(np.array(percentiles) / 200, np.array(ious) / 4), percentiles, ious)


def grids(present: pd.DataFrame, of_all: pd.DataFrame) -> Figure:
    return sweep_plots.percentile_iou_grid({"present": present, "all": of_all}, TITLES)


def multiples(percentiles=(50, 95), *, image=IMAGE, heatmap=HEATMAP, label="ship", title="a title " * 30) -> Figure:
    return sweep_plots.percentile_multiples(image, heatmap, TRUTH, label, percentiles, title=title)


def differences(frame: pd.DataFrame, title: str = "a long title " * 20) -> Figure:
    return sweep_plots.difference_bars(frame, title=title, xlabel="mAP")


MANY = table(np.linspace(5, 95, 20), np.arange(0.5, 1, 0.05))
OWN = sweep_rows(kinds=["mine"], percentiles=np.linspace(2.5, 99, 20), interval=np.nan)
UNUSUAL: dict[str, Callable[[], Figure]] = {
    "curves of one percentile": lambda: curves(sweep_rows(percentiles=[75])),
    "curves of an own kind": lambda: curves(OWN),
    "curves without a value": lambda: curves(sweep_rows(scale=np.nan)),
    "many cells and few": lambda: grids(MANY, table([75])),
    "many percentiles": lambda: multiples(np.linspace(2.5, 99.5, 20), image=np.tile(IMAGE, (1, 3, 1))),
    "a class of a long name that is not there": lambda: multiples(label="Expressway-Service-area " * 5),
    "differences": lambda: differences(DIFFERENCES),
    "long names": lambda: differences(DIFFERENCES.assign(name="a change with a name that goes on and on " * 3)),
}


def overlap(letters: list[Text]) -> bool:
    boxes = [Text.get_window_extent(text) for text in letters]  # without the line to the point
    return any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_data_draws_without_a_warning_inside_the_page(case):
    figure = UNUSUAL[case]()
    figure.draw_without_rendering()
    # no more than the legend of a long name sticks out
    assert figure.get_tightbbox().width < (1.2 if "difference" in case or "names" in case else 1.3) * style.WIDTH
    assert not overlap(figure.axes[0].get_yticklabels())
    assert not any(overlap(axis.texts) for axis in figure.axes)


def test_kinds_with_the_same_values_stay_readable():
    figure = curves(sweep_rows())
    said = texts(figure.legends[0].get_texts())
    assert said == ["standard", "vv_qk (same as standard)", "vv_vv (same as vv_mixed)", "vv_mixed"]


def test_marks_stand_on_their_points_and_labels_never_meet():
    marks = {
        "the default": (75, "vv_mixed"), "same point": (75, "vv_vv"), "chosen, its neighbour": (80, "vv_mixed"),
        "first": (30, "standard"), "last": (95, "vv_qk"), "second of all": (50, "vv_qk"),
        "not measured": (12, "vv_mixed"),
    }  # fmt: skip
    rows = sweep_rows()
    figure = curves(rows, **marks)
    figure.draw_without_rendering()
    wanted = {"the default = same point", "chosen, its neighbour", "first", "last", "second of all"}
    for axis, protocol in zip(figure.axes, TITLES, strict=True):
        assert set(texts(axis.texts)) == wanted
        assert not overlap(axis.texts)
        own, to_data = rows[rows["protocol"] == protocol], axis.transData.inverted()
        lowest = [to_data.transform(Text.get_window_extent(text))[0, 1] for text in axis.texts]
        assert min(lowest) > own["high"].max()
        rings = {(*line.get_xdata(), *line.get_ydata().round(9)) for line in axis.lines if len(line.get_xdata()) == 1}
        values = own.set_index(["percentile", "kind"])["value"].round(9)
        assert rings == {(at[0], values[at]) for at in list(marks.values())[:6]}


def test_grid_writes_all_numbers_and_outlines_the_best():
    figure = grids(table(), table() / 2)
    left, right, _ = figure.axes
    assert texts(left.texts) == [f"{value:.3f}" for value in table().to_numpy().ravel()]
    assert left.collections[0].norm.vmax == right.collections[0].norm.vmax == table().to_numpy().max()
    assert [(patch.get_x() // 1, patch.get_y() // 1) for patch in left.patches] == [(0, 8), (1, 8), (2, 8)]
    empty = grids(table() * 0, table() * np.nan)
    assert [texts(axis.texts).count("–") for axis in empty.axes[:2]] == [0, 27]
    assert sum(len(axis.patches) for axis in empty.axes[:2]) == 0  # of equal cells none is the best


def test_multiples_say_what_each_percentile_finds():
    figure = multiples(PERCENTILES, title="finding")
    for axis, percentile in zip(figure.axes[2:], PERCENTILES, strict=True):
        ((found, activated),) = extract_many(HEATMAP, (120, 80), [Setting(percentile=percentile)])
        best = style.best_iou(TRUTH.iloc[:1], pd.DataFrame(found, columns=[*BOX_COLUMNS, "score"])).max()
        title = axis.get_title(loc="left")
        assert title.startswith(f"percentile {percentile}:\n{len(found)} box")
        assert title.endswith(f", best IoU {best:.2f}")
        assert len(axis.patches) == 1 + len(found)
        assert (axis.images[1].get_array()[..., 3] > 0).mean() == pytest.approx(activated)
    constant = multiples(heatmap=np.zeros_like(HEATMAP))
    assert not constant.axes[-1].images[1].get_array()[..., 3].any()


def test_pairs_below_the_line_are_counted():
    outside = RNG.normal(0.2, 0.02, 13_000)
    many = pd.DataFrame({"outside_mean": outside, "inside_mean": outside - 0.01})
    few = many.iloc[:400].assign(inside_mean=outside[:400] + np.repeat([-0.01, 0.01], [300, 100]))
    unknown = pd.DataFrame({"outside_mean": [0.1, np.nan], "inside_mean": [np.nan, 0.2]})
    figure = sweep_plots.inside_outside({"standard = vv_qk": pd.concat([few, unknown]), "vv_mixed": many})
    said = ["inverted: 75 %\nof 400 pairs", "inverted: 100 %\nof 13,000 pairs"]
    assert [texts(axis.texts) for axis in figure.axes[:2]] == [[text] for text in said]
    assert figure.axes[1].collections[-1].get_array().sum() == 13_000
    figure.draw_without_rendering()


def test_differences_that_exclude_zero_stand_out():
    axis = differences(DIFFERENCES).axes[0]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() != "white" for line in points] == [True, True, False, False, False, False]
    first = ["+0.012 [+0.004, +0.020]", "−0.015 [−0.022, −0.008]", "+0.001 [−0.002, +0.004]", "+0.003 [–, –]"]
    assert texts(axis.texts)[:4] == first
