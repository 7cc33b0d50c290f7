"""Class names and their aliases, the words that CLIP is asked with, kinds of heatmaps, and names that readers see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .errors import ParameterError, UnknownClassError, check_names, nearest

# DIOR's own XML spelling -> the words that CLIP is asked with, and its synonyms
_DIOR = {
    "airplane": ("airplane", "aircraft", "jet plane"),
    "airport": ("airport", "airfield", "aerodrome"),
    "baseballfield": ("baseball field", "baseball diamond"),
    "basketballcourt": ("basketball court", "outdoor basketball court"),
    "bridge": ("bridge", "road bridge", "bridge over a river"),
    "chimney": ("chimney", "smokestack", "industrial chimney"),
    "dam": ("dam", "reservoir dam", "barrage"),
    "Expressway-Service-area": ("expressway service area", "motorway service area", "highway rest area"),
    "Expressway-toll-station": ("expressway toll station", "toll gate", "toll plaza"),
    "golffield": ("golf course", "golf links", "golf green"),
    "groundtrackfield": ("ground track field", "running track", "athletics track"),
    "harbor": ("harbor", "port", "marina", "dock"),
    "overpass": ("overpass", "flyover", "road interchange"),
    "ship": ("ship", "boat", "vessel"),
    "stadium": ("stadium", "sports arena"),
    "storagetank": ("storage tank", "oil tank", "round tank"),
    "tenniscourt": ("tennis court", "outdoor tennis court"),
    "trainstation": ("train station", "railway station"),
    "vehicle": ("vehicle", "car", "truck"),
    "windmill": ("windmill", "wind turbine"),
}
DIOR_CLASSES: tuple[str, ...] = tuple(_DIOR)

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


_FOLDED_PROMPTS = {_fold(name): words[0] for name, words in _DIOR.items()}


def _key(name: str) -> str:
    return _ALIASES.get(_fold(name), _fold(name))


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
    """The spelling in `classes` of a class name as somebody wrote it: 'Golf Course', 'golf_field', 'harbour'.

    Raises:
        UnknownClassError: neither in `classes` nor an alias of one of them; the message lists the nearest names.
    """
    found = _by_key(tuple(classes)).get(_key(name))
    if found is None:
        raise UnknownClassError(f"unknown class {name!r}; nearest known: {nearest(name, classes)}")
    return found


def spoken(name: str) -> str:
    """The words for one of DIOR's own spellings ('golffield' -> 'golf course'); any other text as it is."""
    return _DIOR.get(name, (name,))[0]


def prompt_names(classes: Iterable[str]) -> list[str]:
    """The words each class is asked with: 'golffield' -> 'golf course', one per class, in order.

    A class outside DIOR is asked under its own name, with hyphens and underscores as spaces.
    """
    return [_FOLDED_PROMPTS.get(_fold(name)) or " ".join(re.split(r"[-_\s]+", name)).strip() for name in classes]


@dataclass(frozen=True)
class Prompts:
    """How a class is put into words."""

    templates: tuple[str, ...] = PROMPT_TEMPLATES  # each with one `{}` for the name
    synonyms: bool = False  # whether other words for a class stand beside its name; a class outside DIOR has none

    def names(self, classes: Sequence[str]) -> list[list[str]]:
        """The words for each class."""
        of_dior = _by_key(DIOR_CLASSES) if self.synonyms else {}
        return [
            [first, *_DIOR.get(of_dior.get(_key(name)), ())[1:]]
            for name, first in zip(classes, prompt_names(classes), strict=True)
        ]

    def plain(self) -> dict[str, Any]:
        """As plain values, the synonyms spelled out where they are used."""
        words = {name: list(words[1:]) for name, words in _DIOR.items()} if self.synonyms else {}
        return {"templates": list(self.templates), "synonyms": words}


DEFAULT_PROMPTS = "ensemble"
PROMPT_SETS = {
    "name": Prompts(("{}",)),
    "single": Prompts(("a satellite photo of a {}.",)),
    "ensemble": Prompts(),
    "synonyms": Prompts(synonyms=True),
}

PATHS = ("qk", "vv")
# kind of heatmap -> path that the CLS token comes from, path that the patch tokens come from. `standard` is the stock
# model and `vv_qk` the QK path: the same tensors, because the load-time self-check has proven that the two are equal.
KIND_PATHS = {
    "standard": ("qk", "qk"),
    "vv_qk": ("qk", "qk"),
    "vv_vv": ("vv", "vv"),
    "vv_mixed": ("qk", "vv"),
}
HEATMAP_KINDS: tuple[str, ...] = tuple(KIND_PATHS)
# between kinds with equal figures: the paper's choice, then the stock model
KIND_PREFERENCE = ("vv_mixed", "standard", "vv_vv", "vv_qk")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise a `ParameterError` that lists the kinds unless `kinds` is a list of some of them, each once."""
    check_names("kinds", kinds, HEATMAP_KINDS, "heatmap kind")


def kinds_on(path: str) -> tuple[str, ...]:
    """The kinds that take their patches from a path, `qk` or `vv`: they share an adapter."""
    return tuple(kind for kind, (_, patches) in KIND_PATHS.items() if patches == path)


def check_prompts(names: Sequence[str]) -> None:
    """Raise a `ParameterError` unless these name one or more of `PROMPT_SETS`, each once."""
    check_names("prompts", names, PROMPT_SETS, "set of prompts")


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
STATES = {"before": "before", "floor": "floor alone", "after": "after"}
# groups of classes, by what an adapter was trained on
ALL, SEEN, UNSEEN = "all classes", "seen classes", "unseen classes"
