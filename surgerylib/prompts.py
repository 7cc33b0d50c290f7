"""Ways to put a class into words for CLIP's text tower, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ParameterError, UnknownClassError
from .words import PROMPT_TEMPLATES, canonical_class, prompt_names

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
