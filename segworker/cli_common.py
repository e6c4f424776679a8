"""What several commands share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from segworker.config import JobConfig
from segworker.errors import ConfigError

RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"Ray sets it in the entrypoint of a submitted job."
LOG_LEVELS = ("debug", "info", "warning", "error")


def start_logging(level: str) -> None:
    """Let the program's own remarks go to stderr."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # its warnings quote presigned URLs whole; errors are raised
    logging.getLogger("segworker").setLevel(level.upper() if level in LOG_LEVELS else "INFO")


def refuse_lost_output(output: str) -> None:
    """Refuse a folder inside the working directory of a Ray job, which goes when the job's files are collected."""
    if os.environ.get(RAY_JOB_VARIABLE) and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            f"in a Ray job the output must outlive the job's working directory, got {output}; give --output an "
            "s3:// uri or an absolute path that every node sees"
        )


def run_and_store(run: str, store: str | None) -> tuple[str, str]:
    """Return (run id, store) of what a user named: an id in a store, or a path below the store."""
    path = run.rstrip("/").removesuffix("/run.json")
    root, inside, name = path.rpartition("/runs/")
    if not inside:
        return path, store or JobConfig().output.output
    if store is not None and store.rstrip("/") != root:
        raise ConfigError(f"a run is in one store, got {run} and {store}; name the store once")
    return name, root


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
