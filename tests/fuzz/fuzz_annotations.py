"""Coverage-guided fuzzing of the VOC reader with atheris: `make fuzz`.

Takes libFuzzer's own arguments: `python tests/fuzz/fuzz_annotations.py FOLDER tests/fuzz/corpus -max_total_time=660`
writes what reaches new code into FOLDER and stops at the first input that breaks a rule of `voc_target`.
`-merge=1 NEW OLD` leaves in NEW the smallest set that reaches all of it. What is worth keeping goes into `corpus/`,
which `test_fuzz_annotations` replays in every `make test`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

# of what they import, pandas and the like stay as they are
with atheris.instrument_imports(include=["surgerylib", "defusedxml", "xml.etree"]):
    import surgerylib.datasets  # noqa: F401

from voc_target import check_annotation, make_dataset


def main() -> None:
    """Fuzzes until libFuzzer's own limits stop it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root = make_dataset(Path(folder))

        def one_input(data: bytes) -> None:
            check_annotation(data, root)

        # for -merge libFuzzer calls its first argument as a program, in a shell
        atheris.Setup([f"{sys.executable} {sys.argv[0]}", *sys.argv[1:]], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
