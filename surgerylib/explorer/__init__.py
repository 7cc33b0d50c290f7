"""The ipywidgets explorer: one image, any question."""

from .app import Explorer

__all__ = ["Explorer"]
