"""Joining small parts of features/ into larger ones: the same rows before and after, in one Delta transaction.

deltalake's own optimize loses the `geo` footer entry and knows nothing of scenes; this writes GeoParquet as a run does.
A part stays as it is once it has half the size that it may have, so that compacting a store again and again writes a
row a bounded number of times. Older versions are read from the old files until `vacuum` removes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from segworker.io.commit import LOG_KEY, STORE_APP, recorded, until_done
from segworker.io.delta import LiveFile, commit_files, live_files_of, open_table
from segworker.io.geoparquet import Part
from segworker.io.lease import held
from segworker.io.replace import scene_bounds
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, read_parquet, require_store, write_part
from segworker.io.table_crs import TableCrs
from segworker.schema import FEATURES

SHARED_BYTES = 2 * 10**6
"Of a part that several scenes share: small, because a scene that changes has its neighbours' rows written again."
SCENE_BYTES = 256 * 10**6
"Of a part of one scene, which is replaced as a whole."


@dataclass(frozen=True, slots=True)
class Compaction:
    """What joining parts does to a store."""

    num_parts_before: int
    num_parts_after: int
    num_joined: int
    "Parts that go."
    joined_bytes: int
    "Of the parts that go; about as much is written."
    version: int | None
    "The version of features/ that it made; None where nothing was to do, or for a plan."


def plan_joins(
    files: Sequence[LiveFile], *, shared_bytes: int = SHARED_BYTES, scene_bytes: int = SCENE_BYTES
) -> list[list[LiveFile]]:
    """Return which files are joined: neighbours in the order of their scenes, at least two of them.

    Args:
        files: the live files of features/.
        shared_bytes: most bytes of a part of several scenes.
        scene_bytes: most bytes of a part of one scene.
    """
    joins: list[list[LiveFile]] = []
    join: list[LiveFile] = []
    for file in sorted(files, key=lambda f: (*scene_bounds(f), f.path)):
        if file.size_bytes * 2 >= _limit([file], shared_bytes, scene_bytes):
            continue
        wider = [*join, file]
        if sum(f.size_bytes for f in wider) > _limit(wider, shared_bytes, scene_bytes):
            joins.append(join)
            wider = [file]
        join = wider
    return [join for join in [*joins, join] if len(join) > 1]


def plan_compaction(
    storage: Storage, *, shared_bytes: int = SHARED_BYTES, scene_bytes: int = SCENE_BYTES
) -> Compaction:
    """Return what `compact` would do now; nothing is written. Arguments as there."""
    require_store(storage)
    table = open_table(storage, FEATURES_TABLE)
    files = [] if table is None else live_files_of(table)
    return _told(files, plan_joins(files, shared_bytes=shared_bytes, scene_bytes=scene_bytes), None)


def compact(
    storage: Storage, run_id: str, *, shared_bytes: int = SHARED_BYTES, scene_bytes: int = SCENE_BYTES
) -> Compaction:
    """Join the small parts of a store. Runs may commit meanwhile: what they change is planned anew.

    One join at a time is in memory, about ten times its bytes.

    Args:
        storage: the store's root.
        run_id: names the parts.
        shared_bytes: most bytes of a part of several scenes.
        scene_bytes: most bytes of a part of one scene.

    Raises:
        StoreError: for a store of a newer format, and where there is none.
        CommitConflict: where the table never stood still long enough.
        StorageError: when the store cannot be read or written.
    """
    work = _Work(storage, run_id, require_store(storage).table_crs, shared_bytes, scene_bytes)
    plan = plan_compaction(storage, shared_bytes=shared_bytes, scene_bytes=scene_bytes)
    if not plan.num_joined:
        return plan
    with held(storage, run_id, tile_key=""):
        return until_done(work.attempt, storage.location(FEATURES_TABLE))


@dataclass(frozen=True, slots=True)
class _Work:
    """A compaction to be made. Joined parts are kept in mind, so that planning again costs only what changed."""

    storage: Storage
    run_id: str
    table_crs: TableCrs
    shared_bytes: int
    scene_bytes: int
    _written: dict[str, Part] = field(default_factory=dict)

    def attempt(self) -> Compaction | None:
        """Plan and commit on the newest version; None where another commit came first."""
        table = open_table(self.storage, FEATURES_TABLE)
        assert table is not None
        files = live_files_of(table)
        joins = plan_joins(files, shared_bytes=self.shared_bytes, scene_bytes=self.scene_bytes)
        if not joins:
            return _told(files, joins, None)
        number = (recorded(table, STORE_APP) or 0) + 1
        entry = {"commit_no": number, "run_id": self.run_id, "scenes": ""}
        version = int(table.version()) + 1
        landed = commit_files(
            table,
            FEATURES,
            added=[self._join(join) for join in joins],
            removed=[file for join in joins for file in join],
            transactions=[(STORE_APP, number)],
            metadata={LOG_KEY: json.dumps(entry)},
            data_change=False,
        )
        return _told(files, joins, version) if landed else None

    def _join(self, files: Sequence[LiveFile]) -> Part:
        """Write the rows of some files as one, named by them."""
        key = hashlib.sha256("|".join(file.path for file in files).encode()).hexdigest()[:16]
        if key not in self._written:
            tables = [read_parquet(self.storage, f"{FEATURES_TABLE}/{file.path}").cast(FEATURES) for file in files]
            rows = pa.concat_tables(tables)
            self._written[key] = write_part(self.storage, self.run_id, f"of-{key}", rows, self.table_crs)
        return self._written[key]


def _limit(files: Sequence[LiveFile], shared_bytes: int, scene_bytes: int) -> int:
    scenes = {number for file in files for number in scene_bounds(file)}
    return scene_bytes if len(scenes) == 1 else shared_bytes


def _told(files: Sequence[LiveFile], joins: Sequence[Sequence[LiveFile]], version: int | None) -> Compaction:
    joined = [file for join in joins for file in join]
    after = len(files) - len(joined) + len(joins)
    return Compaction(len(files), after, len(joined), sum(file.size_bytes for file in joined), version)
