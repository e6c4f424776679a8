"""A long run of runs: random scenes, faults and kills against a real S3 server, and zeros where zeros belong.

    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 python -m tests.soak --minutes 30 --seed 1

Scenes of several sizes lie on the server and change now and then. Each round runs some of them into one store and lets
something happen: the driver is killed at a named point or at any moment, a worker is killed, two runs work on other
scenes or on the same ones. All requests go through a proxy that disturbs one in twenty. A killed run is followed by the
same command, and then the table must hold exactly the painted objects of every scene. DuckDB reads all the while.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np

from segworker.io.ids import INDEX_BITS
from segworker.io.storage import Storage, open_storage
from segworker.killpoints import KILL_VARIABLE, POINTS
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from tests.drivers import TOKEN, Driver, processes, start
from tests.duck import duckdb_connection
from tests.faulty import FAULTS, FaultyProxy
from tests.local_ray import start_ray
from tests.painted import features, of_scene, order_of, scenes
from tests.seaweed import S3Server, running

KINDS = ("aerial", "fields", "nuclei", "roads")
SIZES = ((90, 120), (150, 140), (200, 310), (420, 700))
GRIDS = ({"tile": 64, "overlap": 24}, {"tile": 96, "overlap": 24}, {"tile": 160, "overlap": 32})
DRIVER_POINTS = tuple(point for point in POINTS if point not in ("predict", "shard", "link", "part"))
WORKERS = ("_Predict", "_read", "_decode", "_finish_small", "_link", "_cut", "_assemble")
NUM_SCENES = 5
KILL_EVERY_S = 90
"So many drivers are killed at least, twenty in half an hour, however slow the machine is."
MAX_TRIES = 3


@dataclass
class Tally:
    """What is printed at the end."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    "Where a zero belongs."
    peak_bytes: int = 0
    peak_all_bytes: int = 0

    def text(self, proxy: FaultyProxy) -> str:
        faults = {name: proxy.counts[name] for name in FAULTS}
        lines = [f"{name:<28}{self.counts[name]:>8,}" for name in sorted(self.counts)]
        lines.append(f"{'requests':<28}{proxy.counts['requests']:>8,}")
        lines.append(f"{'faults injected':<28}{sum(faults.values()):>8,}")
        lines += [f"  {name:<26}{count:>8,}" for name, count in faults.items()]
        lines += [f"{name:<28}{self.bad[name]:>8,}" for name in self.bad]
        lines.append(f"{'peak memory, one process':<28}{self.peak_bytes / 1e6:>8,.0f} MB")
        lines.append(f"{'peak memory, all processes':<28}{self.peak_all_bytes / 1e6:>8,.0f} MB")
        return "\n".join(lines)


@dataclass
class World:
    """The scenes as they are now, and the store."""

    server: S3Server
    bucket: str
    place: Path
    rng: random.Random
    tally: Tally
    painted: dict[str, TruthScene] = field(default_factory=dict)
    committed: dict[str, TruthScene] = field(default_factory=dict)
    "What the table must hold."
    seen_counts: dict[str, set[int]] = field(default_factory=dict)
    "How many objects a scene has had."

    @property
    def store(self) -> str:
        return f"s3://{self.bucket}/store"

    def paint(self, name: str) -> None:
        """Give a scene a new content."""
        scene = make_scene(self.rng.choice(KINDS), self.rng.choice(SIZES), self.rng.randrange(2**31))
        path = self.place / f"{name}.tif"
        paint_scene(scene, path)
        self.server.client().upload_file(str(path), self.bucket, f"in/{name}.tif")
        self.painted[name] = scene
        self.seen_counts.setdefault(name, set()).add(scene.num_objects)

    def start(self, names: list[str], grid: dict[str, int], point: str | None = None) -> Driver:
        self.tally.counts["runs"] += 1
        marker = self.place / uuid.uuid4().hex
        env = {KILL_VARIABLE: f"{point}={marker}"} if point else {}
        uris = [f"s3://{self.bucket}/in/{name}.tif" for name in names]
        errors = self.place / f"{marker.name}.txt"
        return start(self.store, *uris, env=env, errors=errors, workers=1, **grid)

    def until_done(self, names: list[str], grid: dict[str, int]) -> None:
        """Run the same command until it says that it is done."""
        for _ in range(MAX_TRIES):
            driver = self.start(names, grid)
            if self.outcome(driver, {0}) == 0:
                return

    def outcome(self, driver: Driver, allowed: set[int]) -> int:
        code = driver.outcome()
        self.tally.counts[f"exit code {code}"] += 1
        if code not in allowed:
            self.tally.bad["runs that failed"] += 1
            print(f"exit code {code}: {driver.told()}", flush=True)
        return code

    def check(self, names: list[str]) -> None:
        """Compare the table with what is painted."""
        self.committed |= {name: self.painted[name] for name in names}
        rows = features(self.store)
        for name, scene in self.committed.items():
            found = of_scene(rows, name)
            index = found["feature_id"].to_numpy() & (2**INDEX_BITS - 1)
            areas, classes = found["area_px"].to_pylist(), found["class_id"].to_pylist()
            have = Counter(zip(index.tolist(), classes, areas, strict=True))
            labels = order_of(scene)
            sizes = np.bincount(scene.labels_HW.ravel(), minlength=len(scene.class_ids))[labels].tolist()
            want = Counter(zip(range(len(labels)), scene.class_ids[labels].tolist(), sizes, strict=True))
            self.tally.bad["features lost"] += (want - have).total()
            self.tally.bad["features duplicated"] += (have - want).total()
        self.tally.bad["scenes lost"] += len(set(self.committed) - set(scenes(self.store)))
        self.tally.counts["features checked"] += len(rows)


# -- what happens in a round ------------------------------------------------------------------------------------------


def undisturbed(world: World, names: list[str], grid: dict[str, int]) -> None:
    world.until_done(names, grid)


def killed_at_a_point(world: World, names: list[str], grid: dict[str, int]) -> None:
    driver = world.start(names, grid, point=world.rng.choice(DRIVER_POINTS))
    if world.outcome(driver, {-9, 0}) == -9:  # a point between the passes is not reached with small scenes alone
        world.tally.counts["kills of drivers"] += 1
    world.until_done(names, grid)


def killed_at_a_moment(world: World, names: list[str], grid: dict[str, int]) -> None:
    driver = world.start(names, grid)
    driver.process.join(world.rng.uniform(0, 15))
    if driver.process.exitcode is None:
        driver.kill()
        world.tally.counts["kills of drivers"] += 1
    world.until_done(names, grid)


def a_worker_killed(world: World, names: list[str], grid: dict[str, int]) -> None:
    driver = world.start(names, grid)
    deadline = time.monotonic() + world.rng.uniform(1, 10)
    while driver.process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    while driver.process.exitcode is None:
        if found := _workers():
            os.kill(world.rng.choice(found), signal.SIGKILL)
            world.tally.counts["kills of workers"] += 1
            break
        time.sleep(0.02)
    if world.outcome(driver, {0}) != 0:
        world.until_done(names, grid)


def two_runs(world: World, names: list[str], grid: dict[str, int]) -> None:
    """Other scenes at the same time: both land."""
    half = max(1, len(names) // 2)
    drivers = [world.start(part, grid) for part in (names[:half], names[half:]) if part]
    for driver in drivers:
        world.outcome(driver, {0})


def two_runs_of_the_same(world: World, names: list[str], grid: dict[str, int]) -> None:
    """The same scenes at the same time: one version lands; the other run is told, or comes later."""
    drivers = [world.start(names, grid) for _ in range(2)]
    codes = [world.outcome(driver, {0, 4}) for driver in drivers]
    if 0 not in codes:
        world.tally.bad["rounds without a winner"] += 1
        world.until_done(names, grid)


ROUNDS: tuple[Callable[[World, list[str], dict[str, int]], None], ...] = (
    killed_at_a_point,
    killed_at_a_moment,
    killed_at_a_point,
    killed_at_a_moment,
    a_worker_killed,
    two_runs,
    two_runs_of_the_same,
    undisturbed,
)


def _workers() -> list[int]:
    found = []
    for pid in processes(os.environ[TOKEN]):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and any(name in title for name in WORKERS):
            found.append(pid)
    return found


# -- what looks on ----------------------------------------------------------------------------------------------------


@contextmanager
def watched(world: World) -> Iterator[None]:
    """Measure memory, and read the table with DuckDB again and again."""
    stop = threading.Event()
    threads = [threading.Thread(target=look, args=(world, stop)) for look in (_weigh, _read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _weigh(world: World, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        sizes = [_resident(pid) for pid in processes(os.environ[TOKEN])]
        world.tally.peak_bytes = max(world.tally.peak_bytes, *sizes, 0)
        world.tally.peak_all_bytes = max(world.tally.peak_all_bytes, sum(sizes))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _read(world: World, stop: threading.Event) -> None:
    storage = open_storage(world.store)
    query = (
        f"SELECT scene_id, count(*), count(DISTINCT feature_id) FROM delta_scan('{world.store}/features') GROUP BY 1"
    )
    with duckdb_connection(storage, endpoint_url=world.server.endpoint_url) as duck:
        begun = False
        while not stop.wait(0.2):
            try:
                rows = duck.sql(query).fetchall()
            except duckdb.Error as error:
                if begun:  # before the first commit there is no table
                    world.tally.bad["reads that failed"] += 1
                    print(f"DuckDB: {error}", flush=True)
                continue
            begun = True
            world.tally.counts["reads by DuckDB"] += 1
            broken = [row for row in rows if row[1] not in world.seen_counts[row[0]] or row[1] != row[2]]
            world.tally.bad["mixtures seen"] += len(broken)


# -- all of it --------------------------------------------------------------------------------------------------------


def soak(*, seconds: float, seed: int, rate: float) -> Tally:
    """Run rounds for a time and return what was counted, printed as well."""
    import ray

    rng, tally = random.Random(seed), Tally()
    os.environ[TOKEN] = uuid.uuid4().hex
    bad = ("features lost", "features duplicated", "scenes lost", "orphans left", "mixtures seen", "runs that failed")
    tally.bad |= Counter(dict.fromkeys(bad, 0))
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running(place))
        proxy = stack.enter_context(FaultyProxy(server.endpoint_url, rate=rate, seed=seed, stall_s=1.0))
        os.environ.update(server.env() | {"AWS_ENDPOINT_URL": proxy.url, "RAY_AUTH_MODE": "disabled"})
        start_ray(num_cpus=4)
        stack.callback(ray.shutdown)
        world = World(server, server.new_bucket(), place, rng, tally)
        for k in range(NUM_SCENES):
            world.paint(f"s{k}")
        with watched(world):
            _rounds(world, time.monotonic() + seconds, least_kills=int(seconds / KILL_EVERY_S))
        tally.bad["orphans left"] = len(orphans(open_storage(world.store)))
        print(tally.text(proxy), flush=True)
    return tally


def _rounds(world: World, until: float, *, least_kills: int) -> None:
    """Kill first, then do rounds in random order, each kind before any comes again; end with all, undisturbed."""
    kinds: list[Callable[[World, list[str], dict[str, int]], None]] = [killed_at_a_moment]
    while time.monotonic() < until or world.tally.counts["kills of drivers"] < least_kills:
        kinds = kinds or world.rng.sample(ROUNDS, len(ROUNDS))
        names = sorted(world.rng.sample(sorted(world.painted), world.rng.randint(1, 3)))
        if world.rng.random() < 0.5:
            world.paint(world.rng.choice(names))
        kind, grid = kinds.pop(), world.rng.choice(GRIDS)
        print(f"{kind.__name__}: {', '.join(names)}, {grid}", flush=True)
        kind(world, names, grid)
        world.check(names)
    names = sorted(world.painted)
    world.until_done(names, GRIDS[0])
    world.check(names)


def orphans(storage: Storage) -> list[str]:
    """Return the data files and run outputs that nothing refers to."""
    from segworker.io.orphans import list_orphans

    return [orphan.path for orphan in list_orphans(storage)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--rate", type=float, default=0.05, help="share of requests that are disturbed")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    tally = soak(seconds=options.minutes * 60, seed=options.seed, rate=options.rate)
    return int(any(tally.bad.values()))


if __name__ == "__main__":
    sys.exit(main())
