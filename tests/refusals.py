"""An error of a user's: of one line, and of the right class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest

from surgerylib.workbook.cli import main


def refused(call: Callable, error: type[Exception], match: str, *arguments, **options) -> str:
    """The line."""
    with pytest.raises(error, match=match) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def each_refused(*cases: tuple[Callable[[], object], type[Exception], str]) -> None:
    for case in cases:
        refused(*case)


def command_refused(capsys: pytest.CaptureFixture, words: Iterable[object], match: str) -> None:
    """The command ends with status 2, and the line of its error is all that it says."""
    assert main([*map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert re.search(f"^error: .*{match}", line), line
