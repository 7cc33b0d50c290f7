"""The house style of figures, as a decorator that leaves matplotlib's own settings as they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib import font_manager

SMALLEST = 9.0  # points: on a phone, where a figure keeps three quarters of its width, still 10 pixels
# asked for the letters that matplotlib's own font lacks, where the machine has one: names of images are in any script
_MORE_LETTERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip
_STYLE = {
    "figure.dpi": 110,
    "font.size": SMALLEST,
    "legend.fontsize": SMALLEST,
    "legend.title_fontsize": SMALLEST,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "figure.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a file name is a $
}


@contextmanager
def _house_style() -> Iterator[None]:
    there = set(font_manager.get_font_names())
    family = ["DejaVu Sans", *(name for name in _MORE_LETTERS if name in there)]
    with matplotlib.rc_context(_STYLE | {"font.family": family}), warnings.catch_warnings():
        # a letter that no font has is drawn as an empty square; the caption, which is text, has it
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# as a decorator: each call draws in the house style and leaves matplotlib's settings as they were
styled = _house_style()
