"""The ipywidgets explorer: one image, any question."""
