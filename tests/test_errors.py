"""Whatever stands in a message, a user sees one line that can be printed."""

from __future__ import annotations

import inspect

import pytest

from surgerylib import errors
from surgerylib.errors import SurgeryError, UnknownClassError

TYPES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SurgeryError)]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("text", "shown"), [
    ("Größe 3 × 4, “quoted”; mend it", "Größe 3 × 4, “quoted”; mend it"),
    ("two\nlines\r\nand\u2028more", "two lines  and more"),
    ("\x1b[2Jcleared", "\\x1b[2Jcleared"),
    ("a name \udcff that is no UTF-8", "a name \\udcff that is no UTF-8"),
    ("turned \u202e round", "turned \\u202e round"),
    ("", ""),
])  # fmt: skip
def test_a_message_is_one_printable_line(kind: type[SurgeryError], text: str, shown: str) -> None:
    assert str(kind(text)) == f"{kind(text)}" == shown
    shown.encode()
    assert str(kind()) == ""


def test_a_long_value_leaves_what_to_do_in_sight() -> None:
    text = str(UnknownClassError(f"unknown class {'x' * 10**6}; nearest known: ship"))
    assert len(text) < 2100
    assert text.startswith("unknown class xxx")
    assert text.endswith("xxx; nearest known: ship")
