"""Class names and their aliases, the words that CLIP is asked with, and the names that readers are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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


DEFAULT_PROMPTS = "ensemble"
# DIOR's own spelling -> other words for the same thing, beside the name that CLIP is asked with
_SYNONYMS = {
    "airplane": ("aircraft", "jet plane"),
    "airport": ("airfield", "aerodrome"),
    "baseballfield": ("baseball diamond",),
    "basketballcourt": ("outdoor basketball court",),
    "bridge": ("road bridge", "bridge over a river"),
    "chimney": ("smokestack", "industrial chimney"),
    "dam": ("reservoir dam", "barrage"),
    "Expressway-Service-area": ("motorway service area", "highway rest area"),
    "Expressway-toll-station": ("toll gate", "toll plaza"),
    "golffield": ("golf links", "golf green"),
    "groundtrackfield": ("running track", "athletics track"),
    "harbor": ("port", "marina", "dock"),
    "overpass": ("flyover", "road interchange"),
    "ship": ("boat", "vessel"),
    "stadium": ("sports arena",),
    "storagetank": ("oil tank", "round tank"),
    "tenniscourt": ("outdoor tennis court",),
    "trainstation": ("railway station",),
    "vehicle": ("car", "truck"),
    "windmill": ("wind turbine",),
}


@dataclass(frozen=True)
class Prompts:
    """How a class is put into words.

    Attributes:
        templates: each with one `{}` for the name.
        synonyms: whether other words for a class of DIOR's stand beside its name; a class outside DIOR has none.
    """

    templates: tuple[str, ...] = PROMPT_TEMPLATES
    synonyms: bool = False

    def names(self, classes: Sequence[str]) -> list[list[str]]:
        """The words for each class."""
        return [
            [spoken, *(_synonyms_of(name) if self.synonyms else ())]
            for name, spoken in zip(classes, prompt_names(classes), strict=True)
        ]

    def plain(self) -> dict[str, Any]:
        """As plain values, the synonyms spelled out where they are used."""
        words = {name: list(words) for name, words in _SYNONYMS.items()} if self.synonyms else {}
        return {"templates": list(self.templates), "synonyms": words}


PROMPT_SETS = {
    "name": Prompts(("{}",)),
    "single": Prompts(("a satellite photo of a {}.",)),
    "ensemble": Prompts(),
    "synonyms": Prompts(synonyms=True),
}


def check_prompts(names: Sequence[str]) -> None:
    """Raise a `ParameterError` unless these name one or more of `PROMPT_SETS`, each once."""
    if isinstance(names, str) or not isinstance(names, list | tuple) or not names:
        raise ParameterError(f"prompts must be a list of one or more of {', '.join(PROMPT_SETS)}, got {names!r}")
    for place, name in enumerate(names):
        if not isinstance(name, str) or name not in PROMPT_SETS:
            raise ParameterError(f"prompts holds {name!r}; choose from {', '.join(PROMPT_SETS)}")
        if name in names[:place]:
            raise ParameterError(f"prompts names {name!r} twice; name each once")


def _synonyms_of(name: str) -> tuple[str, ...]:
    try:
        return _SYNONYMS[canonical_class(name)]
    except UnknownClassError:
        return ()


PROTOCOLS = {
    "present": "present: only the classes annotated in an image are asked for (image labels given)",
    "all": "all: every class is asked for on every image, false boxes counted",
}
# methods of finding a box whose class is told
METHOD_NAMES = {
    "oracle": "head, best cell (oracle)",
    "cam_peak": "head, cell of the CAM's peak",
    "untrained_oracle": "untrained head, best cell",
    "untrained_peak": "untrained head, CAM's peak",
    "whole_image": "whole image",
    "centre_box": "centre box",
    "class_mean": "class's mean box",
}
# what may be wrong with a detection
ERROR_TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
# what is done to a map, in the order of a table
STATES = {
    "before": "before",
    "floor": "floor alone",
    "after": "after",
}
# groups of classes, by what an adapter was trained on
ALL, SEEN, UNSEEN = "all classes", "seen classes", "unseen classes"
