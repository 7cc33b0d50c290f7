"""Detection datasets on disk: their layouts, annotations, images, and what becomes of damaged ones."""
