"""Notebooks into a report: opening, parameters, checks, runs, pages, comparison, the command line."""

from .. import lazy

# what notebooks use; a kernel that imports it takes neither papermill nor nbconvert
_HOMES = {
    "run_files": ("data_provenance", "read_frame", "read_results", "write_frames"),
    "session": ("Session", "open_session"),
    "tables": ("ap_caption", "ap_table", "sortable_table"),
}
__all__ = [name for own in _HOMES.values() for name in own]
__getattr__ = lazy(__name__, _HOMES)
