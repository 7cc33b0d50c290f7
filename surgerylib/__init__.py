"""Do the class heatmaps of a frozen CLIP localise objects in aerial images, and what holds localisation back?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapter import HeatmapAdapter, load_adapter
    from .boxes import box_giou, box_iou, extract_boxes, nms, patch_coverage
    from .clip import ImageTokens, SurgeryCLIP, load_clip
    from .datasets.dataset import Dataset, load_dataset, read_image
    from .engine.adapted_store import load_adapters
    from .engine.detection import DetectionSettings, detect
    from .engine.features import FeatureCache
    from .engine.localization import gt_class_localization, peak_localization
    from .errors import SurgeryError, SurgeryWarning
    from .heatmaps import HEATMAP_KINDS, heatmaps, upsample
    from .localizer import GTClassLocalizer, load_localizer
    from .losses import gt_class_localization_loss, heatmap_loss
    from .metrics import average_precision
    from .words import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names
    from .workbook.run import run_workbook

__version__ = "0.1.0"


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A `__getattr__` for a package that imports each name on first use.

    So worker processes, `--help` and notebooks take only what they need of torch, open_clip and papermill, which take
    seconds.

    Args:
        package: its `__name__`.
        homes: module of the package -> the names that it has.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{home_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


_HOMES = {
    "engine.adapted_store": ("load_adapters",),
    "adapter": ("HeatmapAdapter", "load_adapter"),
    "boxes": ("box_giou", "box_iou", "patch_coverage"),
    "words": ("DIOR_CLASSES", "PROMPT_TEMPLATES", "prompt_names"),
    "clip": ("ImageTokens", "SurgeryCLIP", "load_clip"),
    "datasets.dataset": ("Dataset", "load_dataset"),
    "engine.detection": ("DetectionSettings", "detect"),
    "errors": ("SurgeryError", "SurgeryWarning"),
    "extraction": ("extract_boxes", "nms"),
    "engine.features": ("FeatureCache",),
    "heatmaps": ("HEATMAP_KINDS", "heatmaps", "upsample"),
    "datasets.images": ("read_image",),
    "engine.localization": ("gt_class_localization", "peak_localization"),
    "localizer": ("GTClassLocalizer", "load_localizer"),
    "losses": ("gt_class_localization_loss", "heatmap_loss"),
    "metrics": ("average_precision",),
    "workbook.run": ("run_workbook",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__getattr__ = lazy(__name__, _HOMES)

__all__ = [
    "DIOR_CLASSES",
    "HEATMAP_KINDS",
    "PROMPT_TEMPLATES",
    "Dataset",
    "DetectionSettings",
    "FeatureCache",
    "GTClassLocalizer",
    "HeatmapAdapter",
    "ImageTokens",
    "SurgeryCLIP",
    "SurgeryError",
    "SurgeryWarning",
    "average_precision",
    "box_giou",
    "box_iou",
    "detect",
    "extract_boxes",
    "gt_class_localization",
    "gt_class_localization_loss",
    "heatmap_loss",
    "heatmaps",
    "load_adapter",
    "load_adapters",
    "load_clip",
    "load_dataset",
    "load_localizer",
    "nms",
    "patch_coverage",
    "peak_localization",
    "prompt_names",
    "read_image",
    "run_workbook",
    "upsample",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # importing the submodule `heatmaps` would put it in the place of the function that has its name
        is_submodule = isinstance(value, ModuleType) and name in _HOME_OF
        super().__setattr__(name, getattr(value, name) if is_submodule else value)


sys.modules[__name__].__class__ = _Package
