"""Frames of boxes: any wrong one is one line, and average precision keeps its promises on any right one."""

from __future__ import annotations

import datetime
import decimal
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import ANYTHING, fuzz
from test_metrics import BOX, random_frames
from voc_target import one_line

from surgerylib.errors import ParameterError, SurgeryError
from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import average_precision, bootstrap_map

COLUMNS = {"detections": ["image_id", "label", *BOX, "score"], "ground_truth": ["image_id", "label", *BOX]}
LABELS, IMAGES = ["a", "b", "c"], ["im0", "im1", "im2"]
WITH_EACH = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def frames(score_steps: int = 1 << 30) -> st.SearchStrategy:
    """Detections and ground truth of up to three images and classes; as good as all scores differ."""
    seed, n_truth, n_found = st.integers(0, 2**32 - 1), st.integers(0, 8), st.integers(0, 14)
    return st.builds(random_frames, seed, st.just(3), n_truth, n_found, st.just(LABELS), st.just(score_steps))


def ap_of(detections: pd.DataFrame, truth: pd.DataFrame, interpolation: str, **arguments) -> pd.Series:
    result = average_precision(detections, truth, interpolation=interpolation, **arguments)
    return result.set_index(["label", "iou_threshold"])["ap"].sort_index()


def identical(a: pd.Series, b: pd.Series) -> bool:
    """To the last bit, over the classes that both list."""
    return a.index.equals(b.index) and a.to_numpy().tobytes() == b.to_numpy().tobytes()


# ---------------------------------------------------------------------------------------------- right frames


@WITH_EACH
@fuzz(25)
@given(pair=frames(score_steps=2), most=st.one_of(st.none(), st.integers(1, 3)))
def test_average_precision_of_any_frames(interpolation, pair, most):
    detections, truth = pair
    result = average_precision(detections, truth, interpolation=interpolation, max_detections=most, classes=LABELS)
    assert len(result) == 3 * 6
    with_truth = result["n_ground_truth"] > 0
    assert result["ap"].isna().tolist() == (~with_truth).tolist()
    assert result.loc[with_truth, "ap"].between(0, 1).all()
    assert (result.loc[with_truth & (result["n_detections"] == 0), "ap"] == 0).all()
    assert result.groupby("iou_threshold")["n_ground_truth"].sum().iloc[0] == len(truth)
    if interpolation != "coco101" and with_truth.any():  # a higher threshold finds less
        assert (np.diff(result.groupby("iou_threshold")["ap"].mean()) <= 1e-12).all()


@WITH_EACH
@fuzz(25)
@given(pair=frames(), seed=st.integers(0, 99), power=st.integers(-3, 3), factor=st.sampled_from([0.5, 2.0, 1024.0]))
def test_order_types_names_and_units_change_nothing(interpolation, pair, seed, power, factor):
    detections, truth = pair
    expected = ap_of(detections, truth, interpolation)
    shuffled = detections.sample(frac=1, random_state=seed)
    shuffled = shuffled[shuffled.columns[::-1]].assign(more="text")
    assert identical(ap_of(shuffled, truth, interpolation), expected)
    names = dict(zip(IMAGES, [9, 3, 7], strict=True))
    other = [frame.assign(image_id=frame["image_id"].map(names).astype("int64")) for frame in pair]
    for frame in other:
        frame[BOX] *= 2.0**power
    other[0]["score"] *= factor
    for same in (
        other,
        [frame.astype({"image_id": "category", "label": "category"}) for frame in pair],
        [frame.astype(object) for frame in pair],
    ):
        before = [frame.copy() for frame in same]
        assert identical(ap_of(*same, interpolation), expected)
        for frame, was in zip(same, before, strict=True):
            pd.testing.assert_frame_equal(frame, was)


@WITH_EACH
@fuzz(25)
@given(pair=frames(), label=st.sampled_from(LABELS), image=st.sampled_from([*IMAGES, "elsewhere"]))
def test_a_box_on_nothing_never_raises_average_precision(interpolation, pair, label, image):
    detections, truth = pair
    before = ap_of(detections, truth, interpolation, classes=LABELS)
    astray = pd.DataFrame([[image, label, 2000.0, 2000.0, 2010.0, 2010.0, -2.0]], columns=COLUMNS["detections"])
    below = pd.concat([detections, astray], ignore_index=True)
    assert identical(ap_of(below, truth, interpolation, classes=LABELS), before)  # below all others: not counted
    above = pd.concat([detections, astray.assign(score=2.0)], ignore_index=True)
    after = ap_of(above, truth, interpolation, classes=LABELS)
    assert (after.fillna(0) <= before.fillna(0)).all()
    others = after.index.get_level_values("label") != label
    assert identical(after[others], before[others])


# ---------------------------------------------------------------------------------------------- wrong frames

# what a cell of a column may hold instead
CELLS = st.sampled_from([
    None, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e400, 10**400, "", "7", "x", "nan", "a\nb", b"7", True, 1 + 2j,
    (1, 2), [1], {}, {"a"}, object, pd.NA, pd.NaT, np.datetime64("2020-01-01"), datetime.date(2020, 1, 1),
    datetime.timedelta(1), decimal.Decimal("7"), decimal.Decimal("nan"), np.float32(3), np.int8(3), pd.Interval(0, 1),
    "Ship", "ship ", "shi-p",
])  # fmt: skip
DTYPES = st.sampled_from([
    "float16", "float32", "int8", "uint8", "bool", "object", "string", "str", "category", "Int64", "Float64", "boolean",
    "complex64", "datetime64[ns]", "timedelta64[ns]", "Sparse[float64]", "period[D]",
])  # fmt: skip
FRAME = pd.DataFrame(
    [["im0", "ship", 0.0, 0.0, 10.0, 10.0, 0.9], ["im1", "dam", 5, 5, 20, 30, 0.8], ["im1", "ship", 1, 2, 3, 4, 0.7]],
    columns=COLUMNS["detections"],
)  # fmt: skip


def outcome(detections: object, truth: object, **arguments) -> str | None:
    """The one line that refuses two frames; None when they are evaluated, to a share between 0 and 1."""
    try:
        with np.errstate(all="ignore"):
            result = average_precision(detections, truth, **arguments)
    except SurgeryError as error:
        return one_line(error)
    assert result["ap"].dropna().between(0, 1).all()
    return None


def both(change) -> list[str | None]:
    """The outcomes when one frame is changed, then the other."""
    truth = FRAME[COLUMNS["ground_truth"]]
    return [outcome(change(FRAME.copy()), truth), outcome(FRAME, change(truth.copy()))]


@fuzz(60)
@given(column=st.sampled_from(COLUMNS["detections"]), cell=CELLS, row=st.integers(0, 2))
def test_any_cell_of_any_column(column, cell, row):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        if column not in frame.columns:
            return frame
        values = np.empty(len(frame), dtype=object)
        values[:] = frame[column].tolist()
        values[row] = cell
        return frame.assign(**{column: pd.Series(values, dtype=object)})

    messages = both(change)
    if column in (*BOX, "score") and not isinstance(cell, int | float | np.number | decimal.Decimal):
        assert re.search("detections has columns that are not numbers|every number must be finite", messages[0])


@fuzz(40)
@given(column=st.sampled_from(COLUMNS["detections"]), dtype=DTYPES)
def test_any_type_of_any_column(column, dtype):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        try:
            return frame.astype({column: dtype})
        except (TypeError, ValueError, KeyError):  # no such column, or a type that takes none of its values
            return frame

    both(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda frame, name: frame.drop(columns=name, errors="ignore"),
        lambda frame, name: frame.rename(columns={name: name.upper()}),
        lambda frame, name: frame.rename(columns={name: (name,)}),
        lambda frame, name: pd.concat([frame, frame[[name]]], axis=1) if name in frame else frame.drop(columns="label"),
        lambda frame, name: frame.T,
        lambda frame, name: frame.set_index(name) if name in frame else frame.drop(columns="label"),
    ],
    ids=["dropped", "renamed", "tuple", "twice", "turned", "index"],
)
def test_a_column_that_is_not_there_once(change):
    for name in COLUMNS["detections"]:
        messages = both(lambda frame, name=name: change(frame, name))
        assert "detections" in messages[0]
        assert messages[1] is not None or name == "score"


@pytest.mark.parametrize("wrong", [None, {}, "frame", 3, np.zeros((2, 7)), pd.Series([1.0]), pd.DataFrame()], ids=type)
def test_what_is_no_frame(wrong):
    messages = both(lambda frame: wrong)
    assert "detections" in messages[0]
    assert "ground_truth" in messages[1]


@fuzz(25)
@given(st.sampled_from([0, 1]), st.integers(0, 2), st.floats(1e-9, 1e9))
def test_a_reversed_box(axis, row, by):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        low, high = BOX[axis], BOX[axis + 2]
        frame.loc[row, high] = frame.loc[row, low] - by
        return frame

    for message, name in zip(both(change), COLUMNS, strict=True):
        assert f"{name} row {row}" in message
        assert "xmin <= xmax and ymin <= ymax" in message


@pytest.mark.parametrize("name", ["iou_thresholds", "interpolation", "max_detections", "classes"])
@fuzz(40)
@given(value=ANYTHING)
def test_any_value_of_any_argument(name, value):
    outcome(FRAME, FRAME[COLUMNS["ground_truth"]], **{name: value})


@pytest.mark.parametrize("name", ["image_ids", "n_resamples", "seed"])
@fuzz(25)
@given(value=ANYTHING.filter(lambda value: not isinstance(value, int) or value < 100))
def test_any_value_of_any_argument_of_the_intervals(name, value):
    arguments = {"image_ids": IMAGES, "n_resamples": 5, "iou_thresholds": (0.5,), name: value}
    try:
        bootstrap_map(FRAME, FRAME[COLUMNS["ground_truth"]], **arguments)
    except ParameterError as error:
        one_line(error)
