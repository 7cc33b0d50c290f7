"""Takes the README's pictures of the explorer and of a report: docs/explorer.webp and docs/report.webp.

    .venv/bin/python docs/pictures.py reports/embedded

Needs Chromium, and a report that `make report` has written.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent


def main(report: Path) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for name, take in (("explorer", explorer), ("report", index_of(report))):
            picture = Path(folder) / f"{name}.png"
            take(browser, picture)
            with Image.open(picture) as taken:
                taken.convert("RGB").save(PROJECT / "docs" / f"{name}.webp", quality=85, method=6)
        browser.close()


def explorer(browser: Browser, picture: Path) -> None:
    """The notebook under Voilà: a class, a threshold that fits it, and a patch pointed at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "notebooks/explore.ipynb", "--no-browser", f"--port={port}"]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://localhost:{port}/"
        for _ in range(100):
            try:
                urlopen(url).close()
                break
            except URLError:
                time.sleep(0.3)
        page = browser.new_page(viewport={"width": 1240, "height": 1500})
        page.goto(url)
        caption = page.locator(".explorer-caption").nth(1)
        caption.filter(has_text="boxes").wait_for(timeout=120_000)
        photo = page.locator(".explorer-photo").first
        before = photo.get_attribute("src")
        page.get_by_label("images with").select_option(index=1)
        page.wait_for_function("was => document.querySelector('.explorer-photo').src !== was", arg=before)
        caption.filter(has_text="boxes").wait_for()
        page.wait_for_timeout(1000)
        page.locator(".widget-slider .noUi-handle").first.focus()
        for _ in range(8):
            page.keyboard.press("PageUp")
        page.wait_for_timeout(1000)
        stage = page.locator(".explorer-stage").nth(1)
        box = stage.locator("rect.truth").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.locator(".explorer-looks .explorer-panel").first.wait_for()
        page.wait_for_timeout(1000)
        page.locator(".explorer-layout").screenshot(path=picture)
        page.close()
    finally:
        server.terminate()


def index_of(report: Path):
    def take(browser: Browser, picture: Path) -> None:
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto((report / "index.html").resolve().as_uri())
        page.screenshot(path=picture)
        page.close()

    return take


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.html").is_file():
        raise SystemExit("give the folder of a report, such as reports/embedded, after make report")
    main(Path(sys.argv[1]))
