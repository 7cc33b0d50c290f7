"""Class names: DIOR's own spellings, what CLIP is asked with, and the aliases people write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from .errors import ParameterError, UnknownClassError, nearest

# DIOR's own XML spelling -> the words that CLIP is asked with
_DIOR_PROMPTS = {
    "airplane": "airplane",
    "airport": "airport",
    "baseballfield": "baseball field",
    "basketballcourt": "basketball court",
    "bridge": "bridge",
    "chimney": "chimney",
    "dam": "dam",
    "Expressway-Service-area": "expressway service area",
    "Expressway-toll-station": "expressway toll station",
    "golffield": "golf course",
    "groundtrackfield": "ground track field",
    "harbor": "harbor",
    "overpass": "overpass",
    "ship": "ship",
    "stadium": "stadium",
    "storagetank": "storage tank",
    "tenniscourt": "tennis court",
    "trainstation": "train station",
    "vehicle": "vehicle",
    "windmill": "windmill",
}
DIOR_CLASSES: tuple[str, ...] = tuple(_DIOR_PROMPTS)

PROMPT_TEMPLATES: tuple[str, ...] = (
    "a satellite photo of a {}.",
    "an aerial image of a {}.",
    "a remote sensing image of a {}.",
    "an overhead view of a {}.",
    "a {} seen from above.",
)

# folded alias -> folded DIOR spelling; case, spaces, hyphens and underscores are already folded away
_ALIASES = {
    "plane": "airplane",
    "aeroplane": "airplane",
    "aircraft": "airplane",
    "baseballdiamond": "baseballfield",
    "highwayservicearea": "expresswayservicearea",
    "tollstation": "expresswaytollstation",
    "tollbooth": "expresswaytollstation",
    "highwaytollstation": "expresswaytollstation",
    "golfcourse": "golffield",
    "trackfield": "groundtrackfield",
    "runningtrack": "groundtrackfield",
    "harbour": "harbor",
    "railwaystation": "trainstation",
    "windturbine": "windmill",
}


def _fold(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " -_\t")


_FOLDED_PROMPTS = {_fold(name): prompt for name, prompt in _DIOR_PROMPTS.items()}


def _key(name: str) -> str:
    folded = _fold(name)
    return _ALIASES.get(folded, folded)


@lru_cache(maxsize=16)
def _by_key(classes: tuple[str, ...]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in classes:
        if not isinstance(name, str) or not _fold(name):
            raise ParameterError(f"class name {name!r} is not a non-empty string")
        if _key(name) in by_key:
            raise ParameterError(f"classes {by_key[_key(name)]!r} and {name!r} are the same; keep one spelling")
        by_key[_key(name)] = name
    return by_key


def check_classes(classes: Sequence[str]) -> None:
    """Raises ParameterError when a name is no text, or two differ only in case, separators or alias."""
    _by_key(tuple(classes))


def canonical_class(name: str, classes: Sequence[str] = DIOR_CLASSES) -> str:
    """The spelling of a class name in `classes`, whatever its case, spaces, hyphens, underscores or known alias.

    Args:
        name: as somebody wrote it: 'Golf Course', 'golf_field', 'harbour'.
        classes: the class list in force.

    Raises:
        UnknownClassError: neither in `classes` nor an alias of one of them; the message lists the nearest names.
    """
    found = _by_key(tuple(classes)).get(_key(name))
    if found is None:
        raise UnknownClassError(f"unknown class {name!r}; nearest known: {nearest(name, classes)}")
    return found


def spoken(name: str) -> str:
    """The words for one of DIOR's own spellings ('golffield' -> 'golf course'); any other text as it is."""
    return _DIOR_PROMPTS.get(name, name)


def prompt_names(classes: Iterable[str]) -> list[str]:
    """The words each class is asked with: 'golffield' -> 'golf course', one per class, in order.

    A class outside DIOR is asked under its own name, with hyphens and underscores as spaces.
    """
    return [
        _FOLDED_PROMPTS.get(_fold(name)) or " ".join(name.replace("-", " ").replace("_", " ").split())
        for name in classes
    ]
