"""Do the class heatmaps of a frozen CLIP localise objects in aerial images, and what holds localisation back?"""

from .boxes import box_giou, box_iou, extract_boxes, nms
from .classes import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names
from .clip import ImageTokens, SurgeryCLIP, load_clip
from .datasets import Dataset, load_dataset, read_image
from .detection import DetectionSettings, detect
from .errors import SurgeryError, SurgeryWarning
from .heatmaps import HEATMAP_KINDS, heatmaps, upsample
from .metrics import average_precision

__version__ = "0.1.0"

__all__ = [
    "DIOR_CLASSES",
    "HEATMAP_KINDS",
    "PROMPT_TEMPLATES",
    "Dataset",
    "DetectionSettings",
    "ImageTokens",
    "SurgeryCLIP",
    "SurgeryError",
    "SurgeryWarning",
    "average_precision",
    "box_giou",
    "box_iou",
    "detect",
    "extract_boxes",
    "heatmaps",
    "load_clip",
    "load_dataset",
    "nms",
    "prompt_names",
    "read_image",
    "run_workbook",
    "upsample",
]


def __getattr__(name: str) -> object:
    """`run_workbook` on first use: papermill and nbconvert take time that a notebook's own import need not spend."""
    if name == "run_workbook":
        from .workbook import run_workbook

        return run_workbook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
