"""Rows of the features table: places, areas, ids, judged by rasterio and pyproj."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import shapely
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine

from segworker import masks
from segworker.errors import SceneError
from segworker.grid import Grid
from segworker.io.ids import feature_ids
from segworker.io.rows import SceneFeatures, coco_of, outline, rows_of
from segworker.io.table_crs import TableCrs
from segworker.schema import FEATURES, SEAM_KINDS
from segworker.stitch import Features, Pieces
from segworker.types import Category, Runs, Scene, Window

UTM33 = CRS("EPSG:32633").to_wkt()
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)
SOUTH_UP = (0.5, 0.0, 500_000.0, 0.0, 0.5, 5_000_000.0)
COS, SIN = math.cos(math.radians(33)), math.sin(math.radians(33))
ROTATED = (0.5 * COS, 0.7 * SIN, 500_000.0, 0.5 * SIN, -0.7 * COS, 5_000_000.0)
CATEGORIES = {1: Category(1, "house"), 2: Category(2, "water", isthing=False)}
PIXELS = TableCrs.of(None)


def scene(transform=NORTH_UP, crs: str | None = UTM33, **more) -> Scene:
    return Scene("a", "/a.tif", 200, 100, 3, "uint8", crs, transform, **more)


def features_of(*found: np.ndarray, class_ids=None, seam=0) -> Features:
    """Features from masks of the grid, in their order."""
    runs = Runs.concatenate([masks.runs_from_mask(m, window=Window(0, 0, *m.shape[::-1])) for m in found])
    n = len(found)
    classes = np.ones(n, np.int64) if class_ids is None else np.array(class_ids, np.int64)
    scores = np.linspace(0.5, 0.9, n).astype(np.float32) if n else np.zeros(0, np.float32)
    pieces = Pieces(
        classes, scores, runs, masks.areas_px(runs), np.full(n, 3), np.full(n, seam, np.uint8), np.full(n, -1)
    )
    return Features(np.arange(n), pieces)


def box_mask(left: int, top: int, right: int, bottom: int, shape=(100, 200)) -> np.ndarray:
    image = np.zeros(shape, bool)
    image[top:bottom, left:right] = True
    return image


def outlined(features: Features, of: Scene, *, scale: float = 1.0, scene_no: int = 5, **options) -> SceneFeatures:
    grid = Grid.of_scene(of, tile_px=64, overlap_px=16, scale=scale)
    return outline(features, scene=of, scene_no=scene_no, grid=grid, **options)


def table(features: Features, of: Scene, crs: TableCrs | None = None, **options) -> pa.Table:
    crs = TableCrs.of(of.crs) if crs is None else crs
    return rows_of(outlined(features, of, **options), run_id="run", table_crs=crs, categories=CATEGORIES)


def geometry(rows: pa.Table) -> shapely.Geometry:
    return shapely.from_wkb(rows["geometry"].to_pylist())[0]


# ------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
def test_a_rectangle_at_known_map_coordinates_comes_back_at_them(transform) -> None:
    a, b, c, d, e, f = transform
    corners = ((20, 30), (60, 30), (60, 45), (20, 45))
    known = shapely.Polygon([(a * x + b * y + c, d * x + e * y + f) for x, y in corners])
    image = rasterize([known.buffer(-0.01)], out_shape=(100, 200), transform=Affine(*transform), dtype=np.uint8)
    assert image.sum() == 40 * 15
    rows = table(features_of(image.astype(bool)), scene(transform))
    back = geometry(rows)
    assert shapely.equals_exact(shapely.normalize(back), shapely.normalize(known), tolerance=1e-6)
    assert (rows["centroid_x"][0].as_py(), rows["centroid_y"][0].as_py()) == pytest.approx(known.centroid.coords[0])
    assert list(rows["bbox"][0].as_py().values()) == pytest.approx(known.bounds)
    assert rows["area_px"].to_pylist() == [600.0]
    assert rows["area_m2"][0].as_py() == pytest.approx(known.area, rel=2e-3)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
def test_polygons_on_the_map_hold_the_pixels_they_came_from(transform) -> None:
    rng = np.random.default_rng(3)
    image = rng.random((100, 200)) < 0.6
    back = geometry(table(features_of(image), scene(transform)))
    burnt = rasterize([back], out_shape=image.shape, transform=Affine(*transform), dtype=np.uint8)
    assert np.array_equal(burnt == 1, image)


def test_another_table_crs() -> None:
    lonlat = TableCrs.of("OGC:CRS84")
    rows = table(features_of(box_mask(20, 30, 60, 45)), scene(), lonlat)
    there = Transformer.from_crs(UTM33, "OGC:CRS84", always_xy=True)
    expected = shapely.transform(
        shapely.box(500_010, 4_999_977.5, 500_030, 4_999_985), there.transform, interleaved=False
    )
    assert shapely.hausdorff_distance(geometry(rows), expected) < 1e-9
    assert rows["centroid_x"][0].as_py() == pytest.approx(expected.centroid.x)
    assert rows["centroid_y"][0].as_py() == pytest.approx(expected.centroid.y)
    xmin, ymin, xmax, ymax = rows["bbox"][0].as_py().values()
    assert (xmin, ymin, xmax, ymax) == geometry(rows).bounds
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(geometry(rows))
    assert rows["area_m2"][0].as_py() == pytest.approx(abs(area), rel=1e-3)


def test_a_scene_far_outside_the_table_crs_is_refused() -> None:
    with pytest.raises(SceneError):
        table(features_of(box_mask(20, 30, 60, 45)), scene(), TableCrs.of("EPSG:32601"))


def test_without_a_crs_everything_is_in_scene_pixels() -> None:
    rows = table(features_of(box_mask(20, 30, 60, 45)), scene(crs=None), PIXELS)
    assert shapely.equals(geometry(rows), shapely.box(20, 30, 60, 45))
    assert rows["bbox"][0].as_py() == {"xmin": 20, "ymin": 30, "xmax": 60, "ymax": 45}
    assert (rows["centroid_x"][0].as_py(), rows["centroid_y"][0].as_py()) == (40, 37.5)


def test_a_scene_with_a_crs_stays_in_pixels_in_a_pixel_table() -> None:
    rows = table(features_of(box_mask(20, 30, 60, 45)), scene(), PIXELS)
    assert shapely.equals(geometry(rows), shapely.box(20, 30, 60, 45))


@pytest.mark.parametrize("scale", [0.5, 2.0, 0.3])
def test_grid_pixels_become_scene_pixels(scale: float) -> None:
    of = scene(crs=None, pixel_size_um=0.25)
    found = outlined(features_of(box_mask(6, 9, 18, 15)), of, scale=scale)
    assert shapely.equals_exact(
        shapely.normalize(found.polygons[0]),
        shapely.normalize(shapely.box(6 / scale, 9 / scale, 18 / scale, 15 / scale)),
        tolerance=1e-9,
    )
    assert found.areas_px.tolist() == pytest.approx([72 / scale**2])
    assert found.centroids_xy.tolist() == [pytest.approx([12 / scale, 12 / scale])]


# ------------------------------------------------------------------------------------------------ areas


@pytest.mark.parametrize(
    ("crs", "pixel_size_um", "m2", "um2"),
    [(None, None, None, None), (None, 0.25, None, 600 / 16), (UTM33, None, 150.0, None), (UTM33, 2.0, 150.0, 2400.0)],
)
def test_areas_are_null_without_what_they_need(crs, pixel_size_um, m2, um2) -> None:
    rows = table(features_of(box_mask(20, 30, 60, 45)), scene(crs=crs, pixel_size_um=pixel_size_um))
    assert rows["area_um2"].to_pylist() == [um2]
    assert rows["area_px"].to_pylist() == [600.0]
    (got,) = rows["area_m2"].to_pylist()
    assert got is None if m2 is None else got == pytest.approx(m2, rel=2e-3)


def test_areas_in_degrees_are_square_metres() -> None:
    transform = (1e-5, 0.0, 32.0, 0.0, -1e-5, 1.0)
    rows = table(features_of(box_mask(0, 0, 200, 100)), scene(transform, CRS("EPSG:4326").to_wkt()))
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(32.0, 0.999, 32.002, 1.0))
    assert rows["area_m2"][0].as_py() == pytest.approx(abs(area), rel=1e-4)


def test_a_scene_that_is_not_on_the_earth_has_no_square_metres() -> None:
    local = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]').to_wkt()
    rows = table(features_of(box_mask(20, 30, 60, 45)), scene(crs=local), PIXELS)
    assert rows["area_px"].to_pylist() == [600.0]


def test_holes_and_parts_are_kept() -> None:
    image = box_mask(20, 30, 60, 45)
    image[35:38, 25:30] = False
    image[80:90, 100:110] = True
    rows = table(features_of(image), scene(crs=None), PIXELS)
    back = geometry(rows)
    assert back.geom_type == "MultiPolygon"
    assert back.area == rows["area_px"][0].as_py() == image.sum()


# ------------------------------------------------------------------------------------------------ columns


def test_the_columns_of_the_schema() -> None:
    features = features_of(box_mask(1, 1, 5, 5), box_mask(10, 10, 20, 20), class_ids=[2, 1], seam=1)
    rows = table(features, scene(crs=None), PIXELS)
    assert rows.schema.equals(FEATURES)
    rows.validate(full=True)
    assert rows["feature_id"].to_pylist() == feature_ids(5, np.arange(2)).tolist() == rows["segment_id"].to_pylist()
    assert rows["class_name"].to_pylist() == ["water", "house"]
    assert rows["is_thing"].to_pylist() == [False, True]
    assert rows["seam"].to_pylist() == ["merged", "merged"]
    assert rows["run_id"].to_pylist() == ["run", "run"]
    assert rows["scene_id"].to_pylist() == ["a", "a"]
    assert rows["num_tiles"].to_pylist() == [3, 3]
    assert rows["score"].to_pylist() == features.pieces.scores.tolist()
    assert rows["keypoints"].null_count == 2


def test_every_seam_has_a_name_of_the_schema() -> None:
    names = [
        table(features_of(box_mask(1, 1, 5, 5), seam=k), scene(crs=None), PIXELS)["seam"][0].as_py() for k in range(4)
    ]
    assert tuple(names) == SEAM_KINDS


@pytest.mark.parametrize("crs", [None, UTM33])
def test_a_scene_without_features_has_no_rows(crs: str | None) -> None:
    rows = table(features_of(), scene(crs=crs))
    assert rows.num_rows == 0
    assert rows.schema.equals(FEATURES)


def test_coco_gets_scene_pixels_whatever_the_table_has() -> None:
    found = outlined(features_of(box_mask(20, 30, 60, 45)), scene())
    coco = coco_of(found)
    assert coco.feature_ids.tolist() == found.ids.tolist()
    assert shapely.equals(coco.polygons[0], shapely.box(20, 30, 60, 45))


def test_taking_some_of_the_features() -> None:
    found = outlined(features_of(*(box_mask(k * 10, 5, k * 10 + 5, 10 + k) for k in range(5))), scene())
    for indices in (np.array([3, 1]), np.array([False, True, False, True, False])):
        some = found.take(indices)
        picked = np.arange(5)[indices]
        assert some.features.index.tolist() == picked.tolist()
        assert some.ids.tolist() == found.ids[picked].tolist()
        assert some.areas_px.tolist() == found.areas_px[picked].tolist()
        assert masks.areas_px(some.features.pieces.runs).tolist() == some.areas_px.tolist()
        assert len(some) == 2


# ------------------------------------------------------------------------------------------------ boxes, keypoints


def test_of_a_model_without_masks_a_feature_is_the_box_around_what_its_tiles_saw() -> None:
    seen = box_mask(20, 30, 60, 46) | box_mask(50, 28, 80, 44)
    found = outlined(features_of(seen), scene(), scale=2.0, boxes=True)
    assert shapely.equals(found.polygons[0], shapely.box(10, 14, 40, 23))
    assert found.areas_px.tolist() == [30 * 9]
    assert found.centroids_xy.tolist() == [[25, 18.5]]


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
def test_keypoints_come_in_the_coordinates_of_the_table_and_of_coco(transform) -> None:
    features = features_of(box_mask(20, 30, 60, 45), box_mask(0, 0, 5, 5))
    points = np.array([[[30, 40, 0.75, 1], [0, 0, 0, -1]], [[2, 4, 0.5, 1], [3, 3, 0.25, 0]]], np.float32)
    features = Features(features.index, replace(features.pieces, keypoints_NK4=points))
    rows = table(features, scene(transform), scale=2.0)
    a, b, c, d, e, f = transform
    assert rows.schema.equals(FEATURES)
    told = rows["keypoints"].to_pylist()
    assert [[p["score"] for p in one] for one in told] == [[0.75, 0], [0.5, 0.25]]
    assert (told[0][0]["x"], told[0][0]["y"]) == pytest.approx((a * 15 + b * 20 + c, d * 15 + e * 20 + f), abs=1e-6)
    coco = coco_of(outlined(features, scene(transform), scale=2.0))
    assert coco.keypoints_NK3 is not None
    assert coco.keypoints_NK3[0].tolist() == [[15, 20, 0.75], [0, 0, 0]]
    taken = outlined(features, scene()).take(np.array([1]))
    assert taken.keypoints_NK3 is not None
    assert taken.keypoints_NK3[0, 0].tolist() == [2, 4, 0.5]


# ------------------------------------------------------------------------------------------------ simplified


def test_simplified_outlines_take_the_place_of_the_exact_ones_but_areas_stay() -> None:
    """At two grid pixels a scene pixel; the area of the rows is that of the mask."""
    mask = np.tri(100, 200, 3, bool)
    exact, coarse = (outlined(features_of(mask), scene(), scale=2.0, simplified=s) for s in (None, triangle()))
    assert shapely.equals(coarse.polygons[0], shapely.Polygon([(0, 0), (0, 50), (50, 50)]))
    assert coarse.areas_px.tolist() == exact.areas_px.tolist() == [mask.sum() / 4]
    assert np.array_equal(coarse.centroids_xy, exact.centroids_xy)
    rows = [rows_of(f, run_id="r", table_crs=TableCrs.of(UTM33), categories=CATEGORIES) for f in (exact, coarse)]
    assert rows[0]["area_m2"][0].as_py() == pytest.approx(rows[1]["area_m2"][0].as_py(), rel=1e-6)
    assert shapely.area(geometry(rows[1])) == pytest.approx(1250 * 0.25)


def triangle() -> np.ndarray:
    return np.array([shapely.Polygon([(0, 0), (0, 100), (100, 100)])], dtype=object)
