"""Areas of interest from any vector format that GDAL opens."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from segworker.errors import ConfigError, StorageError
from segworker.geo import parse_crs
from segworker.geodesy import Geometries
from segworker.io.failures import redact
from segworker.io.storage import open_storage

_POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


@dataclass(frozen=True, slots=True, eq=False)
class Aoi:
    """An area of interest; `geo.aoi_to_scene` brings it to a scene's pixels."""

    polygons: Geometries
    "(N,) polygons and multipolygons, not empty."
    crs: str | None
    "WKT, or None: the polygons are in scene pixels."


def load_aoi(uri: str) -> Aoi:
    """Read the polygons of a file's first layer: a local path, or one file on s3://.

    A GeoJSON is in longitudes and latitudes unless it says `"crs": null`, as its standard says. What is missing, no
    vector file, or holds no polygons is a ConfigError.
    """
    import pyogrio  # noqa: PLC0415 - it draws in geopandas where that is installed, seconds that few runs need

    try:
        source = vector_source(uri)
        meta, _, wkb, _ = pyogrio.raw.read(source, layer=0, columns=[], force_2d=True)
    except (pyogrio.errors.DataSourceError, OSError, StorageError, ValueError) as error:
        raise ConfigError(
            f"an area of interest is a vector file (GeoJSON, GeoPackage, shapefile ...), got {redact(uri)} ({error}); "
            "correct --aoi"
        ) from None
    shapes = shapely.from_wkb(wkb)
    kept = shapes[np.isin(shapely.get_type_id(shapes), _POLYGONS) & ~shapely.is_empty(shapes)]
    if len(kept) == 0:
        raise ConfigError(
            f"an area of interest holds polygons, got {len(shapes)} geometries and no polygon in {redact(uri)}; "
            "draw the area as a polygon"
        )
    has_crs = meta["crs"] and not declares_no_crs(source)
    return Aoi(kept, parse_crs(meta["crs"]).to_wkt() if has_crs else None)


def declares_no_crs(source: str | bytes) -> bool:
    """Say whether a GeoJSON has `"crs": null` (GeoJSON 2008: no CRS can be assumed); GDAL reads over it."""
    if isinstance(source, str) and not source.lower().endswith(("json", ".js")):
        return False
    try:
        document = json.loads(source if isinstance(source, bytes) else Path(source).read_bytes())
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("crs", "unset") is None


def vector_source(uri: str) -> str | bytes:
    """Return what GDAL's vector drivers open: a local path, or the content of one file on s3://."""
    if uri.startswith(("s3://", "s3a://")):
        folder, _, name = uri.rpartition("/")
        return open_storage(folder).read(name)
    path = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))  # noqa: PTH100, PTH111
    if not os.path.exists(path):  # noqa: PTH110
        raise FileNotFoundError("no such file")
    return path
