"""A dataset through the model: what is kept on disk, worker processes, boxes and their figures, the training loop."""

from .. import lazy

_HOMES = {
    "adapter_training": ("LOSSES", "AdapterSettings", "AdapterTask", "TokenCache", "train_adapter"),
    "adapters": ("TrainedAdapter", "distinct_adapters", "flattered_adapters", "load_adapters"),
    "evaluation": ("Evaluation", "Options", "evaluate"),
    "features": ("BatchReader", "FeatureCache"),
    "finding": ("NO_BOXES", "Boxes", "find_boxes"),
    "localization": ("BASELINES", "gt_class_localization", "localization_difference", "peak_localization"),
    "localizer_training": (
        "METHODS", "UNTRAINED", "LocalizerSettings", "LocalizerTask", "boxes_on_image", "kept_epochs", "localize",
        "predict", "summarise", "train_localizer", "with_untrained",
    ),
    "measures": ("best_overlaps", "present_pairs", "truth_codes"),
    "parallel": ("in_processes",),
    "recipes": ("prompted",),
    "store": ("HeatmapStore", "Store", "check_disk"),
    "tasks": ("Count", "Schedule", "Task", "from_parameters"),
    "training": ("Training", "fit", "folder_of", "progress_of"),
}  # fmt: skip
__all__ = [name for own in _HOMES.values() for name in own]
__getattr__ = lazy(__name__, _HOMES)
