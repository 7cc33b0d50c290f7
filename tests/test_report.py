"""The HTML: complete in itself, everything from outside escaped, every image with a text."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from made_runs import change, write_run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from surgerylib.workbook.index import index_html
from surgerylib.workbook.page import figure_cell, notebook_html, title

HOSTILE = "<script>alert('x')</script>"


def png(width: int, description: str) -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("Description", description)
    Image.new("RGB", (width, 10), "red").save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


PNG, WIDE = (base64.b64encode(png(width, "")).decode() for width in (4, 900))


def notebook(*outputs: nbformat.NotebookNode, markdown: str = "## Part\n\ntext") -> nbformat.NotebookNode:
    cells = [
        new_markdown_cell("# Which *kind*?\n\nIntroduction."),
        new_code_cell("seed = 0  # of the <b>draw</b>\nname = 'a'", metadata={"tags": ["parameters"]}),
        new_code_cell(f"# Parameters\nname = {HOSTILE!r}", metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell(markdown),
        new_code_cell("x < 1 # <b>", outputs=list(outputs), execution_count=1),
    ]
    return new_notebook(cells=cells)


def page(node: nbformat.NotebookNode, failure: str = "", run_name: str = "run") -> BeautifulSoup:
    html = notebook_html(node, run_name=run_name, date="2026-03-04T05:06:07+00:00", seconds=61, failure=failure)
    return BeautifulSoup(html, "html.parser")


def display(about: dict | None = None, **data: str) -> nbformat.NotebookNode:
    """An output: its MIME types and what they hold; what is known `about` it."""
    data = {name.replace("_", "/", 1): value for name, value in data.items()}
    return new_output("display_data", data=data, metadata=dict.fromkeys(data, about) if about else {})


def table_of(frame: pd.DataFrame) -> BeautifulSoup:
    return page(notebook(display(text_html=frame.to_html()))).select_one(".output .scroll > table")


def texts(soup: BeautifulSoup, selector: str) -> list[str]:
    return [tag.get_text() for tag in soup.select(selector)]


def requests_of(soup: BeautifulSoup) -> list[str]:
    """Whatever a browser would fetch by itself: links that a reader must click are none."""
    found = [tag["src"] for tag in soup.find_all(src=True)] + [tag["href"] for tag in soup.select("link[href]")]
    styles = " ".join([*texts(soup, "style"), *(tag["style"] for tag in soup.find_all(style=True))])
    found += re.findall(r"@import\s+\S+|url\([^)]*\)", styles)
    return [url for url in found if not url.startswith("data:")]


def test_nothing_is_requested_whatever_the_outputs_hold() -> None:
    node = notebook(
        display(text_html="<img src='https://a.example/a.png'><script src='//b.example/b.js'></script>"),
        display(text_html="<style>@import 'https://c.example/c.css';</style><link href='https://d.example' rel=x>"),
        display(text_html="<iframe src='https://e.example'></iframe><b style='background:url(//h.example)'>kept</b>"),
        display(text_markdown="![remote](https://f.example/f.png) and [a link](https://g.example)"),
        display(image_png=PNG),
        markdown="## Part\n\n![missing](figures/none.png)",
    )
    soup = page(node)
    assert requests_of(soup) == []
    assert "kept" in soup.get_text()
    assert soup.find("a", href="https://g.example")
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'")
    assert len(soup.find_all("script")) == 1


def test_markup_from_outside_is_text() -> None:
    node = notebook(
        new_output("stream", name="stdout", text=f"out {HOSTILE}"),
        new_output("stream", name="stderr", text=f"err {HOSTILE}"),
        display(text_plain=HOSTILE),
        new_output("error", ename="ValueError", evalue=HOSTILE, traceback=[f"\x1b[31m{HOSTILE}\x1b[0m"]),
        markdown=f"## A `{HOSTILE}`\n\ntext",
    )
    soup = page(node, failure=HOSTILE, run_name=HOSTILE)
    (script,) = texts(soup, "script")
    assert "alert" not in script
    assert soup.get_text().count(HOSTILE) >= 8
    assert soup.find("b") is None


def test_every_image_has_a_text_and_a_figure_its_caption() -> None:
    described = display({"alt": "Few. Boxes <1>.", "finding": "Few", "caption": "Boxes <1>."}, image_png=WIDE)
    again = display(text_markdown="**Few.** Boxes")
    again.metadata["repeats_caption"] = True
    inline = display(text_html=f"<img src='data:image/png;base64,{PNG}'>")
    soup = page(notebook(described, again, display({"alt": " "}, image_jpeg=PNG), inline, display(image_png=PNG)))
    alts = [image["alt"] for image in soup.find_all("img")]
    assert (alts[:2], len(alts)) == (["Few. Boxes <1>.", "Figure 2, in “Part”"], 4)
    assert all(alt.strip() for alt in alts)
    first, second, *_ = soup.select("figure")
    assert first.figcaption.get_text() == alts[0]
    assert soup.get_text().count("Few") == 1
    assert first.select(".scroll[tabindex] > img.wide[width='900'][height='10']")
    assert not second.select("img.wide, figcaption")


def test_title_contents_and_anchors() -> None:
    soup = page(notebook(markdown="## Part\n\n### Detail & more\n\n## Part"))
    assert texts(soup, "h1") == ["Which kind?"]
    assert soup.title.get_text() == "Which kind? · run"
    assert title(notebook()) == "Which kind?"
    anchors = ["part", "detail-more", "part-2"]
    assert [link["href"] for link in soup.select(".sidebar a")] == [f"#{anchor}" for anchor in anchors]
    assert [tag["id"] for tag in soup.select("main h2, main h3")] == anchors


def test_parameters_show_value_meaning_and_what_the_run_set() -> None:
    rows = page(notebook()).select(".parameters tbody tr")
    assert [texts(row, "th, td") for row in rows] == [["seed", "0", "of the <b>draw</b>"], ["name", HOSTILE, ""]]
    assert [row.get("class") for row in rows] == [None, ["changed"]]


def test_progress_bars_show_their_last_state() -> None:
    bar = "maps:   0%|          | 0/3\rmaps:  33%|###       | 1/3\rmaps: 100%|##########| 3/3\n"
    pieces = [new_output("stream", name="stderr", text=part) for part in (bar[:40], bar[40:] + "a warning\n")]
    widget = display(text_plain="  0%|          | 0/3")
    widget.data["application/vnd.jupyter.widget-view+json"] = {"model_id": "1"}
    soup = page(notebook(*pieces, widget))
    (folded,) = texts(soup, "details.messages pre")
    assert folded.split("\n")[:2] == ["maps: 100%|##########| 3/3", "a warning"]
    assert "0/3" not in soup.get_text()


def test_a_failure_is_said_first_and_its_traceback_is_folded() -> None:
    error = new_output("error", ename="DatasetError", evalue="no folder x", traceback=["line 1", "line 2"])
    node = notebook(error)
    node.cells.append(new_code_cell("never()"))
    node.cells.insert(0, new_markdown_cell("papermill's", metadata={"tags": ["papermill-error-cell-tag"]}))
    soup = page(node, failure="DatasetError: no folder x")
    banner = soup.select_one(".masthead .banner.failed")
    assert "DatasetError: no folder x" in banner.get_text()
    assert banner.a["href"] == "#failure"
    assert soup.find(id="failure").details.pre.get_text() == "line 1\nline 2"
    assert "papermill's" not in soup.get_text()
    assert "not executed" in texts(soup, "details.code")[-1]


def test_tables_have_one_header_and_an_interval_below_its_number() -> None:
    frame = pd.DataFrame(
        {"mAP": ["−0.5 [−0.6, −0.4]", "no boxes"], "errors": ["+0.12 (5,479)", "+0.00 (2)"], "label": ["ship", "dam"]},
        index=pd.MultiIndex.from_tuples([("all", "standard"), ("all", "vv_mixed")], names=["protocol", "kind"]),
    )
    table = table_of(frame)
    assert len(table.select("thead tr")) == 1
    assert texts(table, "thead th") == ["protocol", "kind", "mAP", "errors", "label"]
    assert texts(table, "td.number") == ["−0.5 [−0.6,\u00a0−0.4]", "+0.12 (5,479)", "no\u00a0boxes", "+0.00 (2)"]
    assert texts(table, "td.number > small") == ["[−0.6,\u00a0−0.4]", "(5,479)", "(2)"]
    assert all(texts(table_of(frame.reset_index(drop=True)), "thead th"))  # an empty corner heads nothing
    names_of_two_rows = pd.MultiIndex.from_tuples([("a", "x"), ("b", "y")])
    assert len(table_of(pd.DataFrame([[1, 2]], columns=names_of_two_rows)).select("thead tr")) == 2


def test_what_runs_before_the_answer_is_folded_unless_it_failed() -> None:
    said = new_output("stream", name="stdout", text="model: x")
    cells = [
        new_markdown_cell("# Why?\n\nA question."),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("load()", outputs=[said]),
        new_markdown_cell("## Answer"),
        new_code_cell("show()", outputs=[said]),
    ]
    (setup,) = page(new_notebook(cells=cells)).select("details.setup")
    assert not setup.has_attr("open")
    assert len(setup.select("section.cell")) == 2
    assert setup.find_next("h2").get_text().startswith("Answer")
    assert not page(new_notebook(cells=cells), failure="broken").select("details.setup")
    cells[2].outputs.append(display(image_png=PNG))
    assert not page(new_notebook(cells=cells)).select("details.setup")


def test_an_interval_and_a_percentage_stay_in_one_line() -> None:
    soup = page(notebook(display(text_markdown="**0.3 [−0.1, +0.4]** in 20.2 % of [a, b], 1, 2")))
    assert "0.3 [−0.1,\u00a0+0.4] in 20.2\u00a0% of [a, b], 1, 2" in soup.get_text()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose second notebook failed, with hostile texts and a figure."""
    folder = write_run(tmp_path / "run", evaluated=False, name=HOSTILE, status="failed", parameters={"model": HOSTILE})
    names = ["map_results.json", f"{HOSTILE[:8]}.txt", "figures/summary/a b.png"]
    (folder / "figures" / "summary").mkdir(parents=True)
    (folder / names[1]).write_text("x")
    (folder / names[2]).write_bytes(png(4, f"Bars {HOSTILE}"))

    def edit(run: dict) -> None:
        (first,) = run["notebooks"]
        first.update(title=f"Which? {HOSTILE}", finding="vv_mixed wins", files=names)
        run["notebooks"].append(first | {"name": "02_second", "status": "failed", "message": HOSTILE, "files": []})

    change(folder / "run.json", edit)
    change(folder / "map_results.json", lambda results: results.update(warnings=[HOSTILE]))
    return folder


def index_of(folder: Path) -> BeautifulSoup:
    return BeautifulSoup(index_html(folder), "html.parser")


def test_index_with_results(run_dir: Path) -> None:
    results = json.loads((run_dir / "map_results.json").read_text())
    protocols = results["protocols"]
    protocols["all"]["standard"] = []
    protocols["present"]["standard"][1]["low"] = None
    (run_dir / "map_results.json").write_text(json.dumps(results))
    first, second, weak = *protocols["present"].values(), protocols["all"]["vv_mixed"]
    paired = results["paired_difference"]["protocols"]["present"]

    def text(entry: dict) -> str:
        cell = figure_cell(entry)
        return f"{cell['value']} {cell['interval']}".strip()

    soup = index_of(run_dir)
    headline, present, everything = soup.select(".numbers table")
    shown = [texts(row, "th, td") for row in headline.select("tbody tr")]
    assert [" ".join(row[1:3]) for row in shown] == [text(entry[0]) for entry in (first, second, weak)]
    assert "standard" in shown[0][0]
    cells = [[td.get_text(" ") for td in row.find_all("td")] for row in present.select("tbody tr")]
    assert cells == [[text(entry) for entry in row] for row in (first, second, paired)]
    real = [f"{entry['difference']:+.3f}" for entry in paired if entry["low"] > 0]
    assert texts(present, "strong") == [f"{entry['map']:.3f}" for entry in second] + real
    assert "all 3 classes" in soup.get_text()
    assert not re.search(r"\d to [+−]?\d", soup.get_text())  # an interval has brackets
    assert texts(everything.select("tbody tr")[0], "td") == ["–", "–"]
    assert requests_of(soup) == []


@pytest.mark.parametrize("content", [None, "", "[1]", "{}"])
def test_index_without_results(run_dir: Path, content: str | None) -> None:
    (run_dir / "map_results.json").unlink()
    if content is not None:
        (run_dir / "map_results.json").write_text(content)
    soup = index_of(run_dir)
    assert not soup.select("table")
    assert "02_second failed" in soup.select_one(".banner.failed").get_text()


def test_a_failed_notebook_shows_no_numbers_of_an_earlier_run(run_dir: Path) -> None:
    failed = {"status": "failed", "message": "KeyError", "files": [], "finding": ""}
    change(run_dir / "run.json", lambda run: run["notebooks"][0].update(failed))
    assert not index_of(run_dir).select("table, img, .lede")
    outdated = {"status": "outdated", "files": ["map_results.json"]}
    change(run_dir / "run.json", lambda run: run["notebooks"][0].update(outdated))
    assert "from an earlier run" in index_html(run_dir)


def test_index_escapes_names_and_describes_figures(run_dir: Path) -> None:
    soup = index_of(run_dir)
    assert soup.find("script") is None
    assert [image["alt"] for image in soup.find_all("img")] == [f"Bars {HOSTILE}"]
    assert {"%3Cscript%3E.txt", "figures/summary/"} < {link["href"] for link in soup.select(".files a")}
    assert [link["href"] for link in soup.select(".entries a")] == ["01_maps.html", "02_second.html"]
