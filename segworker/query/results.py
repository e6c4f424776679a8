"""Answers as a person or a program wants them: a table on the terminal, CSV, GeoParquet, GeoJSON.

An answer is a stream of Arrow batches in which some columns are known to hold WKB. Files are written while it is read,
so that large answers need no memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pyproj
import shapely

from segworker.errors import ConfigError
from segworker.io.geoparquet import GEOPARQUET_VERSION, ROW_GROUP_ROWS
from segworker.query.geojson import GeoJsonFile, json_value, properties_of

MAX_TABLE_ROWS = 200
MAX_CELL = 60
Geometry = Mapping[str, pyproj.CRS | None]
"Columns that hold WKB, with their CRS; None: unknown, or pixels."


@dataclass(slots=True, eq=False)
class Answer:
    """Rows that somebody asked for, to be read once."""

    batches: Iterator[pa.RecordBatch]
    schema: pa.Schema
    geometry: Geometry
    in_pixels: bool
    "Whether a geometry without a CRS is known to be in scene pixels."
    num_rows: int = 0
    "Read so far."

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.batches:
            self.num_rows += len(batch)
            yield batch


def format_of(out: str | None, named: str | None) -> str:
    """Return the format of an answer: the named one, else what the extension of its file says, else a table."""
    if named is not None:
        if named not in (*FILE_FORMATS, "table"):
            raise ConfigError(
                f"an answer is in one of table, {', '.join(FILE_FORMATS)}, got {named!r}; correct --format"
            )
        return named
    if out is None:
        return "table"
    extension = PurePosixPath(out).suffix.lower()
    found = [name for name, (extensions, _) in FILE_FORMATS.items() if extension in extensions]
    if not found:
        known = ", ".join(extension for extensions, _ in FILE_FORMATS.values() for extension in extensions)
        raise ConfigError(f"an answer's extension says its format ({known}), got {out!r}; name one with --format")
    return found[0]


# -- table ------------------------------------------------------------------------------------------------------------


def table_text(answer: Answer, *, max_rows: int = MAX_TABLE_ROWS) -> str:
    """Return an answer as aligned columns, cut after `max_rows` with a line that says so."""
    names = answer.schema.names
    rows: list[list[str]] = []
    more = False
    for batch in answer:
        for row in batch.to_pylist():
            more = len(rows) == max_rows
            if more:
                break
            rows.append([_cell(row[name], wkb=name in answer.geometry) for name in names])
        if more:
            break
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    numeric = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in answer.schema]
    lines = [_aligned(row, widths, numeric) for row in (names, ["-" * width for width in widths], *rows)]
    told = f"the first {max_rows:,} rows; --out FILE writes all" if more else f"{len(rows):,} rows"
    return "\n".join([*lines, f"({told})"])


def _aligned(cells: Iterable[str], widths: Iterable[int], numeric: Iterable[bool]) -> str:
    parts = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
    return "  ".join(parts).rstrip()


def _cell(value: Any, *, wkb: bool) -> str:  # noqa: ANN401 - any value of Arrow
    if wkb and value is not None:
        value = shapely.to_wkt(shapely.from_wkb(value), rounding_precision=2)
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else _text(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."


def _text(value: Any) -> str:  # noqa: ANN401 - any value of Arrow
    return (
        value
        if isinstance(value, str)
        else json.dumps(json_value(value))
        if isinstance(value, dict | list)
        else str(value)
    )


# -- files ------------------------------------------------------------------------------------------------------------


def write_csv(answer: Answer, file: Path | BinaryIO) -> None:
    """Write CSV; geometries are WKT and nested values JSON."""
    schema = pa.schema([_csv_field(field, answer.geometry) for field in answer.schema])
    with pyarrow.csv.CSVWriter(file, schema) as writer:
        for batch in answer:
            columns = [_csv_column(batch.column(k), f, answer.geometry) for k, f in enumerate(batch.schema)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _csv_field(field: pa.Field, geometry: Geometry) -> pa.Field:
    plain = field.name not in geometry and not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
    return pa.field(field.name, field.type if plain else pa.string())


def _csv_column(column: pa.Array, field: pa.Field, geometry: Geometry) -> pa.Array:
    if field.name in geometry:
        shapes = shapely.from_wkb(column.to_numpy(zero_copy_only=False))
        return pa.array(shapely.to_wkt(shapes, rounding_precision=-1, trim=True), pa.string())
    if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
        values = (json_value(value) for value in column.to_pylist())
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())
    return column


def write_geoparquet(stream: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, *, geometry: Geometry) -> None:
    """Write one GeoParquet 1.1 file, or plain Parquet where no column holds a geometry.

    Row groups have 50,000 rows, but for the last, in the order of the stream.
    """
    seen = {name: _Seen() for name in geometry}
    schema = pa.schema([pa.field(f.name, pa.binary()) if f.name in geometry else f for f in schema])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _chunks(stream, schema):
            for name, known in seen.items():
                known.add(table[name])
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        if geometry:
            writer.add_key_value_metadata({"geo": json.dumps(_geo(schema, geometry, seen))})


def _chunks(stream: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield tables of a row group's size, but for the last."""
    waiting: list[pa.RecordBatch] = []
    for batch in stream:
        waiting.append(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
            whole = pa.Table.from_batches(waiting)
            stop = len(whole) // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            yield whole.slice(0, stop)
            waiting = whole.slice(stop).to_batches()
    if waiting:
        yield pa.Table.from_batches(waiting, schema=schema)


class _Seen:
    """What a geometry column holds."""

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, wkb: pa.ChunkedArray) -> None:
        shapes = shapely.from_wkb(pc.drop_null(wkb).to_numpy())
        kinds = np.unique(shapely.get_type_id(shapes)).tolist()
        self.types |= {_KINDS[kind] for kind in kinds if kind >= 0}
        if len(shapes) and not shapely.is_empty(shapes).all():
            xmin, ymin, xmax, ymax = shapely.total_bounds(shapes)
            self.bounds[:2] = np.minimum(self.bounds[:2], (xmin, ymin))
            self.bounds[2:] = np.maximum(self.bounds[2:], (xmax, ymax))


_KINDS = {
    0: "Point",
    1: "LineString",
    2: "LineString",
    3: "Polygon",
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
}
"Names in GeoParquet of GEOS's types."


def _geo(schema: pa.Schema, geometry: Geometry, seen: Mapping[str, _Seen]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, crs in geometry.items():
        columns[name] = {
            "encoding": "WKB",
            "geometry_types": sorted(seen[name].types),
            "crs": None if crs is None else crs.to_json_dict(),
        }
        if np.isfinite(seen[name].bounds).all():
            columns[name]["bbox"] = seen[name].bounds.tolist()
    primary = "geometry" if "geometry" in geometry else next(iter(geometry))
    if primary == "geometry" and "bbox" in schema.names and pa.types.is_struct(schema.field("bbox").type):
        sides = {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
        columns[primary]["covering"] = {"bbox": sides}
    return {"version": GEOPARQUET_VERSION, "primary_column": primary, "columns": columns}


def write_geojson(answer: Answer, path: Path) -> None:
    """Write GeoJSON with the answer's one geometry; ConfigError where it has none or several."""
    if len(answer.geometry) != 1:
        got = ", ".join(answer.geometry) or "none"
        raise ConfigError(f"GeoJSON has one geometry for each feature, got {got}; select one, or write CSV or Parquet")
    ((name, crs),) = answer.geometry.items()
    if crs is None and not answer.in_pixels:
        raise ConfigError(
            f"GeoJSON is in longitudes and latitudes, got {name!r} in a CRS that DuckDB does not know of; say it with "
            "ST_SetCRS(..., 'EPSG:32636')"
        )
    dropped = [name, *(["bbox"] if "bbox" in answer.schema.names else [])]
    with GeoJsonFile(path, crs=crs) as file:
        for batch in answer:
            ids = batch["feature_id"].to_pylist() if "feature_id" in batch.schema.names else None
            shapes = np.asarray(shapely.from_wkb(batch[name].to_numpy(zero_copy_only=False)), dtype=object)
            file.add(shapes, properties_of(batch, but=dropped), ids)


def _write_parquet(answer: Answer, path: Path) -> None:
    write_geoparquet(answer, answer.schema, path, geometry=answer.geometry)


FILE_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Answer, Path], None]]] = {
    "csv": ((".csv",), write_csv),
    "geoparquet": ((".parquet",), _write_parquet),
    "geojson": ((".geojson", ".json"), write_geojson),
}
"Formats of files by the name that --format takes: their extensions, and what writes them."
