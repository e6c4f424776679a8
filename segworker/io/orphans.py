"""What dead runs leave in a store: files that nothing refers to and that no run at work will.

Safe beside running ones. What lies in the store is listed first, then the leases, then the tables' logs: a file that is
seen here was written by a run that held its lease before, so that either its lease is seen as well, or the run has
ended and its commit is seen.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from segworker.errors import StorageError
from segworker.io.commit import is_committed
from segworker.io.delta import open_table
from segworker.io.history import read_history
from segworker.io.lease import DEAD_AFTER_S, RUNNING, Lease, keys_in_use, list_leases
from segworker.io.shards import old_shards
from segworker.io.storage import ObjectInfo, Storage
from segworker.io.table import FEATURES_TABLE, SCENES_TABLE, read_store_info, require_store

KEEP_RECORDS_S = 30 * 86_400.0
"How long run.json of a run that failed is kept; that of a killed one, which says nothing, goes with its files."
Kind: TypeAlias = Literal["part", "output", "record", "lease", "shard", "temporary"]
_PART = re.compile(r"part-([A-Za-z0-9._-]+)-[0-9a-f]+\.parquet")
_OF_PART = re.compile(r"part-([A-Za-z0-9._-]+)-of-[0-9a-f]+\.parquet")
_TEMPORARY = re.compile(r"_commit_[^/]*\.json\.tmp$")
_STAGED = re.compile(r"#\d+$")


@dataclass(frozen=True, slots=True)
class Orphan:
    """One object that can go."""

    path: str
    "Relative to the store's root."
    size_bytes: int
    kind: Kind
    run_id: str | None
    "The run that wrote it, where its name tells."


@dataclass(frozen=True, slots=True)
class _Runs:
    """Who is at work on a store."""

    leases: dict[str, Lease]
    now_s: float

    def alive(self, run_id: str) -> bool:
        return run_id in self.leases and self.leases[run_id].alive(self.now_s)

    @property
    def living(self) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.alive(self.now_s)]


def list_orphans(storage: Storage, *, now_s: float | None = None) -> list[Orphan]:
    """Return what dead and failed runs left behind, sorted by path; nothing is removed.

    Parts and rows that no version of a table refers to; COCO files, pictures and records of runs that ended without a
    commit; leases of dead runs; partial shards beside whole ones; temporary files of interrupted writes. Files that
    this project did not name are left alone; so are files of older versions (`vacuum`) and shards (`expire_shards`).

    Args:
        storage: the store's root.
        now_s: seconds since the epoch; the present by default.

    Raises:
        StoreError: for a store of a newer format, and where no run ever was.
    """
    info = read_store_info(storage)
    tables = {table: list(storage.list(table)) for table in (FEATURES_TABLE, SCENES_TABLE)}
    outputs, shards, staged = list(storage.list("runs")), list(storage.list("work")), list(_staged(storage))
    listed_s = time.time() if now_s is None else now_s
    runs = _Runs({lease.run_id: lease for lease in list_leases(storage)}, listed_s)
    if info is None and not (outputs or runs.leases):
        require_store(storage)
    found = [
        *(orphan for table, files in tables.items() for orphan in _of_table(storage, table, files, runs)),
        *_of_runs(storage, outputs, runs),
        *_of_work(shards, runs),
        *(Orphan(f"{RUNNING}/{i}.json", 0, "lease", i) for i in runs.leases if not runs.alive(i)),
        *(Orphan(i.path, i.size_bytes, "temporary", None) for i in staged if _is_left(i, runs)),
    ]
    return sorted(found, key=lambda orphan: orphan.path)


def remove_orphans(storage: Storage, orphans: Sequence[Orphan]) -> None:
    """Delete orphans, leases first: a run that only seemed dead finds that out before it commits."""
    staged = [orphan.path for orphan in orphans if _STAGED.search(orphan.path)]
    for leases_now in (True, False):
        storage.delete(o.path for o in orphans if (o.kind == "lease") == leases_now and o.path not in staged)
    for path in staged:  # the object store's client, which makes such files on a folder, takes them for none of its own
        Path(storage.uri, path).unlink(missing_ok=True)


def list_stale_shards(storage: Storage, *, keep_s: float, but: Sequence[Orphan] = ()) -> list[Orphan]:
    """Return the shards that are older than `keep_s` seconds and that no run at work uses.

    Args:
        storage: the store's root.
        keep_s: what is younger stays.
        but: orphans that are listed already.
    """
    known = {orphan.path for orphan in but}
    found = old_shards(storage, keep_s=keep_s, now_s=time.time(), in_use=keys_in_use(storage))
    stale = (Orphan(info.path, info.size_bytes, "shard", None) for info in found if info.path not in known)
    return sorted(stale, key=lambda orphan: orphan.path)


def tidy_up(storage: Storage) -> list[Orphan]:
    """Remove the orphans where there are leases of dead runs, which a short listing tells; return what was removed."""
    now_s = time.time()
    if all(lease.alive(now_s) for lease in list_leases(storage)):
        return []
    orphans = list_orphans(storage)
    remove_orphans(storage, orphans)
    return orphans


def _of_table(storage: Storage, table: str, files: Sequence[ObjectInfo], runs: _Runs) -> Iterator[Orphan]:
    """Yield parts that no version names, and what is left of interrupted log entries."""
    named: frozenset[str] | None = None
    for info in files:
        name = info.path.removeprefix(f"{table}/")
        if _TEMPORARY.search(name):
            if _is_left(info, runs):
                yield Orphan(info.path, info.size_bytes, "temporary", None)
            continue
        run_id = run_of_part(name)
        if run_id is None or runs.alive(run_id):
            continue
        if named is None:
            history = read_history(storage, table)
            named = frozenset() if history is None else history.named
        if name not in named:
            yield Orphan(info.path, info.size_bytes, "part", run_id)


def _of_runs(storage: Storage, files: Sequence[ObjectInfo], runs: _Runs) -> Iterator[Orphan]:
    """Yield what runs that ended without a commit wrote for people: outputs at once, their record in time."""
    table = open_table(storage, FEATURES_TABLE)
    by_run: dict[str, list[ObjectInfo]] = {}
    for info in files:
        by_run.setdefault(info.path.split("/")[1], []).append(info)
    for run_id, own in by_run.items():
        if runs.alive(run_id) or (table is not None and is_committed(table, run_id)):
            continue
        told = _has_told(storage, run_id, {info.path for info in own})
        for info in own:
            is_output = info.path.count("/") > 2
            if is_output or not told or runs.now_s - info.mtime_s >= KEEP_RECORDS_S:
                yield Orphan(info.path, info.size_bytes, "output" if is_output else "record", run_id)


def _has_told(storage: Storage, run_id: str, paths: set[str]) -> bool:
    """Whether a run lived to write down how it ended."""
    path = f"runs/{run_id}/run.json"
    if path not in paths:
        return False
    try:
        record = json.loads(storage.read(path))
    except (StorageError, ValueError):
        return False
    return isinstance(record, dict) and record.get("status") != "running"


def _of_work(files: Sequence[ObjectInfo], runs: _Runs) -> Iterator[Orphan]:
    """Yield partial shards of which the whole one is there."""
    paths = {info.path for info in files}
    in_use = {lease.tile_key for lease in runs.living}
    for info in files:
        whole = info.path.removesuffix(".partial.parquet") + ".parquet"
        if whole != info.path and whole in paths and info.path.split("/")[1] not in in_use:
            yield Orphan(info.path, info.size_bytes, "shard", None)


def run_of_part(name: str) -> str | None:
    """Return the run that wrote a data file, by its name; None for a file of another program."""
    match = _OF_PART.fullmatch(name) or _PART.fullmatch(name)
    return match[1] if match else None


def _staged(storage: Storage) -> Iterator[ObjectInfo]:
    """Yield files of a folder that a killed process had begun to write; listings leave them out."""
    if storage.is_s3:
        return
    for folder, _, names in os.walk(storage.uri):
        for name in names:
            if _STAGED.search(name):
                path = os.path.join(folder, name)  # noqa: PTH118 - a walk over many files
                status = os.stat(path)  # noqa: PTH116
                yield ObjectInfo(os.path.relpath(path, storage.uri), status.st_size, None, status.st_mtime)


def _is_left(info: ObjectInfo, runs: _Runs) -> bool:
    """Whether nobody can be writing a temporary file any more."""
    return not runs.living or runs.now_s - info.mtime_s >= DEAD_AFTER_S
