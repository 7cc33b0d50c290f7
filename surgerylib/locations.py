"""Where things lie in a clone of the project."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = "embedded"  # as a dataset: the procedural scenes; as a model: the small CLIP that is shipped
RUN_LOCK = ".run.lock"  # in a run's folder: held by the one process that writes there
ADAPTER_FILES = "adapter_*.safetensors"  # in a folder of trained heatmap adapters
EMBEDDED_MODEL = PROJECT_ROOT / "data" / "embedded"


def dataset_folder(dataset: str, root: Path = PROJECT_ROOT) -> tuple[Path, bool]:
    """Where a dataset lies, and whether it is the embedded one, which is drawn on demand into `data/scenes`.

    Args:
        dataset: a folder, relative to the project or absolute, or `embedded`.
        root: the project's folder.
    """
    embedded = root / "data" / "scenes"
    folder = embedded if dataset == EMBEDDED else project_path(dataset, root)
    return folder, folder == embedded


def project_path(path: str | Path, root: Path = PROJECT_ROOT) -> Path:
    """A path relative to the project or absolute; `~` is the user's home, and stays where it is nobody's."""
    try:
        return root / Path(path).expanduser()
    except RuntimeError:
        return root / path


def adapter_files(where: str, root: Path = PROJECT_ROOT) -> list[Path]:
    """The adapter files that a parameter names, relative to the project or absolute: one, or those in a folder."""
    try:
        path = root / Path(where).expanduser()
        return [path] if path.is_file() else sorted(path.glob(ADAPTER_FILES))
    except (OSError, RuntimeError):  # too long for a name, or the home of nobody
        return []


def checkpoint_file(checkpoint: str | None, root: Path = PROJECT_ROOT) -> Path | None:
    """The file that a checkpoint names, relative to the project or absolute; None when it names no file."""
    try:
        path = root / Path(checkpoint).expanduser() if checkpoint else root
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # too long for a name, or the home of nobody
        return None
