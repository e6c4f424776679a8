"""A committed run against the truth: the script for `ray job submit`, the same as `segworker evaluate`."""

import sys
from pathlib import Path

# A Ray job may run from an uploaded copy of the repository, where segworker is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segworker.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
