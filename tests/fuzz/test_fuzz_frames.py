"""Frames of boxes: any wrong one is one line, and average precision keeps its promises on any right one."""

from __future__ import annotations

import datetime
import decimal
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import ANYTHING, fuzz
from test_metrics import BOX, random_frames
from voc_target import one_line

from surgerylib.errors import ParameterError, SurgeryError
from surgerylib.matching import INTERPOLATIONS
from surgerylib.metrics import average_precision, bootstrap_map

COLUMNS = {"detections": ["image_id", "label", *BOX, "score"], "ground_truth": ["image_id", "label", *BOX]}
LABELS, IMAGES = ["a", "b", "c"], ["im0", "im1", "im2"]

# ---------------------------------------------------------------------------------------------- right frames


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@fuzz(25)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 8), st.integers(0, 14), st.integers(-3, 3),
    st.sampled_from([0.5, 2.0, 1024.0]),
)  # fmt: skip
def test_order_types_names_and_units_change_nothing(interpolation, seed, n_truth, n_found, power, factor):
    """To the last bit; as good as all scores differ. What it is on any frames: `test_metrics.py`, by its judges."""
    pair = random_frames(seed, 3, n_truth, n_found, LABELS, 1 << 30)

    def ap_of(*frames: pd.DataFrame) -> dict:
        result = average_precision(*frames, interpolation=interpolation)
        keys = zip(result["label"], result["iou_threshold"], strict=True)
        return dict(zip(keys, (ap.tobytes() for ap in result["ap"].to_numpy()), strict=True))

    names = dict(zip(IMAGES, [9, 3, 7], strict=True))
    other = [frame.assign(image_id=frame["image_id"].map(names).astype("int64")) for frame in pair]
    for frame in other:
        frame[BOX] *= 2.0**power
    other[0]["score"] *= factor
    shuffled, expected = pair[0].sample(frac=1, random_state=seed), ap_of(*pair)
    for same in (
        [shuffled[shuffled.columns[::-1]].assign(more="text"), pair[1]],
        other,
        [frame.astype({"image_id": "category", "label": "category"}) for frame in pair],
        [frame.astype(object) for frame in pair],
    ):
        before = [frame.copy() for frame in same]
        assert ap_of(*same) == expected
        for frame, was in zip(same, before, strict=True):
            pd.testing.assert_frame_equal(frame, was)


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
        values = pd.Series([cell if k == row else FRAME[column][k] for k in range(3)], dtype=object)
        return frame.assign(**{column: values}) if column in frame else frame

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


@pytest.mark.parametrize("name", COLUMNS["detections"])
@pytest.mark.parametrize("change", [
    lambda frame, name: frame.drop(columns=name), lambda frame, name: frame.rename(columns={name: name.upper()}),
    lambda frame, name: frame.rename(columns={name: (name,)}), lambda frame, name: frame.set_index(name),
    lambda frame, name: pd.concat([frame, frame[[name]]], axis=1), lambda frame, _: frame.T,
])  # fmt: skip
def test_a_column_that_is_not_there_once(change, name):
    messages = both(lambda frame: change(frame, name) if name in frame else frame)
    assert "detections" in messages[0]
    assert messages[1] is not None or name == "score"


@pytest.mark.parametrize("wrong", [None, {}, "frame", 3, np.zeros((2, 7)), pd.Series([1.0]), pd.DataFrame()], ids=type)
def test_what_is_no_frame(wrong):
    for message, name in zip(both(lambda frame: wrong), COLUMNS, strict=True):
        assert name in message


ARGUMENTS = [(average_precision, name) for name in ("iou_thresholds", "interpolation", "max_detections", "classes")]
ARGUMENTS += [(bootstrap_map, name) for name in ("image_ids", "n_resamples", "seed")]


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
@fuzz(40)
@given(value=ANYTHING)
def test_any_value_of_any_argument(function, name, value):
    truth = FRAME[COLUMNS["ground_truth"]]
    if function is average_precision:
        outcome(FRAME, truth, **{name: value})
        return
    assume(not isinstance(value, int) or value < 100)
    options = {"image_ids": IMAGES, "n_resamples": 5, "iou_thresholds": (0.5,), name: value}
    try:
        bootstrap_map(FRAME, truth, **options)
    except ParameterError as error:
        one_line(error)
