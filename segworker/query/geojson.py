"""Features as GeoJSON (RFC 7946), and in the flavour that QuPath imports as objects of an image.

GeoJSON is in longitudes and latitudes. Features in scene pixels say so with `"crs": null`, as the GeoJSON of 2008 has
it; `--aoi` reads that as coordinates without a CRS.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from segworker.geo import reproject
from segworker.io.table_crs import LON_LAT

DEGREE_DECIMALS = 8
"A millimetre."
PIXEL_DECIMALS = 3
MEASURED = ("area_px", "area_m2", "area_um2", "score")
"Columns that become measurements in QuPath."
_LON_LAT_WKT = pyproj.CRS(LON_LAT).to_wkt()


class GeoJsonFile:
    """A FeatureCollection that is written batch by batch. Use it as a context manager."""

    def __init__(self, path: Path, *, crs: pyproj.CRS | None, declare: bool = True) -> None:
        """Open the file.

        Args:
            path: local file.
            crs: of the geometries to come; None: they are in pixels.
            declare: say so where they are in pixels.
        """
        self._file = path.open("w", encoding="utf-8")
        self._wkt = None if crs is None else crs.to_wkt()
        self._first = True
        head = '"type": "FeatureCollection", ' + ('"crs": null, ' if crs is None and declare else "")
        self._file.write("{" + head + '"features": [')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.write("\n]}\n")
        self._file.close()

    def add(
        self, shapes: NDArray[np.object_], properties: Sequence[dict[str, Any]], ids: Sequence[object] | None = None
    ) -> None:
        """Write features.

        Args:
            shapes: (N,) shapely geometries in the file's `crs`, None for none.
            properties: N mappings of JSON values.
            ids: N ids of features; None: they have none.

        Raises:
            SceneError: for vertices that have no longitude and latitude.
        """
        texts = shapely.to_geojson(_as_geojson(shapes, self._wkt)).tolist()
        for k, (text, told) in enumerate(zip(texts, properties, strict=True)):
            identity = "" if ids is None else f'"id": {json.dumps(ids[k])}, '
            line = f'{{"type": "Feature", {identity}"properties": {json.dumps(told)}, "geometry": {text or "null"}}}'
            self._file.write(("\n" if self._first else ",\n") + line)
            self._first = False


def properties_of(rows: pa.RecordBatch | pa.Table, *, but: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the rows as mappings of JSON values, without some columns."""
    names = [name for name in rows.schema.names if name not in set(but)]
    return [{name: json_value(value) for name, value in row.items()} for row in rows.select(names).to_pylist()]


def json_value(value: Any) -> Any:  # noqa: ANN401 - any value of Arrow
    """Return what JSON has for a value: no NaN, dates as text, bytes as hexadecimal digits."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def qupath_properties(row: dict[str, Any]) -> dict[str, Any]:
    """Return what QuPath reads of an object: its class with a colour, and measurements."""
    numbers = {name: row.get(name) for name in MEASURED}
    return {
        "objectType": "detection" if row["is_thing"] else "annotation",
        "classification": {"name": row["class_name"], "color": colour_of(row["class_name"])},
        "isLocked": False,
        "measurements": {name: value for name, value in numbers.items() if value is not None},
    }


def qupath_id(store_uri: str, feature_id: int) -> str:
    """Return an object's UUID, the same whenever it is exported: QuPath asks for one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{store_uri}#{feature_id}"))


def colour_of(name: str) -> list[int]:
    """Return a class's colour, red, green, blue of 0..255: the same for a name, whatever other classes there are."""
    turn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return [round(255 * part) for part in colorsys.hsv_to_rgb(turn, 0.75, 0.9)]


def _as_geojson(shapes: NDArray[np.object_], wkt: str | None) -> NDArray[np.object_]:
    if wkt is None:
        return _rounded(shapes, PIXEL_DECIMALS)
    lonlat = _rounded(reproject(shapes, wkt, _LON_LAT_WKT), DEGREE_DECIMALS)
    result: NDArray[np.object_] = shapely.orient_polygons(lonlat)
    return result


def _rounded(shapes: NDArray[np.object_], decimals: int) -> NDArray[np.object_]:
    result: NDArray[np.object_] = shapely.transform(shapes, lambda xy: np.round(xy, decimals))
    return result
