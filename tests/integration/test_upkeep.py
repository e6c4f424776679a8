"""Looking after a store: the same features before and after, older versions until they are vacuumed, no race lost."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from deltalake import DeltaTable

from segworker import cli
from segworker.errors import CommitConflict, ConfigError, StorageError
from segworker.io import commit as commit_module
from segworker.io import compact as compact_module
from segworker.io import removal as removal_module
from segworker.io.commit import commit_run
from segworker.io.compact import compact, plan_joins
from segworker.io.geoparquet import sort_features
from segworker.io.ids import reserve_scene_numbers
from segworker.io.lease import held
from segworker.io.removal import delete_scenes
from segworker.io.storage import Storage, open_storage
from segworker.io.table import live_files, read_features, read_scenes, write_part
from segworker.io.table_crs import TableCrs
from segworker.io.vacuum import list_old_files
from segworker.schema import FORMAT_VERSION
from tests.feature_rows import UTM, feature_rows, scene_rows
from tests.integration.test_table import duckdb_connection

MAP = TableCrs.of(UTM)
DAY_S = 86_400


def commit(storage: Storage, run_id: str, counts: dict[str, int], **options) -> None:
    numbers = reserve_scene_numbers(storage, counts)
    rows = [feature_rows(numbers[s], s, n, run_id=run_id) for s, n in counts.items()]
    parts = [write_part(storage, run_id, 0, pa.concat_tables(rows), MAP)]
    commit_run(storage, run_id=run_id, parts=parts, scenes=scene_rows(numbers, run_id=run_id), table_crs=MAP, **options)


@pytest.fixture
def store(store_uri: str) -> Storage:
    """A store of ten runs, a part each; the last one replaced half a part."""
    storage = open_storage(store_uri)
    for k in range(9):
        commit(storage, f"r{k}", {f"s{k}": 30, f"t{k}": 20})
    commit(storage, "r9", {"s0": 7})
    return storage


def by_id(storage: Storage, **options) -> pa.Table:
    return read_features(storage, **options).sort_by("feature_id")


def snapshot(storage: Storage) -> dict[str, tuple[int, float]]:
    """Return what lies in a store, to see that nothing was touched."""
    return {info.path: (info.size_bytes, info.mtime_s) for info in storage.list()}


def contents(storage: Storage) -> Counter[tuple[str, str]]:
    rows = read_features(storage, columns=["scene_id", "run_id"])
    return Counter(zip(rows["scene_id"].to_pylist(), rows["run_id"].to_pylist(), strict=True))


def scenes_of(storage: Storage) -> set[str]:
    return set(read_scenes(storage)["scene_id"].to_pylist())


# -- compact ----------------------------------------------------------------------------------------------------------


def test_compacting_changes_no_feature(store: Storage):
    before, version = by_id(store), DeltaTable(store.delta_uri("features"), storage_options=store.delta_options())
    done = compact(store, "c1")
    assert (done.num_parts_before, done.num_parts_after, done.num_joined) == (10, 1, 10)
    assert by_id(store).equals(before)
    assert by_id(store, version=version.version()).equals(before), "the version before it is still readable"

    (file,) = live_files(store)
    with store.open_input(f"features/{file.path}") as source:
        parquet = pq.ParquetFile(source)
        geo = json.loads(parquet.schema_arrow.metadata[b"geo"])["columns"]["geometry"]
        rows = parquet.read().replace_schema_metadata(None)
    assert rows.equals(sort_features(rows)), "sorted by scene and Hilbert order"
    assert geo["crs"]["id"]["code"] == 32636
    assert geo["bbox"] == pytest.approx(shapely.total_bounds(shapely.from_wkb(rows["geometry"].to_numpy())).tolist())

    expected = before["feature_id"].to_pylist()
    delta = DeltaTable(store.delta_uri("features"), storage_options=store.delta_options())
    assert sorted(pa.table(delta.to_pyarrow_table())["feature_id"].to_pylist()) == expected
    with duckdb_connection(store) as duck:
        found = duck.sql(f"SELECT feature_id FROM delta_scan('{store.delta_uri('features')}') ORDER BY 1").fetchall()
    assert [row[0] for row in found] == expected
    newest = store.read(f"features/_delta_log/{delta.version():020d}.json")
    actions = [json.loads(line) for line in newest.splitlines()]
    changes = {action[kind]["dataChange"] for action in actions for kind in ("add", "remove") if kind in action}
    assert changes == {False}
    assert compact(store, "c2").num_joined == 0
    commit(store, "r10", {"s1": 3})
    assert contents(store)["s1", "r10"] == 3


def test_a_commit_in_the_middle_of_a_compaction_is_planned_in(store: Storage, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def write_late(storage: Storage, run_id: str, key: str, rows: pa.Table, crs: TableCrs):
        if not calls:
            commit(storage, "between", {"s3": 2, "new": 4})
        calls.append(key)
        return write_part(storage, run_id, key, rows, crs)

    monkeypatch.setattr(compact_module, "write_part", write_late)
    done = compact(store, "c1")
    assert len(set(calls)) == 2, "planned again, as one of its files was replaced"
    assert done.num_parts_after == 1
    expected = {("s3", "between"): 2, ("new", "between"): 4, ("s0", "r9"): 7, ("t0", "r0"): 20}
    assert expected.items() <= contents(store).items()
    assert len(by_id(store)) == 9 * 50 - 30 + 7 - 30 + 6


def test_readers_see_whole_versions_while_commits_and_compactions_go_on(tmp_path: Path):
    storage = open_storage(tmp_path)
    commit(storage, "r0", {"a": 50, "b": 10})
    stop, seen, failed = threading.Event(), set(), []

    def read() -> None:
        with duckdb_connection(storage) as duck:
            while not stop.is_set():
                query = f"SELECT scene_id, count(*) FROM delta_scan('{storage.delta_uri('features')}') GROUP BY 1"
                seen.add(tuple(sorted(duck.sql(query).fetchall())))

    def tidy() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            try:
                compact(open_storage(tmp_path), f"c{k}")
            except CommitConflict as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for work in (read, tidy)]
    for thread in threads:
        thread.start()
    for k in range(1, 9):
        commit(storage, f"r{k}", {"a": 50 + k, f"n{k}": 1})
    stop.set()
    for thread in threads:
        thread.join()
    new = [("n1", 1), ("n2", 1), ("n3", 1), ("n4", 1), ("n5", 1), ("n6", 1), ("n7", 1), ("n8", 1)]
    assert seen <= {(("a", 50 + k), ("b", 10), *new[:k]) for k in range(9)}
    assert not failed
    assert len(by_id(storage)) == 58 + 10 + 8


def test_which_parts_are_joined(tmp_path: Path):
    """Small neighbours that share scenes up to one limit, parts of one scene up to another; large ones stay."""
    storage = open_storage(tmp_path)
    for k in range(6):
        commit(storage, f"r{k}", {f"s{k}": 100})
    files = live_files(storage)
    one = max(file.size_bytes for file in files)
    assert [len(j) for j in plan_joins(files, shared_bytes=2 * one + 100, scene_bytes=10 * one)] == [2, 2, 2]
    assert plan_joins(files, shared_bytes=one, scene_bytes=one) == []
    assert [len(j) for j in plan_joins(files, shared_bytes=100 * one, scene_bytes=10 * one)] == [6]


# -- vacuum -----------------------------------------------------------------------------------------------------------


def test_vacuum_ends_time_travel_and_nothing_else(store: Storage, capsys: pytest.CaptureFixture[str]):
    compact(store, "c1")
    before = by_id(store)
    with held(store, "r99", tile_key="key"):
        write_part(store, "r99", 0, feature_rows(0, "s0", 4), MAP)
        assert cli.main(["vacuum", store.uri, "--keep", "0s", "--yes"]) == 1
        assert "raise --keep" in capsys.readouterr().err
        beside = snapshot(store)
    cli_ok("vacuum", store.uri, "--yes")
    assert snapshot(store).keys() == beside.keys() - {"running/r99.json"}, "seven days are kept"
    assert list_old_files(store, now_s=time.time() + 6 * DAY_S) == []
    old = list_old_files(store, now_s=time.time() + 8 * DAY_S)
    assert len([f for f in old if f.path.startswith("features/")]) == 10 + 1

    untouched = snapshot(store)
    capsys.readouterr()
    cli_ok("vacuum", store.uri, "--keep", "0s")
    assert "would be removed; --yes does it" in capsys.readouterr().out
    assert snapshot(store) == untouched
    cli_ok("vacuum", store.uri, "--keep", "0s", "--yes")
    assert {f.path for f in old} == untouched.keys() - snapshot(store).keys()
    assert by_id(store).equals(before)
    assert len(read_scenes(store)) == 18
    assert "features/part-r99-00000.parquet" in snapshot(store), "what was never committed is not vacuum's"
    with pytest.raises(StorageError):
        read_features(store, version=3)


# -- clean ------------------------------------------------------------------------------------------------------------


def test_clean_tells_then_removes(store: Storage, capsys: pytest.CaptureFixture[str]):
    write_part(store, "dead", 0, feature_rows(0, "s0", 4), MAP)
    store.write("work/key/block.parquet", b"a shard")
    before = snapshot(store)
    cli_ok("clean", store.uri)
    cli_ok("clean", store.uri, "--keep-work", "0s")
    printed = capsys.readouterr().out
    assert snapshot(store) == before
    assert "1 files (1 parts)" in printed
    assert "2 files (1 parts, 1 shards)" in printed
    assert f"  {store.location('features/part-dead-00000.parquet')}\n" in printed
    with held(store, "r99", tile_key="key"):
        cli_ok("clean", store.uri, "--keep-work", "0s", "--yes")
    assert before.keys() - snapshot(store).keys() == {"features/part-dead-00000.parquet"}, "shards in use stay"
    cli_ok("clean", store.uri, "--keep-work", "0s", "--yes")
    assert "work/key/block.parquet" not in snapshot(store)
    capsys.readouterr()
    cli_ok("clean", store.uri)
    assert capsys.readouterr().out == "no files to remove\n"


# -- delete -----------------------------------------------------------------------------------------------------------


def test_deleted_scenes_are_gone_from_both_tables(store: Storage, capsys: pytest.CaptureFixture[str]):
    before = snapshot(store)
    cli_ok("delete", store.uri, "--scene", "s0", "t3", "--scene", "t0")
    assert capsys.readouterr().out == "3 scenes and 47 features would be deleted; --yes does it\n"
    assert snapshot(store) == before
    version = live_version(store)
    cli_ok("delete", store.uri, "--scene", "s0", "t3", "--scene", "t0", "--yes")
    assert capsys.readouterr().out == "3 scenes and 47 features were deleted\n"
    assert scenes_of(store) & {"s0", "t3", "t0"} == set()
    assert len(scenes_of(store)) == 15
    assert {scene for scene, _ in contents(store)} == scenes_of(store)
    assert len(read_features(store, version=version)) == len(by_id(store)) + 47, "an older version keeps them"
    cli_ok("delete", store.uri, "--scene", "s0", "--yes")
    assert cli.main(["delete", store.uri, "--scene", "never", "--yes"]) == 2
    numbers = reserve_scene_numbers(store, ["new", "s0"])
    assert (numbers["s0"], numbers["new"]) == (0, 18), "numbers stay, so ids are not used again"
    commit(store, "r10", {"s0": 3})
    assert contents(store)["s0", "r10"] == 3


def test_in_between_no_reader_finds_a_listed_scene_without_its_features(store: Storage):
    class Killed(BaseException):
        pass

    def killed(*_args: object, **_options: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal_module, "commit_run", killed)
        with pytest.raises(Killed):
            delete_scenes(store, "d1", ["s0"])
    assert "s0" not in scenes_of(store)
    assert contents(store)["s0", "r9"] == 7
    delete_scenes(store, "d2", ["s0"])
    assert ("s0", "r9") not in contents(store)


def test_a_late_scenes_commit_does_not_bring_a_deleted_scene_back(store: Storage):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_module, "_try_scenes", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            commit(store, "r10", {"s0": 5, "s1": 5})
    delete_scenes(store, "d1", ["s0"])
    commit(store, "r10", {"s0": 5, "s1": 5})
    assert "s0" not in scenes_of(store)
    assert "s0" not in {scene for scene, _ in contents(store)}
    assert contents(store)["s1", "r10"] == 5


def test_a_run_that_commits_meanwhile_keeps_its_scene(store: Storage, monkeypatch: pytest.MonkeyPatch):
    def late(storage: Storage, run_id: str, scene_nos: set[int], **options: int) -> None:
        commit(storage, "between", {"s0": 5})
        commit_module.unlist_scenes(storage, run_id, scene_nos, **options)

    monkeypatch.setattr(removal_module, "unlist_scenes", late)
    with pytest.raises(CommitConflict, match="run between committed"):
        delete_scenes(store, "d1", ["s0", "s1"])
    assert contents(store)["s0", "between"] == 5
    assert "s0" in scenes_of(store)
    monkeypatch.undo()
    delete_scenes(store, "d2", ["s0", "s1"])
    assert {"s0", "s1"}.isdisjoint(scenes_of(store) | {scene for scene, _ in contents(store)})


# -- status, and what every command refuses ---------------------------------------------------------------------------


def test_status(store: Storage, capsys: pytest.CaptureFixture[str]):
    write_part(store, "dead", 0, feature_rows(0, "s0", 4), MAP)
    store.write("work/key/block.parquet", b"a shard")
    before = snapshot(store)
    with held(store, "r99", tile_key="key"):
        cli_ok("status", store.uri, "--json")
        told = json.loads(capsys.readouterr().out)
        cli_ok("status", store.uri)
        text = capsys.readouterr().out
    assert snapshot(store) == before
    files = live_files(store)
    assert told["parts"] == {"count": 10, "bytes": sum(file.size_bytes for file in files)}
    assert (told["format_version"], told["version"], told["crs"]) == (FORMAT_VERSION, 10, "EPSG:32636")
    assert (told["scenes"], told["features"], told["at_work"]) == (18, len(by_id(store)), ["r99"])
    assert told["last_commit"]["run_id"] == "r9"
    assert told["orphans"]["count"] == 1
    assert told["work"] == {"count": 1, "bytes": 7}
    assert told["old_files"]["count"] == len(list_old_files(store, keep_s=0))
    for words in ("EPSG:32636", "427 in 10 parts", "at work: r99", "1 files", "by r9"):
        assert words in text


COMMANDS = {
    "files": [],
    "status": [],
    "compact": [],
    "vacuum": ["--keep", "0s", "--yes"],
    "clean": ["--yes"],
    "delete": ["--scene", "a", "--yes"],
}


def test_every_command_refuses_a_newer_store(store_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    storage = open_storage(store_uri)
    commit(storage, "r1", {"a": 5})
    commit(storage, "r2", {"a": 5})
    write_part(storage, "dead", 0, feature_rows(0, "a", 4), MAP)
    text = json.loads(storage.read("store.json")) | {"format_version": FORMAT_VERSION + 1}
    storage.write("store.json", json.dumps(text).encode())
    before = snapshot(storage)
    (tmp_path / "scene.tif").write_bytes(b"is not looked at")
    runs = [[name, str(tmp_path / "scene.tif"), "--output", store_uri] for name in ("run", "plan")]
    for command in [*([name, store_uri, *flags] for name, flags in COMMANDS.items()), *runs]:
        assert cli.main(command) == 1, command
        error = capsys.readouterr().err
        assert f"stores up to format {FORMAT_VERSION}, got {FORMAT_VERSION + 1} in {storage.uri}" in error, command
        assert error.endswith("; update segworker\n"), command
    assert snapshot(storage) == before


def test_every_command_refuses_what_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, flags in COMMANDS.items():
        assert cli.main([name, str(tmp_path / "nothing"), *flags]) == 1
        assert "a store has had a commit, got none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_usage(store: Storage, capsys: pytest.CaptureFixture[str]):
    for arguments, words in (
        (["vacuum", store.uri, "--keep", "soon"], "--keep: a duration is a number"),
        (["compact", store.uri, "--shared-part", "big"], "--shared-part: a size is a number"),
        (["delete", store.uri], "--scene"),
    ):
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'never'"):
        delete_scenes(store, "d1", ["never"])


def live_version(storage: Storage) -> int:
    return DeltaTable(storage.delta_uri("features"), storage_options=storage.delta_options()).version()


def cli_ok(*arguments: str) -> None:
    assert cli.main(list(arguments)) == 0


def _interrupt(*_args: object) -> None:
    raise KeyboardInterrupt
