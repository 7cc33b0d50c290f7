"""What a stored result was made of, as plain values, and how two such identities differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def short_hash(*values: Any) -> str:
    """16 digits that name plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two identities, short, with both values; empty when `there` has all of `here`."""
    others = [name for name in here if there.get(name) != here[name]]
    return "; ".join(_difference(name, there.get(name), here[name]) for name in others)


def _difference(name: str, there: object, here: object) -> str:
    """Of two lists or mappings, the first item that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        item = next((key for key in {**here, **there} if there.get(key) != here.get(key)), None)
        return _difference(str(item), there.get(item), here.get(item))
    if isinstance(there, list) and isinstance(here, list):
        item = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
        if item is None:
            return f"{name}: {len(there)} items there, {len(here)} here"
        name, there, here = f"{name}, item {item + 1}", there[item], here[item]
    return f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:16]}…{text[-16:]}"
