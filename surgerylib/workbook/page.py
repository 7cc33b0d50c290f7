"""An executed notebook as HTML that needs no network and no Python.

nbconvert does the conversion; the template in `templates/report` and the small exporter here replace its stock
templates, which fetch require.js and MathJax from a CDN. A content security policy in each page forbids every
request, so that not even a notebook's own output can make one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from nbconvert.exporters import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image
from traitlets.config import Config

from ..intervals import interval_text, number
from ..study import INTERVAL_NOTE, average_precision_text
from .parameters import parse_assignments, tagged_source

TEMPLATES = Path(__file__).parent / "templates"
# what a page may hold of the types a notebook offers; widgets, scripts and LaTeX need JavaScript from elsewhere
DISPLAYED_TYPES = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
WIDE_TABLE = 12  # columns that still fit on paper at the usual size
WIDE_IMAGE = 600  # pixels from which a figure's letters can't be read when it is shrunk to a phone's width
# a progress bar that printed a new line instead of returning the carriage
_EARLIER_BAR = re.compile(r"^([^:\n]*):.*\d%\|.*\|.*\n(?=\1:.*\d%\|.*\|)", re.MULTILINE)
# a number, perhaps with a unit, and perhaps with its interval behind it; or nothing, or a dash in its place
_NUMBER = re.compile(r"^(NaN|nan|None|no [a-z]+|[-–—]?|[-+−]?[\d.,]+(e[-+]?\d+)?\s?%?([ \[(].{0,30})?)$")
_BRACKET = re.compile(r"^(.+?) ([\[(].+)$")
# where a line must not end: within an interval, and between a number and its per cent
_HELD_TOGETHER = re.compile(r"(?<=\d,) (?=[+−\d.]+\])|(?<=\d) (?=%)")
_PAPERMILL_MARKER = "papermill-error-cell-tag"


def notebook_html(
    notebook: nbformat.NotebookNode,
    *,
    run_name: str,
    date: str,
    seconds: float,
    failure: str = "",
    folder: Path | None = None,
) -> str:
    """A notebook, executed at an ISO `date` in so many `seconds`, as one self-contained HTML page.

    `failure` is why it stopped before its end, in one line; images that its text refers to are looked for in `folder`.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    page = {
        "title": title(notebook) or "Notebook",
        "run_name": run_name,
        "date": readable_date(date),
        "duration": readable_seconds(seconds),
        "failure": failure,
        "parameters": _parameter_rows(notebook),
        # of `Session.show_notes`, each once
        "notes": dict.fromkeys(note for output in outputs for note in output.get("metadata", {}).get("notes", [])),
    }
    resources = {"metadata": {"path": str(folder) if folder else "", "name": ""}, "page": page}
    html, _ = _exporter().from_notebook_node(notebook, resources)
    return html


@functools.cache  # compiling templates takes most of a small page's time
def _exporter() -> HTMLExporter:
    return HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": DISPLAYED_TYPES}}),
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        preprocessors=[CoalesceStreamsPreprocessor, _tidy],
        filters={"held": held_together, "balanced": _balanced, "finished": _finished},
        embed_images=True,
        exclude_anchor_links=True,
    )


def title(notebook: nbformat.NotebookNode) -> str:
    """The text of the first heading of the first level; empty when there is none."""
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    match = re.search(r"^#[ \t]+(.+?)[ \t#]*$", markdown, re.MULTILINE)
    return re.sub(r"[*_`]", "", match[1]) if match else ""


def rendered(template: str, **content: Any) -> str:
    """A page that is not a notebook's: every value is escaped, what is missing is left out."""
    return _environment().get_template(template).render(content)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, TEMPLATES / "report"]), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.ChainableUndefined,
    )  # fmt: skip
    environment.globals |= {
        "figure_cell": figure_cell, "average_precision_text": average_precision_text, "interval_note": INTERVAL_NOTE,
        "csp": content_security_policy(),
    }  # fmt: skip
    environment.filters |= {
        "url": quote, "duration": readable_seconds, "date": readable_date, "anchor": anchor_of, "shown": shown_value,
        "held": held_together,
    }  # fmt: skip
    return environment


def held_together(text: str) -> str:
    """Text whose intervals and percentages stay in one line."""
    return _HELD_TOGETHER.sub("\u00a0", text)


def anchor_of(heading: str) -> str:
    """The anchor of a heading that no other of the page shares."""
    return re.sub(r"[^\w]+", "-", heading.lower()).strip("-") or "section"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def readable_seconds(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _tidy(notebook: nbformat.NotebookNode, resources: Any) -> tuple[nbformat.NotebookNode, Any]:
    """Leaves of a notebook what a reader wants to see, and gives every image a text."""
    notebook.cells = [cell for cell in notebook.cells if _PAPERMILL_MARKER not in cell.metadata.get("tags", [])]
    section, numbers = "", itertools.count(1)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,4}[ \t]+(.+)$", cell.source, re.MULTILINE)
            section = re.sub(r"[*_`]", "", headings[-1]) if headings else section
            continue
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _EARLIER_BAR.sub("", output.text)
        cell.outputs = [output for output in cell.outputs if _is_shown(output)]
        for output, mimetype in itertools.product(cell.outputs, ("image/png", "image/jpeg", "image/svg+xml")):
            if mimetype in output.get("data", {}):
                number, described = next(numbers), output.metadata.setdefault(mimetype, nbformat.NotebookNode())
                if not str(described.get("alt") or "").strip():
                    described["alt"] = f"Figure {number}" + (f", in “{section}”" if section else "")
                for name in {"alt", "finding", "caption"} & described.keys():
                    described[name] = held_together(described[name])
                if mimetype != "image/svg+xml":
                    described["size"] = image_size(base64.b64decode(output.data[mimetype]))
    if not resources["page"]["failure"]:
        _mark_setup(notebook.cells)
    return notebook, resources


def _is_shown(output: nbformat.NotebookNode) -> bool:
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return False  # a progress bar as a widget: its text shows it at 0 % for ever
    if {"repeats_caption", "notes"} & output.get("metadata", {}).keys():
        return False  # the page has it elsewhere
    return output.output_type != "stream" or bool(output.text.strip())


def _mark_setup(cells: list[nbformat.NotebookNode]) -> None:
    """Marks the code that runs before the first section: folded into one, it doesn't part a question and its answer."""
    start = first = next((at for at, cell in enumerate(cells) if re.search(r"^## ", cell.source, re.MULTILINE)), 0)
    while start and cells[start - 1].cell_type == "code":
        if any(output.output_type != "stream" for output in cells[start - 1].outputs):
            break
        start -= 1
    if start < first:
        cells[start].metadata["setup"] = {"opens": True}
        cells[first - 1].metadata.setdefault("setup", {})["closes"] = True


def image_size(data: bytes) -> dict[str, Any]:
    """Width and height of an image in pixels, and whether that is too wide to be shrunk to a phone's width."""
    with Image.open(io.BytesIO(data)) as image:
        return {"width": image.width, "height": image.height, "wide": image.width > WIDE_IMAGE}


def _balanced(html: str) -> str:
    """HTML that closes what it opens, and nothing else, so that it changes nothing around it."""
    return str(BeautifulSoup(html, "html.parser"))


def _finished(html: str) -> dict[str, Any]:
    """The HTML of all cells with anchors and nothing that would be fetched, each table in a box of its own.

    With it go the headings for a table of contents, the scripts that it needs, and the policy that allows them.
    """
    soup = BeautifulSoup(html, "html.parser")
    headings: dict[str, dict[str, Any]] = {}
    if title := soup.select_one(".prose h1"):
        title.decompose()  # the page's header shows it
    for tag in soup.select(",".join(f".prose h{level}" for level in range(1, 7))):
        text = tag.get_text().strip()
        ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        anchor = next(name for end in ends if (name := anchor_of(text) + end) not in headings)
        headings[anchor] = {"level": int(tag.name[1]), "anchor": anchor, "text": text}
        tag["id"] = anchor
        attributes = {"class": "anchor", "aria-label": "link to here"}
        tag.append(soup.new_tag("a", href=f"#{anchor}", attrs=attributes, string="#"))
    for tag in soup.find_all(["script", "link", "iframe", "object", "embed", "base", "meta"]):
        tag.decompose()
    for tag in soup.find_all("style"):
        if tag.has_attr("scoped") or re.search(r"@import|url\(", tag.get_text()):  # scoped: pandas' own look
            tag.decompose()
    for tag in soup.find_all(style=re.compile(r"url\(")):
        del tag["style"]
    for tag in soup.find_all(src=True):
        if not tag["src"].startswith("data:"):
            missing = f"[not in this file: {tag.get('alt') or tag['src']}]"
            tag.replace_with(soup.new_tag("span", attrs={"class": "muted"}, string=missing))
    for image in soup.find_all("img"):
        image["alt"] = image.get("alt") or "Image without a description"
    for table in soup.find_all("table"):
        _join_header_rows(table)
        for corner in table.select("thead th"):
            if not corner.get_text(strip=True):
                corner.name = "td"  # heads nothing
        if not table.find(colspan=True):
            _mark_numbers(table)
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
        del table["border"]
        if (row := table.find("tr")) and len(row.find_all(["th", "td"])) > WIDE_TABLE:
            table["class"] = [*table.get("class", []), "wide"]
    scripts = _scripts(sortable=bool(soup.select("table.sortable")))
    found = {"html": str(soup), "headings": list(headings.values())}
    return found | {"scripts": scripts, "csp": content_security_policy(scripts)}


def _join_header_rows(table: Tag) -> None:
    """pandas gives the names of the index a header row of their own: put them into the empty corner above."""
    rows = table.select("thead > tr")
    if len(rows) != 2:
        return
    upper, lower = (row.find_all("th", recursive=False) for row in rows)
    levels = max((at for at, cell in enumerate(lower, start=1) if cell.get_text(strip=True)), default=1)
    if len(upper) != len(lower) or levels >= max(len(upper), 2):
        return  # the columns have names of two rows
    if corner := " ".join(cell.get_text(strip=True) for cell in upper[:levels]).strip():  # the name of the columns
        name = Tag(name="strong")
        name.string = corner
        if table.caption is None:
            table.insert(0, Tag(name="caption"))
        else:
            table.caption.insert(0, " · ")
        table.caption.insert(0, name)
    for above, below in zip(upper[:levels], lower, strict=False):
        above.string = below.get_text()
    rows[1].decompose()


def _mark_numbers(table: Tag) -> None:
    """Columns of numbers are set flush right, header and all; pandas sets everything so, text too."""
    for tag in table.find_all(["tr", "th", "td"]):
        del tag["style"]
    # counted from the right, where a cell that spans rows takes no other's place
    rows = [row.find_all(["th", "td"], recursive=False)[::-1] for row in table.find_all("tr")]
    for column in itertools.zip_longest(*rows):
        cells = [cell for cell in column if cell is not None]
        values = [cell for cell in cells if cell.name == "td"]
        texts = [cell.get_text(strip=True) for cell in values]
        if any(texts) and all(_NUMBER.match(text) for text in texts):
            for cell in cells:
                cell["class"] = [*cell.get("class", []), "number"]
            for cell, text in zip(values, texts, strict=True):
                # an interval stays in one line, and so does `no boxes`
                text = re.sub(r"(?<=^no) ", "\u00a0", held_together(text))
                if bracket := _BRACKET.match(text):
                    # below its number: else numbers stand under brackets where only some rows have room for both
                    behind = Tag(name="small")
                    behind.string = bracket[2]
                    cell.clear()
                    cell.extend([f"{bracket[1]} ", behind])
                else:
                    cell.string = text


def _parameter_rows(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """The parameters table: name, value, what it means, and whether the run changed the default."""
    defaults = parse_assignments(tagged_source(notebook, "parameters"))
    given = parse_assignments(tagged_source(notebook, "injected-parameters"))
    return [
        {
            "name": name,
            "value": shown_value(parameter.default),
            "comment": defaults[name].comment if name in defaults else "",
            "changed": name != "out_dir" and (name not in defaults or parameter.default != defaults[name].default),
        }
        for name, parameter in {**defaults, **given}.items()
    ]


def by_threshold(entries: Iterable[Mapping[str, Any]]) -> dict[float | None, Mapping[str, Any]]:
    """Figures by their IoU threshold, None for the mean over all."""
    return {entry["iou_threshold"]: entry for entry in entries}


def iou_columns(thresholds: Iterable[float | None]) -> dict[float | None, str]:
    """Their headings, in a table of such figures."""
    return {at: "mean" if at is None else f"IoU {at:.2f}" for at in thresholds}


def figure_cell(entry: Mapping[str, Any] | None, best: float | None = None) -> dict[str, Any]:
    """A number and its interval as text, a dash where there is none.

    A difference is strong when surely not 0, anything else when it is the `best`, and more than 0.
    """
    field = next((name for name in ("difference", "map", "value") if entry and entry.get(name) is not None), None)
    if field is None:
        return {"value": "–"}
    value, low, high, sign = entry[field], entry.get("low"), entry.get("high"), field == "difference"
    known = low is not None and high is not None
    return {
        "value": number(value, sign=sign),
        "interval": interval_text(low, high, sign=sign) if known else "",
        "strong": known and (low > 0 or high < 0) if sign else value == best and value > 0,
    }


def shown_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


def readable_date(date: str) -> str:
    """`22 November 2026, 04:28` from an ISO date and time; anything else as it is."""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return date
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def content_security_policy(scripts: Sequence[str] = ()) -> str:
    """No request to anywhere, and no script but these; without any given, but the one that every page has."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts or _scripts()]
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {sources}"


def _scripts(*, sortable: bool = False) -> list[str]:
    """What a page runs; the library that sorts tables is large, so only a page with such a table holds it."""
    names = ["report.js", "vendor/dataTables.min.js", "tables.js"] if sortable else ["report.js"]
    return [(TEMPLATES / "report" / name).read_text(encoding="utf-8") for name in names]
