"""Tables as pages show them: average precision never without its definition and protocol, and tables to be sorted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from jinja2 import Template

from ..errors import ParameterError
from ..study import average_precision_text
from ..words import PROTOCOLS

_SORTABLE = Template(
    (Path(__file__).parent / "templates" / "sortable.html.j2").read_text(encoding="utf-8"), autoescape=True
)


@dataclass(repr=False, eq=False)
class CaptionedTable:
    """A table as a notebook shows it, with a caption of plain text above it."""

    frame: pd.DataFrame
    caption: str

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame!r}"

    def _repr_html_(self) -> str | None:
        table = self.frame._repr_html_()
        if table is None:  # pandas has been told to show text
            return None
        caption = f"<caption>{escape(self.caption)}</caption>"
        return re.sub(r"(<table[^>]*>)", lambda tag: tag[1] + caption, table, count=1)


def ap_caption(interpolation: str, protocols: Iterable[str] = PROTOCOLS) -> str:
    """What the AP of a table is: `AP: average precision at 11 recall points …; protocol all: every class …`.

    Args:
        interpolation: as in `average_precision`.
        protocols: those that the table's figures are measured under; none for a ranking of images.
    """
    texts = [PROTOCOLS[protocol] for protocol in protocols]
    said = f"Protocol {'; '.join(texts)}" if texts else "Of images, ranked for each class by its similarity to the CLS"
    return f"AP: {average_precision_text(interpolation)}. {said}."


def ap_table(frame: pd.DataFrame, interpolation: str, protocols: Iterable[str] = PROTOCOLS) -> CaptionedTable:
    """A table that holds average precision, with `ap_caption`."""
    return CaptionedTable(frame, ap_caption(interpolation, protocols))


def sortable_table(
    frame: pd.DataFrame, *, caption: str, sort_values: Mapping[str, Sequence[float]] | None = None, label: str = "class"
) -> str:
    """The frame as an HTML table of class `sortable`, which `page` gives what it needs to be sorted.

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
            there = list(frame.columns)
            raise ParameterError(f"sort_values has {column!r}, which is no column of the table; name one of {there}")
        if len(values) != len(frame):
            counts = f"{len(values)} numbers for {len(frame)} rows"
            raise ParameterError(f"sort_values[{column!r}] has {counts}; give one for each row")
    # as JavaScript reads numbers; nothing for NaN, which `tables.js` puts last
    orders = {name: ["" if pd.isna(n) else json.dumps(float(n)) for n in values] for name, values in numbers.items()}
    return _SORTABLE.render(frame=frame, caption=caption, label=label, orders=orders)
