"""A table that a report page lets its reader sort and filter, and that is a plain HTML table everywhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from ..errors import ParameterError


def sortable_table(
    frame: pd.DataFrame,
    *,
    caption: str,
    sort_values: Mapping[str, Sequence[float]] | None = None,
    label: str = "class",
) -> str:
    """The frame as an HTML table of class `sortable`, which `report.py` gives what it needs to be sorted.

    Args:
        frame: What the cells say, formatted; a row each, its name in the index.
        caption: Stands above the table.
        sort_values: For columns whose text doesn't sort by itself, such as `0.312 [0.280, 0.344]` or `no boxes`: a
            number for each row, in the rows' order. A row of NaN stands last, whichever way the column is sorted.
        label: Header of the index.

    Returns:
        HTML in which everything from the frame is escaped.

    Raises:
        ParameterError: `sort_values` names a column that the frame lacks, or has not one number for each row.
    """
    numbers = {column: list(values) for column, values in (sort_values or {}).items()}
    for column, values in numbers.items():
        if column not in frame.columns:
            raise ParameterError(
                f"sort_values has {column!r}, which is no column of the table; name one of {list(frame.columns)}"
            )
        if len(values) != len(frame):
            raise ParameterError(
                f"sort_values[{column!r}] has {len(values)} numbers for {len(frame)} rows; give one for each row"
            )
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in [label, *frame.columns])
    rows = []
    for position, (name, *texts) in enumerate(frame.itertuples(name=None)):
        cells = [f'<th scope="row">{escape(str(name))}</th>']
        for column, text in zip(frame.columns, texts, strict=True):
            order = f' data-order="{_order(numbers[column][position])}"' if column in numbers else ""
            cells.append(f"<td{order}>{escape(str(text))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return (
        f'<table class="sortable">\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>"
    )


def _order(value: float) -> str:
    """A number as JavaScript reads it; nothing for NaN, which `tables.js` puts last."""
    return "" if pd.isna(value) else json.dumps(float(value))
