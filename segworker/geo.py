"""Where pixels are: affine transforms, ground resolution, reprojection, areas of interest. Pure; reads no files.

Scene pixels are in pixel-edge coordinates: (0, 0) is the outer corner of the first pixel. Map coordinates are x (east,
longitude) before y, whatever axis order a CRS declares. PROJ answers far outside a CRS's area of use with wrong places
and no error, so everything that changes a CRS is checked here, vertex by vertex.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import shapely
from pyproj import CRS

from segworker.errors import ConfigError, SceneError
from segworker.geodesy import Floats, Geometries, area_m2, is_earthly, parse_crs, to_lonlat, transformer
from segworker.types import Affine6, InputSpec, Scene

__all__ = [
    "aoi_to_scene",
    "apply_affine",
    "area_m2",
    "grid_scale",
    "inside_area_of_use",
    "invert_affine",
    "parse_crs",
    "pixel_size_m",
    "projjson",
    "reproject",
    "same_crs",
    "to_map",
    "to_scene_px",
]

AREA_MARGIN_DEG = 0.5
"Scenes overhang the edge of a UTM zone; projections stay exact far beyond half a degree."
ROUND_TRIP_M = 0.01
SAME_RESOLUTION = 0.05
SCALE_LIMITS = (1 / 256, 16.0)
_OUTLINE_POINTS = 33


class _AreaOfUse(Protocol):
    """What pyproj tells of where a CRS is meant to be used, in degrees; east is below west across 180 degrees."""

    west: float
    south: float
    east: float
    north: float


def apply_affine(points_xy: Floats, transform: Affine6) -> Floats:
    """Return (N, 2) points mapped by x' = a x + b y + c, y' = d x + e y + f."""
    a, b, c, d, e, f = transform
    x, y = points_xy[:, 0], points_xy[:, 1]
    return np.column_stack([a * x + b * y + c, d * x + e * y + f])


def invert_affine(transform: Affine6) -> Affine6:
    """Return the inverse; SceneError where the transform maps the plane onto a line."""
    a, b, c, d, e, f = transform
    det = a * e - b * d
    if det == 0 or not all(map(math.isfinite, transform)):
        raise SceneError(f"a scene's transform must be invertible, got {transform}; correct its georeference")
    return e / det, -b / det, (b * f - c * e) / det, -d / det, a / det, (c * d - a * f) / det


def to_map(geometries: Geometries, transform: Affine6, *, scale: float = 1.0) -> Geometries:
    """Return geometries in CRS units.

    Args:
        geometries: (N,) in grid pixels, which are scene pixels at scale 1.
        transform: scene pixels to CRS units.
        scale: grid pixels per scene pixel.
    """
    a, b, c, d, e, f = transform
    return _mapped(geometries, (a / scale, b / scale, c, d / scale, e / scale, f))


def to_scene_px(geometries: Geometries, transform: Affine6) -> Geometries:
    """Return geometries in scene pixels from geometries in CRS units."""
    return _mapped(geometries, invert_affine(transform))


def pixel_size_m(scene: Scene) -> float | None:
    """Return the side of a square as large as the scene's central pixel is on the ground, or None without a CRS.

    True metres, measured on the ellipsoid: a Web Mercator pixel at 60 degrees is half as wide as its transform says.
    """
    if scene.crs is None:
        return None
    x, y = scene.width // 2, scene.height // 2
    pixel = np.array([shapely.box(x, y, x + 1, y + 1)], dtype=object)
    area = float(area_m2(to_map(pixel, scene.transform), scene.crs)[0])
    return math.sqrt(area) if math.isfinite(area) and area > 0 else None


def grid_scale(
    scene: Scene, spec: InputSpec, *, resolution_m: float | None = None, resolution_um: float | None = None
) -> float:
    """Return grid pixels per scene pixel: the scene's pixel size over the one asked for.

    A stated resolution is followed exactly, or a SceneError where the scene's own is unknown. The model's is followed
    where the scene's is known and differs by more than 5%; otherwise the scale is 1. Metres go before micrometres.
    """
    stated = _stated_scale(scene, resolution_m, resolution_um)
    if stated is not None:
        return _checked_scale(scene, stated)
    own_m = pixel_size_m(scene) if spec.resolution_m is not None else None
    for own, wanted in ((own_m, spec.resolution_m), (scene.pixel_size_um, spec.resolution_um)):
        if own is not None and wanted is not None:
            scale = own / wanted
            return 1.0 if abs(scale - 1) <= SAME_RESOLUTION else _checked_scale(scene, scale)
    return 1.0


def projjson(crs: str) -> dict[str, Any]:
    """Return a CRS as PROJJSON, as GeoParquet wants it; by its authority code where it has one."""
    return _identified(crs).to_json_dict()


def same_crs(one: str, other: str) -> bool:
    """Say whether two texts mean one CRS (axis order aside: x is first here in any case)."""
    return one == other or _identified(one).equals(_identified(other), ignore_axis_order=True)


def inside_area_of_use(crs: str, bounds: tuple[float, float, float, float], bounds_crs: str | None = None) -> bool:
    """Say whether a rectangle lies where a CRS is meant to be used (or within half a degree).

    Args:
        crs: the CRS whose area is asked for. True where it declares none; then only a round trip can tell.
        bounds: xmin, ymin, xmax, ymax in `bounds_crs`.
        bounds_crs: None: the same CRS.
    """
    area = _identified(crs).area_of_use
    outline = shapely.get_coordinates(shapely.segmentize(shapely.box(*bounds), _outline_step(bounds)))
    return area is None or bool(_in_area(to_lonlat(outline, parse_crs(bounds_crs or crs)), area).all())


def reproject(geometries: Geometries, source: str, target: str) -> Geometries:
    """Return geometries in another CRS.

    A vertex outside the target's area of use, or that does not come back from there, is a SceneError. In a geographic
    target, polygons across the antimeridian become two parts, one on each side. Vertices are moved, edges are not
    subdivided.
    """
    if same_crs(source, target):
        return np.asarray(geometries, dtype=object)
    coords = shapely.get_coordinates(geometries)
    area = _identified(target).area_of_use
    if area is not None and len(coords) and not _in_area(to_lonlat(coords, parse_crs(source)), area).all():
        raise SceneError(
            f"geometries must lie in the area of use of {_label(target)} ({_area_text(area)}), got a vertex outside; "
            "choose another --table-crs (OGC:CRS84 holds the whole Earth) or another output"
        )
    moved = _transformed(coords, source, target)
    _check_round_trip(coords, moved, source, target)
    result = shapely.set_coordinates(np.array(geometries, dtype=object), moved)
    return _cut_at_antimeridian(result) if parse_crs(target).is_geographic else result


def aoi_to_scene(aoi: Geometries, aoi_crs: str | None, scene: Scene) -> shapely.Geometry:
    """Return the part of an area of interest that a scene shows, in scene pixels; empty where there is none.

    Args:
        aoi: (N,) polygons in `aoi_crs`, anywhere on Earth.
        aoi_crs: None: the polygons are in scene pixels.
        scene: must have a CRS where the area has one, otherwise it is a SceneError.
    """
    frame = shapely.box(0, 0, scene.width, scene.height)
    if aoi_crs is None:
        return shapely.intersection(shapely.union_all(shapely.make_valid(aoi)), frame)
    if scene.crs is None:
        raise SceneError(
            f"an area of interest in map coordinates needs scenes with a CRS, {scene.scene_id} has none; give the "
            'polygons in scene pixels, without a CRS ("crs": null in GeoJSON)'
        )
    near = _near_scene(aoi, aoi_crs, scene)
    near = near[~shapely.is_empty(near)]
    moved = shapely.set_coordinates(near, _transformed(shapely.get_coordinates(near), aoi_crs, scene.crs))
    pixels = shapely.make_valid(to_scene_px(moved, scene.transform))
    return shapely.intersection(shapely.union_all(pixels), frame)


def _mapped(geometries: Geometries, transform: Affine6) -> Geometries:
    coords = shapely.get_coordinates(geometries)
    moved: Geometries = shapely.set_coordinates(np.array(geometries, dtype=object), apply_affine(coords, transform))
    return moved


def _stated_scale(scene: Scene, resolution_m: float | None, resolution_um: float | None) -> float | None:
    if resolution_m is None and resolution_um is None:
        return None
    own, wanted, unit = (
        (pixel_size_m(scene), resolution_m, "m") if resolution_m else (scene.pixel_size_um, resolution_um, "um")
    )
    if own is None or not wanted:
        flag = "--resolution" if unit == "m" else "--resolution-um"
        raise SceneError(
            f"a stated resolution needs a scene that states its own, got {wanted:g} {unit} for {scene.scene_id}, "
            f"which states none in {unit}; drop {flag} for this scene"
        )
    return 1.0 if abs(own / wanted - 1) < 1e-6 else own / wanted


def _checked_scale(scene: Scene, scale: float) -> float:
    low, high = SCALE_LIMITS
    if not low <= scale <= high:
        raise SceneError(
            f"a scene is read at {low:g} to {high:g} times its own resolution, got {scale:g} for {scene.scene_id}; "
            "state --resolution, or choose a model for this kind of imagery"
        )
    return scale


@lru_cache(maxsize=256)
def _identified(text: str) -> CRS:
    """Return the CRS, as its authority defines it where it is one: WKT from files lacks the area of use."""
    crs = parse_crs(text)
    if crs.area_of_use is not None:
        return crs
    authority = crs.to_authority(min_confidence=90)
    return crs if authority is None else CRS.from_authority(*authority)


def _label(text: str) -> str:
    crs = _identified(text)
    authority = crs.to_authority(min_confidence=90)
    return ":".join(authority) if authority else crs.name


def _area_text(area: _AreaOfUse) -> str:
    return f"longitudes {area.west:g} to {area.east:g}, latitudes {area.south:g} to {area.north:g}"


def _in_area(lonlat: Floats, area: _AreaOfUse) -> Any:  # noqa: ANN401 - a boolean array
    width = (area.east - area.west) % 360 or 360.0
    east_of_west = (lonlat[:, 0] - area.west + AREA_MARGIN_DEG) % 360
    in_lon = (east_of_west <= width + 2 * AREA_MARGIN_DEG) | (width + 2 * AREA_MARGIN_DEG >= 360)
    lat = lonlat[:, 1]
    return in_lon & (lat >= area.south - AREA_MARGIN_DEG) & (lat <= area.north + AREA_MARGIN_DEG)


def _outline_step(bounds: tuple[float, float, float, float]) -> float:
    side = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    return side / (_OUTLINE_POINTS - 1) if side > 0 else 1.0


def _transformed(coords: Floats, source: str, target: str) -> Floats:
    moved = transformer(source, target).transform(coords[:, 0], coords[:, 1])
    return np.column_stack(moved)


def _check_round_trip(coords: Floats, moved: Floats, source: str, target: str) -> None:
    """Refuse places that PROJ does not find back; longitudes a full turn apart are the same place."""
    back = to_lonlat(_transformed(moved, target, source), parse_crs(source))
    off = np.abs(back - to_lonlat(coords, parse_crs(source)))
    off[:, 0] = np.minimum(off[:, 0], np.abs(360 - off[:, 0])) * np.cos(np.deg2rad(back[:, 1]))
    if len(off) and not (off * 111_320 <= ROUND_TRIP_M).all():
        raise SceneError(
            f"places must come back from {_label(target)} where they were, got a vertex that does not; choose another "
            "--table-crs (OGC:CRS84 holds the whole Earth)"
        )


def _cut_at_antimeridian(geometries: Geometries) -> Geometries:
    """Return geographic geometries whose edges never jump from one side of the map to the other."""
    bounds = shapely.bounds(geometries)
    result = geometries.copy()
    for i in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > 180):
        coords = shapely.get_coordinates(geometries[i])
        if not (np.abs(np.diff(coords[:, 0])) > 180).any():
            continue
        coords[:, 0] = coords[:, 0] % 360
        whole = shapely.make_valid(shapely.set_coordinates(geometries[i], coords))
        west = shapely.intersection(whole, shapely.box(0, -90, 180, 90))
        east = shapely.transform(
            shapely.intersection(whole, shapely.box(180, -90, 360, 90)), lambda xy: xy - np.array([360.0, 0.0])
        )
        result[i] = shapely.union(west, east)
    return result


def _near_scene(aoi: Geometries, aoi_crs: str, scene: Scene) -> Geometries:
    """Return the area clipped to the scene's surroundings, in its own CRS, with edges subdivided.

    Far from the scene its CRS may be meaningless, so the clipping is done on the area's side.
    """
    if not is_earthly(parse_crs(aoi_crs)) or not is_earthly(parse_crs(scene.crs or "")):
        raise ConfigError(
            f"an area of interest and its scene need map coordinates, got {_label(aoi_crs)}; reproject it"
        )
    frame = shapely.box(0, 0, scene.width, scene.height)
    step = max(scene.width, scene.height) / (_OUTLINE_POINTS - 1)
    outline = apply_affine(shapely.get_coordinates(shapely.segmentize(frame, step)), scene.transform)
    xy = _transformed(outline, scene.crs or "", aoi_crs)
    if not np.isfinite(xy).all():
        raise SceneError(
            f"the area of interest's CRS must hold the scene, {_label(aoi_crs)} does not reach {scene.scene_id}; "
            "reproject the area to EPSG:4326"
        )
    geographic = parse_crs(aoi_crs).is_geographic
    if geographic:
        xy[:, 0] = xy[0, 0] + (xy[:, 0] - xy[0, 0] + 180) % 360 - 180
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = (high - low).max() * 0.1
    box = shapely.box(*(low - margin), *(high + margin))
    turns = (-360.0, 0.0, 360.0) if geographic else (0.0,)
    valid = shapely.make_valid(aoi)
    moved = [shapely.transform(valid, lambda p, t=turn: p + np.array([t, 0.0])) for turn in turns]
    clipped = shapely.intersection(np.concatenate(moved), box)
    return np.asarray(shapely.segmentize(clipped, max((high - low).max() / 256, 1e-9)), dtype=object)
