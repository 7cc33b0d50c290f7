"""Do the class heatmaps of a frozen CLIP localise objects in aerial images, and what holds localisation back?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

# at once, and it costs nothing: a name that a module shares would be taken by the module when that is imported
from .heatmaps import HEATMAP_KINDS, Setting, heatmaps, upsample

__version__ = "0.1.0"


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A `__getattr__` for a package that imports each name of `homes` (module -> its names) on first use.

    So worker processes, `--help` and notebooks take only what they need of torch, open_clip and papermill, which take
    seconds.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{home_of[name]}", package), name)

    return get


_HOMES = {
    "adapter": ("HeatmapAdapter", "load_adapter"),
    "boxes": ("box_giou", "box_iou", "extract_boxes", "nms", "patch_coverage"),
    "clip": ("ImageTokens", "SurgeryCLIP", "load_clip"),
    "datasets": ("Dataset", "load_dataset", "read_image"),
    "engine": (
        "Evaluation", "FeatureCache", "HeatmapStore", "evaluate", "gt_class_localization", "load_adapters",
        "peak_localization",
    ),
    "errors": ("SurgeryError", "SurgeryWarning"),
    "localizer": ("GTClassLocalizer", "load_localizer"),
    "losses": ("gt_class_localization_loss", "heatmap_loss"),
    "metrics": ("average_precision",),
    "words": ("DIOR_CLASSES", "PROMPT_TEMPLATES", "prompt_names"),
    "workbook.run": ("run_workbook",),
}  # fmt: skip
__all__ = ["HEATMAP_KINDS", "Setting", "heatmaps", "upsample", *sorted(name for own in _HOMES.values() for name in own)]
__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
