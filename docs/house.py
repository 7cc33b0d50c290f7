"""Draw docs/house.svg: the rooms of `surgerylib`, what is in them, and who imports whom, read from the imports.

.venv/bin/python docs/house.py
"""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from surgerylib.files import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "surgerylib"
CORE = "flat files"
# room -> left, bottom, width, height
PLACES = {
    "workbook": (0.2, 6.0, 6.0, 0.8),
    "explorer": (6.6, 6.0, 3.2, 0.8),
    "study": (1.0, 4.2, 4.2, 1.2),
    "figures": (7.0, 4.4, 2.8, 0.8),
    "engine": (1.0, 2.6, 4.2, 1.0),
    "datasets": (0.2, 1.2, 3.2, 0.8),
    "embedded": (4.4, 1.2, 2.6, 0.8),
    CORE: (0.2, 0.1, 9.6, 0.7),
}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else CORE


def arrows() -> Counter[tuple[str, str]]:
    """(room, room) -> how many of its modules import from there."""
    found: Counter[tuple[str, str]] = Counter()
    for path in PACKAGE.rglob("*.py"):
        own, folder = room_of(path), path.relative_to(PACKAGE).parts[:-1]
        if own == CORE and path.stem.startswith("__"):
            continue
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        targets = set()
        for node in [node for node in nodes if node.level]:
            parts = (*folder[: len(folder) - node.level + 1], *(node.module or node.names[0].name).split("."))
            targets.add(parts[0] if parts[0] in PLACES else CORE)
        found.update((own, target) for target in targets if target != own)
    return found


def draw() -> Figure:
    """The picture."""
    modules = {
        room: sorted(p.stem for p in PACKAGE.rglob("*.py") if room_of(p) == room and not p.stem.startswith("__"))
        for room in PLACES
    }
    lines = Counter(room_of(p) for p in PACKAGE.rglob("*.py") for _ in p.read_text().splitlines())
    fig = Figure(figsize=(10, 7))
    FigureCanvasSVG(fig)
    axis = fig.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10), ylim=(0, 7))
    axis.axis("off")
    for room, (x, y, width, height) in PLACES.items():
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.04", fc="#f4f6f8", ec="#37474f"))
        axis.text(x + 0.08, y + height - 0.06, f"{room}  ({lines[room]:,} lines)", weight="bold", va="top", size=10)
        names = textwrap.fill(" · ".join(modules[room]), int(width * 15.5))
        axis.text(x + 0.08, y + height - 0.34, names, va="top", size=8)
    for (a, b), count in arrows().items():
        if b == CORE:  # all do; an arrow each would hide the others
            continue
        (xa, ya, wa, _), (xb, yb, wb, hb) = PLACES[a], PLACES[b]
        if ya == yb:  # in one row: from side to side
            start, end = (xa - 0.05, ya + hb / 2), (xb + wb + 0.05, yb + hb / 2)
        else:
            left, right = max(xa, xb), min(xa + wa, xb + wb)
            start, end = (((left + right) / 2, y) for y in (ya - 0.05, yb + hb + 0.05))
            if right <= left:
                start, end = (xa + wa / 2, ya - 0.05), (xb + wb / 2, yb + hb + 0.05)
        look = {"arrowstyle": "-|>", "color": "#5c6bc0", "lw": 0.6 + count / 6}
        axis.annotate("", end, start, arrowprops=look, zorder=0)  # behind the rooms that it passes
    axis.text(9.8, 0.88, "every room imports the flat files", ha="right", style="italic", size=8)
    return fig


if __name__ == "__main__":
    with rc_context({"svg.hashsalt": "house", "svg.fonttype": "none"}):
        draw().savefig(PROJECT_ROOT / "docs" / "house.svg", metadata={"Date": None})
