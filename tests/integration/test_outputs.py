"""What a run writes, opened by the tools that users have: nothing here reads our files by our own code."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import rasterio
import shapely
from deltalake import DeltaTable
from duckdb_extensions import import_extension
from pycocotools.coco import COCO

from segworker import cli
from segworker.io.storage import open_storage
from segworker.io.table import live_files
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.shapes import Canvas, comb, rectangle, ring
from segworker.synthetic.truth import TruthScene
from segworker.types import Category
from tests.painted import features, order_of, scenes, segment

pytestmark = pytest.mark.usefixtures("local_ray")

UTM = "EPSG:32636"
PLACE = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 30_000)


def painted(seed: int) -> TruthScene:
    """Rings with holes that lie in each other, a comb, and houses, some of them inside the rings."""
    rng = np.random.default_rng(seed)
    canvas = Canvas((500, 620))
    for k in range(4):
        for radius in (90, 70):
            canvas.add(ring(130 + 240 * (k // 2), 140 + 300 * (k % 2), radius, 8), class_id=3, keep=0.9)
    canvas.add(comb(260, 5, 50, 9).at(250, 300), class_id=4, keep=0.3)
    for y, x in rng.uniform(20, (480, 600), (60, 2)).tolist():
        canvas.add(rectangle(y, x, 9, 14, rng.uniform(0, 3)), class_id=5, keep=0.6)
    return canvas.scene(tuple(Category(k, f"class {k}") for k in range(1, 6)))


@pytest.fixture(scope="module")
def truth() -> TruthScene:
    return painted(8)


@pytest.fixture(scope="module")
def store(truth: TruthScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two runs, the first of which is replaced: dead files lie beside the live ones."""
    folder = tmp_path_factory.mktemp("outputs")
    paint_scene(painted(9), folder / "scene.tif", crs=UTM, transform=PLACE)
    segment(folder / "store", folder / "scene.tif", tile=200, overlap=40)
    paint_scene(truth, folder / "scene.tif", crs=UTM, transform=PLACE)
    summary = segment(folder / "store", folder / "scene.tif", tile=201, overlap=40)
    assert summary.exit_code == 0, summary.text
    assert len(list((folder / "store" / "features").glob("*.parquet"))) == 2
    return folder / "store"


@pytest.fixture(scope="module")
def files(store: Path) -> list[str]:
    return [str(store / "features" / file.path) for file in live_files(open_storage(str(store)))]


def ids_of(truth: TruthScene, first: int) -> list[int]:
    """Return the feature ids that a scene's objects must have."""
    return list(range(first, first + truth.num_objects))


def test_the_command_lists_the_live_files(store: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["files", str(store)]) == 0
    assert [Path(line) for line in capsys.readouterr().out.splitlines()] == [Path(file) for file in files]
    assert len(files) == 1


def test_geopandas_reads_the_files(files: list[str], truth: TruthScene) -> None:
    frame = geopandas.pd.concat([geopandas.read_parquet(file) for file in files])
    assert frame.crs == UTM
    assert frame.geometry.is_valid.all()
    assert len(frame) == frame["feature_id"].nunique() == truth.num_objects
    assert np.allclose(frame.geometry.area, frame["area_px"] * 0.25)
    assert np.allclose(frame.geometry.area, frame["area_m2"], rtol=2e-3)
    assert np.allclose(frame.geometry.centroid.x, frame["centroid_x"])
    assert np.allclose(frame.geometry.centroid.y, frame["centroid_y"])
    outlines = frame.geometry.to_numpy()
    assert len(shapely.get_rings(outlines)) > shapely.get_num_geometries(outlines).sum(), "rings have holes"
    left, bottom, right, top = frame.total_bounds
    assert 400_000 <= left < right <= 400_310
    assert 29_750 <= bottom < top <= 30_000
    window = (400_100, 29_800, 400_150, 29_850)
    near = geopandas.pd.concat([geopandas.read_parquet(file, bbox=window) for file in files])
    assert set(near["feature_id"]) == set(frame[frame.geometry.map(lambda g: _meets(g.bounds, window))]["feature_id"])


def _meets(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] <= other[2] and one[2] >= other[0] and one[1] <= other[3] and one[3] >= other[1]


def test_duckdb_counts_by_class(store: Path, files: list[str], truth: TruthScene) -> None:
    expected = sorted(Counter(f"class {c}" for c in truth.class_ids[1:].tolist()).items())
    area = float(np.count_nonzero(truth.labels_HW)) * 0.25
    with duckdb.connect() as duck:
        for name in ("spatial", "delta"):
            import_extension(name, con=duck)
            duck.load_extension(name)
        by_file = f"read_parquet({files})"
        assert duck.sql(f"SELECT class_name, count(*) FROM {by_file} GROUP BY 1 ORDER BY 1").fetchall() == expected
        assert duck.sql(f"SELECT sum(ST_Area(geometry)) FROM {by_file}").fetchone()[0] == pytest.approx(area)
        duck.sql("SET enable_geoparquet_conversion = false")
        table = f"delta_scan('{store}/features')"
        assert duck.sql(f"SELECT class_name, count(*) FROM {table} GROUP BY 1 ORDER BY 1").fetchall() == expected
        areas = duck.sql(f"SELECT sum(ST_Area(ST_GeomFromWKB(geometry))) FROM {table}").fetchone()
        assert areas[0] == pytest.approx(area)
        joined = duck.sql(
            f"SELECT count(*) FROM {table} JOIN delta_scan('{store}/scenes') AS s USING (scene_id, run_id) "
            "WHERE s.num_failed_tiles = 0"
        ).fetchone()
        assert joined == (truth.num_objects,)


def test_deltalake_opens_both_tables(store: Path, truth: TruthScene) -> None:
    rows = pa.table(DeltaTable(str(store / "features")).to_pyarrow_table())
    (scene,) = pa.table(DeltaTable(str(store / "scenes")).to_pyarrow_table()).to_pylist()
    first = scene["scene_no"] << 32
    assert sorted(rows["feature_id"].to_pylist()) == ids_of(truth, first)
    assert scene["num_features"] == truth.num_objects
    assert (scene["width"], scene["height"]) == (620, 500)
    earlier = pa.table(DeltaTable(str(store / "features"), version=1).to_pyarrow_table())
    assert set(earlier["run_id"].to_pylist()).isdisjoint(rows["run_id"].to_pylist()), "time travel"


def test_pycocotools_paints_the_truth(store: Path, truth: TruthScene, capsys: pytest.CaptureFixture[str]) -> None:
    (scene,) = scenes(store).values()
    record = json.loads((store / "runs" / scene["run_id"] / "run.json").read_text())
    (path,) = record["outputs"]["coco"]
    coco = COCO(str(store / path))
    capsys.readouterr()
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["width"], image["height"]) == (620, 500)
    annotations = sorted(coco.loadAnns(coco.getAnnIds()), key=lambda a: a["id"])
    assert [a["id"] for a in annotations] == ids_of(truth, scene["scene_no"] << 32)
    for annotation, label in zip(annotations, order_of(truth).tolist(), strict=True):
        wanted = truth.labels_HW == label
        assert np.array_equal(coco.annToMask(annotation), wanted), "holes and all"
        assert annotation["category_id"] == truth.class_ids[label]
        assert annotation["area"] == wanted.sum()
        rows, cols = np.nonzero(wanted)
        x, y = int(cols.min()), int(rows.min())
        assert annotation["bbox"] == [x, y, int(cols.max()) + 1 - x, int(rows.max()) + 1 - y]
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    assert names[annotations[0]["category_id"]] == f"class {annotations[0]['category_id']}"


def test_gdal_reads_what_geopandas_exports(files: list[str], truth: TruthScene, tmp_path: Path) -> None:
    """The way into QGIS where GDAL has no Parquet driver: ids survive GeoJSON's doubles, places its degrees."""
    frame = geopandas.read_parquet(files[0])[["feature_id", "class_name", "geometry"]]
    frame.to_crs("OGC:CRS84").to_file(tmp_path / "features.geojson")
    meta, _, wkb, fields = pyogrio.raw.read(tmp_path / "features.geojson")
    assert meta["geometry_type"] in ("Polygon", "Unknown", "MultiPolygon")
    assert len(wkb) == truth.num_objects
    assert sorted(fields[list(meta["fields"]).index("feature_id")].tolist()) == sorted(frame["feature_id"])
    back = geopandas.GeoSeries.from_wkb(wkb, crs="OGC:CRS84").to_crs(UTM)
    assert np.allclose(shapely.bounds(back.to_numpy()), shapely.bounds(frame.geometry.to_numpy()), atol=0.05)


# -- real imagery with the bundled model, as plumbing ------------------------------------------------------------------


@pytest.mark.slow
def test_an_orthomosaic_goes_through(shared_data: Path, tmp_path: Path) -> None:
    """A model of nuclei finds no buildings; CRS, tiles and files are what is looked at."""
    path = shared_data / "data" / "aerial" / "fair_uganda_buildings" / "images" / "fair_z21_block_a.tif"
    summary = segment(tmp_path / "store", path, model="nuclei", tile=1024, overlap=128, overview=1)
    assert summary.exit_code == 0, summary.text
    record = summary.record
    assert record["counts"]["tiles_failed"] == 0
    (row,) = scenes(tmp_path / "store").values()
    with rasterio.open(path) as dataset:
        assert (row["width"], row["height"]) == (dataset.width, dataset.height)
        bounds = tuple(dataset.bounds)
    rows = features(tmp_path / "store")
    assert len(rows) == record["counts"]["features"] == row["num_features"]
    for name, low, high in (("x", bounds[0], bounds[2]), ("y", bounds[1], bounds[3])):
        values = rows[f"centroid_{name}"].to_numpy()
        assert ((values >= low) & (values <= high)).all()
    assert (tmp_path / "store" / record["outputs"]["overviews"][0]).is_file()


@pytest.mark.slow
def test_a_slide_goes_through(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "data" / "microscopy" / "large_wsi" / "cmu-1-small-region.svs"
    summary = segment(tmp_path / "store", path, model="nuclei", overview=1)
    assert summary.exit_code == 0, summary.text
    (row,) = scenes(tmp_path / "store").values()
    rows = features(tmp_path / "store")
    assert len(rows) > 100, "stained tissue is full of nuclei"
    assert row["crs"] is None
    assert row["pixel_size_um"] == pytest.approx(0.499)
    assert rows["area_um2"].to_numpy() == pytest.approx(rows["area_px"].to_numpy() * 0.499**2, rel=1e-6)
    assert set(rows["class_name"].to_pylist()) == {"nucleus"}
    assert summary.record["counts"]["features"] == len(rows)
