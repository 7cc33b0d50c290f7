"""How much a fuzz test draws: the same few examples in every `make test`, or many new ones.

`SURGERYLIB_FUZZ=50 python -m pytest tests/fuzz` draws fifty times as many, others each time it is called, and keeps
those that fail in `.hypothesis/`.
"""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("SURGERYLIB_FUZZ", "1"))
# what may be given for an argument by mistake
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=2), st.just(object),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=2), st.lists(st.integers(), max_size=2)), max_size=3),
    st.dictionaries(st.integers(), st.integers(), max_size=1), st.complex_numbers(), st.decimals(), st.fractions(),
    st.sampled_from([
        np.float32(5), np.int64(5), np.bool_(True), np.nan, np.array([3.0, 5.0]), np.array([0.3, 0.5]), np.array(3.0),
        np.array([]), np.array([[1, 2]]), [0.5, 0.5], ["ship", "Ship"], ["ship", 3], [["ship"]], [np.nan], [10**400],
        ["0.5"], (0.5,), {0.5}, range(1),
    ]),
)  # fmt: skip
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, suppress_health_check=_SLOW)


def fuzz(max_examples: int = 100) -> settings:
    """A decorator: as many examples, under the profile that the environment asks for."""
    profile = settings.get_profile("search" if TIMES > 1 else "suite")
    return settings(profile, max_examples=max_examples * TIMES)
