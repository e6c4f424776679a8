"""Runs at the same time, as processes of their own, and a reader that looks all the while."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from segworker.io.storage import Storage, open_storage
from segworker.killpoints import STOP_VARIABLE
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.drivers import Driver, start, wait_for
from tests.duck import duckdb_connection
from tests.painted import SCORED, features, scenes, segment

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(900), pytest.mark.slow]

OPTIONS = {"tile": 96, "overlap": 24, "model": SCORED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate("abc"):
        paint_scene(make_scene("aerial", (150, 170), seed), folder / f"{name}.tif")
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the shards of each scene alone: runs that find them need no predictor."""
    del local_ray  # is running now
    store = tmp_path_factory.mktemp("prepared") / "store"
    for name in "abc":
        assert segment(store, folder / f"{name}.tif", **OPTIONS).exit_code == 0
    return store


@pytest.fixture
def store(store_uri: str, shards: Path) -> Storage:
    storage = open_storage(store_uri)
    for path in (shards / "work").rglob("*.parquet"):
        storage.write(path.relative_to(shards).as_posix(), path)
    return storage


@contextmanager
def reader(storage: Storage) -> Iterator[list[dict[str, int]]]:
    """Read the table in a loop, with DuckDB; the features by scene that it saw are in the list at the end."""
    seen: list[dict[str, int]] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def look() -> None:
        query = f"SELECT scene_id, count(*) FROM delta_scan('{storage.delta_uri('features')}') GROUP BY 1"
        with duckdb_connection(storage) as duck:
            while not stop.is_set():
                try:
                    seen.append(dict(duck.sql(query).fetchall()))
                except duckdb.Error as error:
                    if seen and any(seen):  # before the first commit there is no table
                        failures.append(error)
                        return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
        num_seen = len(seen)
        wait_for(lambda: len(seen) > num_seen + 1 or failures)
    finally:
        stop.set()
        thread.join()
    assert not failures


def stopped(storage: Storage, paths: list[Path], place: Path, **options: object) -> list[Driver]:
    """Start a run for each scene, and wait until all of them stand still before their commits."""
    markers = [place / f"stopped-{k}" for k in range(len(paths))]
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    drivers = [
        start(
            storage.uri,
            path,
            env=aws | {STOP_VARIABLE: f"parts={marker}"},
            errors=place / f"errors-{k}",
            **(OPTIONS | options),
        )
        for k, (path, marker) in enumerate(zip(paths, markers, strict=True))
    ]
    wait_for(lambda: all(m.exists() for m in markers) or any(d.process.exitcode is not None for d in drivers))
    assert all(marker.exists() for marker in markers), [driver.told() for driver in drivers]
    return drivers


def release(drivers: list[Driver]) -> list[int]:
    for driver in drivers:
        os.kill(driver.process.pid or 0, signal.SIGCONT)
    return [driver.outcome() for driver in drivers]


def counts(storage: Storage) -> dict[str, int]:
    return dict(Counter(features(storage.uri)["scene_id"].to_pylist()))


def test_runs_of_other_scenes_both_commit(store: Storage, folder: Path, tmp_path: Path, shards: Path) -> None:
    whole = counts(open_storage(str(shards)))
    assert segment(store.uri, folder / "c.tif", **OPTIONS).exit_code == 0
    with reader(store) as seen:
        drivers = stopped(store, [folder / "a.tif", folder / "b.tif"], tmp_path)
        assert release(drivers) == [0, 0]
    assert counts(store) == whole
    assert set(scenes(store.uri)) == {"a", "b", "c"}
    allowed = [{name: whole[name] for name in names} for names in ("c", "ac", "bc", "abc")]
    assert all(rows in allowed for rows in seen)
    assert seen[-1] == whole


def test_of_runs_of_one_new_scene_one_lands_and_the_other_is_told(
    store: Storage, folder: Path, tmp_path: Path, shards: Path
) -> None:
    whole = counts(open_storage(str(shards)))["a"]
    with reader(store) as seen:
        drivers = stopped(store, [folder / "a.tif", folder / "a.tif"], tmp_path)
        outcomes = release(drivers)
    assert sorted(outcomes) == [0, 4]
    assert counts(store) == {"a": whole}
    assert [rows for rows in seen if rows not in ({}, {"a": whole})] == []
    told = drivers[outcomes.index(4)].told()
    (row,) = scenes(store.uri).values()
    assert f"got 1 scenes that run {row['run_id']} committed since run" in told
    assert "run the same command again" in told
    records = [json.loads(store.read(i.path)) for i in store.list("runs") if i.path.endswith("run.json")]
    assert {record["status"]: record["exit_code"] for record in records} == {"done": 0, "failed": 4}


def test_a_reader_sees_a_replaced_scene_before_or_after(store: Storage, folder: Path, shards: Path) -> None:
    whole = counts(open_storage(str(shards)))
    assert segment(store.uri, folder / "a.tif", folder / "b.tif", **OPTIONS).exit_code == 0
    with reader(store) as seen:
        assert segment(store.uri, folder / "a.tif", min_score=0.25, **OPTIONS).exit_code == 0
    fewer = counts(store)
    assert 0 < fewer["a"] < whole["a"]
    assert fewer["b"] == whole["b"]
    assert all(rows in (fewer, fewer | {"a": whole["a"]}) for rows in seen)
    assert seen[-1] == fewer
