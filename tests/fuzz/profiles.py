"""How much a fuzz test draws: the same few examples in every `make test`, or many new ones.

`SURGERYLIB_FUZZ=50 python -m pytest tests/fuzz` draws fifty times as many, others each time it is called, and keeps
those that fail in `.hypothesis/`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("SURGERYLIB_FUZZ", "1"))
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, suppress_health_check=_SLOW)


def fuzz(max_examples: int = 100) -> settings:
    """A decorator: as many examples, under the profile that the environment asks for."""
    profile = settings.get_profile("search" if TIMES > 1 else "suite")
    return settings(profile, max_examples=max_examples * TIMES)
