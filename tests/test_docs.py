"""What the documentation points to must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surgerylib.files import PROJECT_ROOT

NAMES = ("README.md", "SECURITY.md", "docs/method.md", "docs/scale.md", "data/README.md", "reports/README.md")
PAGES = [PROJECT_ROOT / name for name in NAMES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_tests_that_pages_name_exist():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    for page, least in (("docs/method.md", 10), ("SECURITY.md", 15)):
        named = set(re.findall(r"`(test_\w+)`", (PROJECT_ROOT / page).read_text(encoding="utf-8")))
        assert len(named) > least
        assert [name for name in named if f"def {name}(" not in tests] == []
