"""The ipywidgets explorer: one image, any question."""

from .app import Explorer
from .controls import ALL_KINDS

__all__ = ["ALL_KINDS", "Explorer"]
