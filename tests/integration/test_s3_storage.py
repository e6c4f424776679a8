"""Storage on a real S3 server: the same behaviour as folders, and prompt, clear failures."""

from __future__ import annotations

import io
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.io import MemoryFile

from segworker.errors import StorageError
from segworker.io.aws import gdal_env, rasterio_session
from segworker.io.delta import open_table
from segworker.io.storage import open_storage
from segworker.io.table import read_store_info

PROMPT_S = 30


@pytest.fixture(autouse=True)
def no_request_takes_for_ever():
    """Failures are prompt: none of these tests needs long."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < PROMPT_S


@pytest.mark.parametrize("name", ["a b/ü%20+&.txt", "deep/er/file", "x"])
def test_what_is_written_is_read(s3, bucket: str, name: str):
    storage = open_storage(f"s3://{bucket}/pre fix")
    storage.write(name, b"one")
    storage.write(name, b"hello")
    info = storage.head(name)
    assert info is not None
    assert (info.path, info.size_bytes) == (name, 5)
    assert info.etag
    assert abs(info.mtime_s - time.time()) < 60
    assert storage.read(name) == b"hello"
    assert s3.client().get_object(Bucket=bucket, Key=f"pre fix/{name}")["Body"].read() == b"hello"
    assert storage.read_range(name, 1, 3) == b"el"
    assert [found.path for found in storage.list()] == [name]
    storage.delete([name, "never there"])
    assert list(storage.list()) == []


def test_folders_are_named_without_looking_into_them(s3, bucket: str):
    del s3
    storage = open_storage(f"s3://{bucket}/pre fix")
    assert storage.folders("work") == []
    for name in ("work/b/c/d", "work/a b/1", "work/a b/2", "work/file", "other/x"):
        storage.write(name, b"1")
    assert storage.folders("work") == ["a b", "b"]
    assert storage.folders() == ["other", "work"]


def test_large_files_go_in_parts(s3, bucket: str, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(0).bytes(40 * 2**20))
    open_storage(f"s3://{bucket}").write("large", source)
    head = s3.client().head_object(Bucket=bucket, Key="large")
    assert head["ContentLength"] == 40 * 2**20
    assert "-" in head["ETag"]
    assert open_storage(f"s3://{bucket}").read("large") == source.read_bytes()


def test_one_of_many_writers_creates(bucket: str):
    barrier = threading.Barrier(8)

    def create(k: int) -> bool:
        storage = open_storage(f"s3://{bucket}/x")
        barrier.wait()
        return storage.write_new("one", str(k).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert open_storage(f"s3://{bucket}/x").read("one") == str(won.index(True)).encode()


def test_open_input_reads_by_ranges(bucket: str):
    storage, buffer = open_storage(f"s3://{bucket}"), io.BytesIO()
    table = pa.table({"a": np.arange(10**6), "b": np.random.default_rng(0).random(10**6)})
    pq.write_table(table, buffer, row_group_size=10**5)
    storage.write("t.parquet", buffer.getvalue())
    with storage.open_input("t.parquet") as source:
        assert pq.read_table(source).equals(table)
        assert source.seek(-4, io.SEEK_END) == len(buffer.getvalue()) - 4
        assert source.read() == b"PAR1"
        assert source.read() == b""


def test_rasterio_reads_with_the_same_access(bucket: str):
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=4, height=3, count=1, dtype="uint8", crs="EPSG:32636",
                         transform=rasterio.Affine(1, 0, 5, 0, -1, 9)) as file:  # fmt: skip
            file.write(pixels)
        open_storage(f"s3://{bucket}/in").write("a.tif", memory.read())
    with rasterio.Env(session=rasterio_session(), **gdal_env()), rasterio.open(f"s3://{bucket}/in/a.tif") as scene:
        assert (scene.read() == pixels).all()


def test_a_storage_travels_to_workers(bucket: str):
    storage = open_storage(f"s3://{bucket}/x")
    storage.write("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


@pytest.mark.parametrize(
    "action", ["read", "head", "list", "write", "write_new", "open_input", "delete", "table", "store"]
)
@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist(action: str):
    with pytest.raises(StorageError, match=r"the bucket must exist.*create it"):
        act(open_storage("s3://no-such-bucket/x"), action)


@pytest.mark.parametrize("action", ["read", "head", "list", "write", "write_new", "delete", "table", "store"])
def test_wrong_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, action: str):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="credentials") as caught:
        act(open_storage(f"s3://{bucket}/x"), action)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("action", ["write", "write_new", "delete"])
def test_reading_only(s3, bucket: str, monkeypatch: pytest.MonkeyPatch, action: str):
    open_storage(f"s3://{bucket}/x").write("there", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.read_only_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.read_only_secret_key)
    storage = open_storage(f"s3://{bucket}/x")
    assert storage.read("there") == b"1"
    with pytest.raises(StorageError, match="grant the permission"):
        act(storage, action)
    assert [info.path for info in storage.list()] == ["there"]


def test_anonymous_reads(s3, monkeypatch: pytest.MonkeyPatch):
    open_storage(f"s3://{s3.public_bucket}/x").write("there", b"1")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    storage = open_storage(f"s3://{s3.public_bucket}/x")
    assert storage.read("there") == b"1"
    with pytest.raises(StorageError, match="grant the permission"):
        storage.write("new", b"1")


@pytest.mark.usefixtures("s3")
def test_an_endpoint_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"the endpoint must answer.*AWS_ENDPOINT_URL"):
        open_storage("s3://bucket/x").read("a")


def act(storage, action: str) -> object:
    actions = {
        "read": lambda: storage.read("there"),
        "head": lambda: storage.head("there"),
        "list": lambda: list(storage.list()),
        "write": lambda: storage.write("new", b"1"),
        "write_new": lambda: storage.write_new("new", b"1"),
        "open_input": lambda: storage.open_input("there"),
        "delete": lambda: storage.delete(["there"]),
        "table": lambda: open_table(storage, "features"),
        "store": lambda: read_store_info(storage),
    }
    return actions[action]()
