"""Whatever stands in a message, a user sees one line that can be printed."""

from __future__ import annotations

import inspect

import pytest

from surgerylib import errors
from surgerylib.errors import SurgeryError, UnknownClassError

TYPES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SurgeryError)]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 3 × 4, “quoted”; mend it", "Größe 3 × 4, “quoted”; mend it"),
        ("two\nlines\r\nand\u2028more", "two lines  and more"),
        ("\x1b[2Jcleared", "\\x1b[2Jcleared"),
        ("a name \udcff that is no UTF-8", "a name \\udcff that is no UTF-8"),
        ("turned \u202e round", "turned \\u202e round"),
        ("", ""),
    ],
)
def test_a_message_is_one_printable_line(kind: type[SurgeryError], text: str, shown: str) -> None:
    error = kind(text)
    assert str(error) == shown
    assert shown in f"{error}"
    str(error).encode()


def test_a_long_value_leaves_what_to_do_in_sight() -> None:
    text = str(UnknownClassError(f"unknown class {'x' * 10**6}; nearest known: ship"))
    assert len(text) < 2100
    assert text.startswith("unknown class xxx")
    assert text.endswith("xxx; nearest known: ship")


def test_an_error_without_a_message() -> None:
    assert [str(kind()) for kind in TYPES] == [""] * len(TYPES)
