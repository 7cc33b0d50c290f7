"""An error of a user's: of one line, and of the right class."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def refused(call: Callable[[], object], error: type[Exception], match: str) -> str:
    """The line."""
    with pytest.raises(error, match=match) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def each_refused(*cases: tuple[Callable[[], object], type[Exception], str]) -> None:
    for case in cases:
        refused(*case)
