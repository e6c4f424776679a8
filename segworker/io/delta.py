"""The little of Delta Lake that the commit needs, with failures in this project's words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from segworker.io.failures import explain
from segworker.io.geoparquet import Part
from segworker.io.retry import FAILURES, is_lost, retried
from segworker.io.storage import Storage


@dataclass(frozen=True, slots=True)
class LiveFile:
    """One data file of a table's version."""

    path: str
    "Relative to the table's folder."
    size_bytes: int
    num_rows: int
    minima: dict[str, Any] = field(default_factory=dict)
    "Column to its smallest value (bbox: a dict of its sides); columns without statistics are None or absent."
    maxima: dict[str, Any] = field(default_factory=dict)


def open_table(storage: Storage, name: str, *, version: int | None = None) -> DeltaTable | None:
    """Return the newest (or a stated) version of a store's table, or None where there is none."""
    uri = storage.delta_uri(name)
    with failures_of(uri):
        try:
            return retried(lambda: DeltaTable(uri, version=version, storage_options=storage.delta_options()))
        except TableNotFoundError:
            return None


def create_table(storage: Storage, name: str, schema: pa.Schema, *, description: str) -> DeltaTable:
    """Return a table, creating it empty where there is none; of two creators at once, both get the first one's."""
    table = open_table(storage, name)
    if table is not None:
        return table
    uri = storage.delta_uri(name)
    with failures_of(uri):
        try:
            return retried(
                lambda: DeltaTable.create(
                    uri,
                    schema,
                    mode="error",
                    name=name,
                    description=description,
                    storage_options=storage.delta_options(),
                )
            )
        except FAILURES:  # that there is one already, mostly
            table = open_table(storage, name)
            if table is None:
                raise
            return table


def live_files_of(table: DeltaTable) -> list[LiveFile]:
    """Return the data files of a table's version, sorted by path."""
    with failures_of(table.table_uri):
        rows = retried(lambda: pa.table(table.get_add_actions())).to_pylist()
    files = [
        LiveFile(row["path"], row["size_bytes"], row["num_records"], row.get("min") or {}, row.get("max") or {})
        for row in rows
    ]
    return sorted(files, key=lambda file: file.path)


def commit_files(
    table: DeltaTable,
    schema: pa.Schema,
    *,
    added: Sequence[Part],
    removed: Sequence[LiveFile],
    transactions: Sequence[tuple[str, int]],
    metadata: dict[str, str],
    data_change: bool = True,
) -> bool:
    """Add and remove files in one version right after `table`'s; False where another writer took that version.

    False also where the answer was lost: whether the commit landed, its transactions tell on the newest version.

    Args:
        table: the version that the removals were planned on.
        schema: of the table.
        added: files that are already written.
        removed: live files of `table`; they stay on disk for readers of older versions.
        transactions: application ids and versions that this commit records.
        metadata: what the commit's log entry says of itself.
        data_change: False where the rows are the same before and after.
    """
    now_ms = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [
        AddAction(part.path, part.size_bytes, {}, part.mtime_ms, data_change=data_change, stats=part.stats)
        for part in added
    ]
    actions += [RemoveAction(file.path, data_change, now_ms, file.size_bytes, {}) for file in removed]
    properties = CommitProperties(
        custom_metadata=metadata,
        max_commit_retries=0,
        app_transactions=[Transaction(app_id, version) for app_id, version in transactions],
    )
    with failures_of(table.table_uri):
        try:
            table.create_write_transaction(actions, "append", schema, commit_properties=properties)
        except CommitFailedError:
            return False
        except FAILURES as error:
            if not is_lost(error):
                raise
            return False
    return True


@contextmanager
def failures_of(uri: str) -> Iterator[None]:
    """Turn deltalake's errors into StorageError."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise explain("use the table", uri, error) from None
