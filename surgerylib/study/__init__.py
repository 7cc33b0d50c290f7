"""What the notebooks measure and say, a module a topic: frames in, frames and sentences out.

A topic is used by its module's name (`summary.warnings_for`), or by the names here.
"""

from .. import lazy

_HOMES = {
    "adaptation": ("balance_variants", "compare_variants", "loss_variants", "states_of"),
    "classification": ("classify",),
    "evaluation_tables": ("SHARE", "verdict"),
    "error_types": ("detection_errors", "error_decomposition", "mean_gains"),
    "example_images": ("example_pairs", "examples"),
    "head_evaluation": ("check_evaluated", "find_head", "load_head"),
    "localizer_tables": ("FIGURES",),
    "quality": ("difference_column", "joint_pairs", "map_quality", "quality_by_kind", "quality_table"),
    "settings": (
        "Criterion", "at_percentiles", "check_floor_percentiles", "floor_values", "post_processing_variants",
        "setting_grid", "sweep",
    ),
    "summary": (
        "FEW_IMAGES", "INTERVAL_NOTE", "average_precision_text", "present_only", "skipped_note", "warnings_for",
    ),
    "tables": ("plain",),
    "training": ("TrainingPlan", "adapted_kinds", "head_variants", "publish", "publish_adapters"),
}  # fmt: skip
__all__ = [name for own in _HOMES.values() for name in own]
__getattr__ = lazy(__name__, _HOMES)
