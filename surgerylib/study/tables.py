"""What tables and result files share: cells of text, and plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..intervals import with_interval


def cells(frame: pd.DataFrame, value: str = "value", *, sign: bool = False) -> pd.Series:
    """A column of a frame as text, `value [low, high]`, by the frame's index.

    Args:
        frame: with the columns value, and <value>_low and <value>_high or else low and high.
        value: the column.
        sign: whether to write a plus, as for differences.
    """
    ends = (f"{value}_low", f"{value}_high") if f"{value}_low" in frame else ("low", "high")
    rows = frame[[value, *ends]].to_numpy(np.float64)
    return pd.Series([with_interval(*row, sign=sign) for row in rows], frame.index, dtype=object)


def texts(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]], missing: Any = "no boxes") -> pd.DataFrame:
    """Columns of a frame for a reader.

    Args:
        frame: of numbers.
        columns: title -> column and how it is written: a format such as `{:,}`, or `interval`, see `cells`.
        missing: what stands for NaN, one text or one a row.
    """

    def column(name: str, form: str) -> pd.Series:
        text = frame[name].map(lambda value: form.format(value).replace("-", "−"))
        return (cells(frame, name) if form == "interval" else text).where(frame[name].notna(), missing)

    return pd.DataFrame({title: column(*of) for title, of in columns.items()}, frame.index)


def wide(
    frame: pd.DataFrame, index: str | list[str], columns: str, value: str = "value", *, sign: bool = False
) -> pd.DataFrame:
    """`cells` of a long frame, a row for each of one column (or several), a column for each of another."""
    of = frame.assign(cell=cells(frame, value, sign=sign))
    return of.pivot_table(index=index, columns=columns, values="cell", aggfunc="first", sort=False)


def joined(parts: Mapping[Any, pd.DataFrame], *names: str) -> pd.DataFrame:
    """Frames one below the other, with the parts of their keys as first columns."""
    if not parts:
        return pd.DataFrame(columns=names)
    return pd.concat(parts, names=[*names, None]).reset_index(list(names)).reset_index(drop=True)


def plain(value: Any) -> Any:
    """Frames, rows, arrays and numbers as JSON takes them: a frame is a list of its rows, NaN is None."""
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping | pd.Series):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def plain_methods(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """A `localization_summary` as plain values: method -> figure -> value, low, high."""
    return {
        method: {row["figure"]: {name: row[name] for name in ("value", "low", "high")} for row in plain(own)}
        for method, own in summary.groupby("method", sort=False)
    }
