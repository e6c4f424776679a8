"""What networks, object stores and disks do to runs: nothing, or a clear failure from which the next run goes on.

A proxy before a real S3 server answers a share of the requests with 503 and 500, resets connections, lets answers get
lost although the request was done, stalls, and ends bodies too early.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio

from segworker.io import storage as storage_module
from segworker.io.raster import SceneReader
from segworker.io.retry import is_lost
from segworker.io.shards import tiles_in_shard
from segworker.io.storage import open_storage
from segworker.sources.find import find_scenes
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from segworker.types import Window
from tests.drivers import start
from tests.faulty import FAULTS, FaultyProxy, Request
from tests.integration.test_table import contents, run, scenes_of
from tests.painted import features, scenes, segment

pytestmark = pytest.mark.timeout(900)

SHARD = re.compile(r"work/[^/]+/[0-9a-f]+\.parquet")
GRID = {"tile": 64, "overlap": 24, "workers": 1}
WRITING = ("PUT", "POST", "DELETE")


@pytest.fixture(params=FAULTS)
def proxy(request: pytest.FixtureRequest, s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that does one thing, often, before this process's clients."""
    with FaultyProxy(s3.endpoint_url, rate=0.15, seed=4, faults=[request.param], stall_s=0.3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    assert proxy.counts[request.param] > 5, "the test is worth something"


@pytest.mark.usefixtures("proxy")
def test_every_client_copes(bucket: str) -> None:
    """obstore, deltalake and GDAL; what they read is whole and what they write is there once."""
    storage = open_storage(f"s3://{bucket}/x")
    body = np.random.default_rng(0).bytes(200_000)
    for k in range(8):
        storage.write(f"many/{k}", body)
        assert storage.read(f"many/{k}") == body
        assert storage.read_range(f"many/{k}", 1000, 150_000) == body[1000:150_000]
        storage.write_new(f"new/{k}", b"1")
        assert storage.write_new(f"new/{k}", b"2") is False
        assert storage.read(f"new/{k}") == b"1"
    assert len(list(storage.list())) == 16
    storage.delete([f"many/{k}" for k in range(8)])
    assert len(list(storage.list())) == 8
    assert all("new" in storage.folders() for _ in range(8))

    store = storage.child("store")
    for k in range(2):
        run(store, f"r{k}", {"a": 5 + k, f"b{k}": 3})
    assert contents(store) == {("a", "r1"): 6, ("b0", "r0"): 3, ("b1", "r1"): 3}
    assert scenes_of(store) == {"a": "r1", "b0": "r0", "b1": "r1"}

    pixels = np.random.default_rng(0).integers(0, 60_000, (2, 500, 400)).astype(np.uint16)
    shape = {"width": 400, "height": 500, "count": 2, "dtype": "uint16"}
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", transform=rasterio.Affine(1, 0, 9, 0, -1, 9), **shape, **layout) as file:
            file.write(pixels)
        storage.write("a.tif", memory.read())
    for k in range(3):
        (scene,) = find_scenes([f"{storage.uri}/a.tif"]).scenes
        with SceneReader(scene) as reader:
            found, valid = reader.read_window(Window(10 + k, 30, 200, 300))
        assert np.array_equal(found, pixels[:, 30:330, 10 + k : 210 + k])
        assert valid.all()


def test_a_request_that_is_never_answered_is_made_again(s3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage_module._CLIENT, "read_timeout", "1s")
    with FaultyProxy(s3.endpoint_url, rate=0.2, seed=1, faults=["stall"], stall_s=3600) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage = open_storage(f"s3://{bucket}")
        for k in range(6):
            storage.write(str(k), b"1")
            assert storage.read(str(k)) == b"1"
            storage.write_new(f"new{k}", b"2")
        storage.delete(["0"])
        assert len(list(storage.list())) == 11
        assert proxy.counts["stall"] > 2


def test_what_its_client_tried_often_is_not_tried_again() -> None:
    assert is_lost(OSError("Error performing PUT http://x in 2ms - HTTP error: error sending request"))
    assert not is_lost(OSError("Error performing PUT http://x in 9s, after 8 retries, max_retries: 8 - HTTP error: x"))
    assert not is_lost(OSError("Generic S3 error: <Code>AccessDenied</Code>"))


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    paint_scene(make_scene("roads", (700, 740), 3), folder / "a.tif")
    paint_scene(make_scene("aerial", (150, 140), 4), folder / "b.tif")
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What a run finds that nothing happens to."""
    del local_ray  # is running now
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    assert segment(store, folder, **GRID).exit_code == 0
    return features(store).drop_columns("run_id")


def upload(s3, folder: Path, bucket: str) -> str:
    for path in folder.glob("*.tif"):
        s3.client().upload_file(str(path), bucket, f"in/{path.name}")
    return f"s3://{bucket}/in"


def start_behind(proxy: FaultyProxy, s3, store: str, *scenes: str | Path, errors: Path):
    """Start a run with a Ray of its own, of which every process reaches S3 through a proxy."""
    env = s3.env() | {"AWS_ENDPOINT_URL": proxy.url}
    return start(store, *scenes, env=env, address="local", cpus=2, errors=errors, **GRID)


@pytest.mark.slow
def test_a_run_through_faults_gives_what_a_run_without_gives(
    s3, bucket: str, folder: Path, truth: pa.Table, tmp_path: Path
) -> None:
    source, store = upload(s3, folder, bucket), f"s3://{bucket}/store"
    with FaultyProxy(s3.endpoint_url, rate=0.1, seed=7, stall_s=1.0) as proxy:
        driver = start_behind(proxy, s3, store, source, errors=tmp_path / "errors")
        assert driver.outcome() == 0, driver.told()
        assert sum(proxy.counts[fault] for fault in FAULTS) > 5
    assert features(store).drop_columns("run_id").equals(truth)
    assert {row["num_failed_tiles"] for row in scenes(store).values()} == {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "methods", "rule"),
    [
        ("expired", ("GET", "HEAD", *WRITING), "the credentials must be valid"),
        ("denied", WRITING, "it must be permitted"),
    ],
)
def test_a_store_that_refuses_in_the_middle_of_a_run(
    answer: str, methods: tuple[str, ...], rule: str, s3, bucket: str, folder: Path, truth: pa.Table, tmp_path: Path
) -> None:
    """A session token that expires, a bucket that becomes read-only: from the second shard on."""
    store = f"s3://{bucket}/store"
    shards_written: list[str] = []

    def refuse(request: Request) -> str | None:
        if request.method == "PUT" and SHARD.search(request.path):
            shards_written.append(request.path)
        return answer if len(shards_written) > 1 and request.method in methods else None

    with FaultyProxy(s3.endpoint_url, rate=0, refuse=refuse) as proxy:
        driver = start_behind(proxy, s3, store, folder, errors=tmp_path / "errors")
        assert driver.outcome() == 1
        assert proxy.counts[answer] > 1
    told = driver.told()
    assert rule in told
    assert s3.secret_key not in told
    assert len(told.splitlines()) < 5, told

    durable = durable_tiles(store)
    assert durable > 0
    again = segment(store, folder, **GRID)
    assert again.exit_code == 0, again.text
    assert again.record["counts"]["tiles_reused"] == durable
    assert features(store).drop_columns("run_id").equals(truth)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root and the permission to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk: Path, folder: Path, truth: pa.Table, tmp_path: Path) -> None:
    store = small_disk / "store"
    driver = start(store, folder, errors=tmp_path / "errors", **GRID)
    assert driver.outcome() == 1
    assert "the disk must have room" in driver.told()
    assert "free some space" in driver.told()
    durable = durable_tiles(str(store))
    assert durable > 0
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    again = segment(store, folder, **GRID)
    assert again.exit_code == 0, again.text
    assert again.record["counts"]["tiles_reused"] == durable
    assert features(store).drop_columns("run_id").equals(truth)


def durable_tiles(store: str) -> int:
    storage = open_storage(store)
    paths = [i.path for i in storage.list("work") if SHARD.fullmatch(i.path)]
    return sum(len(tiles_in_shard(storage, path)) for path in paths)
