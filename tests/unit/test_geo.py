"""Places and areas: against rasterio's own rasterising, pyproj's geodesic areas, and the laws of reprojection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine

from segworker import geo
from segworker.errors import ConfigError, SceneError
from segworker.types import InputSpec, Scene

UTM33 = CRS("EPSG:32633").to_wkt()
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)
SOUTH_UP = (0.5, 0.0, 500_000.0, 0.0, 0.5, 5_000_000.0)
COS, SIN = math.cos(math.radians(33)), math.sin(math.radians(33))
ROTATED = (0.5 * COS, 0.7 * SIN, 500_000.0, 0.5 * SIN, -0.7 * COS, 5_000_000.0)


def scene(transform=NORTH_UP, crs=UTM33, width=200, height=100, **more) -> Scene:
    return Scene("a", "/a.tif", width, height, 3, "uint8", crs, transform, **more)


def geometries(*shapes) -> np.ndarray:
    return np.array(shapes, dtype=object)


def geodesic_area(polygon, crs: str) -> float:
    """The reference: pyproj's geodesic area of the polygon with 4,000 vertices on its longest side."""
    parsed = CRS(crs)
    to_lonlat = Transformer.from_crs(parsed, parsed.geodetic_crs, always_xy=True)
    low_x, low_y, high_x, high_y = polygon.bounds
    dense = shapely.segmentize(polygon, max(high_x - low_x, high_y - low_y) / 4000)
    total = 0.0
    for part in shapely.get_parts(dense):
        rings = [to_lonlat.transform(*shapely.get_coordinates(ring).T) for ring in shapely.get_rings(part)]
        areas = [abs(parsed.get_geod().polygon_area_perimeter(*ring)[0]) for ring in rings]
        total += areas[0] - sum(areas[1:])
    return total


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
def test_a_rectangle_drawn_in_pixels_is_on_the_map_where_gdal_puts_it(transform) -> None:
    box = geometries(shapely.box(20, 30, 60, 45))
    on_map = geo.to_map(box, transform)
    burnt = rasterize(on_map, out_shape=(100, 200), transform=Affine(*transform))
    expected = np.zeros((100, 200), np.uint8)
    expected[30:45, 20:60] = 1
    assert np.array_equal(burnt, expected)
    assert shapely.equals_exact(geo.to_scene_px(on_map, transform)[0], box[0], tolerance=1e-6)


def test_grid_pixels_are_divided_by_the_scale() -> None:
    on_map = geo.to_map(geometries(shapely.box(10, 15, 30, 22.5)), NORTH_UP, scale=0.5)
    assert shapely.equals_exact(on_map[0], geo.to_map(geometries(shapely.box(20, 30, 60, 45)), NORTH_UP)[0])


@given(st.tuples(*[st.floats(-1e3, 1e3) for _ in range(6)]))
def test_an_inverse_undoes_its_transform(transform) -> None:
    a, b, _, d, e, _ = transform
    points = np.array([[0.0, 0.0], [7.0, -3.0]])
    if abs(a * e - b * d) < 1e-3:
        return
    there = geo.apply_affine(points, transform)
    back = geo.apply_affine(there, geo.invert_affine(transform))
    assert np.allclose(back, points, atol=1e-3)


def test_a_flat_transform_is_refused() -> None:
    with pytest.raises(SceneError, match="must be invertible"):
        geo.invert_affine((1.0, 2.0, 0.0, 2.0, 4.0, 0.0))


@pytest.mark.parametrize(
    ("crs", "centre"),
    [
        ("EPSG:32633", (500_000, 6_000_000)),
        ("EPSG:32633", (300_000, 8_500_000)),
        ("EPSG:3857", (1_000_000, 8_000_000)),
        ("EPSG:3857", (0, 15_000_000)),
        ("EPSG:4326", (10, 60)),
        ("EPSG:32660", (830_000, 5_700_000)),  # on the antimeridian
        ("EPSG:3031", (1_000_000, 1_000_000)),
        ("EPSG:3031", (0, 5_000)),  # at the pole
        ("EPSG:3031", (0, 0)),  # around it
        ("EPSG:2263", (1_000_000, 200_000)),  # feet
    ],
)
@pytest.mark.parametrize("size_m", [500, 3_000, 50_000])
def test_areas_are_geodesic_in_every_crs(crs: str, centre: tuple[float, float], size_m: float) -> None:
    unit = 111_320 if CRS(crs).is_geographic else CRS(crs).axis_info[0].unit_conversion_factor ** -1
    size = size_m / unit if CRS(crs).is_geographic else size_m * unit
    rng = np.random.default_rng(int(size_m))
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 9)), rng.uniform(0.3, 0.5, 9) * size
    ring = np.column_stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)])
    polygon = shapely.Polygon(ring).difference(shapely.Point(*centre).buffer(size / 20))
    area = geo.area_m2(geometries(polygon), crs)[0]
    assert area == pytest.approx(geodesic_area(polygon, crs), rel=1e-6)


def test_an_area_does_not_depend_on_the_rest_of_the_batch() -> None:
    one, far = shapely.box(5e5, 5e6, 5e5 + 80, 5e6 + 30), shapely.box(3e5, 4e6, 4e5, 4.1e6)
    alone = geo.area_m2(geometries(one), UTM33)
    assert np.array_equal(geo.area_m2(geometries(far, one, shapely.Polygon()), UTM33)[1:], [*alone, 0.0])


def test_web_mercator_areas_are_true() -> None:
    to_mercator = Transformer.from_crs("EPSG:32633", "EPSG:3857", always_xy=True)
    corners = np.array([(5e5, 6.65e6), (5e5 + 100, 6.65e6), (5e5 + 100, 6.65e6 + 100), (5e5, 6.65e6 + 100)])
    mercator = shapely.Polygon(np.column_stack(to_mercator.transform(*corners.T)))
    assert mercator.area > 39_000
    assert geo.area_m2(geometries(mercator), "EPSG:3857")[0] == pytest.approx(10_008, rel=1e-3)


def test_areas_without_longitudes_are_unknown() -> None:
    box = geometries(shapely.box(0, 0, 1, 1))
    assert math.isnan(geo.area_m2(box, None)[0])
    assert math.isnan(geo.area_m2(box, 'LOCAL_CS["site grid",UNIT["metre",1]]')[0])


def test_other_bodies_are_measured_on_their_own_ellipsoid() -> None:
    mars = CRS.from_proj4("+proj=eqc +R=3396190 +lat_ts=0 +lon_0=0 +units=m").to_wkt()
    side = 3396190 * math.radians(1)
    area = geo.area_m2(geometries(shapely.box(0, 0, side, side)), mars)[0]
    assert area == pytest.approx(3396190**2 * math.radians(1) * math.sin(math.radians(1)), rel=1e-9)


def test_pixel_sizes_are_true_metres() -> None:
    assert geo.pixel_size_m(scene()) == pytest.approx(0.5, rel=1e-3)
    assert geo.pixel_size_m(scene(crs=None)) is None
    mercator = scene((1.0, 0.0, 0.0, 0.0, -1.0, 8_399_737.0), "EPSG:3857")  # 60 degrees north
    assert geo.pixel_size_m(mercator) == pytest.approx(0.5, rel=0.01)
    degrees = scene((1e-5, 0.0, 10.0, 0.0, -1e-5, 60.0), "EPSG:4326")
    assert geo.pixel_size_m(degrees) == pytest.approx(111_320e-5 * math.sqrt(0.5), rel=0.01)


@pytest.mark.parametrize(
    ("spec", "stated", "expected"),
    [
        (InputSpec(), {}, 1.0),
        (InputSpec(resolution_m=1.0), {}, 0.5),
        (InputSpec(resolution_m=0.51), {}, 1.0),
        (InputSpec(resolution_um=0.5), {}, 1.0),
        (InputSpec(resolution_m=1.0), {"resolution_m": 0.25}, 2.0),
        (InputSpec(), {"resolution_m": 0.51}, 0.5 / 0.51),
    ],
)
def test_the_grid_is_read_at_the_models_resolution(spec: InputSpec, stated: dict[str, float], expected: float) -> None:
    assert geo.grid_scale(scene(), spec, **stated) == pytest.approx(expected, rel=1e-3)


def test_micrographs_have_micrometres() -> None:
    slide = scene(crs=None, pixel_size_um=0.25)
    assert geo.grid_scale(slide, InputSpec(resolution_um=0.5)) == 0.5
    assert geo.grid_scale(slide, InputSpec(resolution_m=0.5)) == 1.0
    assert geo.grid_scale(slide, InputSpec(resolution_um=0.5), resolution_um=0.25) == 1.0
    with pytest.raises(SceneError, match="drop --resolution for this scene"):
        geo.grid_scale(slide, InputSpec(), resolution_m=0.5)
    with pytest.raises(SceneError, match="times its own resolution"):
        geo.grid_scale(slide, InputSpec(resolution_um=100.0))


def test_places_outside_a_crs_are_refused() -> None:
    amazon = geometries(shapely.box(-60, -3, -59.9, -2.9))
    with pytest.raises(SceneError, match=r"area of use of EPSG:32636.*choose another --table-crs"):
        geo.reproject(amazon, "OGC:CRS84", "EPSG:32636")
    assert not geo.inside_area_of_use("EPSG:32636", (-60, -3, -59.9, -2.9), "OGC:CRS84")
    assert geo.inside_area_of_use("EPSG:32636", (33, 1, 33.1, 1.1), "OGC:CRS84")
    assert geo.inside_area_of_use("EPSG:32636", (5e5, 1e5, 6e5, 2e5))


def test_wkt_from_files_knows_its_area_of_use() -> None:
    wkt = CRS("EPSG:32636").to_wkt("WKT1_GDAL")
    with pytest.raises(SceneError, match="area of use"):
        geo.reproject(geometries(shapely.Point(-60, -3)), "EPSG:4326", wkt)


@given(st.floats(30.1, 35.9), st.floats(0.1, 80))
def test_reprojection_and_back_is_the_same_place(lon: float, lat: float) -> None:
    point = geometries(shapely.Point(lon, lat))
    back = geo.reproject(geo.reproject(point, "EPSG:4326", "EPSG:32636"), "EPSG:32636", "OGC:CRS84")
    assert shapely.distance(point[0], back[0]) < 1e-9


def test_polygons_across_the_antimeridian_become_two_parts() -> None:
    across = geometries(shapely.box(700_000, 5_650_000, 760_000, 5_660_000))
    split = geo.reproject(across, "EPSG:32660", "OGC:CRS84")
    low, _, high, _ = split[0].bounds
    assert split[0].geom_type == "MultiPolygon"
    assert low == -180.0
    assert high == 180.0
    assert geo.area_m2(split, "OGC:CRS84") == pytest.approx(geo.area_m2(across, "EPSG:32660"), rel=1e-4)


def test_axis_order_makes_no_difference() -> None:
    assert geo.same_crs("EPSG:4326", "OGC:CRS84")
    assert not geo.same_crs("EPSG:4326", "EPSG:3857")
    assert geo.same_crs(CRS("EPSG:32636").to_wkt("WKT1_GDAL"), "EPSG:32636")
    assert geo.projjson(CRS("EPSG:32636").to_wkt("WKT1_GDAL"))["id"] == {"authority": "EPSG", "code": 32636}


def test_what_is_no_crs_is_refused() -> None:
    with pytest.raises(ConfigError, match="write EPSG:32633"):
        geo.parse_crs("nowhere")


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
def test_an_area_of_interest_in_any_crs_lands_on_the_scene(transform) -> None:
    wanted = shapely.box(20, 30, 60, 45)
    lonlat = geo.reproject(geo.to_map(geometries(wanted), transform), UTM33, "EPSG:4326")
    faraway = shapely.box(-120, -50, -110, -40)
    found = geo.aoi_to_scene(np.append(lonlat, geometries(faraway)), "EPSG:4326", scene(transform))
    assert found.symmetric_difference(wanted).area < 0.01


def test_an_area_far_larger_than_a_crs_covers_the_scene() -> None:
    found = geo.aoi_to_scene(geometries(shapely.box(-180, -90, 180, 90)), "EPSG:4326", scene())
    assert found.area == pytest.approx(200 * 100)
    nothing = geo.aoi_to_scene(geometries(shapely.box(100, 0, 110, 10)), "EPSG:4326", scene())
    assert nothing.is_empty


def test_an_area_in_pixels_is_for_scenes_without_crs() -> None:
    area = geometries(shapely.box(10, 10, 500, 20))
    assert geo.aoi_to_scene(area, None, scene(crs=None)).bounds == (10, 10, 200, 20)
    with pytest.raises(SceneError, match="has none; give the polygons in scene pixels"):
        geo.aoi_to_scene(area, "EPSG:4326", scene(crs=None))
