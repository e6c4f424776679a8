"""Runs that are killed: the same command again gives what a run gives that nobody disturbed."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from segworker.io.shards import tiles_in_shard
from segworker.io.storage import open_storage
from segworker.killpoints import KILL_VARIABLE, POINTS
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.drivers import Driver, start, wait_for
from tests.painted import features, scenes, segment

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(900)]

BEFORE_STITCHING = ("planned", "some-shards")
OF_WORKERS = ("predict", "shard", "link", "part")
WHILE_STITCHING = tuple(point for point in POINTS if point not in BEFORE_STITCHING + OF_WORKERS)
GRID = {"tile": 64, "overlap": 24}
IN_THE_GATE = ("some-shards", "features")


def gated(points: tuple[str, ...]) -> list:
    """Return points as parameters: two of them are enough for every day."""
    return [point if point in IN_THE_GATE else pytest.param(point, marks=pytest.mark.slow) for point in points]


@dataclass
class World:
    """Scenes, and what a run finds in them that nobody disturbs."""

    folder: Path
    model_log: Path
    num_tiles: int = 0
    shards: Path = Path()
    "Folder of the shards of an undisturbed run."
    truth: pa.Table = field(default_factory=lambda: pa.table({}))

    def options(self) -> dict[str, object]:
        return GRID | {
            "model": "tests.models_for_tests:logged",
            "model_options": {"log": str(self.model_log)},
            "workers": 1,
        }

    def start(self, store: Path, *, points: dict[str, Path] | None = None, **options: object) -> Driver:
        chosen = ",".join(f"{point}={marker}" for point, marker in (points or {}).items())
        env = {KILL_VARIABLE: chosen} if chosen else {}
        return start(store, self.folder, env=env, **self.options(), **options)

    def run(self, store: Path):
        return segment(store, self.folder, **self.options())

    def num_predicted(self) -> int:
        return len(self.model_log.read_text().splitlines()) if self.model_log.exists() else 0


@pytest.fixture(scope="module")
def world(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One scene of several blocks, and two small ones that share a block."""
    del local_ray  # is running now
    folder = tmp_path_factory.mktemp("world")
    for name, kind, shape_yx in (
        ("large", "roads", (700, 820)),
        ("a", "fields", (150, 140)),
        ("b", "nuclei", (90, 99)),
    ):
        paint_scene(make_scene(kind, shape_yx, 3), folder / f"{name}.tif")
    world = World(folder, tmp_path_factory.mktemp("log") / "calls.txt")
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    summary = world.run(store)
    assert summary.exit_code == 0, summary.text
    assert summary.record["counts"]["tiles_predicted"] == summary.record["counts"]["tiles"] == world.num_predicted()
    world.num_tiles = world.num_predicted()
    world.shards = store / "work"
    world.truth = what_matters(features(store))
    return world


def what_matters(rows: pa.Table) -> pa.Table:
    return rows.drop_columns("run_id")


def durable_tiles(store: Path) -> int:
    """Return how many tiles lie in shards."""
    storage = open_storage(str(store))
    return sum(len(tiles_in_shard(storage, i.path)) for i in storage.list("work") if i.path.endswith(".parquet"))


def whole_versions(store: Path) -> list[int]:
    """Return the number of features of each version of the table, as another reader sees them."""
    if not (store / "features" / "_delta_log").is_dir():
        return []
    newest = DeltaTable(store / "features").version()
    return [DeltaTable(store / "features", version=v).to_pyarrow_table().num_rows for v in range(newest + 1)]


def check_run_again(world: World, store: Path) -> dict:
    """Run the same command: it predicts what is not durable, and the result is that of an undisturbed run."""
    assert set(whole_versions(store)) <= {0, len(world.truth)}, "a reader sees all of a run or nothing"
    durable, before = durable_tiles(store), world.num_predicted()
    summary = world.run(store)
    assert summary.exit_code == 0, summary.text
    assert world.num_predicted() - before == world.num_tiles - durable
    assert summary.record["counts"]["tiles_reused"] == durable
    check_result(world, store)
    return summary.record


def check_result(world: World, store: Path) -> None:
    assert what_matters(features(store)).equals(world.truth)
    assert set(whole_versions(store)) <= {0, len(world.truth)}
    assert set(scenes(store)) == {"large", "a", "b"}


@pytest.mark.parametrize("point", gated(BEFORE_STITCHING))
def test_a_run_killed_before_it_stitches(point: str, world: World, tmp_path: Path) -> None:
    store, marker = tmp_path / "store", tmp_path / "hit"
    assert world.start(store, points={point: marker}).outcome() == -9
    assert marker.exists()
    assert (durable_tiles(store) > 0) == (point != "planned")
    record = check_run_again(world, store)
    assert 0 < record["counts"]["tiles_predicted"] <= world.num_tiles


@pytest.mark.parametrize("point", gated(WHILE_STITCHING))
def test_a_run_killed_while_it_stitches_and_commits(point: str, world: World, tmp_path: Path) -> None:
    store, marker = tmp_path / "store", tmp_path / "hit"
    shutil.copytree(world.shards, store / "work")
    assert world.start(store, points={point: marker}).outcome() == -9
    assert marker.exists()
    committed = POINTS.index(point) >= POINTS.index("features")
    assert (whole_versions(store)[-1:] == [len(world.truth)]) == committed
    record = check_run_again(world, store)
    assert record["counts"]["tiles_predicted"] == 0


def test_a_run_whose_workers_die(world: World, tmp_path: Path) -> None:
    """A predictor, a task that has written a shard, a stitch task and one that has written a part: the run goes on."""
    store, points = tmp_path / "store", {point: tmp_path / point for point in OF_WORKERS}
    assert world.start(store, points=points, address="local", cpus=2).outcome() == 0
    assert all(marker.exists() for marker in points.values())
    check_result(world, store)
    assert len(list((store / "features").glob("*.parquet"))) == len(DeltaTable(store / "features").file_uris())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_a_random_moment(seed: int, world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    count = random.Random(seed).randint(1, 12)
    driver = world.start(store)
    wait_for(lambda: num_files(store) >= count or driver.process.exitcode is not None)
    driver.kill()
    check_run_again(world, store)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process(world: World, tmp_path: Path) -> None:
    """A Ray that the run started itself goes with it, and the next run is not disturbed."""
    store = tmp_path / "store"
    driver = world.start(store, address="local", cpus=2)
    wait_for(lambda: durable_tiles(store) > 0)
    assert len(driver.others()) > 3
    driver.kill()
    wait_for(lambda: not driver.others())
    check_run_again(world, store)


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A cluster of two nodes on this machine; either of them could do the work alone."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for name in ("head", "other"):
        cluster.add_node(num_cpus=2, node_name=name, object_store_memory=100_000_000)
    yield cluster
    cluster.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its daemons without waiting for them
        gc.collect()


@pytest.mark.slow
def test_a_run_whose_node_dies(two_nodes: Cluster, world: World, tmp_path: Path) -> None:
    """Its raylet gets SIGKILL: what ran on it runs elsewhere, and what it held is made again."""
    store = tmp_path / "store"
    driver = world.start(store, address=two_nodes.address)
    wait_for(lambda: durable_tiles(store) > 0 or driver.process.exitcode is not None)
    (node,) = two_nodes.worker_nodes
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    assert driver.outcome() == 0
    check_result(world, store)


def num_files(store: Path) -> int:
    return sum(path.is_file() for path in store.rglob("*")) if store.is_dir() else 0
