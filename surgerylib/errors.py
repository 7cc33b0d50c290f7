"""Every error that a user can cause, in one place.

Each message is one line: what was wrong, the value seen, what to do. The command line prints that line and
exits with status 2; anything that is not a `SurgeryError` is a bug of this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# names and values out of files stand in messages: a hostile one must neither fill the terminal nor steer it
_BEGINNING, _ENDING = 1500, 400
_LONGEST = 2000


class SurgeryError(Exception):
    """Base of all errors that a user can cause and mend.

    Whatever text out of a file, a name or a library stands in its message, `str` gives one printable line.
    """

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""
        if len(text) > _LONGEST:  # what to do stands at the end
            text = f"{text[:_BEGINNING]} ... {text[-_ENDING:]}"
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


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """The known names closest to `name`, ready for an error message; all of them when none is close."""
    known = list(known)
    by_folded = {k.lower(): k for k in known}
    close = [by_folded[m] for m in get_close_matches(name.lower(), by_folded, n=n, cutoff=0.5)]
    return ", ".join(close or known)
