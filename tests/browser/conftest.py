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


def browser_path() -> str | None:
    """Chromium on this machine; `CHROMIUM` in the environment names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session", autouse=True)
def _has_browser() -> None:
    if browser_path() is None:
        message = f"no browser found ({', '.join(_NAMES)}): install Debian's package chromium, or set CHROMIUM to one"
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # ended with the module: while it runs, no other test could run an event loop
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser_path(), args=_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of what was tested are kept."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
