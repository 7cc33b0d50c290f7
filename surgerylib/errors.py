"""Every error that a user can cause, in one place.

Each message is one line: what was wrong, the value seen, what to do. The command line prints that line and
exits with status 2; anything that is not a `SurgeryError` is a bug of this package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, dataclass_transform

import numpy as np
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as validated


class SurgeryError(Exception):
    """Base of all errors that a user can cause and mend.

    Text out of a file, a name or a library may stand in its message, and must neither fill the terminal nor steer it:
    `str` gives one printable line.
    """

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""
        if len(text) > 2000:  # what to do stands at the end
            text = f"{text[:1500]} ... {text[-400:]}"
        return text if text.isprintable() else "".join(map(_printable, text))


class ParameterError(SurgeryError, ValueError):
    """An argument or notebook parameter is outside what it may be."""


class DatasetError(SurgeryError):
    """A dataset folder, split file or image list is missing or contradicts itself."""


class ImageReadError(DatasetError):
    """An image file is missing, damaged or not an image."""


class AnnotationError(DatasetError):
    """An annotation file does not parse, or holds a box that cannot be one."""


class UnknownClassError(DatasetError, KeyError):
    """A class name that is neither in the class list nor a known alias."""


class CheckpointError(SurgeryError):
    """A weights file is missing, damaged, unsafe to read, or of another architecture."""


class UnsupportedModelError(SurgeryError):
    """A model that the dual path cannot reproduce (not a plain ViT, or the self-check failed)."""


class OutputError(SurgeryError):
    """An output folder or file cannot be written."""


class CacheError(SurgeryError):
    """A file of stored intermediate results that was made of something else, or is damaged."""


class ResultsError(SurgeryError):
    """Results in a run's folder that are missing, damaged, or of another run."""


class TrainingError(SurgeryError):
    """A training that cannot go on: nothing to learn from, or a loss that is not a number."""


class SurgeryWarning(UserWarning):
    """Something a reader of the results must know, but that does not stop the work."""


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ascii(character)[1:-1]


def nearest(name: str, known: Iterable[str]) -> str:
    """The three known names closest to `name`, ready for an error message; all of them when none is close."""
    known = list(known)
    by_folded = {k.lower(): k for k in known}
    close = [by_folded[m] for m in get_close_matches(name.lower(), by_folded, n=3, cutoff=0.5)]
    return ", ".join(close or known)


def check_names(parameter: str, names: Sequence[str], known: Collection[str], what: str) -> None:
    """A `ParameterError` unless `names` is a list of one or more of those known, each once; `what` is what one is."""
    listed = isinstance(names, list | tuple)
    for name in names if listed else ():
        if name not in list(known):  # a dict's keys can't be asked for what has no hash
            raise ParameterError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
    if not listed or not names or len(set(names)) < len(names):
        raise ParameterError(f"{parameter} is {names!r}; name one or more of {', '.join(known)}, each once")


def whole_number(name: str, value: int, least: int = 1, instead: str = "") -> int:
    """`value` as an int; a `ParameterError` unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be a whole number of at least {least}{instead}, got {value!r}")
    return int(value)


def worker_count(workers: int | None) -> int:
    """`workers`, or the CPU's cores for None; a `ParameterError` unless it is a whole number of at least 1."""
    from joblib import cpu_count  # those this process may use, in a container too

    return cpu_count() if workers is None else whole_number("workers", workers, instead=", or None for all cores")


Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(cls: type[Class]) -> type[Class]:
    """A frozen dataclass whose values are checked by their types when it is made.

    Numbers out of NumPy are taken as Python's, lists as tuples, so that equal values compare and hash alike. What is
    wrong is one `ParameterError` that names the field and the value; `__post_init__` may raise one too.
    """
    made = validated(cls, frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
    plain_init = made.__init__

    @wraps(plain_init)
    def __init__(self: Class, *args: Any, **values: Any) -> None:
        try:
            plain_init(self, *map(_plain, args), **{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise ParameterError(_first_error(error, [field.name for field in dataclasses.fields(made)])) from None

    made.__init__ = __init__
    return made


def _plain(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return tuple(_plain(item) if item is not value else item for item in value) if isinstance(value, list) else value


def _first_error(error: ValidationError, fields: list[str]) -> str:
    """One line on the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    name, text, raised = first["loc"][0] if first["loc"] else "", first["msg"], first.get("ctx", {}).get("error")
    if first["type"] == "unexpected_keyword_argument":
        return f"there is no setting {name!r}; nearest: {nearest(str(name), fields)}"
    if raised is not None:
        return str(raised) if isinstance(raised, ParameterError) else f"{name}: {raised}"
    return f"{name} {text.replace('Input should be', 'must be')}, got {first['input']!r}"
