"""The commit, on a folder and on S3, checked through other tools than ours."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from deltalake import DeltaTable

from segworker.errors import CommitConflict, StorageError, StoreError
from segworker.io import commit as commit_module
from segworker.io import ids as ids_module
from segworker.io.commit import commit_run, committed_as, features_version
from segworker.io.ids import read_scene_numbers, reserve_scene_numbers
from segworker.io.orphans import list_orphans
from segworker.io.storage import Storage, open_storage
from segworker.io.table import live_files, read_features, read_scenes, read_store_info, write_part
from segworker.io.table_crs import TableCrs
from segworker.schema import FORMAT_VERSION
from tests.duck import duckdb_connection
from tests.feature_rows import UTM, feature_rows, scene_rows

MAP = TableCrs.of(UTM)


def run(storage: Storage, run_id: str, counts: dict[str, int], **options):
    """Write a run's scenes into one shared part and commit them."""
    numbers = reserve_scene_numbers(storage, counts)
    tables = [feature_rows(numbers[s], s, n, run_id=run_id) for s, n in counts.items() if n]
    parts = [write_part(storage, run_id, 0, pa.concat_tables(tables), MAP)] if tables else []
    return commit_run(
        storage, run_id=run_id, parts=parts, scenes=scene_rows(numbers, run_id=run_id), table_crs=MAP, **options
    )


def contents(storage: Storage) -> Counter[tuple[str, str]]:
    """Return how many features each (scene, run) has."""
    table = read_features(storage, columns=["scene_id", "run_id"])
    return Counter(zip(table["scene_id"].to_pylist(), table["run_id"].to_pylist(), strict=True))


def scenes_of(storage: Storage) -> dict[str, str]:
    rows = read_scenes(storage)
    assert len(set(rows["scene_id"].to_pylist())) == len(rows)
    return dict(zip(rows["scene_id"].to_pylist(), rows["run_id"].to_pylist(), strict=True))


def test_a_commit_replaces_the_rows_of_its_scenes_and_no_others(store_uri: str):
    storage = open_storage(store_uri)
    first = run(storage, "r1", {"a": 10, "b": 20, "c": 30})
    second = run(storage, "r2", {"b": 5})
    third = run(storage, "r3", {"c": 0, "d": 0})

    assert (first.commit_no, second.commit_no, third.commit_no) == (1, 2, 3)
    assert (second.num_removed, second.num_rewritten) == (1, 1)
    assert contents(storage) == {("a", "r1"): 10, ("b", "r2"): 5}
    assert scenes_of(storage) == {"a": "r1", "b": "r2", "c": "r3", "d": "r3"}
    assert read_scenes(storage)["commit_no"].to_pylist() == [1, 2, 3, 3]
    old = read_features(storage, version=first.features_version)
    assert Counter(old["scene_id"].to_pylist()) == {"a": 10, "b": 20, "c": 30}


def test_scenes_can_be_removed(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 10, "b": 20})
    run(storage, "r2", {}, removed_scene_nos={0})
    assert contents(storage) == {("b", "r1"): 20}
    assert scenes_of(storage) == {"b": "r1"}


def test_a_run_without_any_feature_is_a_commit(store_uri: str):
    storage = open_storage(store_uri)
    assert run(storage, "r1", {"a": 0, "b": 0}).commit_no == committed_as(storage, "r1") == 1
    assert read_features(storage).num_rows == 0
    assert scenes_of(storage) == {"a": "r1", "b": "r1"}


def test_a_damaged_file_is_named(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 5})
    path = f"features/{live_files(storage)[0].path}"
    storage.write(path, b"no Parquet")
    with pytest.raises(StoreError, match="must be a Parquet file"):
        read_features(storage)
    storage.delete([path])
    with pytest.raises(StorageError, match="it must exist"):
        read_features(storage)


def test_every_reader_sees_the_same(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 10, "b": 20})
    result = run(storage, "r2", {"b": 5})
    ours = read_features(storage)
    expected = sorted(ours["feature_id"].to_pylist())
    uris = [storage.location(f"features/{file.path}") for file in live_files(storage)]

    delta = DeltaTable(storage.delta_uri("features"), storage_options=storage.delta_options())
    assert delta.version() == result.features_version == features_version(storage)
    assert sorted(pa.table(delta.to_pyarrow_table())["feature_id"].to_pylist()) == expected

    with duckdb_connection(storage) as duck:
        uri = storage.delta_uri("features")
        query = "SELECT feature_id, ST_Area(geometry) AS area, area_m2 FROM rows ORDER BY 1"
        wkb = f"(SELECT * REPLACE (ST_GeomFromWKB(geometry) AS geometry) FROM delta_scan('{uri}'))"
        duck.sql("SET enable_geoparquet_conversion = false")  # else it takes geometry for what the Delta schema has not
        by_delta = duck.sql(query.replace("rows", wkb)).fetchall()
        assert [row[0] for row in by_delta] == expected
        assert np.allclose([row[1] for row in by_delta], [row[2] for row in by_delta])
        duck.sql("SET enable_geoparquet_conversion = true")
        by_parquet = duck.sql(query.replace("rows", f"read_parquet({uris})")).fetchall()
        assert by_parquet == by_delta

    frames = [geopandas.read_parquet(_local_copy(uri, storage)) for uri in uris]
    assert sorted(i for frame in frames for i in frame["feature_id"]) == expected
    assert all(frame.crs == UTM and frame.geometry.is_valid.all() for frame in frames)
    window = ours["bbox"][0].as_py()
    box = (window["xmin"], window["ymin"], window["xmax"], window["ymax"])
    found = {i for uri in uris for i in geopandas.read_parquet(_local_copy(uri, storage), bbox=box)["feature_id"]}
    assert found == set(read_features(storage, bbox=box)["feature_id"].to_pylist()) != set()


@pytest.mark.skipif("Parquet" not in pyogrio.list_drivers(), reason="this GDAL build has no Parquet driver")
def test_gdal_reads_the_files(tmp_path):
    storage = open_storage(str(tmp_path))
    run(storage, "r1", {"a": 10})
    frame = pyogrio.read_dataframe(storage.location(f"features/{live_files(storage)[0].path}"))
    assert len(frame) == 10
    assert frame.crs == UTM


def test_a_shared_part_written_anew_is_still_geoparquet(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 10, "b": 20})
    run(storage, "r2", {"b": 5})
    for file in live_files(storage):
        with storage.open_input(f"features/{file.path}") as source:
            parquet = pq.ParquetFile(source)
            geo = json.loads(parquet.schema_arrow.metadata[b"geo"])
            rows = parquet.read()
        column = geo["columns"]["geometry"]
        bounds = shapely.total_bounds(shapely.from_wkb(rows["geometry"].to_numpy()))
        assert geo["version"] == "1.1.0"
        assert column["bbox"] == pytest.approx(bounds.tolist())
        assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
        assert column["crs"]["id"] == {"authority": "EPSG", "code": 32636}


def test_two_runs_of_other_scenes_at_once_both_land(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r0", {"s0": 3, "s1": 3, "s2": 3, "s3": 3, "t": 3})
    barrier = threading.Barrier(4)

    def work(k: int) -> None:
        barrier.wait()
        run(open_storage(store_uri), f"r{k + 1}", {f"s{k}": 7, f"new{k}": 2}, base_version=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    expected = {(f"s{k}", f"r{k + 1}"): 7 for k in range(4)} | {(f"new{k}", f"r{k + 1}"): 2 for k in range(4)}
    assert contents(storage) == expected | {("t", "r0"): 3}
    assert list_orphans(storage) == [], "nor do the attempts that others overtook leave anything"
    assert set(read_scenes(storage)["commit_no"].to_pylist()) == {1, 2, 3, 4, 5}
    assert len(scenes_of(storage)) == 9


def test_two_runs_of_one_scene_at_once_leave_one_version(store_uri: str):
    storage = open_storage(store_uri)
    barrier = threading.Barrier(3)

    def work(k: int) -> int:
        barrier.wait()
        return run(open_storage(store_uri), f"r{k}", {"a": 5 + k}).commit_no

    with ThreadPoolExecutor(3) as pool:
        numbers = list(pool.map(work, range(3)))
    assert sorted(numbers) == [1, 2, 3]
    last = numbers.index(3)
    assert contents(storage) == {("a", f"r{last}"): 5 + last}
    assert scenes_of(storage) == {"a": f"r{last}"}


def test_the_later_of_two_runs_that_started_together_is_told(store_uri: str):
    storage = open_storage(store_uri)
    base = features_version(storage)
    run(storage, "r1", {"a": 5, "b": 1}, base_version=base)
    with pytest.raises(CommitConflict, match="run r1 committed"):
        run(storage, "r2", {"b": 6, "c": 1}, base_version=base)
    run(storage, "r3", {"c": 6}, base_version=base)
    assert contents(storage) == {("a", "r1"): 5, ("b", "r1"): 1, ("c", "r3"): 6}


def test_a_repeated_commit_changes_nothing(store_uri: str):
    storage = open_storage(store_uri)
    first = run(storage, "r1", {"a": 5})
    again = run(storage, "r1", {"a": 5}, base_version=-1)
    assert again.repeated
    assert again.commit_no == first.commit_no == committed_as(storage, "r1")
    assert features_version(storage) == first.features_version
    assert contents(storage) == {("a", "r1"): 5}


def test_killed_between_features_and_scenes_then_run_again(store_uri: str):
    process = multiprocessing.get_context("spawn").Process(target=_die_before_scenes, args=(store_uri,))
    process.start()
    process.join()
    storage = open_storage(store_uri)
    assert process.exitcode == 77
    assert contents(storage) == {("a", "r1"): 5}
    assert len(read_scenes(storage)) == 0

    assert run(storage, "r1", {"a": 5}).repeated
    assert contents(storage) == {("a", "r1"): 5}
    assert scenes_of(storage) == {"a": "r1"}


def test_a_late_scenes_commit_does_not_undo_a_later_run(store_uri: str):
    storage = open_storage(store_uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_module, "_try_scenes", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(storage, "r1", {"a": 5})
    run(storage, "r2", {"a": 9})
    run(storage, "r1", {"a": 5})
    assert contents(storage) == {("a", "r2"): 9}
    assert scenes_of(storage) == {"a": "r2"}


def test_many_commits_keep_the_scenes_table_in_few_files(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commit_module, "MAX_SCENE_FILES", 4)
    storage = open_storage(str(tmp_path))
    for k in range(9):
        run(storage, f"r{k}", {f"s{k}": 1})
    assert len(live_files(storage, "scenes")) <= 4
    assert len(scenes_of(storage)) == 9


def test_a_table_keeps_its_coordinates(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 5})
    info = read_store_info(storage)
    assert info is not None
    assert info.table_crs.same_as(MAP)
    for other in (TableCrs.of(None), TableCrs.of("EPSG:32637")):
        with pytest.raises(StoreError, match="choose another --output"):
            commit_run(storage, run_id="r2", parts=[], scenes=scene_rows({"b": 1}), table_crs=other)


def test_pixel_tables_have_no_crs(tmp_path):
    storage, pixels = open_storage(str(tmp_path)), TableCrs.of(None)
    part = write_part(storage, "r1", 0, feature_rows(0, "a", 4), pixels)
    commit_run(storage, run_id="r1", parts=[part], scenes=scene_rows({"a": 0}), table_crs=pixels)
    assert geopandas.read_parquet(storage.location(f"features/{part.path}")).crs is None


def test_a_newer_store_is_refused(store_uri: str):
    storage = open_storage(store_uri)
    run(storage, "r1", {"a": 5})
    text = json.loads(storage.read("store.json")) | {"format_version": FORMAT_VERSION + 1}
    storage.write("store.json", json.dumps(text).encode())
    with pytest.raises(StoreError, match="update segworker"):
        read_features(storage)
    with pytest.raises(StoreError, match="update segworker"):
        run(storage, "r2", {"a": 5})


def test_what_is_not_a_store_is_refused(store_uri: str):
    with pytest.raises(StoreError, match="a store has had a commit"):
        live_files(open_storage(store_uri))


def test_parts_with_rows_of_other_scenes_are_refused(tmp_path):
    storage = open_storage(str(tmp_path))
    part = write_part(storage, "r1", 0, feature_rows(3, "d", 4), MAP)
    with pytest.raises(StoreError, match="scene numbers"):
        commit_run(storage, run_id="r1", parts=[part], scenes=scene_rows({"a": 0}), table_crs=MAP)


def test_scene_numbers_are_stable_and_dense(store_uri: str):
    storage = open_storage(store_uri)
    assert reserve_scene_numbers(storage, ["b", "a", "b"]) == {"b": 0, "a": 1}
    assert reserve_scene_numbers(storage, ["c", "a"]) == {"c": 2, "a": 1}
    assert len(list(storage.list("ids"))) == 2
    assert read_scene_numbers(storage) == {"b": 0, "a": 1, "c": 2}


def test_scene_numbers_reserved_at_once_do_not_collide(store_uri: str):
    barrier = threading.Barrier(4)

    def work(k: int) -> dict[str, int]:
        barrier.wait()
        return reserve_scene_numbers(open_storage(store_uri), [f"{k}-{i}" for i in range(50)] + ["shared"])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert len({result["shared"] for result in results}) == 1
    merged = {scene_id: number for result in results for scene_id, number in result.items()}
    assert sorted(merged.values()) == list(range(201))
    assert read_scene_numbers(open_storage(store_uri)) == merged


def test_a_long_ledger_is_read_from_its_newest_snapshot(tmp_path):
    storage = open_storage(str(tmp_path))
    expected = {f"s{k}": k for k in range(70)}
    for scene_id in expected:
        reserve_scene_numbers(storage, [scene_id])
    storage.delete([f"ids/{k:08d}.json.gz" for k in range(1, 3)])
    assert read_scene_numbers(storage) == expected


def test_too_many_scenes_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(ids_module, "MAX_SCENES", 100)
    reserve_scene_numbers(storage, [f"{k:x}" for k in range(99)])
    assert reserve_scene_numbers(storage, ["last"]) == {"last": 99}
    with pytest.raises(StoreError, match="another store"):
        reserve_scene_numbers(storage, ["one more"])


def _interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


def _die_before_scenes(uri: str) -> None:
    def die(*_args: object) -> None:
        os._exit(77)

    commit_module._try_scenes = die
    run(open_storage(uri), "r1", {"a": 5})


def _local_copy(uri: str, storage: Storage):
    if not storage.is_s3:
        return uri
    return pa.BufferReader(storage.read(uri.removeprefix(f"{storage.uri}/")))
