"""What a store holds, and what in it could go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from segworker.io.commit import LOG_KEY
from segworker.io.delta import failures_of, live_files_of, open_table
from segworker.io.lease import list_leases
from segworker.io.orphans import list_orphans
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, read_scenes, require_store
from segworker.io.vacuum import list_old_files


@dataclass(frozen=True, slots=True)
class Amount:
    """Some objects."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a store holds."""

    uri: str
    format_version: int
    version: int
    "Of the features table; -1 before the first commit."
    crs: str
    scenes: int
    incomplete_scenes: int
    "With tiles that failed."
    features: int
    parts: Amount
    runs: int
    "That left a record."
    at_work: tuple[str, ...]
    "Runs that hold a lease and live."
    last_commit: dict[str, Any] | None
    "run_id and time of the newest version of features/."
    old_files: Amount
    "That only older versions refer to."
    orphans: Amount
    "What dead runs left."
    work: Amount
    "Tile shards, from which runs go on."


def status_of(storage: Storage) -> Status:
    """Return what a store holds, by its logs, its scenes table and listings; no features are read.

    Raises:
        StoreError: for a store of a newer format, and where there is none.
    """
    info = require_store(storage)
    orphans = list_orphans(storage)
    table = open_table(storage, FEATURES_TABLE)
    files = [] if table is None else live_files_of(table)
    scenes = read_scenes(storage)
    records = {i.path.split("/")[1] for i in storage.list("runs") if i.path.endswith("/run.json")}
    now_s = time.time()
    return Status(
        uri=storage.uri,
        format_version=info.format_version,
        version=-1 if table is None else int(table.version()),
        crs=info.table_crs.label,
        scenes=len(scenes),
        incomplete_scenes=pc.sum(pc.greater(scenes["num_failed_tiles"], 0)).as_py() or 0,
        features=sum(file.num_rows for file in files),
        parts=_amount(file.size_bytes for file in files),
        runs=len(records),
        at_work=tuple(lease.run_id for lease in list_leases(storage) if lease.alive(now_s)),
        last_commit=_last_commit(table),
        old_files=_amount(file.size_bytes for file in list_old_files(storage, keep_s=0)),
        orphans=_amount(orphan.size_bytes for orphan in orphans),
        work=_amount(info.size_bytes for info in storage.list("work")),
    )


def _last_commit(table: Any) -> dict[str, Any] | None:  # noqa: ANN401 - deltalake ships no types
    if table is None:
        return None
    with failures_of(table.table_uri):
        entry = table.history(1)[0]
    told = json.loads(entry.get(LOG_KEY) or "{}")
    at = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
    return {"run_id": told.get("run_id"), "at": at.isoformat(timespec="seconds")}


def _amount(sizes: Iterable[int]) -> Amount:
    found = list(sizes)
    return Amount(len(found), sum(found))
