"""The command line: `python -m surgerylib run | check | features | train | compare | scenes`."""

import sys

from .workbook.cli import shell

if __name__ == "__main__":
    sys.exit(shell())
