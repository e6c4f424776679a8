"""Asking a store: by place and class in Python and on the command line, in SQL, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyproj
import pytest
import shapely

import segworker
from segworker import cli
from segworker.errors import ConfigError, StoreError
from segworker.io import geoparquet
from segworker.io.scan import ScanCounts
from segworker.io.storage import open_storage
from segworker.query.sql import ask
from segworker.query.store import Store
from tests.feature_rows import UTM
from tests.stores import commit_pixels, commit_squares, ids, meeting, of_class

AREA = shapely.Polygon([(402_000, 31_000), (409_000, 33_000), (405_000, 38_500)])


@pytest.fixture(scope="module")
def rows_and_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, Path]:
    """The live features of two runs, of which the second replaced a scene of the first."""
    folder = tmp_path_factory.mktemp("query") / "it's a store"
    storage = open_storage(folder)
    first = commit_squares(storage, "r1", {"a": 300, "b": 200})
    second = commit_squares(storage, "r2", {"b": 150, "c": 0}, seed=1)
    kept = first.filter(pa.compute.equal(first["scene_id"], "a"))
    record = {"status": "done", "exit_code": 0, "counts": {"features": 150}, "seams": {"agreement": 0.9}}
    storage.write("runs/r2/run.json", json.dumps(record).encode())
    return pa.concat_tables([kept, second]), folder


@pytest.fixture(scope="module")
def rows(rows_and_folder: tuple[pa.Table, Path]) -> pa.Table:
    return rows_and_folder[0]


@pytest.fixture(scope="module")
def folder(rows_and_folder: tuple[pa.Table, Path]) -> Path:
    return rows_and_folder[1]


@pytest.fixture(scope="module")
def store(folder: Path, rows: pa.Table) -> Store:
    assert len(rows) == 450
    return segworker.open_store(folder)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "store"
    commit_pixels(open_storage(folder), "r1", {"s": [(0, 0, 10, 10), (50, 20, 80, 60)], "t": [(5, 5, 9, 9)]})
    return folder


def answered(store: Store, sql: str | None = None, **asked) -> pa.Table:
    with ask(store, sql, **asked) as answer:
        return pa.Table.from_batches(list(answer), schema=answer.schema)


# In Python


def test_a_geodataframe_is_all_there_is(store: Store, rows: pa.Table) -> None:
    frame = store.features()
    assert isinstance(frame, geopandas.GeoDataFrame)
    assert frame.crs == UTM
    assert sorted(frame["feature_id"]) == ids(rows)
    assert frame.geometry.is_valid.all()


def test_a_box_a_class_and_a_score_narrow_it(store: Store, rows: pa.Table) -> None:
    box = (402_000.0, 31_000.0, 406_000.0, 35_000.0)
    expected = of_class(rows, "house")
    expected = expected.filter(pa.compute.greater_equal(expected["score"], 0.5))
    frame = store.features(bbox=box, classes="house", min_score=0.5, columns=["feature_id", "score"])
    assert sorted(frame["feature_id"]) == meeting(expected, shapely.box(*box))
    assert list(frame.columns) == ["feature_id", "score", "geometry"]
    assert 0 < len(frame) < 100


def test_an_area_in_another_crs_is_the_same_place(store: Store, rows: pa.Table, tmp_path: Path) -> None:
    drawn = geopandas.GeoSeries([AREA.segmentize(100)], crs=UTM)
    for crs, name in (("EPSG:4326", "area.geojson"), ("EPSG:3857", "area.gpkg")):
        drawn.to_crs(crs).to_file(tmp_path / name)
        frame = store.features(aoi=tmp_path / name)
        assert sorted(frame["feature_id"]) == meeting(rows, AREA)
    assert sorted(store.features(aoi=AREA)["feature_id"]) == meeting(rows, AREA)


def test_an_area_that_leaves_the_zone_is_cut(store: Store, rows: pa.Table, tmp_path: Path) -> None:
    half_the_earth = geopandas.GeoSeries([shapely.box(-60, -60, 60, 60)], crs="EPSG:4326")
    half_the_earth.to_file(tmp_path / "large.geojson")
    assert sorted(store.features(aoi=tmp_path / "large.geojson")["feature_id"]) == ids(rows)


def test_a_box_in_longitudes(store: Store, rows: pa.Table) -> None:
    to_lonlat = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    lonlat = to_lonlat.transform_bounds(402_000, 31_000, 406_000, 35_000)
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    ring = shapely.segmentize(shapely.box(*lonlat), 0.001)
    expected = shapely.transform(ring, lambda xy: np.column_stack(to_utm.transform(*xy.T)))
    assert sorted(store.features(bbox=lonlat, bbox_crs="EPSG:4326")["feature_id"]) == meeting(rows, expected)


def test_a_stream_is_read_batch_by_batch(store: Store, rows: pa.Table) -> None:
    counts = ScanCounts()
    stream = store.feature_stream(scene_ids="a", counts=counts)
    assert counts.files_opened == 0, "nothing is read before it is asked for"
    table = stream.read_all()
    assert ids(table) == ids(rows.filter(pa.compute.equal(rows["scene_id"], "a")))
    assert (counts.files, counts.files_opened) == (2, 1)
    assert table.schema.field("geometry").metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"


def test_a_small_box_reads_a_twentieth_of_what_it_would_without_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "ROW_GROUP_ROWS", 50)
    box, read = (402_000.0, 31_000.0, 402_300.0, 31_300.0), {}
    for name in ("in order", "in none"):
        if name == "in none":
            monkeypatch.setattr(geoparquet, "sort_features", lambda rows: rows)
        commit_squares(open_storage(tmp_path / name), "r1", {"a": 5000})
        counts = ScanCounts()
        found = segworker.open_store(tmp_path / name).feature_stream(bbox=box, counts=counts).read_all()
        read[name] = (len(found), counts.row_groups_read, counts.row_groups)
    assert read["in order"][0] == read["in none"][0] > 0
    assert read["in order"][2] == 100
    assert read["in order"][1] <= 5
    assert read["in none"][1] >= 90


def test_an_older_version(store: Store) -> None:
    assert len(store.features(version=1)) == 500
    assert len(store.features(version=1, scene_ids="b")) == 200


def test_pixels_have_no_crs(pixels: Path, tmp_path: Path) -> None:
    store = segworker.open_store(pixels)
    drawn = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.box(60, 30, 90, 90))}
    area = {"type": "FeatureCollection", "crs": None, "features": [drawn]}
    (tmp_path / "area.geojson").write_text(json.dumps(area))
    frame = store.features(aoi=tmp_path / "area.geojson")
    assert frame.crs is None
    assert frame.geometry.area.tolist() == [1200]


# In SQL


def test_sql_over_the_three_views(store: Store) -> None:
    counted = answered(store, "SELECT class_name, count(*) AS n FROM features GROUP BY ALL ORDER BY 1")
    assert counted.to_pydict() == {"class_name": ["house", "road"], "n": [225, 225]}
    areas = answered(store, "SELECT max(abs(ST_Area(geometry) - area_m2)) AS off FROM features")
    assert areas["off"][0].as_py() < 1e-3
    joined = answered(
        store, "SELECT s.scene_id, count(f.feature_id) AS n FROM scenes s LEFT JOIN features f USING (scene_id) "
        "GROUP BY ALL ORDER BY 1",
    )  # fmt: skip
    assert joined.to_pydict() == {"scene_id": ["a", "b", "c"], "n": [300, 150, 0]}
    runs = answered(store, "SELECT run_id, status, record::JSON->'seams'->>'agreement' AS agreement FROM runs")
    assert runs.to_pylist() == [{"run_id": "r2", "status": "done", "agreement": "0.9"}]


def test_sql_is_narrowed_like_python(store: Store) -> None:
    asked = {"aoi": AREA, "classes": "road", "scene_ids": ["a", "b"], "min_score": 0.25}
    expected = sorted(store.features(**asked)["feature_id"])
    assert expected
    assert sorted(answered(store, "SELECT feature_id FROM features", **asked)["feature_id"].to_pylist()) == expected
    assert answered(store, classes="nothing").num_rows == 0
    assert answered(store, bbox=(0, 0, 1, 1), sql="SELECT count(*) AS n FROM features")["n"].to_pylist() == [0]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY features TO 'x.csv'",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO features VALUES (1)",
        "DELETE FROM features",
        "ATTACH 'x.db'",
        "SELECT 1; DROP VIEW features",
        "EXPLAIN ANALYZE COPY features TO 'x.csv'",
        "SET threads = 1",
        "INSTALL httpfs",
        "",
    ],
)
def test_sql_that_writes_is_refused(store: Store, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="one SELECT"), ask(store, sql or ";"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql", ["SELEC 1", "SELECT no_such FROM features", "FROM nowhere", "SELECT 'x'::INT FROM features"]
)
def test_sql_that_is_wrong_is_a_usage_error(store: Store, sql: str) -> None:
    with pytest.raises(ConfigError, match="SQL"):
        answered(store, sql)


# On the command line


def run(*argv: str | Path) -> int:
    return cli.main([str(word) for word in argv])


def test_the_command_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("query", folder, "SELECT class_name, count(*) AS n FROM features GROUP BY ALL ORDER BY 1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "class_name    n",
        "----------  ---",
        "house       225",
        "road        225",
        "(2 rows)",
    ]


def test_the_command_writes_files(folder: Path, rows: pa.Table, tmp_path: Path) -> None:
    flags = ["--class", "house", "--bbox", "402000,31000,406000,35000"]
    expected = meeting(of_class(rows, "house"), shapely.box(402_000, 31_000, 406_000, 35_000))
    for name in ("a.csv", "a.parquet", "a.geojson"):
        assert run("query", folder, *flags, "--out", tmp_path / name) == 0
    table = pyarrow.csv.read_csv(tmp_path / "a.csv")
    assert ids(table) == expected
    outlines = shapely.from_wkt(table["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.area(outlines) == pytest.approx(table["area_m2"].to_numpy())
    frame = geopandas.read_parquet(tmp_path / "a.parquet")
    assert sorted(frame["feature_id"]) == expected
    assert frame.crs == UTM
    lonlat = geopandas.read_file(tmp_path / "a.geojson")
    assert lonlat.crs == "EPSG:4326"
    assert sorted(lonlat["feature_id"]) == expected
    back = lonlat.to_crs(UTM).set_index("feature_id").geometry.centroid
    assert (back.distance(frame.set_index("feature_id").geometry.centroid, align=True) < 0.01).all()


def test_part_of_an_answer_is_read_by_its_bbox(folder: Path, tmp_path: Path, rows: pa.Table) -> None:
    assert run("query", folder, "--out", tmp_path / "all.parquet") == 0
    box = (402_000, 31_000, 406_000, 35_000)
    near = geopandas.read_parquet(tmp_path / "all.parquet", bbox=box)
    assert sorted(near["feature_id"]) == meeting(rows, shapely.box(*box))


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["query", "{none}"], 1, "a store has had a commit"),
        (["query", "{store}", "DROP VIEW features"], 2, "one SELECT"),
        (["query", "{store}", "--bbox", "1,2,3"], 2, "four numbers"),
        (["query", "{store}", "--bbox", "5,5,1,1"], 2, "lower corner"),
        (["query", "{store}", "--bbox", "a,b,c,d"], 2, "XMIN,YMIN,XMAX,YMAX"),
        (["query", "{store}", "--bbox-crs", "EPSG:4326"], 2, "add --bbox"),
        (["query", "{store}", "--bbox", "-1,-1,1,1", "--bbox-crs", "EPSG:0"], 2, "a CRS is"),
        (["query", "{store}", "--class", "hous"], 2, "did you mean house"),
        (["query", "{store}", "--aoi", "{none}"], 2, "an area of interest is a vector file"),
        (["query", "{store}", "--aoi", "{pixel_area}"], 2, "states its CRS"),
        (["query", "{store}", "--version", "7"], 2, "versions of this store are 0 to 2"),
        (["query", "{store}", "--out", "x.shp"], 2, ".csv, .parquet, .geojson"),
        (["query", "{store}", "--out", "{store}/features/x.parquet"], 2, "outside of the store"),
        (["query", "{store}", "--format", "xml"], 2, "geoparquet"),
        (["query", "{store}", "SELECT 1 AS one", "--out", "{none}.geojson"], 2, "one geometry"),
        (["query", "{store}", "--bogus"], 2, "--bogus"),
    ],
)
def test_bad_input_is_told_and_has_its_exit_code(
    folder: Path,
    tmp_path: Path,
    argv: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    area = {"type": "Polygon", "crs": None, "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    (tmp_path / "pixels.geojson").write_text(json.dumps(area))
    places = {"store": folder, "none": tmp_path / "none", "pixel_area": tmp_path / "pixels.geojson"}
    assert run(*(word.format(**places) for word in argv)) == code
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_an_area_with_a_crs_over_pixels_is_refused(pixels: Path, tmp_path: Path) -> None:
    geopandas.GeoSeries([AREA], crs=UTM).to_file(tmp_path / "area.gpkg")
    with pytest.raises(ConfigError, match="scene pixels, got an area in EPSG:32636"):
        segworker.open_store(pixels).features(aoi=tmp_path / "area.gpkg")


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format_version": 99, "kind": "pixel", "crs": null}')
    with pytest.raises(StoreError, match="update segworker"):
        segworker.open_store(tmp_path)
