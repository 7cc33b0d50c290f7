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
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from surgerylib.workbook.index import index_html
from surgerylib.workbook.page import notebook_html, title

HOSTILE = "<script>alert('x')</script>"


def png(description: str = "") -> bytes:
    from PIL.PngImagePlugin import PngInfo

    buffer, info = io.BytesIO(), PngInfo()
    if description:
        info.add_text("Description", description)
    Image.new("RGB", (4, 3), "red").save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


PNG = base64.b64encode(png()).decode()


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


def display(**data: str) -> nbformat.NotebookNode:
    return new_output("display_data", data={name.replace("_", "/", 1): value for name, value in data.items()})


def requests_of(soup: BeautifulSoup) -> list[str]:
    """Whatever a browser would fetch by itself: links that a reader must click are none."""
    found = [tag["src"] for tag in soup.find_all(src=True)]
    found += [tag["href"] for tag in soup.find_all("link", href=True)]
    styles = " ".join(
        [*(tag.get_text() for tag in soup.find_all("style")), *(t["style"] for t in soup.find_all(style=True))]
    )
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
    scripts = soup.find_all("script")
    assert len(scripts) == 1
    assert "alert" not in scripts[0].get_text()
    assert soup.get_text().count(HOSTILE) >= 8
    assert soup.find("b") is None


def test_every_image_has_a_text() -> None:
    described = display(image_png=PNG)
    described.metadata["image/png"] = {"alt": 'Boxes on "bridge" <1>'}
    empty = display(image_jpeg=PNG)
    empty.metadata["image/jpeg"] = {"alt": " "}
    inline = display(text_html=f"<img src='data:image/png;base64,{PNG}'>")
    soup = page(notebook(described, empty, inline, display(image_png=PNG)))
    texts = [image["alt"] for image in soup.find_all("img")]
    assert texts[0] == 'Boxes on "bridge" <1>'
    assert texts[1] == "Figure 2, in “Part”"
    assert len(texts) == 4
    assert all(text.strip() for text in texts)


def test_title_contents_and_anchors() -> None:
    soup = page(notebook(markdown="## Part\n\n### Detail & more\n\n## Part"))
    assert [heading.get_text() for heading in soup.find_all("h1")] == ["Which kind?"]
    assert soup.title.get_text() == "Which kind? · run"
    assert title(notebook()) == "Which kind?"
    links = [link["href"] for link in soup.select(".sidebar a")]
    assert links == ["#part", "#detail-more", "#part-2"]
    assert [tag["id"] for tag in soup.select("main h2, main h3")] == ["part", "detail-more", "part-2"]


def test_parameters_show_value_meaning_and_what_the_run_set() -> None:
    rows = page(notebook()).select(".parameters tbody tr")
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows] == [
        ["seed", "0", "of the <b>draw</b>"],
        ["name", HOSTILE, ""],
    ]
    assert [row.get("class") for row in rows] == [None, ["changed"]]


def test_progress_bars_show_their_last_state() -> None:
    bar = "maps:   0%|          | 0/3\rmaps:  33%|###       | 1/3\rmaps: 100%|##########| 3/3\n"
    pieces = [new_output("stream", name="stderr", text=part) for part in (bar[:40], bar[40:] + "a warning\n")]
    widget = display(text_plain="  0%|          | 0/3")
    widget.data["application/vnd.jupyter.widget-view+json"] = {"model_id": "1"}
    soup = page(notebook(*pieces, widget))
    folded = soup.select("details.messages")
    assert len(folded) == 1
    assert folded[0].pre.get_text().split("\n")[:2] == ["maps: 100%|##########| 3/3", "a warning"]
    assert "0/3" not in soup.get_text()


def test_a_failure_is_said_first_and_its_traceback_is_folded() -> None:
    error = new_output("error", ename="DatasetError", evalue="no folder x", traceback=["line 1", "line 2"])
    node = notebook(error)
    node.cells.append(new_code_cell("never()"))
    node.cells.insert(0, new_markdown_cell("papermill's", metadata={"tags": ["papermill-error-cell-tag"]}))
    soup = page(node, failure="DatasetError: no folder x")
    banner = soup.select(".masthead .banner.failed")[0]
    assert "DatasetError: no folder x" in banner.get_text()
    assert banner.a["href"] == "#failure"
    assert soup.find(id="failure").details.pre.get_text() == "line 1\nline 2"
    assert "papermill's" not in soup.get_text()
    assert "not executed" in soup.select("details.code")[-1].get_text()


def test_tables_scroll_in_their_box_and_numbers_are_flush_right() -> None:
    frame = pd.DataFrame(
        {"label": ["ship", "dam"], "ap": ["0.5 [0.4, 0.6]", "no boxes"]}, index=pd.Index([1, 2], name="row")
    )
    soup = page(notebook(display(text_html=frame.to_html())))
    table = soup.select(".output .scroll > table")[0]
    assert len(table.select("thead tr")) == 1
    assert [th.get_text() for th in table.select("thead th")] == ["row", "label", "ap"]
    assert [cell.get_text() for cell in table.select("td.number")] == ["0.5 [0.4,\u00a00.6]", "no\u00a0boxes"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    entry = {"name": "01_first", "title": f"Which? {HOSTILE}", "status": "ok", "seconds": 3.2, "message": ""}
    entry |= {
        "finding": "vv_mixed wins",
        "files": ["map_results.json", f"{HOSTILE[:8]}.txt", "figures/summary/a b.png"],
    }
    failed = {"name": "02_second", "title": "Second", "status": "failed", "seconds": 1, "message": HOSTILE}
    run = {"name": HOSTILE, "status": "failed", "started": "2026-03-04T05:06:07", "seconds": 4.2, "platform": "Linux"}
    run |= {"parameters": {"model": HOSTILE}, "versions": {"python": "3.11"}, "library_sha256": "ab" * 32}
    run |= {"notebooks": [entry, failed | {"files": [], "finding": ""}]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / f"{HOSTILE[:8]}.txt").write_text("x")
    (tmp_path / "figures" / "summary").mkdir(parents=True)
    (tmp_path / "figures" / "summary" / "a b.png").write_bytes(png(f"Bars {HOSTILE}"))
    return tmp_path


def write_results(folder: Path) -> None:
    thresholds = [0.05, 0.5]

    def rows(value: float, name: str = "map") -> list[dict]:
        return [
            {"iou_threshold": t, name: value, "low": None if t > 0.1 else value - 0.01, "high": value + 0.01}
            for t in thresholds
        ]

    protocols = {
        "present": {"standard": rows(0.1), "vv_mixed": rows(0.4)},
        "all": {"standard": [], "vv_mixed": rows(0.05)},
    }
    paired = {"a": "vv_mixed", "b": "standard", "protocols": {"present": rows(0.3, "difference"), "all": []}}
    results = {"finding": "vv_mixed wins", "kinds": ["standard", "vv_mixed"], "iou_thresholds": thresholds}
    results |= {"protocols": protocols, "paired_difference": paired, "kind": "vv_mixed", "warnings": [HOSTILE]}
    results |= {"provenance": {"model": "embedded", "dataset": HOSTILE, "classes": ["a"] * 20, "weights_sha256": None}}
    (folder / "map_results.json").write_text(json.dumps(results))


def test_index_with_results(run_dir: Path) -> None:
    write_results(run_dir)
    soup = BeautifulSoup(index_html(run_dir), "html.parser")
    headline, *tables = soup.select(".numbers table")
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in headline.select("tbody tr")]
    assert [row[1] for row in rows] == ["0.100", "0.400", "0.050"]
    assert rows[0][2] == "[0.090, 0.110]"
    assert "standard" in rows[0][0]
    assert len(tables) == 2
    cells = [[cell.get_text(" ") for cell in row.find_all("td")] for row in tables[0].select("tbody tr")]
    assert cells == [
        ["0.100 [0.090, 0.110]", "0.100"],
        ["0.400 [0.390, 0.410]", "0.400"],
        ["+0.300 [+0.290, +0.310]", "+0.300"],
    ]
    assert [cell.get_text() for cell in tables[0].select("strong")] == ["0.400", "0.400", "+0.300"]
    assert "all 20 classes" in soup.get_text()
    assert not re.search(r"\d to [+−]?\d", soup.get_text())  # an interval has brackets
    assert [cell.get_text() for cell in tables[1].select("tbody tr")[0].select("td")] == ["–", "–"]
    assert requests_of(soup) == []


@pytest.mark.parametrize("content", [None, "", "[1]", "{}"])
def test_index_without_results(run_dir: Path, content: str | None) -> None:
    if content is not None:
        (run_dir / "map_results.json").write_text(content)
    soup = BeautifulSoup(index_html(run_dir), "html.parser")
    assert not soup.select("table")
    assert "02_second failed" in soup.select(".banner.failed")[0].get_text()


def test_a_failed_notebook_shows_no_numbers_of_an_earlier_run(run_dir: Path) -> None:
    write_results(run_dir)
    run = json.loads((run_dir / "run.json").read_text())
    run["notebooks"][0].update(status="failed", message="KeyError", files=[], finding="")
    (run_dir / "run.json").write_text(json.dumps(run))
    soup = BeautifulSoup(index_html(run_dir), "html.parser")
    assert not soup.select("table, img, .lede")
    run["notebooks"][0].update(status="outdated", files=["map_results.json"])
    (run_dir / "run.json").write_text(json.dumps(run))
    assert "from an earlier run" in index_html(run_dir)


def test_index_escapes_names_and_describes_figures(run_dir: Path) -> None:
    soup = BeautifulSoup(index_html(run_dir), "html.parser")
    assert soup.find("script") is None
    assert [image["alt"] for image in soup.find_all("img")] == [f"Bars {HOSTILE}"]
    links = [link["href"] for link in soup.select(".files a")]
    assert links == ["%3Cscript%3E.txt", "figures/summary/"]
    assert [link["href"] for link in soup.select(".entries a")] == ["01_first.html", "02_second.html"]


def test_an_interval_stands_below_its_number_and_names_of_rows_above_them() -> None:
    frame = pd.DataFrame(
        {"mAP": ["−0.5 [−0.6, −0.4]", "0.1 [0.0, 0.2]"], "errors": ["+0.12 (5,479)", "+0.00 (2)"]},
        index=pd.MultiIndex.from_tuples([("all", "standard"), ("all", "vv_mixed")], names=["protocol", "kind"]),
    )
    table = page(notebook(display(text_html=frame.to_html()))).select(".output table")[0]
    (head,) = table.select("thead tr")
    assert [cell.get_text() for cell in head.find_all("th")] == ["protocol", "kind", "mAP", "errors"]
    assert [small.get_text() for small in table.select("td.number > small")] == [
        "[−0.6,\u00a0−0.4]",
        "(5,479)",
        "[0.0,\u00a00.2]",
        "(2)",
    ]
    unnamed = page(notebook(display(text_html=frame.reset_index(drop=True).to_html()))).select(".output table")[0]
    assert all(cell.get_text() for cell in unnamed.select("thead th"))  # an empty corner heads nothing


def test_columns_with_names_of_two_rows_keep_both() -> None:
    columns = pd.MultiIndex.from_tuples([("a", "x"), ("b", "y")])
    table = page(notebook(display(text_html=pd.DataFrame([[1, 2]], columns=columns).to_html()))).select(".output table")
    assert len(table[0].select("thead tr")) == 2


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


def test_a_figure_has_its_caption_and_its_box_scrolls() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (900, 10)).save(buffer, "png")
    wide = display(image_png=base64.b64encode(buffer.getvalue()).decode())
    wide.metadata["image/png"] = {"alt": "Few. Boxes <1>.", "finding": "Few", "caption": "Boxes <1>."}
    again = display(text_markdown="**Few.** Boxes")
    again.metadata["repeats_caption"] = True
    soup = page(notebook(wide, again, display(image_png=PNG)))
    first, second = soup.select("figure")
    assert first.figcaption.get_text() == first.img["alt"] == "Few. Boxes <1>."
    assert soup.get_text().count("Few") == 1
    assert first.select(".scroll[tabindex] > img.wide[width='900'][height='10']")
    assert not second.select("img.wide, figcaption")


def test_an_interval_and_a_percentage_stay_in_one_line() -> None:
    soup = page(notebook(display(text_markdown="**0.3 [−0.1, +0.4]** in 20.2 % of [a, b], 1, 2")))
    assert "0.3 [−0.1,\u00a0+0.4] in 20.2\u00a0% of [a, b], 1, 2" in soup.get_text()
