"""What changed between two versions of a store, by scene and class, from its Delta history.

Only files that one version has and the other has not are read. Two features are the same where scene, class and outline
are; a feature whose outline changed by a pixel counts as one that went and one that came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segworker.errors import ConfigError, StorageError, StoreError
from segworker.io.commit import LOG_KEY
from segworker.io.delta import LiveFile, failures_of, live_files_of, open_table
from segworker.io.retry import retried
from segworker.io.scan import read_row_groups
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, require_store

_COLUMNS = ["scene_id", "class_name", "run_id", "geometry"]


@dataclass(frozen=True, slots=True)
class Commit:
    """One version of the features table."""

    version: int
    at: datetime
    run_id: str | None
    "None where another program than segworker made it."


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the features of one class in one scene."""

    scene_id: str
    class_name: str
    before: int
    after: int
    same: int
    "With the same outline in both."

    @property
    def gone(self) -> int:
        """Features that are no more."""
        return self.before - self.same

    @property
    def new(self) -> int:
        """Features that were not there."""
        return self.after - self.same


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed from one version to another."""

    start: int
    stop: int
    commits: tuple[Commit, ...]
    "Those after `start`, up to `stop`, the oldest first."
    changes: tuple[Change, ...]
    "By scene and class: of scenes that were committed in between, though all their features may be the same."
    new_scenes: tuple[str, ...]
    "Without features before. (A scene that never has any shows in neither.)"
    gone_scenes: tuple[str, ...]
    "Without features after."

    def by_class(self) -> list[Change]:
        """Return the sums over scenes, with an empty scene_id."""
        names = sorted({change.class_name for change in self.changes})
        own = {name: [c for c in self.changes if c.class_name == name] for name in names}
        return [
            Change("", name, sum(c.before for c in cs), sum(c.after for c in cs), sum(c.same for c in cs))
            for name, cs in own.items()
        ]

    def record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "from_version": self.start,
            "to_version": self.stop,
            "commits": [{"version": c.version, "at": c.at.isoformat(), "run_id": c.run_id} for c in self.commits],
            "new_scenes": list(self.new_scenes),
            "gone_scenes": list(self.gone_scenes),
            "by_class": [_told(change) for change in self.by_class()],
            "by_scene": [{"scene_id": change.scene_id, **_told(change)} for change in self.changes],
        }


def diff(storage: Storage, start: int | str | None = None, stop: int | str | None = None) -> Diff:
    """Return what changed between two versions of a store's features.

    Args:
        storage: the store's root.
        start: a version, or a time (ISO 8601; UTC unless it says otherwise) that stands for the version that was the
            newest then; None: the one before `stop`.
        stop: likewise; None: the newest.

    Raises:
        ConfigError: for versions that do not exist, or in the wrong order.
        StoreError: where there is no store, or files of an old version were vacuumed.
    """
    require_store(storage)
    history = read_commits(storage)
    last = _version_of(stop, history) if stop is not None else history[-1].version
    first = _version_of(start, history) if start is not None else max(last - 1, -1)
    if first > last:
        raise ConfigError(f"a difference goes from an older version to a newer one, got {first} to {last}; swap them")
    old, new = _files(storage, first), _files(storage, last)
    left, came = (sorted(set(a) - set(b)) for a, b in ((old, new), (new, old)))
    try:
        rows = [*_keys(storage, [old[path] for path in left], 0), *_keys(storage, [new[path] for path in came], 1)]
    except StorageError as error:
        raise StoreError(
            f"both versions must still have their files, got {error}; version {first} may have been vacuumed, choose a "
            "later --from"
        ) from None
    commits = tuple(commit for commit in history if first < commit.version <= last)
    return Diff(first, last, commits, *_compared(rows))


def read_commits(storage: Storage) -> list[Commit]:
    """Return the commits of the features table that its log remembers, the oldest first; there is at least one."""
    table = open_table(storage, FEATURES_TABLE)
    if table is None:
        raise StoreError(f"a store has had a commit, got no features table in {storage.uri}; run a job first")
    with failures_of(table.table_uri):
        entries = retried(table.history)
    return [
        Commit(
            int(entry["version"]),
            datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
            json.loads(entry.get(LOG_KEY) or "{}").get("run_id"),
        )
        for entry in reversed(entries)
    ]


def _version_of(text: int | str, history: Sequence[Commit]) -> int:
    if isinstance(text, int) or text.lstrip("-").isdecimal():
        version, newest = int(text), history[-1].version
        if not -1 <= version <= newest:
            raise ConfigError(f"versions of this store are 0 to {newest} (-1: before the first), got {version}")
        return version
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"a version is a number, or a time like 2026-11-24T18:00, got {text!r}; `segworker diff` lists commits"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max((commit.version for commit in history if commit.at <= at), default=-1)


def _files(storage: Storage, version: int) -> dict[str, LiveFile]:
    """Return the live files of a version by path; none before the first."""
    table = open_table(storage, FEATURES_TABLE, version=version) if version >= 0 else None
    return {} if table is None else {file.path: file for file in live_files_of(table)}


def _keys(storage: Storage, files: Sequence[LiveFile], side: int) -> Iterator[pa.Table]:
    """Yield counted (scene, class, outline, run) of files' rows, before (side 0) or after (side 1)."""
    for file in files:
        for rows in read_row_groups(storage, file, columns=_COLUMNS):
            outlines = np.fromiter(map(hash, rows["geometry"].to_pylist()), np.int64, len(rows))
            keys = rows.drop_columns(["geometry"]).append_column("outline", pa.array(outlines))
            counted = keys.group_by([*_COLUMNS[:3], "outline"]).aggregate([([], "count_all")])
            zeros, counts = pa.array(np.zeros(len(counted), np.int64)), counted["count_all"].cast(pa.int64())
            pair = (counts, zeros) if side == 0 else (zeros, counts)
            kept = counted.drop_columns(["count_all"])
            yield kept.append_column("before", pair[0]).append_column("after", pair[1])


def _compared(tables: Sequence[pa.Table]) -> tuple[tuple[Change, ...], tuple[str, ...], tuple[str, ...]]:
    """Return (changes, new scenes, scenes that are gone)."""
    if not tables:
        return (), (), ()
    rows = _summed(pa.concat_tables(tables), ["scene_id", "class_name", "run_id", "outline"])
    touched = _touched(rows)
    rows = rows.filter(pc.is_in(rows["scene_id"], value_set=pa.array(sorted(touched), pa.string())))
    outlines = _summed(rows, ["scene_id", "class_name", "outline"])
    same = pc.min_element_wise(outlines["before"], outlines["after"])
    by_class = outlines.append_column("same", same).group_by(["scene_id", "class_name"])
    sums = by_class.aggregate([("before", "sum"), ("after", "sum"), ("same", "sum")])
    changes = [
        Change(row["scene_id"], row["class_name"], row["before_sum"], row["after_sum"], row["same_sum"])
        for row in sums.to_pylist()
    ]
    changes.sort(key=lambda change: (change.scene_id, change.class_name))
    before = {change.scene_id for change in changes if change.before}
    after = {change.scene_id for change in changes if change.after}
    return tuple(changes), tuple(sorted(after - before)), tuple(sorted(before - after))


def _touched(rows: pa.Table) -> set[str]:
    """Return the scenes whose rows are of another run than before: files of the others were only written anew."""
    runs = _summed(rows, ["scene_id", "run_id"])
    differs = pc.not_equal(runs["before"], runs["after"])
    return set(runs.filter(differs)["scene_id"].to_pylist())


def _summed(rows: pa.Table, keys: list[str]) -> pa.Table:
    sums = rows.group_by(keys).aggregate([("before", "sum"), ("after", "sum")])
    return sums.rename_columns([*keys, "before", "after"])


def _told(change: Change) -> dict[str, Any]:
    return {
        "class_name": change.class_name,
        "before": change.before,
        "after": change.after,
        "new": change.new,
        "gone": change.gone,
        "same": change.same,
    }
