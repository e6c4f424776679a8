"""Streams of rows as files that GIS programs open, by GDAL: GeoPackage and FlatGeobuf."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from segworker.errors import StorageError
from segworker.query.geojson import json_value

POLYGON, MULTIPOLYGON = int(shapely.GeometryType.POLYGON), int(shapely.GeometryType.MULTIPOLYGON)


def write_layer(stream: pa.RecordBatchReader, path: Path, *, driver: str, layer: str, crs: pyproj.CRS | None) -> None:
    """Write features with a column `geometry` of WKB polygons as a layer of multipolygons.

    Args:
        stream: rows; nested columns become JSON texts.
        path: a local file that does not exist.
        driver: GDAL's name of the format.
        layer: name of the layer.
        crs: of the geometries; None: they are in pixels.

    Raises:
        StorageError: where GDAL cannot write it.
    """
    import pyogrio  # noqa: PLC0415 - it draws in geopandas where that is installed

    flat = _flat(stream)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # pixels have none
        try:
            pyogrio.write_arrow(
                flat,
                str(path),
                layer=layer,
                driver=driver,
                geometry_name="geometry",
                geometry_type="MultiPolygon",
                crs=None if crs is None else crs.to_wkt(),
            )
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
            raise StorageError(
                f"{driver} must be written whole, got {error}; free some space, or narrow what is asked for"
            ) from None


def _flat(stream: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Return the stream in types that every format has."""
    schema = pa.schema([_flat_field(field) for field in stream.schema])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream:
            columns = [_flat_column(batch.column(k), field) for k, field in enumerate(batch.schema)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _flat_field(field: pa.Field) -> pa.Field:
    if field.name == "geometry":
        return pa.field(field.name, pa.binary())
    return pa.field(field.name, pa.string()) if pa.types.is_nested(field.type) else field


def _flat_column(column: pa.Array, field: pa.Field) -> pa.Array:
    if field.name == "geometry":
        shapes = shapely.from_wkb(column.to_numpy(zero_copy_only=False))
        return pa.array(shapely.to_wkb(as_multipolygons(shapes)), pa.binary())
    if not pa.types.is_nested(field.type):
        return column
    texts = [None if value is None else json.dumps(json_value(value)) for value in column.to_pylist()]
    return pa.array(texts, pa.string())


def as_multipolygons(shapes: np.ndarray) -> np.ndarray:
    """Return geometries of which every polygon is a multipolygon of one; others stay."""
    result = np.array(shapes, dtype=object)
    single = np.flatnonzero(shapely.get_type_id(result) == POLYGON)
    if len(single):
        result[single] = shapely.multipolygons(result[single], indices=np.arange(len(single)))
    return result
