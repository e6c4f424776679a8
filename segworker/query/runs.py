"""The records of a store's runs as a table."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pyarrow as pa

from segworker.errors import StorageError
from segworker.io.storage import Storage

MAX_THREADS = 16
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("status", pa.string()),  # running, done, failed
        pa.field("exit_code", pa.int32()),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("finished_at", pa.timestamp("us", tz="UTC")),
        pa.field("table_version", pa.int64()),  # of the features table that it made
        pa.field("model", pa.string()),
        pa.field("scenes", pa.int64()),
        pa.field("tiles", pa.int64()),
        pa.field("tiles_failed", pa.int64()),
        pa.field("features", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("record", pa.string()),  # the whole run.json
    ]
)
"One row for each run that left a record; what a run that failed did not come to is null."


def read_runs(storage: Storage) -> pa.Table:
    """Return a row for each `runs/<run_id>/run.json`, by run id. Damaged records are rows with nothing but their id."""
    paths = sorted(i.path for i in storage.list("runs") if i.path.endswith("/run.json") and i.path.count("/") == 2)
    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="records") as pool:
        rows = list(pool.map(lambda path: _row(storage, path), paths))
    return pa.Table.from_pylist([row for row in rows if row is not None], schema=RUNS)


def _row(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return a run's row; None where its record went in the meantime."""
    run_id = path.split("/")[1]
    try:
        text = storage.read(path).decode("utf-8", errors="replace")
    except StorageError:
        if storage.head(path) is None:
            return None
        raise
    try:
        record = json.loads(text)
        counts, configuration = record.get("counts") or {}, record.get("configuration") or {}
        return {
            "run_id": run_id,
            **{key: record.get(key) for key in ("name", "status", "exit_code", "table_version")},
            **{key: _time(record.get(key)) for key in ("started_at", "finished_at")},
            "model": (configuration.get("model") or {}).get("model"),
            **{key: counts.get(key) for key in ("scenes", "tiles", "tiles_failed", "features")},
            "seconds": (record.get("seconds") or {}).get("total"),
            "record": text,
        }
    except (ValueError, TypeError, AttributeError):
        return {"run_id": run_id, "record": text}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
