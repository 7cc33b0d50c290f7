"""The report as its reader meets it: the file opened in a browser, without a network."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

PAGES = (
    "index", "01_heatmap_generation", "02_threshold_sweep", "03_training", "04_gt_class_evaluation",
    "05_per_class_analysis",
)  # fmt: skip
WIDTHS = (1280, 390)


def opened(browser: Browser, file: Path, *, width: int = 1280, scheme: str = "light") -> Page:
    """The page, where everything that it would fetch fails; what it asked for is in `page.asked`."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_without_a_network_and_fits_its_window(browser, folder, screenshots, name, width):
    page = opened(browser, folder / f"{name}.html", width=width)
    page.screenshot(path=screenshots / f"{name}_{width}.png", full_page=True)
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1
    page.context.close()


def test_the_policy_stops_what_got_past_the_tidying(browser, folder, tmp_path):
    html = (folder / "index.html").read_text().replace("</main>", "<img src='https://a.example/a.png'></main>")
    for name, content in (("guarded", html), ("unguarded", html.replace("Content-Security-Policy", "X-Nothing"))):
        (tmp_path / f"{name}.html").write_text(content)
        said = []
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message, said=said: said.append(message.text))
        page.goto((tmp_path / f"{name}.html").as_uri())
        assert any("Content Security Policy" in text for text in said) == (name == "guarded"), said
        page.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_violation(browser, folder, name):
    page = opened(browser, folder / f"{name}.html")
    for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        # where the schemes differ, in their colours alone, the other rules have nothing new to say
        rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
        found = Axe().run(page, options={"resultTypes": ["violations"], **rules}).response["violations"]
        grave = [(one["id"], one["nodes"][:3]) for one in found if one["impact"] in ("serious", "critical")]
        assert grave == [], (width, scheme)
    page.context.close()


def test_dark_mode_follows_the_readers_setting(browser, folder, screenshots):
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    for name in ("index", "05_per_class_analysis"):
        light, dark = (opened(browser, folder / f"{name}.html", scheme=scheme) for scheme in ("light", "dark"))
        assert min(light.evaluate(shade)) > 230
        assert max(dark.evaluate(shade)) < 60
        dark.screenshot(path=screenshots / f"{name}_dark.png", full_page=True)
        light.context.close()
        dark.context.close()


def test_the_button_shows_and_hides_the_code(browser, folder):
    page = opened(browser, folder / "01_heatmap_generation.html")
    code = page.locator("details.code .highlight")
    expect(code.first).to_be_hidden()
    page.get_by_role("button", name="Show code").click()
    expect(code.first).to_be_visible()
    assert code.count() == page.locator("details.code[open]").count() > 5
    page.get_by_role("button", name="Hide code").click()
    expect(code.first).to_be_hidden()
    page.context.close()


def test_the_class_table_is_sorted_by_a_click_and_filtered_by_a_word(browser, folder):
    page = opened(browser, folder / "05_per_class_analysis.html")
    table = page.locator("table.sortable").first
    header = table.get_by_role("columnheader").filter(has_text="class").first
    classes = table.locator("tbody tr > th")
    names = sorted(classes.all_inner_texts(), key=str.casefold)
    for direction, expected in (("descending", names[::-1]), ("ascending", names)):
        for _ in range(3):  # a column may be sorted already, and the third state is the page's own order
            if header.get_attribute("aria-sort") != direction:
                header.click()
                page.wait_for_timeout(100)
        expect(header).to_have_attribute("aria-sort", direction)
        expect(classes).to_have_text(expected)
    page.get_by_role("searchbox").first.fill("ship")
    expect(classes).to_have_text(["ship"])
    page.context.close()


def test_the_links_of_the_index_lead_to_files_and_headings(browser, folder):
    page = opened(browser, folder / "index.html")
    links = {link.get_attribute("href") for link in page.locator("main a").all()}
    assert {f"{name}.html" for name in PAGES[1:]} <= links
    page.locator(".entries a").first.click()
    expect(page.locator(".eyebrow a")).to_have_attribute("href", "index.html")
    page.locator(".eyebrow a").click()
    expect(page).to_have_url((folder / "index.html").as_uri())
    for link in sorted(link for link in links if "#" in link or not link.endswith(".html")):
        name, _, anchor = link.partition("#")
        target = folder / (name or "index.html")
        assert target.exists(), link
        if anchor:
            page.goto(f"{target.as_uri()}#{anchor}")
            assert page.evaluate("document.querySelector(':target') !== null"), link
    page.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_it_prints(browser, folder, screenshots, name):
    page = opened(browser, folder / f"{name}.html")
    page.pdf(path=screenshots / f"{name}.pdf", format="A4", prefer_css_page_size=True)
    page.emulate_media(media="print")
    for hidden in (".sidebar", "#toggle-code", ".dt-search"):
        assert page.locator(f"{hidden}:visible").count() == 0
    page.context.close()
