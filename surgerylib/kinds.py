"""What can be asked for by name: heatmap kinds, similarities, protocols. Names alone; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ParameterError

# kind -> path that the CLS token comes from, path that the patch tokens come from. `standard` is the stock model and
# `vv_qk` the QK path: the same tensors, because the load-time self-check has proven the QK path to be the stock model.
KIND_PATHS = {
    "standard": ("qk", "qk"),
    "vv_qk": ("qk", "qk"),
    "vv_vv": ("vv", "vv"),
    "vv_mixed": ("qk", "vv"),
}
HEATMAP_KINDS: tuple[str, ...] = tuple(KIND_PATHS)
# between kinds with equal figures: the paper's choice, then the stock model
KIND_PREFERENCE = ("vv_mixed", "standard", "vv_vv", "vv_qk")
SIMILARITIES = ("cosine", "surgery")
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


def map_source(kind: str, similarity: str) -> tuple[str, ...]:
    """What a kind's maps depend on: kinds with the same source have the same maps under this similarity."""
    check_kinds([kind])
    check_similarity(similarity)
    cls, patches = KIND_PATHS[kind]
    return (patches,) if similarity == "cosine" else (cls, patches)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise a `ParameterError` that lists the four kinds unless `kinds` names some of them, each once."""
    if isinstance(kinds, list | tuple) and not kinds:
        raise ParameterError(f"kinds is {kinds!r}; name one or more of {', '.join(HEATMAP_KINDS)}")
    listed = not isinstance(kinds, str) and len(kinds) > 0
    unknown = [kind for kind in kinds if kind not in HEATMAP_KINDS] if listed else [kinds]
    if unknown:
        raise ParameterError(f"unknown heatmap kind {unknown[0]!r}; the kinds are {', '.join(HEATMAP_KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise ParameterError(f"kinds names one kind twice: {list(kinds)}; name each once")


def check_similarity(similarity: str) -> None:
    """Raise a `ParameterError` unless `similarity` is known."""
    if similarity not in SIMILARITIES:
        raise ParameterError(f"unknown similarity {similarity!r}; choose from {', '.join(SIMILARITIES)}")
