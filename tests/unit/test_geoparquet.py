"""GeoParquet files, judged by geopandas, pyarrow and shapely."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from segworker.errors import ConfigError, StorageError, StoreError
from segworker.io import geoparquet
from segworker.io.geoparquet import geometry_types, hilbert_keys, split_features, write_features
from segworker.io.storage import open_storage
from segworker.io.table_crs import TableCrs, decide_table_crs
from segworker.schema import FEATURES
from tests.feature_rows import UTM, feature_rows

GEO_CRS84 = "OGC:CRS84"


def write(folder: Path, rows: pa.Table, crs: str | None = UTM) -> geoparquet.Part:
    return write_features(rows, open_storage(str(folder)), "x.parquet", crs=None if crs is None else pyproj.CRS(crs))


def test_neighbours_on_the_curve_are_neighbours_in_the_plane():
    x, y = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(32), np.arange(32)))
    order = np.argsort(hilbert_keys(x, y))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_hilbert_keys_of_no_point_and_of_equal_points():
    assert len(hilbert_keys(np.zeros(0), np.zeros(0))) == 0
    assert len(set(hilbert_keys(np.full(3, 7.0), np.full(3, 7.0)).tolist())) == 1


def test_what_is_written_comes_back(tmp_path: Path):
    rows = pa.concat_tables([feature_rows(1, "b", 40), feature_rows(0, "a", 30)])
    part = write(tmp_path, rows)
    frame = geopandas.read_parquet(tmp_path / part.path)
    assert frame.crs == UTM
    assert part.num_rows == len(frame) == 70
    assert part.size_bytes == (tmp_path / part.path).stat().st_size
    assert frame["scene_id"].tolist() == ["a"] * 30 + ["b"] * 40
    back = pq.read_table(tmp_path / part.path).replace_schema_metadata(None)
    assert back.schema.equals(FEATURES)
    assert back.sort_by("feature_id").equals(rows.sort_by("feature_id"))


def test_the_footer_is_geoparquet(tmp_path: Path):
    rows = feature_rows(0, "a", 30)
    geo = json.loads(pq.read_schema(tmp_path / write(tmp_path, rows).path).metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert pyproj.CRS.from_json_dict(column["crs"]) == UTM
    shapes = shapely.from_wkb(rows["geometry"].to_numpy())
    assert column["bbox"] == shapely.total_bounds(shapes).tolist()


@pytest.mark.parametrize("crs", [None, GEO_CRS84])
def test_pixels_and_degrees(tmp_path: Path, crs: str | None):
    frame = geopandas.read_parquet(tmp_path / write(tmp_path, feature_rows(0, "a", 3), crs).path)
    assert frame.crs == crs


def test_a_bbox_reads_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geoparquet, "ROW_GROUP_ROWS", 100)
    write(tmp_path, feature_rows(0, "a", 4000))
    meta = pq.read_metadata(tmp_path / "x.parquet")
    names = [meta.row_group(0).column(i).path_in_schema for i in range(meta.num_columns)]
    assert meta.num_row_groups == 40
    assert not meta.row_group(0).column(names.index("geometry")).is_stats_set
    bounds = [[meta.row_group(k).column(names.index(f"bbox.{s}")).statistics for s in ("xmin", "ymin", "xmax", "ymax")]
              for k in range(40)]  # fmt: skip
    areas = [(xmax.max - xmin.min) * (ymax.max - ymin.min) for xmin, ymin, xmax, ymax in bounds]
    assert sum(areas) < 2 * 9_000**2


def test_statistics_hold_the_bounds(tmp_path: Path):
    rows = feature_rows(2, "c", 25)
    stats = json.loads(write(tmp_path, rows).stats)
    assert stats["numRecords"] == 25
    assert (stats["minValues"]["scene_id"], stats["maxValues"]["scene_id"]) == ("c", "c")
    assert stats["minValues"]["feature_id"] == 2 << 32
    assert stats["maxValues"]["bbox"]["xmax"] == max(box["xmax"] for box in rows["bbox"].to_pylist())
    assert stats["nullCount"]["area_um2"] == 25


def test_types_are_read_from_both_byte_orders():
    shapes = [shapely.Point(0, 0), shapely.box(0, 0, 1, 1), shapely.MultiPolygon([shapely.box(0, 0, 1, 1)])]
    wkb = [
        *(shapely.to_wkb(s, byte_order=1) for s in shapes),
        shapely.to_wkb(shapely.LineString([(0, 0), (1, 1)]), byte_order=0),
    ]
    column = pa.chunked_array([pa.array(wkb[:1], pa.binary()), pa.array(wkb, pa.binary()).slice(1)])
    assert geometry_types(column) == ["LineString", "MultiPolygon", "Point", "Polygon"]
    with pytest.raises(StoreError, match="two-dimensional"):
        geometry_types(pa.chunked_array([pa.array([shapely.to_wkb(shapely.Point(0, 0, 1))], pa.binary())]))


def test_tables_are_cut_by_size():
    rows = feature_rows(0, "a", 1000)
    slices = list(split_features(rows, max_bytes=rows.nbytes // 4))
    assert pa.concat_tables(slices).equals(rows)
    assert 4 <= len(slices) <= 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (feature_rows(0, "a", 0), "at least one row"),
        (feature_rows(0, "a", 3).drop_columns("score"), "missing=\\['score'\\]"),
        (feature_rows(0, "a", 3).set_column(2, "scene_id", pa.array([None] * 3, pa.string())), "nulls"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, rows: pa.Table, message: str):
    with pytest.raises(StoreError, match=message):
        write(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_room(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", no_room)
    with pytest.raises(StorageError, match="the disk must have room"):
        write(tmp_path, feature_rows(0, "a", 3))


WKT36, WKT37 = pyproj.CRS("EPSG:32636").to_wkt(), pyproj.CRS("EPSG:32637").to_wkt("WKT1_GDAL")


@pytest.mark.parametrize(
    ("requested", "existing", "scenes", "label"),
    [
        (None, None, [WKT36, pyproj.CRS("EPSG:32636").to_wkt("WKT1_GDAL")], "EPSG:32636"),
        (None, None, [WKT36, WKT37], "OGC:CRS84"),
        (None, None, [], "OGC:CRS84"),
        ("EPSG:3857", None, [WKT36, WKT37], "EPSG:3857"),
        (None, None, [None, None], "pixels"),
        (None, "EPSG:32636", [WKT37], "EPSG:32636"),
        ("EPSG:32636", WKT36, [WKT37, None], "EPSG:32636"),
    ],
)
def test_the_crs_of_a_table(requested, existing, scenes, label: str):
    before = None if existing is None else TableCrs.of(existing)
    assert decide_table_crs(requested, before, scenes).label == label


@pytest.mark.parametrize(
    ("requested", "existing", "scenes", "message"),
    [
        ("EPSG:1", None, [], "one that PROJ knows"),
        ("EPSG:3857", WKT36, [], "keeps the CRS of its first commit"),
        ("EPSG:3857", None, [None], "give pixels"),
        (None, None, [None, WKT36], "different --output"),
    ],
)
def test_what_a_table_cannot_be(requested, existing, scenes, message: str):
    before = None if existing is None else TableCrs.of(existing)
    with pytest.raises(ConfigError, match=message):
        decide_table_crs(requested, before, scenes)


def test_scenes_of_the_other_kind_are_refused_with_the_remedy():
    assert TableCrs.of(WKT36).refusal(WKT37) is None
    assert "another --output" in str(TableCrs.of(WKT36).refusal(None))
    assert "another --output" in str(TableCrs.of(None).refusal(WKT37))
    assert TableCrs.of(None).refusal(None) is None
