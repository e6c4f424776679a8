"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

# Read when ray is imported: otherwise each worker of a test that runs in `uv run` would start through uv as well.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test imagery beside the checkout; tests that need it are skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("real test imagery (../shared) is not on this machine")
    return path
