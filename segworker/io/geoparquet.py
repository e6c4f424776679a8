"""Features as valid GeoParquet 1.1 files (https://geoparquet.org/releases/v1.1.0), laid out for pruning by place.

Rows are sorted by scene and along a Hilbert curve, so that row groups cover small areas and their bbox statistics let a
reader skip most of a file. A written part comes with all that the table's commit needs to know of it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.io.failures import explain
from segworker.io.storage import Storage
from segworker.schema import FEATURES

GEOPARQUET_VERSION = "1.1.0"
ROW_GROUP_ROWS = 50_000
ROW_GROUP_BYTES = 32 * 2**20
HILBERT_ORDER = 16
SCENE_SHIFT = 32

_GEOMETRY_NAMES = {
    1: "Point",
    2: "LineString",
    3: "Polygon",
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
}
_STATS_COLUMNS = (
    "feature_id", "run_id", "scene_id", "class_id", "class_name", "segment_id", "score", "area_px", "area_m2",
    "area_um2", "centroid_x", "centroid_y", "num_tiles", "seam",
)  # fmt: skip
_BBOX_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class Part:
    """One written data file, as the commit's Add action wants it."""

    path: str
    "Relative to the table's folder."
    size_bytes: int
    num_rows: int
    stats: str
    "Delta statistics as JSON: numRecords, minValues, maxValues, nullCount."
    mtime_ms: int
    "When it was written, milliseconds since the epoch."


def hilbert_keys(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Return each point's place along a Hilbert curve over the points' common bounds.

    The iterative quadrant-rotation form (Warren, Hacker's Delight, 2nd ed., ch. 16), a level at a time over all points.

    Args:
        x: (N,) in any unit, finite.
        y: (N,).
    """
    side = 1 << HILBERT_ORDER
    column, row = _lattice(x, side), _lattice(y, side)
    key = np.zeros(len(column), np.uint32)
    level = np.uint32(side >> 1)
    while level:
        right, upper = (column & level) != 0, (row & level) != 0
        key = (key << np.uint32(2)) | (np.uint32(3) * right) ^ np.uint32(1) * upper
        flip, turn = ~upper & right, ~upper
        last = np.uint32(side - 1)
        column, row = np.where(flip, last - column, column), np.where(flip, last - row, row)
        column, row = np.where(turn, row, column), np.where(turn, column, row)
        level >>= np.uint32(1)
    return key


def sort_features(features: pa.Table) -> pa.Table:
    """Return the rows sorted by scene number, Hilbert key of the bbox centre, and feature_id."""
    ids = _numpy(features["feature_id"])
    left, bottom, right, top = _bbox_columns(features)
    keys = hilbert_keys((left + right) / 2, (bottom + top) / 2)
    return features.take(pa.array(np.lexsort((ids, keys, ids >> SCENE_SHIFT))))


def split_features(features: pa.Table, *, max_bytes: int) -> Iterator[pa.Table]:
    """Yield slices of a table, each of at most about `max_bytes` of Arrow memory (files come out smaller)."""
    num_rows = max(1, int(max_bytes / max(1.0, _row_bytes(features))))
    for start in range(0, len(features), num_rows):
        yield features.slice(start, num_rows)


def write_features(features: pa.Table, storage: Storage, path: str, *, crs: pyproj.CRS | None) -> Part:
    """Write features as one GeoParquet file, in one step, overwriting what a killed try left there.

    Args:
        features: rows of the FEATURES schema, in any order, at least one.
        storage: the table's folder.
        path: file name in it.
        crs: of the geometries; None for a pixel table.

    Raises:
        StoreError: for other columns, nulls where the schema has none, or no rows.
        StorageError: when it cannot be written.
    """
    rows = sort_features(_conform(features))
    metadata = {b"geo": json.dumps(geo_metadata(rows, crs), separators=(",", ":")).encode()}
    return write_parquet(rows.replace_schema_metadata(metadata), storage, path, stats=feature_stats(rows))


def write_parquet(table: pa.Table, storage: Storage, path: str, *, stats: str) -> Part:
    """Write a table as one Parquet file through a temporary local file.

    Args:
        table: rows in their final order; the schema's metadata goes into the footer.
        storage: the table's folder.
        path: file name in it.
        stats: its Delta statistics.
    """
    group_rows = min(ROW_GROUP_ROWS, max(1, int(ROW_GROUP_BYTES / max(1.0, _row_bytes(table)))))
    with tempfile.TemporaryDirectory(prefix="segworker-") as folder:
        file = Path(folder, "part.parquet")
        try:
            _write_local(table, file, group_rows)
        except OSError as error:
            raise explain("write", str(file), error) from None
        status = file.stat()
        storage.write(path, file)
    return Part(path, status.st_size, len(table), stats, int(status.st_mtime * 1000))


def _write_local(table: pa.Table, file: Path, group_rows: int) -> None:
    pq.write_table(
        table,
        file,
        compression="zstd",
        row_group_size=group_rows,
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type)],
        write_statistics=[name for name in _leaf_names(table.schema) if name != "geometry"],
        write_page_index=True,
    )


def geo_metadata(features: pa.Table, crs: pyproj.CRS | None) -> dict[str, Any]:
    """Return the `geo` footer entry for rows of FEATURES; crs None says that coordinates belong to no CRS."""
    left, bottom, right, top = _bbox_columns(features)
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": geometry_types(features["geometry"]),
        "crs": None if crs is None else crs.to_json_dict(),
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in _BBOX_SIDES}},
    }
    if len(features):
        column["bbox"] = [float(left.min()), float(bottom.min()), float(right.max()), float(top.max())]
    return {"version": GEOPARQUET_VERSION, "primary_column": "geometry", "columns": {"geometry": column}}


def geometry_types(wkb: pa.ChunkedArray) -> list[str]:
    """Return the sorted names of the types in a WKB column, read from the headers alone."""
    codes: set[int] = set()
    for chunk in wkb.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk)]
        data = np.frombuffer(chunk.buffers()[2] or b"", np.uint8)
        headers = data[offsets[:, None].astype(np.int64) + np.arange(5)]
        little = headers[:, 0] == 1
        codes |= set(np.ascontiguousarray(headers[little, 1:]).view("<u4").ravel().tolist())
        codes |= set(np.ascontiguousarray(headers[~little, 1:]).view(">u4").ravel().tolist())
    unknown = sorted(codes - _GEOMETRY_NAMES.keys())
    if unknown:
        raise StoreError(f"geometries are two-dimensional WKB, got type codes {unknown}; this is a bug, report it")
    return sorted(_GEOMETRY_NAMES[code] for code in codes)


def feature_stats(features: pa.Table) -> str:
    """Return the Delta statistics of rows of FEATURES, with the bounds of every bbox side."""
    stats = column_stats(features, _STATS_COLUMNS)
    for side, values in zip(_BBOX_SIDES, _bbox_columns(features), strict=True):
        if len(values):
            stats["minValues"].setdefault("bbox", {})[side] = float(values.min())
            stats["maxValues"].setdefault("bbox", {})[side] = float(values.max())
    return json.dumps(stats, separators=(",", ":"))


def column_stats(table: pa.Table, names: tuple[str, ...]) -> dict[str, Any]:
    """Return Delta statistics (numRecords, minValues, maxValues, nullCount) of flat columns."""
    stats: dict[str, Any] = {"numRecords": len(table), "minValues": {}, "maxValues": {}, "nullCount": {}}
    for name in names:
        bounds = pc.min_max(table[name]).as_py()
        stats["nullCount"][name] = table[name].null_count
        if bounds["min"] is not None and not any(isinstance(b, float) and math.isnan(b) for b in bounds.values()):
            stats["minValues"][name], stats["maxValues"][name] = bounds["min"], bounds["max"]
    return stats


def _conform(features: pa.Table) -> pa.Table:
    """Return the table with exactly the columns of FEATURES, in their order and types."""
    if set(features.column_names) != set(FEATURES.names):
        missing, extra = (
            set(FEATURES.names) - set(features.column_names),
            set(features.column_names) - set(FEATURES.names),
        )
        raise StoreError(
            f"features have the columns of the schema, got missing={sorted(missing)}, extra={sorted(extra)}"
        )
    if not len(features):
        raise StoreError("a part has at least one row, got none; write no part for scenes without features")
    holes = [f.name for f in FEATURES if not f.nullable and features[f.name].null_count]
    if holes:
        raise StoreError(f"columns must not hold nulls, got some in {holes}")
    return features.select(FEATURES.names).cast(FEATURES)


def _bbox_columns(features: pa.Table) -> list[NDArray[np.float64]]:
    bbox = features["bbox"].combine_chunks()
    return [_numpy(pc.struct_field(bbox, side)) for side in _BBOX_SIDES]


def _numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy())


def _lattice(values: NDArray[np.floating], side: int) -> NDArray[np.uint32]:
    if not len(values):
        return np.zeros(0, np.uint32)
    low, high = float(values.min()), float(values.max())
    scale = side / (high - low) if high > low else 0.0
    places: NDArray[np.uint32] = np.minimum((values - low) * scale, side - 1).astype(np.uint32)
    return places


def _row_bytes(table: pa.Table) -> float:
    return float(table.nbytes) / max(1, len(table))


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Return the dotted names of the Parquet leaves of a schema."""

    def leaves(name: str, dtype: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(dtype):
            for child in dtype:
                yield from leaves(f"{name}.{child.name}", child.type)
        elif pa.types.is_list(dtype):
            yield from leaves(f"{name}.list.element", dtype.value_type)
        else:
            yield name

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]
