"""Removing files that only old versions of the tables refer to: time travel ends where they go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from segworker.errors import StoreError
from segworker.io.history import read_history
from segworker.io.lease import list_leases
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, SCENES_TABLE, require_store

KEEP_S = 7 * 86_400.0
LEAST_BESIDE_RUNS_S = 3600.0
"A run that commits reads files of the version that it found a moment ago."


@dataclass(frozen=True, slots=True)
class OldFile:
    """A data file of older versions alone."""

    path: str
    "Relative to the store's root."
    size_bytes: int


def list_old_files(storage: Storage, *, keep_s: float = KEEP_S, now_s: float | None = None) -> list[OldFile]:
    """Return the files that no version younger than `keep_s` seconds refers to, sorted by path; nothing is removed.

    Files that were never committed are not among them: they belong to runs at work, or are orphans.

    Args:
        storage: the store's root.
        keep_s: versions that were the newest one in this time stay readable.
        now_s: seconds since the epoch; the present by default.

    Raises:
        StoreError: for a store of a newer format, and where there is none.
    """
    require_store(storage)
    limit_ms = ((time.time() if now_s is None else now_s) - keep_s) * 1000
    found = []
    for table in (FEATURES_TABLE, SCENES_TABLE):
        history = read_history(storage, table)
        if history is None:
            continue
        old = {path for path, removed_ms in history.removed_ms.items() if removed_ms <= limit_ms}
        found += [
            OldFile(info.path, info.size_bytes)
            for info in storage.list(table)
            if info.path.removeprefix(f"{table}/") in old
        ]
    return sorted(found, key=lambda file: file.path)


def check_retention(storage: Storage, keep_s: float) -> None:
    """Raise StoreError where files would go that a run at work may be reading."""
    now_s = time.time()
    living = [lease.run_id for lease in list_leases(storage) if lease.alive(now_s)]
    if keep_s < LEAST_BESIDE_RUNS_S and living:
        raise StoreError(
            f"beside a run at work a vacuum keeps at least {LEAST_BESIDE_RUNS_S / 3600:.0f} h, got {keep_s:.0f} s "
            f"while {living[0]} runs; raise --keep, or wait until it is done"
        )


def remove_old_files(storage: Storage, files: Sequence[OldFile]) -> None:
    """Delete files that `list_old_files` found."""
    storage.delete(file.path for file in files)
