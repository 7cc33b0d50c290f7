"""The explorer as a user meets it: JupyterLab as `make lab` starts it, a browser, and Voilà."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from surgerylib.files import PROJECT_ROOT

FIRST_OPENING = 120_000  # ms: in a fresh clone the scenes are drawn first
FOUND = "rect.found"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the notebook, so that the server's autosave leaves the project alone; views are saved beside it."""
    folder = tmp_path_factory.mktemp("notebooks")
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / "explore.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source, n_changed = re.subn(r'save_dir = "[^"]*"', f"save_dir = {str(folder)!r}", parameters.source)
    assert n_changed == 1
    nbformat.write(notebook, folder / "explore.ipynb")
    return folder


@contextmanager
def server(command: list[str], folder: Path, url: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of notebooks with settings of nobody: its address, as its log gives it, and its process."""
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}") for name in ("CONFIG", "RUNTIME", "DATA")}
    # its own data folder would hide the widgets that are installed here
    own["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")
    log = folder / f"{command[2]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env=os.environ | own)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(url, log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[0], psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        for child in children:  # kernels outlive a server that is killed
            if child.is_running():
                child.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def lab_command() -> list[str]:
    """What `make lab` runs, without opening a browser of its own, on a free port."""
    said = subprocess.run(["make", "-n", "lab"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = (line for line in said.splitlines() if "jupyter lab" in line)  # under make it also names folders
    options = shlex.split(command.split("jupyter lab", 1)[1])
    return [sys.executable, "-m", "jupyterlab", *options, "--no-browser", "--allow-root", "--ServerApp.port=0"]


@pytest.fixture(scope="module")
def lab(folder) -> Iterator[tuple[str, psutil.Process]]:
    with server(lab_command(), folder, r"http://localhost:\d+/lab/tree/explore\.ipynb\?token=\w+") as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Browser, lab) -> Iterator[Page]:
    """The notebook, opened and run from the menu."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 2200}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.goto(lab[0])
    expect(page.get_by_role("button", name="Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)
    run_all_cells(page)
    expect(panel(page, 1).locator(".explorer-caption")).to_contain_text("boxes", timeout=FIRST_OPENING)
    yield page
    context.close()


def run_all_cells(page: Page) -> None:
    """From the menu; again where JupyterLab, still connecting to the kernel, lets the first call pass unheard."""
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    for _ in range(6):
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        try:
            expect(prompt).to_have_text(re.compile(r"\[(\*|\d+)\]:"), timeout=5_000)
            return
        except AssertionError:
            continue
    raise AssertionError("JupyterLab runs no cell")


@pytest.fixture(autouse=True)
def _no_traceback(request) -> Iterator[None]:
    """Whatever a test does in the notebook: nothing but the widget speaks of errors."""
    yield
    if "page" in request.fixturenames:
        shown = request.getfixturevalue("page").locator(".jp-OutputArea-output[data-mime-type*=error]")
        assert shown.all_inner_texts() == []


def panel(page: Page, place: int) -> Locator:
    """The photograph is 0, maps come after it."""
    return page.locator(".explorer-panels").first.locator(".explorer-panel").nth(place)


def boxes(page: Page, place: int = 1) -> list[str]:
    return panel(page, place).locator(FOUND).evaluate_all("rects => rects.map(r => r.outerHTML)")


def slider(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name)


def cut_off(page: Page) -> int:
    """Pixels of the explorer that its output area hides: an output stopped growing when a patch was pointed at."""
    page.wait_for_timeout(300)
    return page.locator(".jp-OutputArea-output", has=page.locator(".clip-explorer")).evaluate(
        "output => output.scrollHeight - output.clientHeight"
    )


def serious(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    violations = Axe().run(page, context=".clip-explorer").response["violations"]
    return [found["id"] for found in violations if found["impact"] in ("serious", "critical")]


def keep(page: Page, screenshots: Path, name: str) -> None:
    page.locator(".clip-explorer").screenshot(path=screenshots / f"explorer_{name}.png")


def test_the_server_asks_for_a_token_and_listens_on_this_machine_alone(lab):
    url, process = lab
    with urllib.request.urlopen(url.split("?")[0]) as answer:
        assert "/login" in answer.url
    with urllib.request.urlopen(url) as answer:
        assert "/login" not in answer.url
    port = int(re.search(r":(\d+)/", url)[1])
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening
    assert listening <= {"127.0.0.1", "::1"}


def test_it_opens_and_the_slider_moves_the_boxes_in_time(page, screenshots):
    assert panel(page, 0).locator("rect.truth").count() > 0
    assert panel(page, 1).locator("img.explorer-overlay").evaluate("image => image.naturalWidth") == 224
    assert serious(page) == []
    before = boxes(page)
    assert before
    handle = slider(page, "percentile")
    track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box()
    grip = handle.bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.9 * track["width"], track["y"], steps=8)
    page.mouse.up()
    expect(page.locator(".widget-slider .widget-readout").first).not_to_have_text("75.0")
    page.wait_for_function(
        "([selector, was]) => [...document.querySelectorAll(selector)].map(r => r.outerHTML).join() !== was",
        arg=[".explorer-panels > :nth-child(2) rect.found", ",".join(before)],
    )
    keep(page, screenshots, "threshold")
    milliseconds = page.evaluate(
        """async () => {
          const drawn = document.querySelectorAll(".explorer-stage > svg")[1];
          const handle = document.querySelector(".widget-slider .noUi-handle");
          const times = [];
          for (let i = 0; i < 10; i++) {
            const start = performance.now();
            const changed = new Promise((done) => {
              const watch = new MutationObserver(() => { watch.disconnect(); done(); });
              watch.observe(drawn, { childList: true });
              setTimeout(done, 2000);
            });
            handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
            await changed;
            times.push(performance.now() - start);
            await new Promise((done) => setTimeout(done, 60));
          }
          return times;
        }"""
    )
    (screenshots / "slider_milliseconds.json").write_text(json.dumps([round(value, 1) for value in milliseconds]))
    assert statistics.median(milliseconds) < 100


@pytest.mark.slow
def test_a_phrase_of_ones_own_is_shown_with_the_numbers_of_the_pointed_patch(page, screenshots):
    page.get_by_role("button", name="both").click()
    page.get_by_label("own words").fill("red roof, runway")
    page.get_by_label("own words").press("Enter")
    expect(panel(page, 1).locator(".explorer-title")).to_have_text("vv_mixed: “red roof”")
    expect(page.locator(".explorer-tables")).to_contain_text("names no class")
    stage = panel(page, 1).locator(".explorer-stage")
    place = stage.bounding_box()
    page.mouse.move(place["x"] + place["width"] * 0.52, place["y"] + place["height"] * 0.25)
    expect(page.locator(".explorer-tables")).to_contain_text("Patch in row 4, column 8")
    expect(page.locator(".explorer-tables tr.shown")).to_contain_text("red roof")
    expect(page.locator(".explorer-looks .explorer-title").first).to_have_text("QK: where the patch attends")
    page.mouse.click(place["x"] + place["width"] * 0.52, place["y"] + place["height"] * 0.25)  # pinned
    page.mouse.move(place["x"] + place["width"] * 0.9, place["y"] + place["height"] * 0.9)
    stage.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".explorer-tables")).to_contain_text("Patch in row 5, column 8")
    keep(page, screenshots, "phrase_and_patch")


@pytest.mark.slow
def test_another_image_is_saved_and_its_python_copied(page, folder):
    before = panel(page, 0).locator("img.explorer-photo").get_attribute("src")
    page.get_by_role("button", name="next").click()
    expect(page.locator(".explorer-main")).to_contain_text("2 of 120")
    expect(panel(page, 0).locator("img.explorer-photo")).not_to_have_attribute("src", before)
    page.get_by_role("button", name="save PNG and YAML").click()
    expect(page.locator(".explorer-view").get_by_role("status").filter(has_text="saved")).to_be_visible()
    (picture,) = folder.glob("*.png")
    assert yaml.safe_load(picture.with_suffix(".yaml").read_text())["kind"] == "vv_mixed"
    page.get_by_role("button", name="copy the Python call").click()
    expect(page.get_by_role("button", name="copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from surgerylib import")
    compile(copied, "copied", "exec")
    page.locator(".explorer-view .jupyter-widget-Collapse-header", has_text="Python").click()
    code = page.locator(".explorer-code")
    expect(code).to_contain_text("extract_boxes")
    was = code.inner_text()
    slider(page, "percentile").focus()
    page.keyboard.press("PageDown")
    expect(code).not_to_have_text(was)
    expect(code).to_be_visible()  # it stays open while the threshold moves


@pytest.mark.slow
def test_a_large_file_is_uploaded_and_an_error_is_one_line_that_goes_away(page, screenshots, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (2200, 2200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 11 * 2**20  # a message of more is refused by default
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="upload an image").click()
    chooser.value.set_files(tmp_path / "large.png")
    caption = panel(page, 0).locator(".explorer-caption")
    expect(caption).to_have_text("large.png, 2200 × 2200, 0 annotated", timeout=30_000)
    page.get_by_label("image file").fill("/nowhere/at/all.jpg")
    page.get_by_label("image file").press("Enter")
    alert = page.locator(".explorer-view").get_by_role("alert")
    expect(alert).to_have_text("no image file /nowhere/at/all.jpg; add it or take it out of the split")
    keep(page, screenshots, "error")
    page.get_by_role("button", name="next").click()
    expect(alert).to_have_count(0)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_it_runs_under_voila(browser, folder, screenshots, width):
    with socket.socket() as free:  # Voilà can't look for a free port by itself
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "explore.ipynb", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with server(command, folder, rf"http://127\.0\.0\.1:{port}/") as (url, _):
        page = browser.new_page(viewport={"width": width, "height": 1400 if width > 800 else 2600})
        page.goto(url)
        expect(panel(page, 1).locator(".explorer-caption")).to_contain_text("boxes", timeout=FIRST_OPENING)
        before = panel(page, 1).locator(FOUND).evaluate_all("rects => rects.map(r => r.getAttribute('width'))")
        slider(page, "percentile").focus()
        page.keyboard.press("PageUp")
        expect(page.locator(".widget-slider .widget-readout").first).not_to_have_text("75.0")
        expect(panel(page, 1).locator(FOUND).first).not_to_have_attribute("width", before[0])
        assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
        assert cut_off(page) == 0
        panel(page, 1).locator(".explorer-stage").click()
        expect(page.locator(".explorer-tables")).to_contain_text("Patch in row")
        assert cut_off(page) == 0
        assert serious(page) == []
        page.screenshot(path=screenshots / f"voila_{width}.png")
        page.close()
