"""The figures of the notebooks in one style: frames in, figure out."""
