"""What a user draws, a rectangle or polygons in some CRS, in the coordinates of a store's features."""

from __future__ import annotations

import numpy as np
import shapely

from segworker.errors import ConfigError, SegworkerError
from segworker.geo import aoi_to_scene, reproject, same_crs, to_map
from segworker.io.aoi import Aoi
from segworker.io.delta import live_files_of, open_table
from segworker.io.scan import Bounds
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE
from segworker.io.table_crs import TableCrs
from segworker.types import Scene

EDGE_PIECES = 64
"Pieces that the longer side of a drawn area's bounds is cut into, so that its edges follow a change of the CRS."
FRAME_PX = 1024


def table_bounds(storage: Storage, *, version: int | None = None) -> Bounds | None:
    """Return the bounds of all features in table coordinates, by the log alone; None where it does not say."""
    table = open_table(storage, FEATURES_TABLE, version=version)
    files = [] if table is None else live_files_of(table)
    boxes = [(f.minima.get("bbox") or {}, f.maxima.get("bbox") or {}) for f in files]
    sides = [(low.get("xmin"), low.get("ymin"), high.get("xmax"), high.get("ymax")) for low, high in boxes]
    if not sides or any(value is None for side in sides for value in side):
        return None
    xmins, ymins, xmaxs, ymaxs = zip(*sides, strict=True)
    return min(xmins), min(ymins), max(xmaxs), max(ymaxs)


def area_in_table(aoi: Aoi, table_crs: TableCrs, bounds: Bounds | None) -> shapely.Geometry:
    """Return an area of interest in table coordinates; empty where it lies elsewhere than all features.

    Args:
        aoi: the polygons, with their own CRS or, for a pixel table, without one.
        table_crs: of the store.
        bounds: of the features. An area that leaves the area of use of the table's CRS is cut to their surroundings.

    Raises:
        ConfigError: where the area has a CRS and the table none, or the other way round, or where the CRS of the area
            cannot hold the features.
    """
    if (aoi.crs is None) != (table_crs.wkt is None):
        raise ConfigError(_mismatch(aoi, table_crs))
    polygons = shapely.make_valid(aoi.polygons)
    if aoi.crs is None or table_crs.wkt is None or same_crs(aoi.crs, table_crs.wkt):
        return shapely.union_all(polygons)
    try:
        return shapely.union_all(shapely.make_valid(reproject(_fine(polygons), aoi.crs, table_crs.wkt)))
    except SegworkerError as error:
        if bounds is None:
            raise ConfigError(f"the area cannot be brought to {table_crs.label}: {error}") from None
    try:
        return _near(aoi, table_crs.wkt, bounds)
    except SegworkerError as error:
        raise ConfigError(f"the area cannot be brought to {table_crs.label}: {error}") from None


def _mismatch(aoi: Aoi, table_crs: TableCrs) -> str:
    if aoi.crs is None:
        return (
            f"an area over a map table ({table_crs.label}) states its CRS, got one without; save it with its CRS, as "
            "GeoPackage or as GeoJSON in longitudes and latitudes"
        )
    return (
        f"the features of this store are in scene pixels, got an area in {TableCrs.of(aoi.crs).label}; draw it in "
        'pixels and save it without a CRS ("crs": null in GeoJSON)'
    )


def _near(aoi: Aoi, table_wkt: str, bounds: Bounds) -> shapely.Geometry:
    """Return the part of the area around the features: their bounds are a scene that the area is brought to."""
    xmin, ymin, xmax, ymax = bounds
    width, height = max(xmax - xmin, 1e-9), max(ymax - ymin, 1e-9)
    frame = Scene(
        scene_id="the features of this store",
        uri="",
        width=FRAME_PX,
        height=FRAME_PX,
        num_bands=1,
        dtype="uint8",
        crs=table_wkt,
        transform=(width / FRAME_PX, 0.0, xmin, 0.0, -height / FRAME_PX, ymax),
    )
    inside = aoi_to_scene(aoi.polygons, aoi.crs, frame)
    return to_map(np.array([inside], dtype=object), frame.transform)[0]


def _fine(polygons: np.ndarray) -> np.ndarray:
    xmin, ymin, xmax, ymax = shapely.total_bounds(polygons)
    return np.asarray(shapely.segmentize(polygons, max(xmax - xmin, ymax - ymin, 1e-9) / EDGE_PIECES), dtype=object)
