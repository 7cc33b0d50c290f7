"""Tables to sort: everything escaped, numbers kept beside the text, the library in the pages that need it alone."""

from __future__ import annotations

import base64
import hashlib
import math
import re

import pandas as pd
from bs4 import BeautifulSoup
from refusals import refused
from test_report import display, notebook, page, texts

from surgerylib.errors import ParameterError
from surgerylib.workbook import sortable_table
from surgerylib.workbook.page import TEMPLATES, content_security_policy

VENDOR = TEMPLATES / "report" / "vendor"
FRAME = pd.DataFrame(
    {"AP": ["0.312 [0.280, 0.344]", "no boxes", "0.050 [0.010, 0.090]"], "error": ["too large", "–", "background"]},
    index=["ship", "Expressway-toll-station", "dam"],
)


def parsed(*frame: pd.DataFrame, **options: object) -> BeautifulSoup:
    return BeautifulSoup(sortable_table(*frame, **{"caption": "c", **options}), "html.parser")


def page_with(*outputs: str) -> BeautifulSoup:
    return page(notebook(*(display(text_html=html) for html in outputs)))


def policy_of(soup: BeautifulSoup) -> str:
    return soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]


def hashes(soup: BeautifulSoup) -> list[str]:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts(soup, "script")]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


def test_an_empty_frame_is_a_header() -> None:
    table = parsed(FRAME.iloc[:0], sort_values={"AP": []})
    assert len(table.select("thead th")) == 3
    assert not table.select("tbody tr")
    assert texts(parsed(pd.DataFrame(index=["ship"])), "th") == ["class", "ship"]


def test_everything_is_escaped() -> None:
    hostile = '<script>alert(1)</script>"&'
    frame = pd.DataFrame({hostile: [hostile]}, index=[hostile])
    soup = parsed(frame, caption=hostile, label=hostile, sort_values={hostile: [1]})
    assert soup.find("script") is None
    assert soup.get_text().count(hostile) == 5


def test_numbers_stand_beside_the_texts() -> None:
    values = [0.1 + 0.2, math.nan, -math.inf]
    for given in (values, pd.Series(values, index=[7, 8, 9])):
        table = parsed(FRAME, sort_values={"AP": given})
        orders = [[cell.get("data-order") for cell in row.find_all("td")] for row in table.select("tbody tr")]
        assert orders == [["0.30000000000000004", None], ["", None], ["-Infinity", None]]
    refused(parsed, ParameterError, "1 numbers for 3 rows", FRAME, sort_values={"AP": [1.0]})
    refused(parsed, ParameterError, "no column", FRAME, sort_values={"ap": [1.0] * 3})


def test_a_page_with_such_a_table_holds_the_library_once() -> None:
    soup = page_with(*[sortable_table(FRAME, caption="c", sort_values={"AP": [0.312, math.nan, 0.05]})] * 2)
    scripts = texts(soup, "script")
    assert len(scripts) == 3
    assert scripts.count((VENDOR / "dataTables.min.js").read_text(encoding="utf-8")) == 1
    assert policy_of(soup).split("script-src ")[1].split() == hashes(soup)
    # what the report does to every table leaves the numbers where they are
    cells = soup.select(".output .scroll > table.sortable td.number")
    assert [cell["data-order"] for cell in cells] == ["0.312", "", "0.05"] * 2
    assert cells[0].get_text() == "0.312 [0.280,\u00a00.344]"


def test_a_page_without_such_a_table_is_as_before() -> None:
    soup = page(notebook(display(text_html=FRAME.to_html()), display(text_plain='<table class="sortable">')))
    assert policy_of(soup) == content_security_policy()
    assert hashes(soup) == re.findall("'sha256-.*?'", policy_of(soup))
    assert len(soup.encode()) < 40_000
    assert (VENDOR / "dataTables.min.js").stat().st_size > 100_000


def test_the_library_is_the_one_that_is_described() -> None:
    named = re.findall(r"^ +([0-9a-f]{64})  (\S+)$", (VENDOR / "README.md").read_text(), re.M)
    assert {name for _, name in named} == {file.name for file in VENDOR.glob("*.js")}
    scripts = texts(page_with(sortable_table(FRAME, caption="c")), "script")
    embedded = {hashlib.sha256(text.encode()).hexdigest() for text in scripts}
    for digest, name in named:
        assert digest in embedded, name
        text = (VENDOR / name).read_text(encoding="utf-8")
        # either would end an inline script before its end, or hide its end
        assert "</script" not in text.lower()
        assert "<!--" not in text
