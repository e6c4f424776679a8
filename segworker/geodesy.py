"""Areas on the ellipsoid of a coordinate reference system, for many polygons at once.

A polygon's edges are straight lines of its CRS, as the pixels' sides are. Two ways, chosen by size:

- up to 1 km, the planar area times the areal scale at the polygon's centroid: the error is of second order in size over
  earth radius, below 3e-7 up to 80 degrees of latitude, and a polygon costs four transformed points;
- larger ones are subdivided, mapped to authalic (equal-area) coordinates and measured there, once with each edge as a
  chord and once halved; Richardson's extrapolation of the two removes the leading error.

Both give the same number for a polygon whatever else is in the batch. Near a pole, where longitudes are of no use,
pyproj's geodesic polygon area serves. Nothing depends on the projection's own distortion: Web Mercator areas are true.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from segworker.errors import ConfigError

Geometries: TypeAlias = NDArray[np.object_]
Floats: TypeAlias = NDArray[np.float64]

SMALL_M = 1_000.0
POLAR_DEG = 89.0
_STEP_M = 100.0


@lru_cache(maxsize=256)
def parse_crs(text: str) -> CRS:
    """Return the CRS of a WKT, PROJJSON or authority code, without a vertical part; ConfigError where it is none."""
    try:
        return CRS.from_user_input(text).to_2d()
    except CRSError as error:
        raise ConfigError(
            f"a CRS is an authority code, WKT or PROJJSON, got {text[:80]!r} ({str(error)[:120]}); write EPSG:32633"
        ) from None


def is_earthly(crs: CRS) -> bool:
    """Say whether a CRS has longitudes and latitudes, so that areas and transformations make sense."""
    return (crs.is_geographic or crs.is_projected) and crs.ellipsoid is not None


def to_lonlat(points_xy: Floats, crs: CRS) -> Floats:
    """Return (N, 2) longitudes and latitudes in degrees on the CRS's own datum."""
    if crs.is_geographic:
        return np.rad2deg(points_xy * crs.axis_info[0].unit_conversion_factor)
    lonlat = transformer(crs.to_wkt(), _geodetic(crs.to_wkt())).transform(points_xy[:, 0], points_xy[:, 1])
    return np.column_stack(lonlat)


def transformer(source: str, target: str) -> Transformer:
    """Return the transformer between two CRSs, x before y, one for each thread (PROJ objects are not shared)."""
    return _transformer(source, target, threading.get_ident())


def area_m2(polygons: Geometries, crs: str | None) -> Floats:
    """Return the areas of polygons on their CRS's ellipsoid.

    Args:
        polygons: (N,) polygons and multipolygons in CRS coordinates, x (east, longitude) first.
        crs: WKT or code; None, and CRSs without longitudes (local and engineering ones), give NaN.

    Returns:
        (N,) square metres, never negative. Other bodies than the Earth are measured on their own ellipsoid.
    """
    polygons = np.asarray(polygons, dtype=object)
    parsed = None if crs is None else parse_crs(crs)
    if parsed is None or not is_earthly(parsed):
        return np.full(len(polygons), np.nan)
    areas = np.zeros(len(polygons))
    filled = np.flatnonzero(~shapely.is_empty(polygons))
    small = _extent_m(polygons[filled], parsed) <= SMALL_M
    areas[filled[small]] = _scaled_areas(polygons[filled[small]], parsed)
    areas[filled[~small]] = _authalic_areas(polygons[filled[~small]], parsed)
    for i in filled[~np.isfinite(areas[filled])]:
        areas[i] = _geodesic_area(polygons[i], parsed)
    return areas


def metres_per_unit(crs: CRS) -> float:
    """Return the length of one CRS unit: at the equator for degrees."""
    factor = float(crs.axis_info[0].unit_conversion_factor)
    return factor * _radius(crs) if crs.is_geographic else factor


def _extent_m(polygons: Geometries, crs: CRS) -> Floats:
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    return np.asarray((bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0.0) * metres_per_unit(crs))


def _scaled_areas(polygons: Geometries, crs: CRS) -> Floats:
    """Return planar area times the areal scale at the centroid; NaN near a pole."""
    if len(polygons) == 0:
        return np.zeros(0)
    bounds = shapely.bounds(polygons)
    centroid_xy = shapely.get_coordinates(shapely.centroid(polygons))
    centre_xy = np.clip(centroid_xy, bounds[:, :2], bounds[:, 2:])
    step = _STEP_M / metres_per_unit(crs)
    east, north = np.array([step, 0.0]), np.array([0.0, step])
    corners = np.concatenate([centre_xy + east, centre_xy - east, centre_xy + north, centre_xy - north])
    lonlat = to_lonlat(corners, crs)
    x, y = _authalic(lonlat, crs).reshape(4, -1, 2).transpose(2, 0, 1)
    turn = 2 * math.pi * _radius(crs)
    d_east_x, d_north_x = (np.remainder(d + turn / 2, turn) - turn / 2 for d in (x[0] - x[1], x[2] - x[3]))
    scale = np.abs(d_east_x * (y[2] - y[3]) - d_north_x * (y[0] - y[1])) / (2 * step) ** 2
    polar = np.abs(lonlat[:, 1]).reshape(4, -1).max(axis=0) > POLAR_DEG
    return np.where(polar, np.nan, shapely.area(polygons) * scale)


def _authalic_areas(polygons: Geometries, crs: CRS) -> Floats:
    """Return areas in equal-area coordinates; NaN where a polygon is near a pole or around it."""
    if len(polygons) == 0:
        return np.zeros(0)
    unit = metres_per_unit(crs)
    coarse = shapely.segmentize(polygons, SMALL_M / unit)
    return np.asarray((4 * _chord_areas(_halved(coarse), crs) - _chord_areas(coarse, crs)) / 3)


def _halved(polygons: Geometries) -> Geometries:
    """Return the polygons with a vertex in the middle of every edge."""
    rings, ring_of_polygon, parts = _rings(polygons)
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    same = np.flatnonzero(ring[1:] == ring[:-1])
    middles = (coords[same] + coords[same + 1]) / 2
    order = np.argsort(np.concatenate([np.arange(len(coords)) * 2, same * 2 + 1]), kind="stable")
    halved = shapely.linearrings(
        np.concatenate([coords, middles])[order], indices=np.concatenate([ring, ring[same]])[order]
    )
    return _from_rings(halved, ring_of_polygon, parts, len(polygons))


def _rings(polygons: Geometries) -> tuple[Geometries, NDArray[np.intp], NDArray[np.intp]]:
    """Return all rings, the part each is of, and the polygon each part is of."""
    parts, polygon = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, part, polygon


def _from_rings(
    rings: Geometries, part_of_ring: NDArray[np.intp], polygon_of_part: NDArray[np.intp], count: int
) -> Geometries:
    parts = shapely.polygons(rings, indices=part_of_ring)
    out = np.empty(count, dtype=object)
    shapely.multipolygons(parts, indices=polygon_of_part, out=out)
    return out


def _chord_areas(polygons: Geometries, crs: CRS) -> Floats:
    rings, part, polygon = _rings(polygons)
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    lonlat = to_lonlat(coords, crs)
    xy = _authalic(lonlat, crs)
    if not crs.is_geographic:
        xy[:, 0] = _unwrapped(xy[:, 0], 2 * math.pi * _radius(crs))
    starts = np.searchsorted(ring, np.arange(len(rings)))
    ends = np.append(starts[1:], len(ring)) - 1
    open_ring = np.abs(xy[ends, 0] - xy[starts, 0]) > _radius(crs)
    xy[ends] = xy[starts]
    polar = np.maximum.reduceat(np.abs(lonlat[:, 1]), starts) > POLAR_DEG
    mapped = shapely.set_coordinates(rings.copy(), xy)
    signs = np.where(np.append(True, part[1:] != part[:-1]), 1.0, -1.0)
    areas = np.where(open_ring | polar, np.nan, signs * shapely.area(shapely.polygons(mapped)))
    return np.bincount(polygon[part], weights=areas, minlength=len(polygons)).astype(np.float64)


def _unwrapped(x: Floats, turn: float) -> Floats:
    """Return x without jumps of a whole turn between neighbours."""
    jumps = np.round(np.diff(x, prepend=x[:1]) / turn)
    return np.asarray(x - np.cumsum(jumps) * turn)


def _authalic(lonlat: Floats, crs: CRS) -> Floats:
    """Return (N, 2) cylindrical equal-area coordinates in metres (Snyder 1987, equation 3-12)."""
    radius, flattening = _radius(crs), _flattening(crs)
    sine = np.sin(np.deg2rad(lonlat[:, 1]))
    if flattening == 0:
        height = radius * sine
    else:
        e = math.sqrt(flattening * (2 - flattening))
        height = radius * (1 - e * e) / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
    return np.column_stack([radius * np.deg2rad(lonlat[:, 0]), height])


def _geodesic_area(polygon: Any, crs: CRS) -> float:  # noqa: ANN401 - shapely's scalar geometry
    geod = crs.get_geod()
    if geod is None:
        return math.nan
    dense = shapely.segmentize(polygon, SMALL_M / metres_per_unit(crs))
    total = 0.0
    for part in shapely.get_parts(dense):
        rings = [to_lonlat(shapely.get_coordinates(ring), crs) for ring in shapely.get_rings(part)]
        areas = [abs(geod.polygon_area_perimeter(ring[:, 0], ring[:, 1])[0]) for ring in rings]
        total += areas[0] - sum(areas[1:])
    return total


def _radius(crs: CRS) -> float:
    return float(crs.ellipsoid.semi_major_metre) if crs.ellipsoid is not None else math.nan


def _flattening(crs: CRS) -> float:
    inverse = crs.ellipsoid.inverse_flattening if crs.ellipsoid is not None else 0.0
    return 1 / inverse if inverse else 0.0


@lru_cache(maxsize=256)
def _geodetic(wkt: str) -> str:
    geodetic = parse_crs(wkt).geodetic_crs
    if geodetic is None:
        raise ConfigError(
            f"a projected CRS is based on longitudes and latitudes, got {wkt[:80]!r}; set the scene's CRS"
        )
    return geodetic.to_wkt()


@lru_cache(maxsize=1024)
def _transformer(source: str, target: str, _thread: int) -> Transformer:
    return Transformer.from_crs(parse_crs(source), parse_crs(target), always_xy=True)
