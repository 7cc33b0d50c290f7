"""A real browser for the tests in this folder: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from surgerylib.files import PROJECT_ROOT

SCREENSHOTS = PROJECT_ROOT / "build" / "browser"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# no sandbox: it needs a kernel feature that containers lack; no network of its own
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def chromium() -> str:
    """Chromium on this machine; `CHROMIUM` in the environment names another."""
    if path := os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None):
        return path
    message = f"no browser found ({', '.join(_NAMES)}): install Debian's package chromium, or set CHROMIUM to one"
    (pytest.fail if os.environ.get("BROWSER_TESTS") == "required" else pytest.skip)(message)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    # ended with the module: while it runs, no other test could run an event loop
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of what was tested are kept."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
