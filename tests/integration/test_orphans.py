"""Leases of runs, and what is removed of those that died: never anything of a run at work or of an older version."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from segworker.errors import StoreError
from segworker.io import lease as lease_module
from segworker.io.commit import commit_run
from segworker.io.ids import reserve_scene_numbers
from segworker.io.lease import DEAD_AFTER_S, held, keys_in_use, list_leases
from segworker.io.orphans import list_orphans, remove_orphans, run_of_part, tidy_up
from segworker.io.storage import Storage, open_storage
from segworker.io.table import live_files, read_features, write_part
from segworker.io.table_crs import TableCrs
from tests.feature_rows import UTM, feature_rows, scene_rows

MAP = TableCrs.of(UTM)
ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, sys
from segworker.io.lease import held
from segworker.io.storage import open_storage
from tests.integration.test_orphans import uncommitted
storage = open_storage(sys.argv[1])
with held(storage, sys.argv[2], tile_key="key"):
    uncommitted(storage, sys.argv[2])
    print("written", flush=True)
    sys.stdin.read()
"""


def commit(storage: Storage, run_id: str, counts: dict[str, int]) -> None:
    numbers = reserve_scene_numbers(storage, counts)
    rows = pa.concat_tables([feature_rows(numbers[s], s, n, run_id=run_id) for s, n in counts.items()])
    part = write_part(storage, run_id, 0, rows, MAP)
    commit_run(storage, run_id=run_id, parts=[part], scenes=scene_rows(numbers, run_id=run_id), table_crs=MAP)
    for path in (f"runs/{run_id}/run.json", f"runs/{run_id}/coco/instances-00000.json"):
        storage.write(path, json.dumps({"status": "done"}).encode())


def uncommitted(storage: Storage, run_id: str) -> set[str]:
    """Write what a run has written before its commit; return the paths."""
    write_part(storage, run_id, 0, feature_rows(0, "a", 4, run_id=run_id), MAP)
    write_part(storage, run_id, "of-0123456789abcdef", feature_rows(0, "a", 4, run_id=run_id), MAP)
    outputs = {f"runs/{run_id}/run.json", f"runs/{run_id}/coco/instances-00000.json"}
    for path in outputs:
        storage.write(path, json.dumps({"status": "running"}).encode())
    return outputs | {f"features/part-{run_id}-{key}.parquet" for key in ("00000", "of-0123456789abcdef")}


def fail(storage: Storage, run_id: str) -> set[str]:
    """Let a run fail before its commit; return what it wrote."""
    left: set[str] = set()
    with suppress(ZeroDivisionError), held(storage, run_id, tile_key="key"):
        left |= uncommitted(storage, run_id)
        raise ZeroDivisionError
    return left


def paths(storage: Storage) -> set[str]:
    return {orphan.path for orphan in list_orphans(storage)}


@pytest.fixture
def killed(store_uri: str) -> tuple[Storage, set[str]]:
    """A store with two commits, beside which a run was killed after it wrote its parts."""
    storage = open_storage(store_uri)
    commit(storage, "r1", {"a": 10, "b": 20})
    commit(storage, "r2", {"a": 5})
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, store_uri, "r3"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    assert [lease.alive(time.time()) for lease in list_leases(storage)] == [True]
    assert paths(storage) == set(), "nothing of a run at work"
    assert keys_in_use(storage) == {"key"}
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    names = {f"features/part-r3-{key}.parquet" for key in ("00000", "of-0123456789abcdef")}
    return storage, names | {"runs/r3/run.json", "runs/r3/coco/instances-00000.json", "running/r3.json"}


def test_what_a_killed_run_left_goes_and_nothing_else(killed: tuple[Storage, set[str]]):
    storage, left = killed
    before = {info.path for info in storage.list()}
    assert paths(storage) == left
    assert {o.run_id for o in list_orphans(storage)} == {"r3"}
    assert {info.path for info in storage.list()} == before, "listing removes nothing"
    assert keys_in_use(storage) == set()

    assert {orphan.path for orphan in tidy_up(storage)} == left
    assert {info.path for info in storage.list()} == before - left
    assert paths(storage) == set()
    assert tidy_up(storage) == []
    assert len(read_features(storage)) == 25
    assert len(read_features(storage, version=1)) == 30, "files of older versions are no orphans"
    assert len(live_files(storage)) == 2


def test_a_run_that_fails_is_tidied_up_after(store_uri: str):
    storage = open_storage(store_uri)
    commit(storage, "r1", {"a": 10})
    left = fail(storage, "r2")
    storage.write("runs/r2/run.json", json.dumps({"status": "failed"}).encode())
    kept = {"runs/r2/run.json"}
    assert paths(storage) == (left | {"running/r2.json"}) - kept, "its record tells why, and stays"
    assert kept <= {o.path for o in list_orphans(storage, now_s=time.time() + 31 * 86_400)}
    with held(storage, "r3", tile_key="key"):
        mine = uncommitted(storage, "r3")
        tidy_up(storage)
        assert mine <= {info.path for info in storage.list()}
    assert list_leases(storage) == []


def test_a_run_elsewhere_is_dead_when_its_lease_is_old(store_uri: str, monkeypatch: pytest.MonkeyPatch):
    storage = open_storage(store_uri)
    monkeypatch.setattr(lease_module, "this_process", lambda: ("another machine", "1 2"))
    with held(storage, "r1", tile_key="key") as lease:
        monkeypatch.undo()
        left = uncommitted(storage, "r1")
        assert paths(storage) == set()
        later = time.time() + DEAD_AFTER_S + 60
        assert {o.path for o in list_orphans(storage, now_s=later)} == left | {"running/r1.json"}
        lease.confirm()
        remove_orphans(storage, list_orphans(storage, now_s=later))
        with pytest.raises(StoreError, match="run the same command again"):
            lease.confirm()


def test_a_lease_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = open_storage(tmp_path)
    monkeypatch.setattr(lease_module, "REFRESH_S", 0.01)
    with held(storage, "r1", tile_key="key"):
        first = list_leases(storage)[0].refreshed_s
        deadline = time.monotonic() + 60
        while list_leases(storage)[0].refreshed_s <= first:
            assert time.monotonic() < deadline
    assert list_leases(storage) == []


def test_a_store_without_any_commit(store_uri: str):
    storage = open_storage(store_uri)
    with pytest.raises(StoreError, match="check the path"):
        list_orphans(storage)
    left = fail(storage, "r1")
    assert {orphan.path for orphan in tidy_up(storage)} == left | {"running/r1.json"}
    assert not [info for info in storage.list() if not info.path.startswith("ids/")]


def test_what_other_programs_wrote_stays(tmp_path: Path):
    storage = open_storage(tmp_path)
    commit(storage, "r1", {"a": 10})
    for path in ("features/part-00000-uuid.c000.snappy.parquet", "features/readme.txt", "notes.txt"):
        storage.write(path, b"mine")
    assert paths(storage) == set()


def test_interrupted_writes_of_a_folder(tmp_path: Path):
    storage = open_storage(tmp_path)
    commit(storage, "r1", {"a": 10})
    left = {"features/part-r2-00000.parquet#1", "work/key/block.parquet#3", "features/_delta_log/_commit_1.json.tmp"}
    for path in left:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"half")
    with held(storage, "r2", tile_key="key"):
        assert paths(storage) == set()
    assert paths(storage) == left
    remove_orphans(storage, list_orphans(storage))
    assert not [path for path in left if (tmp_path / path).exists()]


def test_a_partial_shard_beside_the_whole_one(tmp_path: Path):
    storage = open_storage(tmp_path)
    commit(storage, "r1", {"a": 10})
    for name in ("one.parquet", "one.partial.parquet", "two.partial.parquet"):
        storage.write(f"work/key/{name}", b"shard")
    with held(storage, "r2", tile_key="key"):
        assert paths(storage) == set()
    assert paths(storage) == {"work/key/one.partial.parquet"}


@pytest.mark.parametrize(
    ("name", "run_id"),
    [
        ("part-20261125T072034Z-abc123-00001.parquet", "20261125T072034Z-abc123"),
        ("part-20261125T072034Z-abc123-of-0123456789abcdef.parquet", "20261125T072034Z-abc123"),
        ("part-20261125T072034Z-abc123-0a1b2c3d4e5f.parquet", "20261125T072034Z-abc123"),
        ("_delta_log/00000.json", None),
        ("other.parquet", None),
    ],
)
def test_parts_name_their_run(name: str, run_id: str | None):
    assert run_of_part(name) == run_id
