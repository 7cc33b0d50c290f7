"""Tables to sort: everything escaped, numbers kept beside the text, the library in the pages that need it alone."""

from __future__ import annotations

import base64
import hashlib
import math
import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_report import display, notebook

from surgerylib.errors import ParameterError
from surgerylib.workbook import sortable_table
from surgerylib.workbook.page import TEMPLATES, content_security_policy, notebook_html

VENDOR = TEMPLATES / "report" / "vendor"
FRAME = pd.DataFrame(
    {"AP": ["0.312 [0.280, 0.344]", "no boxes", "0.050 [0.010, 0.090]"], "error": ["too large", "–", "background"]},
    index=["ship", "Expressway-toll-station", "dam"],
)
AP = [0.312, math.nan, 0.05]


def parsed(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def page(node: nbformat.NotebookNode) -> str:
    return notebook_html(node, run_name="run", date="2026-03-04T05:06:07+00:00", seconds=61)


def policy_of(soup: BeautifulSoup) -> str:
    return soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]


def hashes(scripts: list[str]) -> list[str]:
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]


def test_an_empty_frame_is_a_header() -> None:
    table = parsed(sortable_table(FRAME.iloc[:0], caption="None", sort_values={"AP": []})).table
    assert len(table.select("thead th")) == 3
    assert not table.select("tbody tr")
    alone = parsed(sortable_table(pd.DataFrame(index=["ship"]), caption="Names alone")).table
    assert [cell.get_text() for cell in alone.find_all("th")] == ["class", "ship"]


def test_everything_is_escaped() -> None:
    hostile = '<script>alert(1)</script>"&'
    frame = pd.DataFrame({hostile: [hostile]}, index=[hostile])
    html = sortable_table(frame, caption=hostile, label=hostile, sort_values={hostile: [1]})
    soup = parsed(html)
    assert soup.find("script") is None
    assert soup.get_text().count(hostile) == 5


def test_numbers_stand_beside_the_texts() -> None:
    values = [0.1 + 0.2, math.nan, -math.inf]
    for given in (values, pd.Series(values, index=[7, 8, 9])):
        table = parsed(sortable_table(FRAME, caption="c", sort_values={"AP": given})).table
        orders = [[cell.get("data-order") for cell in row.find_all("td")] for row in table.select("tbody tr")]
        assert orders == [["0.30000000000000004", None], ["", None], ["-Infinity", None]]


@pytest.mark.parametrize(
    ("sort_values", "said"),
    [({"AP": [1.0]}, "1 numbers for 3 rows"), ({"AP": [1.0] * 4}, "4 numbers"), ({"ap": [1.0] * 3}, "no column")],
)
def test_numbers_that_do_not_fit_are_refused(sort_values: dict[str, list[float]], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        sortable_table(FRAME, caption="c", sort_values=sort_values)


def test_a_page_with_such_a_table_holds_the_library_once() -> None:
    html = sortable_table(FRAME, caption="c", sort_values={"AP": AP})
    soup = parsed(page(notebook(display(text_html=html), display(text_html=html))))
    scripts = [tag.get_text() for tag in soup.find_all("script")]
    library = (VENDOR / "dataTables.min.js").read_text(encoding="utf-8")
    assert len(scripts) == 3
    assert scripts.count(library) == 1
    assert policy_of(soup).split("script-src ")[1].split() == hashes(scripts)
    # what the report does to every table leaves the numbers where they are
    cells = soup.select(".output .scroll > table.sortable td.number")
    assert [cell["data-order"] for cell in cells] == ["0.312", "", "0.05"] * 2
    assert cells[0].get_text() == "0.312 [0.280,\u00a00.344]"


def test_a_page_without_such_a_table_is_as_before() -> None:
    plain = page(notebook(display(text_html=FRAME.to_html()), display(text_plain='<table class="sortable">')))
    soup = parsed(plain)
    assert [policy_of(soup)] == [content_security_policy()]
    assert hashes([tag.get_text() for tag in soup.find_all("script")]) == re.findall("'sha256-.*?'", policy_of(soup))
    assert len(plain.encode()) < 40_000
    assert (VENDOR / "dataTables.min.js").stat().st_size > 100_000


def test_the_library_is_the_one_that_is_described() -> None:
    named = dict(
        reversed(line) for line in re.findall(r"^ +([0-9a-f]{64})  (\S+)$", (VENDOR / "README.md").read_text(), re.M)
    )
    assert set(named) == {file.name for file in VENDOR.glob("*.js")}
    soup = parsed(page(notebook(display(text_html=sortable_table(FRAME, caption="c")))))
    embedded = {hashlib.sha256(tag.get_text().encode()).hexdigest() for tag in soup.find_all("script")}
    for name, digest in named.items():
        assert digest in embedded, name
        text = (VENDOR / name).read_text(encoding="utf-8")
        # either would end an inline script before its end, or hide its end
        assert "</script" not in text.lower()
        assert "<!--" not in text
