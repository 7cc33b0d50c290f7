"""A table with its caption: a figure of average precision is never shown without its definition and its protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

import pandas as pd

from ..study.summary import average_precision_text
from ..words import PROTOCOLS


class CaptionedTable:
    """A table as a notebook shows it, with a caption above it.

    Attributes:
        frame: the table.
        caption: plain text.
    """

    def __init__(self, frame: pd.DataFrame, caption: str) -> None:
        self.frame, self.caption = frame, caption

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
