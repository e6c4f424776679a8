"""Exports, opened by the tools of others."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import rasterio
import shapely
from pycocotools.coco import COCO

import segworker
from segworker import cli
from segworker.errors import ConfigError
from segworker.io.storage import open_storage
from segworker.query.export import export
from segworker.query.store import Store
from tests.feature_rows import UTM
from tests.stores import commit_pixels, commit_squares, ids

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

BOXES = {"s": [(0, 0, 10, 10), (50, 20, 80, 60), (60, 30, 70, 40)], "t": [(5, 5, 9, 9)], "empty": []}


@pytest.fixture(scope="module")
def rows_and_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, Store]:
    folder = tmp_path_factory.mktemp("export") / "store"
    rows = commit_squares(open_storage(folder), "r1", {"a": 60, "b": 40})
    return rows, segworker.open_store(folder)


@pytest.fixture(scope="module")
def rows(rows_and_store: tuple[pa.Table, Store]) -> pa.Table:
    return rows_and_store[0]


@pytest.fixture(scope="module")
def store(rows_and_store: tuple[pa.Table, Store]) -> Store:
    return rows_and_store[1]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("pixels") / "store"
    commit_pixels(open_storage(folder), "r1", BOXES)
    return segworker.open_store(folder)


@pytest.mark.parametrize(("name", "driver"), [("f.gpkg", "GPKG"), ("f.fgb", "FlatGeobuf")])
def test_a_layer_is_what_gdal_reads(store: Store, rows: pa.Table, tmp_path: Path, name: str, driver: str) -> None:
    assert export(store, str(tmp_path / name)).num_features == 100
    info = pyogrio.read_info(tmp_path / name)
    assert (info["driver"], info["features"], info["geometry_type"]) == (driver, 100, "MultiPolygon")
    frame = geopandas.read_file(tmp_path / name)
    assert frame.crs == UTM
    assert sorted(frame["feature_id"]) == ids(rows)
    expected = geopandas.GeoDataFrame.from_arrow(store.feature_stream()).set_index("feature_id")
    found = frame.set_index("feature_id").loc[expected.index]
    assert np.allclose(found.geometry.area, expected.geometry.area)
    assert found["class_name"].tolist() == expected["class_name"].tolist()
    assert np.allclose(found["score"], expected["score"])


def test_geojson_in_pixels_can_be_drawn_with_again(pixels: Store, tmp_path: Path) -> None:
    export(pixels, str(tmp_path / "f.geojson"), scene_ids=["t"])
    told = json.loads((tmp_path / "f.geojson").read_text())
    assert told["crs"] is None
    assert told["features"][0]["properties"]["class_name"] == "house"
    again = pixels.features(aoi=tmp_path / "f.geojson")
    assert sorted(zip(again["scene_id"], again["area_px"], strict=True)) == [("s", 100.0), ("t", 16.0)]


def test_qupath_gets_a_file_for_each_scene_in_its_pixels(pixels: Store, store: Store, tmp_path: Path) -> None:
    done = export(pixels, str(tmp_path / "q"), file_format="qupath")
    assert done.num_features == 4
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == ["empty.geojson", "s.geojson", "t.geojson"]
    told = json.loads((tmp_path / "q" / "s.geojson").read_text())
    assert set(told) == {"type", "features"}
    first = told["features"][0]
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"]["name"] in ("house", "road")
    assert first["properties"]["measurements"]["area_px"] > 0
    assert len({feature["id"] for feature in told["features"]}) == 3
    assert sorted(shapely.geometry.shape(f["geometry"]).bounds for f in told["features"]) == sorted(
        tuple(map(float, box)) for box in BOXES["s"]
    )
    export(store, str(tmp_path / "m.geojson"), file_format="qupath", scene_ids=["b"])
    shapes = [
        shapely.geometry.shape(f["geometry"]) for f in json.loads((tmp_path / "m.geojson").read_text())["features"]
    ]
    left, top, right, bottom = shapely.total_bounds(shapes)
    assert 0 <= left < right <= 10_000, "scene pixels of 1 m, whatever the table's CRS"
    assert 0 <= top < bottom <= 10_000


def test_label_rasters_hold_the_index_of_each_object(pixels: Store, tmp_path: Path) -> None:
    export(pixels, str(tmp_path), file_format="labels")
    with rasterio.open(tmp_path / "s.tif") as dataset:
        labels = dataset.read(1)
        assert (dataset.width, dataset.height, dataset.dtypes, dataset.nodata) == (200, 100, ("uint32",), 0)
    rows = pixels.feature_stream(scene_ids="s").read_all().sort_by("feature_id")
    scores = rows["score"].to_pylist()
    assert np.count_nonzero(labels == 1) == 100
    inner = labels[30:40, 60:70]
    assert np.unique(inner).tolist() == [3 if scores[2] >= scores[1] else 2], "the higher score"
    assert np.count_nonzero(labels) == 100 + 1200
    with rasterio.open(tmp_path / "empty.tif") as dataset:
        assert not dataset.read(1).any()


def test_label_rasters_lie_where_their_scene_does(store: Store, rows: pa.Table, tmp_path: Path) -> None:
    export(store, str(tmp_path / "b.tif"), scene_ids=["b"])
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.crs == UTM
        large = rows.filter(
            pa.compute.and_(pa.compute.equal(rows["scene_id"], "b"), pa.compute.greater(rows["area_px"], 99))
        )
        places = list(zip(large["centroid_x"].to_pylist(), large["centroid_y"].to_pylist(), strict=True))
        found = [int(value[0]) for value in dataset.sample(places)]
    assert len(places) > 20
    expected = [i % 2**32 + 1 for i in large["feature_id"].to_pylist()]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(expected) - 2, "but where squares overlap"


def test_coco_is_what_pycocotools_reads(pixels: Store, store: Store, tmp_path: Path) -> None:
    export(pixels, str(tmp_path / "c.json"))
    coco = COCO(tmp_path / "c.json")
    assert len(coco.imgs) == 3
    assert {c["name"] for c in coco.cats.values()} == {"house", "road"}
    assert sorted(coco.anns) == sorted(pixels.features()["feature_id"])
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).sum() == annotation["area"]
    done = export(store, str(tmp_path / "folder"), file_format="coco", classes=["road"])
    assert done.files == (str(tmp_path / "folder" / "instances-0.json"),)
    assert done.num_features == 50


def test_the_command_writes_one_geoparquet(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", store.uri, "--out", str(tmp_path / "all.parquet"), "--min-score", "0.5"]) == 0
    frame = geopandas.read_parquet(tmp_path / "all.parquet")
    assert frame.crs == UTM
    assert (frame["score"] >= 0.5).all()
    assert capsys.readouterr().out == f"{len(frame)} features in {tmp_path}/all.parquet\n"


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("x.doc", {}, "extension says its format"),
        ("x.gpkg", {"file_format": "word"}, "--format"),
        ("x.tif", {}, "a file for each scene"),
        ("x.tif", {"scene_ids": ["nowhere"]}, "scenes are those of the store"),
        ("", {"file_format": "gpkg"}, "names a file"),
    ],
)
def test_what_cannot_be_exported_is_refused(store: Store, tmp_path: Path, out: str, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        export(store, f"{tmp_path}/{out}", **options)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_the_older_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f.gpkg").write_text("older")
    with pytest.raises(ConfigError):
        export(store, str(tmp_path / "f.gpkg"), version=99)
    assert (tmp_path / "f.gpkg").read_text() == "older"
