"""The commit: a run's parts replace its scenes' older rows in one step, whoever else commits at that time.

Protocol. (1) `store.json` fixes format and coordinates. (2) One Delta transaction on features/ adds the run's parts and
removes the files that hold rows of the run's scenes; files shared with other scenes are written anew without them. It
records two application transactions: the store's, so that two commits that were planned on the same version conflict,
and the run's, so that a repeated commit is seen as done. Both carry the *commit number*, which grows by one with each
commit of the store. On a conflict everything is planned again on the newer version. (3) The scenes' rows are
committed to scenes/ the same way. A run that died between (2) and (3) repeats (3) alone; rows of a scene that a later
commit has replaced in the meantime are left as they are.

A reader of one table sees a whole commit or none of it. A committed file is never written again: parts are named by
run, rewritten parts by what they are made of, rows of scenes/ by chance.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from numpy.typing import NDArray

from segworker.errors import CommitConflict, StorageError, StoreError
from segworker.io.delta import LiveFile, commit_files, create_table, failures_of, live_files_of, open_table
from segworker.io.geoparquet import Part, column_stats, write_parquet
from segworker.io.ids import INDEX_BITS, format_ranges, parse_ranges
from segworker.io.replace import Replacement, meets
from segworker.io.retry import retried
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, SCENES_TABLE, ensure_store, part_name, read_parquet
from segworker.io.table_crs import TableCrs
from segworker.killpoints import reached
from segworker.schema import COMMIT_COLUMNS, FEATURES, SCENES

STORE_APP = "segworker"
RUN_APP = "segworker/run/"
LOG_KEY = "segworker"
MAX_TRIES = 50
MAX_SCENE_FILES = 32
_SCENES_TEXT = "one row for each scene"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did."""

    commit_no: int
    "Grows by one with each commit of the store."
    features_version: int
    "Version of the features table that this call made (or found, where it is repeated)."
    num_removed: int
    "Files of features/ that this call took out of the table, those written anew included."
    num_rewritten: int
    "Files of features/ that were written anew without the replaced rows."
    repeated: bool
    "True where features had been committed by an earlier call."


def features_version(storage: Storage) -> int:
    """Return the version of the features table, -1 before the first commit: the `base_version` of a run that starts."""
    table = open_table(storage, FEATURES_TABLE)
    return -1 if table is None else int(table.version())


def committed_as(storage: Storage, run_id: str) -> int | None:
    """Return the commit number of a run whose features are in, or None: its parts must not be written again."""
    table = open_table(storage, FEATURES_TABLE)
    return None if table is None else recorded(table, RUN_APP + run_id)


def is_committed(table: DeltaTable, run_id: str) -> bool:
    """Whether a run's features are in a version of the features table (or were: later runs may have replaced them)."""
    return recorded(table, RUN_APP + run_id) is not None


def commit_run(
    storage: Storage,
    *,
    run_id: str,
    parts: Sequence[Part],
    scenes: pa.Table,
    table_crs: TableCrs,
    removed_scene_nos: Collection[int] = (),
    base_version: int | None = None,
) -> CommitResult:
    """Replace the rows of a run's scenes by its parts and list the scenes, in one step for each table.

    Call it again, with the same arguments, after any failure.

    Args:
        storage: the store's root.
        run_id: a run is committed once; a second call with its id only finishes the first.
        parts: from `write_part`; they hold rows of `scenes` alone.
        scenes: a row of SCENES (without COMMIT_COLUMNS) for each scene that the run finished, those without features
            included.
        table_crs: coordinates of the parts.
        removed_scene_nos: more scenes, whose rows vanish from both tables.
        base_version: `features_version` when the run began; None: replace whatever is there.

    Raises:
        CommitConflict: where another run committed one of the scenes after `base_version`, or the table never
            stood still long enough.
        StoreError: for parts with rows of other scenes, and stores with other coordinates.
        StorageError: when the store cannot be read or written.
    """
    rows = _conform(scenes)
    scene_nos = np.array(sorted({*rows["scene_no"].to_pylist(), *removed_scene_nos}), np.int64)
    replacement = Replacement(storage, run_id, scene_nos, table_crs)
    work = _Work(storage, run_id, tuple(parts), rows, table_crs, base_version, replacement)
    _check_parts(work)
    ensure_store(storage, table_crs)
    result = until_done(lambda: _try_features(work), storage.location(FEATURES_TABLE))
    reached("features")
    until_done(lambda: _try_scenes(work, result.commit_no), storage.location(SCENES_TABLE))
    return result


def unlist_scenes(storage: Storage, run_id: str, scene_nos: Collection[int], *, commit_no: int) -> None:
    """Take scenes out of the scenes table, as far as the features' commit `commit_no` or an earlier one brought them.

    Args:
        storage: the store's root.
        run_id: who does so; names the file that is written.
        scene_nos: the scenes.
        commit_no: the newest commit of features that the caller has seen.

    Raises:
        CommitConflict: where the table never stood still long enough.
        StorageError: when the store cannot be read or written.
    """
    numbers = np.array(sorted(set(scene_nos)), np.int64)

    def attempt() -> bool | None:
        table = create_table(storage, SCENES_TABLE, SCENES, description=_SCENES_TEXT)
        touched, old = _scenes_with(storage, table, numbers)
        rows = old.filter(_stays(old, numbers, commit_no))
        added = _write_scenes(storage, run_id, rows)
        return _replace_scene_rows(table, run_id, touched, added, commit_no, []) or None

    until_done(attempt, storage.location(SCENES_TABLE))


def last_commit_no(storage: Storage) -> int:
    """Return the number of the newest commit of features, 0 before the first."""
    table = open_table(storage, FEATURES_TABLE)
    return 0 if table is None else recorded(table, STORE_APP) or 0


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A commit to be made."""

    storage: Storage
    run_id: str
    parts: tuple[Part, ...]
    scenes: pa.Table
    table_crs: TableCrs
    base_version: int | None
    replacement: Replacement
    tried: set[str] = field(default_factory=set)
    "Files of the scenes table of attempts that did not land."

    @property
    def replaced(self) -> NDArray[np.int64]:
        """Sorted numbers of the scenes whose older rows go."""
        return self.replacement.scene_nos

    def remove(self, table: str, names: Collection[str]) -> None:
        """Remove files of attempts that other commits overtook, once a later attempt has landed.

        None of them can land any more. Not where a commit was found done, because its answer was lost: the log alone
        tells which attempt that was, and `segworker clean` removes the others.
        """
        with suppress(StorageError):  # nor is it worth a failure
            self.storage.delete(f"{table}/{name}" for name in names)


def until_done(attempt: Callable[[], _T | None], location: str) -> _T:
    """Repeat an attempt until it returns something; None means that another commit came first."""
    for tries in range(MAX_TRIES):
        result = attempt()
        if result is not None:
            return result
        time.sleep(random.uniform(0, min(2.0, 0.05 * 2**tries)))  # noqa: S311 - spreads writers, no secret
    raise CommitConflict(
        f"a commit needs a moment without another one, got {MAX_TRIES} conflicts in {location}; "
        "run the same command again"
    )


# -- features ---------------------------------------------------------------------------------------------------------


def _try_features(work: _Work) -> CommitResult | None:
    """Plan and commit on the newest version; None where another commit came first."""
    table = create_table(work.storage, FEATURES_TABLE, FEATURES, description=f"coordinates: {work.table_crs.label}")
    done = recorded(table, RUN_APP + work.run_id)
    if done is not None:
        return CommitResult(done, int(table.version()), 0, 0, repeated=True)
    _refuse_overlap(work, table)
    removal = work.replacement.plan(live_files_of(table))
    reached("rewritten")
    number = (recorded(table, STORE_APP) or 0) + 1
    version = int(table.version()) + 1
    entry = {"commit_no": number, "run_id": work.run_id, "scenes": format_ranges(work.replaced)}
    landed = commit_files(
        table,
        FEATURES,
        added=[*work.parts, *removal.rewritten],
        removed=removal.files,
        transactions=[(STORE_APP, number), (RUN_APP + work.run_id, number)],
        metadata={LOG_KEY: json.dumps(entry)},
    )
    if not landed:
        return None
    work.remove(FEATURES_TABLE, work.replacement.written() - {part.path for part in removal.rewritten})
    counts = len(removal.files), len(removal.rewritten)
    return CommitResult(number, version, *counts, repeated=False)


def _refuse_overlap(work: _Work, table: DeltaTable) -> None:
    """Raise CommitConflict where a commit after the run's base covers one of its scenes."""
    if work.base_version is None:
        return
    num_newer = int(table.version()) - work.base_version
    if num_newer <= 0:
        return
    with failures_of(table.table_uri):
        history = retried(lambda: table.history(num_newer))
    for entry in history:
        text = entry.get(LOG_KEY)
        if text is None:
            continue
        other = json.loads(text)
        common = np.intersect1d(work.replaced, parse_ranges(other["scenes"]))
        if len(common):
            raise CommitConflict(
                f"a scene is committed by one run at a time, got {len(common)} scenes that run {other['run_id']} "
                f"committed since run {work.run_id} began; run the same command again to replace them"
            )


# -- scenes -----------------------------------------------------------------------------------------------------------


def _try_scenes(work: _Work, commit_no: int) -> bool | None:
    """Commit the scenes' rows on the newest version; None where another commit came first.

    All rows that this commit touches, and all small files once there are many, end up in one new file.
    """
    table = create_table(work.storage, SCENES_TABLE, SCENES, description=_SCENES_TEXT)
    if recorded(table, RUN_APP + work.run_id) is not None:
        return True
    touched, old = _scenes_with(work.storage, table, work.replaced)
    rows = _merge_scenes(old, work, commit_no)
    done = [(RUN_APP + work.run_id, commit_no)]
    added = _write_scenes(work.storage, work.run_id, rows)
    if not _replace_scene_rows(table, work.run_id, touched, added, commit_no, done):
        work.tried.update(part.path for part in added)
        return None
    work.remove(SCENES_TABLE, work.tried)
    return True


def _scenes_with(storage: Storage, table: DeltaTable, numbers: NDArray[np.int64]) -> tuple[list[LiveFile], pa.Table]:
    """Return (files of the scenes table that may hold some scenes, or all once there are many, and their rows)."""
    files = live_files_of(table)
    touched = (
        files
        if len(files) >= MAX_SCENE_FILES
        else [f for f in files if meets(f.minima["scene_no"], f.maxima["scene_no"], numbers)]
    )
    old = [read_parquet(storage, f"{SCENES_TABLE}/{file.path}").cast(SCENES) for file in touched]
    return touched, pa.concat_tables([SCENES.empty_table(), *old])


def _replace_scene_rows(
    table: DeltaTable,
    run_id: str,
    touched: Sequence[LiveFile],
    added: Sequence[Part],
    commit_no: int,
    done: Sequence[tuple[str, int]],
) -> bool:
    """Put a file of rows in the place of others; False where another commit came first."""
    reached("scenes-file")
    return commit_files(
        table,
        SCENES,
        added=added,
        removed=touched,
        transactions=[(STORE_APP, (recorded(table, STORE_APP) or 0) + 1), *done],
        metadata={LOG_KEY: json.dumps({"commit_no": commit_no, "run_id": run_id})},
    )


def _merge_scenes(old: pa.Table, work: _Work, commit_no: int) -> pa.Table:
    """Return old rows and the run's, one for each scene: that of the later commit of features."""
    later = old.filter(pc.field("commit_no") > commit_no)
    superseded = pa.array(
        np.union1d(later["scene_no"].to_numpy(), _covered_since(work.storage, commit_no)), SCENES.field("scene_no").type
    )
    new = work.scenes.filter(pc.invert(pc.is_in(work.scenes["scene_no"], value_set=superseded)))
    stamp = [pa.array([value] * len(new), SCENES.field(name).type) for name, value in
             zip(COMMIT_COLUMNS, (commit_no, datetime.now(UTC)), strict=True)]  # fmt: skip
    for name, column in zip(COMMIT_COLUMNS, stamp, strict=True):
        new = new.append_column(name, column)
    kept = old.filter(_stays(old, work.replaced, commit_no))
    return pa.concat_tables([kept, new.select(SCENES.names).cast(SCENES)]).sort_by("scene_no")


def _stays(rows: pa.Table, numbers: NDArray[np.int64], commit_no: int) -> pa.ChunkedArray:
    """Return which rows are of other scenes, or of a later commit."""
    named = pc.is_in(rows["scene_no"], value_set=pa.array(numbers, pa.int32()))
    return pc.or_(pc.invert(named), pc.greater(rows["commit_no"], commit_no))


def _covered_since(storage: Storage, commit_no: int) -> NDArray[np.int64]:
    """Return the scenes that commits of features after `commit_no` replaced or deleted; a deletion leaves no row."""
    table = open_table(storage, FEATURES_TABLE)
    if table is None or (recorded(table, STORE_APP) or 0) <= commit_no:
        return np.zeros(0, np.int64)
    with failures_of(table.table_uri):
        entries = [json.loads(entry[LOG_KEY]) for entry in retried(table.history) if LOG_KEY in entry]
    later = [parse_ranges(entry["scenes"]) for entry in entries if entry["commit_no"] > commit_no]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *later]))


def _write_scenes(storage: Storage, run_id: str, rows: pa.Table) -> list[Part]:
    """Write rows of the scenes table as one file, under a new name; no file for no rows."""
    if not len(rows):
        return []
    stats = json.dumps(column_stats(rows, ("scene_no", "scene_id", "run_id", "commit_no")))
    name = part_name(run_id, uuid.uuid4().hex[:12])
    return [write_parquet(rows, storage.child(SCENES_TABLE), name, stats=stats)]


# -- checks and small things ------------------------------------------------------------------------------------------


def _conform(scenes: pa.Table) -> pa.Table:
    names = [name for name in SCENES.names if name not in COMMIT_COLUMNS]
    if set(names) - set(scenes.column_names):
        raise StoreError(f"scenes have the columns of the schema, got {scenes.column_names}; this is a bug, report it")
    rows = scenes.select(names).cast(pa.schema([SCENES.field(name) for name in names]))
    if len(set(rows["scene_no"].to_pylist())) != len(rows):
        raise StoreError("a commit has one row for each scene, got several for one; this is a bug, report it")
    return rows


def _check_parts(work: _Work) -> None:
    known = set(work.scenes["scene_no"].to_pylist())
    for part in work.parts:
        stats = json.loads(part.stats)
        ends = {stats[key]["feature_id"] >> INDEX_BITS for key in ("minValues", "maxValues")}
        if ends - known:
            raise StoreError(
                f"parts hold rows of the commit's scenes alone, got scene numbers {sorted(ends - known)} "
                f"in {part.path}; this is a bug, report it"
            )


def recorded(table: DeltaTable, app_id: str) -> int | None:
    """Return the commit number that a table records for an application transaction, or None."""
    with failures_of(table.table_uri):
        return retried(lambda: table.transaction_version(app_id))
