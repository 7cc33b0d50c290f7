"""The figures of the notebooks in one style, a module a notebook: frames in, figure out.

In all of them `title` says the finding, and an axis's label the quantity.
"""

from .. import lazy

_HOMES = {
    "style": (
        "PREDICTION", "TRUTH", "WIDTH", "best_iou", "best_iou_text", "draw_boxes", "figure_bytes", "kind_looks",
        "new_figure", "overlay", "photo_axis", "show", "styled",
    ),
}  # fmt: skip
__all__ = [*_HOMES["style"]]
__getattr__ = lazy(__name__, _HOMES)
