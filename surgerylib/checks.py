"""Checks of numbers that several rooms need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .errors import ParameterError


def whole_number(name: str, value: int, least: int = 1) -> int:
    """`value` as an int; a `ParameterError` unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def as_whole_numbers(settings: object, least: Mapping[str, int], *, or_none: Sequence[str] = ()) -> None:
    """Make fields of a frozen dataclass ints.

    Args:
        settings: the dataclass.
        least: field -> the least that it may be.
        or_none: fields among them that may be None.

    Raises:
        ParameterError: one is no whole number, or too low.
    """
    for name, at_least in least.items():
        value = getattr(settings, name)
        if value is not None or name not in or_none:
            object.__setattr__(settings, name, whole_number(name, value, at_least))


def as_floats(settings: object, names: Sequence[str], *, above: bool = False) -> None:
    """Make fields of a frozen dataclass floats, so that 1 and 1.0 are one setting.

    Args:
        settings: the dataclass.
        names: its fields.
        above: they must lie above 0; else 0 is allowed.

    Raises:
        ParameterError: one is no number, not finite, or too low.
    """
    for name in names:
        value = getattr(settings, name)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not usable or (above and value == 0):
            raise ParameterError(f"{name} must be a number {'above' if above else 'of at least'} 0, got {value!r}")
        object.__setattr__(settings, name, float(value))


def worker_count(workers: int | None) -> int:
    """`workers`, or the CPU's cores for None; a `ParameterError` unless it is a whole number of at least 1."""
    if workers is None:
        from joblib import cpu_count  # those this process may use, in a container too

        return cpu_count()
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1:
        raise ParameterError(f"workers must be a whole number of at least 1, or None for all cores, got {workers!r}")
    return int(workers)
