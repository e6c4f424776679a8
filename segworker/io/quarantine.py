"""The quarantine of a run: scenes and tiles that failed however often they were tried, one row for each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segworker.io.failures import redact, redact_text
from segworker.io.storage import Storage
from segworker.types import Tile

_WINDOW = pa.struct([(name, pa.int64()) for name in ("col_off", "row_off", "width", "height")])
QUARANTINE = pa.schema(
    [
        pa.field("scene_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # without secrets
        pa.field("row", pa.int32()),  # of the tile; null for a scene that failed as a whole
        pa.field("col", pa.int32()),
        pa.field("window", _WINDOW),  # what the tile sees, scene pixels; null for a scene
        pa.field("stage", pa.string(), nullable=False),  # 'scene', or as TileFailure.stage
        pa.field("error", pa.string(), nullable=False),
        pa.field("traceback", pa.string(), nullable=False),  # empty where there is none
        pa.field("tries", pa.int32(), nullable=False),
    ]
)
"One row for each scene that failed as a whole, and for each tile that failed."


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A scene or a tile that failed."""

    scene_id: str
    uri: str
    stage: str
    error: str
    traceback: str = ""
    tries: int = 1
    tile: Tile | None = None


def quarantine_path(run_id: str) -> str:
    """Return where a run's quarantine lies in the store."""
    return f"runs/{run_id}/quarantine.parquet"


def write_quarantine(storage: Storage, run_id: str, items: Iterable[Quarantined]) -> str:
    """Write a run's quarantine, whole, and return its path."""
    rows = [
        {
            "scene_id": item.scene_id,
            "uri": redact(item.uri),
            "row": item.tile.row if item.tile else None,
            "col": item.tile.col if item.tile else None,
            "window": _window(item.tile) if item.tile else None,
            "stage": item.stage,
            "error": redact_text(item.error),
            "traceback": redact_text(item.traceback),
            "tries": item.tries,
        }
        for item in items
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE), sink, compression="zstd")
    path = quarantine_path(run_id)
    storage.write(path, sink.getvalue().to_pybytes())
    return path


def read_quarantine(storage: Storage, run_id: str) -> pa.Table:
    """Return a run's quarantine; empty where nothing failed."""
    path = quarantine_path(run_id)
    if storage.head(path) is None:
        return QUARANTINE.empty_table()
    return pq.read_table(pa.BufferReader(storage.read(path)))


def _window(tile: Tile) -> dict[str, int]:
    window = tile.window
    left, top = math.floor(window.col_off / tile.scale), math.floor(window.row_off / tile.scale)
    right, bottom = math.ceil(window.col_end / tile.scale), math.ceil(window.row_end / tile.scale)
    return {"col_off": left, "row_off": top, "width": right - left, "height": bottom - top}
