"""Laws of the whole pipeline, judged exactly: the truth is painted into rasters, and the model reads it back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.control import GroundControlPoint

from segworker.io.storage import open_storage
from segworker.io.table import read_store_info
from segworker.synthetic.paint import paint_bands, paint_scene, write_raster
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.shapes import Canvas, comb, rectangle, ring
from segworker.synthetic.truth import TruthScene
from segworker.types import Category
from tests.painted import assert_is_truth, features, of_scene, scenes, segment, shapes

pytestmark = pytest.mark.usefixtures("local_ray")

GRIDS = {
    "plain": {"tile": 256, "overlap": 32},
    "shuffled": {"tile": 137, "overlap": 31},
    "two workers": {"tile": 100, "overlap": 20, "workers": 2},
    "many blocks": {"tile": 64, "overlap": 24},
    "many blocks in one task": {"tile": 64, "overlap": 24, "in_one_task": True},
    "one tile a scene": {"tile": 2048, "overlap": 64},
}
CLASSES = tuple(Category(k, f"class {k}") for k in range(1, 10))
UTM = "EPSG:32636"


def on_corners() -> TruthScene:
    """Squares of all sizes on the corners that four cores of one of the grids share."""
    canvas = Canvas((601, 577))
    for grid in list(GRIDS.values())[:4]:
        step, halo = grid["tile"] - grid["overlap"], grid["overlap"] // 2
        for k in range(1, 577 // step + 1):
            for m in range(1, 601 // step + 1):
                half = 1 + (k * 7 + m * 5) % 23
                y, x = m * step + halo - 0.5, k * step + halo - 0.5
                canvas.add(rectangle(y, x, half, half, 0.0), class_id=1 + (k + m) % 3, keep=0.9, min_area_px=1)
    return canvas.scene(CLASSES)


def nested() -> TruthScene:
    """Rings within rings, each larger than most tiles, around a U around a comb."""
    canvas = Canvas((523, 540))
    for radius in (258, 240, 222):
        canvas.add(ring(261, 270, radius, 9), class_id=2, keep=0.5)
    canvas.add(comb(280, 2, 270, 12).at(261, 270), class_id=3, keep=0.5)
    canvas.add(comb(200, 7, 30, 6).turned(2).at(270, 270), class_id=4, keep=0.5)
    return canvas.scene(CLASSES)


def filled(height: int, width: int, label: int = 1) -> TruthScene:
    """One object that is all of the scene, or no object at all."""
    return TruthScene(
        "", 0, np.full((height, width), label, np.int32), np.array([0, 5][: label + 1], np.int32), CLASSES
    )


@pytest.fixture(scope="module")
def world() -> dict[str, TruthScene]:
    return {
        "large": make_scene("roads", (1303, 1477), 3),
        "aerial": make_scene("aerial", (437, 500), 1),
        "fields": make_scene("fields", (611, 389), 2),
        "nuclei": make_scene("nuclei", (301, 300), 4),
        "corners": on_corners(),
        "nested": nested(),
        "full": filled(700, 650),
        "pixel": filled(1, 1),
        "background pixel": filled(1, 1, 0),
        "row": filled(1, 701),
        "column": filled(703, 1),
        "empty": filled(150, 200, 0),
        "nodata": filled(333, 222, 0),
    }


def id_of(name: str) -> str:
    return name.replace(" ", "_")


@pytest.fixture(scope="module")
def paths(world: dict[str, TruthScene], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("world")
    made = []
    for name, scene in world.items():
        path = folder / f"{id_of(name)}.tif"
        if name == "nodata":
            write_raster(path, paint_bands(scene.labels_HW, scene.labels_HW), nodata=0)
        else:
            paint_scene(scene, path)
        made.append(path)
    return made


@pytest.fixture(scope="module")
def results(paths: list[Path], tmp_path_factory: pytest.TempPathFactory):
    """A run of the world on each grid, each into a store of its own, made when it is first asked for."""
    known: dict[str, tuple[Path, dict]] = {}

    def result(grid: str) -> tuple[Path, dict]:
        if grid not in known:
            order = list(paths)
            if grid == "shuffled":
                random.Random(5).shuffle(order)
            store = tmp_path_factory.mktemp("stores") / id_of(grid)
            summary = segment(store, *order, **GRIDS[grid])
            assert summary.exit_code == 0, summary.text
            known[grid] = store, summary.record
        return known[grid]

    return result


@pytest.mark.parametrize("grid", GRIDS)
def test_one_object_one_feature(results, world: dict[str, TruthScene], grid: str) -> None:
    store, record = results(grid)
    rows = features(store)
    for name, scene in world.items():
        assert_is_truth(of_scene(rows, id_of(name)), scene)
    assert record["counts"]["features"] == len(rows) == sum(s.num_objects for s in world.values())
    assert rows["feature_id"].to_numpy().max() < 2**53
    assert rows["score"].to_numpy() == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("grid", [name for name in GRIDS if name != "plain"])
def test_results_do_not_depend_on_grid_workers_or_order(results, grid: str) -> None:
    columns = ["feature_id", "scene_id", "class_id", "score", "area_px", "centroid_x", "centroid_y", "bbox", "geometry"]
    one, other = (features(results(name)[0]).select(columns) for name in ("plain", grid))
    assert one.equals(other)


def test_seams_are_where_the_grid_has_them(results, world: dict[str, TruthScene]) -> None:
    assert set(features(results("one tile a scene")[0])["seam"].to_pylist()) == {"none"}
    _, record = results("many blocks")
    assert record["counts"]["tiles"] > 1500
    assert record["seams"]["agreement"] == 1.0
    assert record["seams"]["mean_iou"] == 1.0
    assert record["seams"]["features"]["merged"] > world["large"].num_objects / 2
    assert "cut" not in record["seams"]["features"]


@pytest.mark.parametrize("grid", ["plain", "many blocks"])
def test_ids_of_table_and_coco_are_the_same(results, world: dict[str, TruthScene], grid: str) -> None:
    store, record = results(grid)
    found = [json.loads((store / path).read_bytes()) for path in record["outputs"]["coco"]]
    ids = [annotation["id"] for coco in found for annotation in coco["annotations"]]
    rows = features(store)
    assert sorted(ids) == rows["feature_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    images = {image["id"]: image for coco in found for image in coco["images"]}
    assert len(images) == len(world), "scenes without objects are images too"
    sizes = {(image["height"], image["width"]) for image in images.values()}
    assert sizes == {scene.labels_HW.shape for scene in world.values()}


def test_empty_scenes_are_done_scenes(results, world: dict[str, TruthScene]) -> None:
    store, record = results("plain")
    found = scenes(store)
    assert set(found) == {id_of(name) for name in world}
    for name in ("empty", "nodata", "background_pixel"):
        assert found[name]["num_features"] == 0
        assert found[name]["num_failed_tiles"] == 0
    assert record["counts"]["tiles_skipped"] == found["nodata"]["num_tiles"]
    assert sum(row["num_features"] for row in found.values()) == record["counts"]["features"]


def test_simplified_outlines_do_not_depend_on_the_grid_and_share_their_borders(
    paths: list[Path], world: dict[str, TruthScene], tmp_path: Path
) -> None:
    chosen = [p for p in paths if p.stem in ("large", "fields", "nested")]
    one, other = (
        features(segment(tmp_path / id_of(grid), *chosen, simplify=1.5, **GRIDS[grid]) and tmp_path / id_of(grid))
        for grid in ("two workers", "many blocks")
    )
    columns = ["feature_id", "class_id", "area_px", "centroid_x", "geometry"]
    assert one.select(columns).equals(other.select(columns))
    assert sum(world[p.stem].num_objects for p in chosen) == len(one)
    for path in chosen:
        found = shapes(of_scene(one, path.stem))
        assert shapely.is_valid(found).all()
        union = shapely.union_all(found)
        assert shapely.area(union) == pytest.approx(shapely.area(found).sum(), rel=1e-9), "nothing overlaps"
        exact = of_scene(one, path.stem)["area_px"].to_numpy()
        assert shapely.area(found).sum() == pytest.approx(exact.sum(), rel=0.01)
        if path.stem == "fields":
            assert shapely.area(union) == world["fields"].labels_HW.size, "no gap in a partition, and its rim stays"
            assert shapely.get_num_interior_rings(union) == 0


# -- map coordinates -------------------------------------------------------------------------------------------------

PIXEL_M = 0.5
HEIGHT, WIDTH = 400, 500
PLACES = {
    "north": rasterio.Affine(PIXEL_M, 0, 400_000, 0, -PIXEL_M, 30_200),
    "south": rasterio.Affine(PIXEL_M, 0, 401_000, 0, PIXEL_M, 30_000),
    "rotated": rasterio.Affine(0.4, 0.3, 402_000, 0.3, -0.4, 30_200),
    "gcps": rasterio.Affine(PIXEL_M, 0, 403_000, 0, -PIXEL_M, 30_200),
}


def drawn(transform: rasterio.Affine) -> list[shapely.Polygon]:
    """Polygons in map coordinates: rectangles on pixel edges, one across seams, one on the rim, and a slanted one."""
    boxes = [(0, 0, 10, 20), (90, 100, 300, 140), (WIDTH - 30, HEIGHT - 7, WIDTH, HEIGHT), (200, 200, 201, 201)]
    rings = [shapely.box(*box) for box in boxes]
    rings.append(shapely.Polygon([(60, 200), (180, 260), (150, 380), (40, 350)]))
    a, b, c, d, e, f = tuple(transform)[:6]
    return [shapely.affinity.affine_transform(r, (a, b, d, e, c, f)) for r in rings]


@pytest.fixture(scope="module")
def on_map(tmp_path_factory: pytest.TempPathFactory):
    """One run over scenes that lie on the ground in four ways; returns scene id -> polygons of the table."""
    folder = tmp_path_factory.mktemp("map")
    for name, transform in PLACES.items():
        burnt = rasterio.features.rasterize(drawn(transform), (HEIGHT, WIDTH), transform=transform)
        bands = (burnt * 1000).astype(np.uint16)[None]
        placing: dict = {"crs": UTM, "transform": transform}
        if name == "gcps":
            corners = [(0, 0), (0, WIDTH), (HEIGHT, WIDTH), (HEIGHT, 0), (HEIGHT / 2, WIDTH / 2)]
            points = [GroundControlPoint(row, col, *(transform @ (col, row))) for row, col in corners]
            placing = {"crs": UTM, "gcps": points}
        write_raster(folder / f"{name}.tif", bands, **placing)
    summary = segment(folder / "store", folder, model="tests.models_for_tests:bright", tile=128, overlap=32)
    assert summary.exit_code == 0, summary.text
    rows = features(folder / "store")
    info = read_store_info(open_storage(str(folder / "store")))
    assert info is not None
    assert info.table_crs.label.startswith("EPSG:32636")
    return {name: of_scene(rows, name) for name in PLACES}


@pytest.mark.parametrize("name", ["north", "south", "rotated"])
def test_what_is_drawn_at_known_coordinates_comes_back_at_them(on_map, name: str) -> None:
    wanted, found = drawn(PLACES[name]), shapes(on_map[name])
    assert len(found) == len(wanted)
    for polygon in wanted[:-1]:
        nearest = found[np.argmin(shapely.hausdorff_distance(found, polygon))]
        assert shapely.hausdorff_distance(nearest, polygon) < 1e-6
        assert shapely.area(shapely.symmetric_difference(nearest, polygon)) < 1e-6
    slanted = wanted[-1]
    nearest = found[np.argmin(shapely.hausdorff_distance(found, slanted))]
    assert shapely.hausdorff_distance(nearest, slanted) < 1.5 * PIXEL_M, "as far as pixels go"


def test_a_scene_with_ground_control_points_alone_is_put_in_place(on_map) -> None:
    wanted, found = drawn(PLACES["gcps"]), shapes(on_map["gcps"])
    for polygon in (wanted[0], wanted[1], wanted[2], wanted[4]):
        assert min(shapely.hausdorff_distance(found, polygon)) < 1.5 * PIXEL_M


@pytest.mark.parametrize("name", ["north", "south", "rotated"])
def test_areas_are_those_on_the_ground(on_map, name: str) -> None:
    rows = on_map[name]
    metres = rows["area_px"].to_numpy() * PIXEL_M**2
    assert rows["area_m2"].to_numpy() == pytest.approx(metres, rel=2e-3), "UTM's scale is within 0.1% here"
    bounds = shapely.bounds(shapes(rows))
    boxes = np.array([list(b.values()) for b in rows["bbox"].to_pylist()])
    assert boxes == pytest.approx(bounds, abs=0.01)
