"""Storage on folders, the wording of failures, and what configures S3 access."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segworker.errors import StorageError
from segworker.io.aws import gdal_env, resolve_access
from segworker.io.failures import explain
from segworker.io.storage import Storage, open_storage, redact, split_s3

ODD_NAMES = ("a b/ü%20+&.txt", "deep/er/file", "x")


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which nothing of AWS is set."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION", "DEFAULT_REGION",
                 "ENDPOINT_URL", "ENDPOINT_URL_S3", "ENDPOINT", "NO_SIGN_REQUEST", "ALLOW_HTTP"):  # fmt: skip
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_written_is_read(tmp_path: Path, name: str):
    storage = open_storage(str(tmp_path / "new"))
    storage.write(name, b"one")
    storage.write(name, b"hello")
    info = storage.head(name)
    assert info is not None
    assert (info.path, info.size_bytes) == (name, 5)
    assert storage.read(name) == Path(storage.location(name)).read_bytes() == b"hello"
    assert storage.read_range(name, 1, 3) == b"el"
    assert [found.path for found in storage.list()] == [name]
    storage.delete([name, "never there"])
    assert list(storage.list()) == []


def test_folders_are_named_without_looking_into_them(tmp_path: Path):
    storage = open_storage(tmp_path)
    assert storage.folders("work") == []
    for name in ("work/b/c/d", "work/a b/1", "work/a b/2", "work/file", "other/x"):
        storage.write(name, b"1")
    assert storage.folders("work") == ["a b", "b"]
    assert storage.folders() == ["other", "work"]


def test_reading_makes_no_folder(tmp_path: Path):
    storage = open_storage(tmp_path / "new")
    assert storage.head("x") is None
    assert list(storage.list()) == []
    with pytest.raises(StorageError, match="it must exist"):
        storage.read("x")
    with pytest.raises(StorageError, match="it must exist"):
        storage.open_input("x")
    assert list(tmp_path.iterdir()) == []


def test_large_files_are_streamed(tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 2**17)
    storage = open_storage(tmp_path / "new")
    storage.write("a/b", source)
    assert storage.read("a/b") == source.read_bytes()


def test_one_of_many_writers_creates(tmp_path: Path):
    barrier = threading.Barrier(8)

    def create(k: int) -> bool:
        storage = open_storage(tmp_path / "new")
        barrier.wait()
        return storage.write_new("one", str(k).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert open_storage(tmp_path / "new").read("one") == str(won.index(True)).encode()


def test_a_prefix_is_a_folder(tmp_path: Path):
    storage = open_storage(tmp_path)
    for name in ("run/1", "runs/1", "run2"):
        storage.write(name, b"")
    assert [info.path for info in storage.list("run")] == ["run/1"]
    assert [info.path for info in storage.child("run").list()] == ["1"]


def test_parquet_reads_from_open_input(tmp_path: Path):
    storage = open_storage(tmp_path)
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    with storage.open_input("t.parquet") as source:
        assert pq.read_table(source)["a"].to_pylist() == [1, 2]


def test_paths_stay_inside(tmp_path: Path):
    storage = open_storage(tmp_path)
    for path in ("../x", "a/../../x"):
        with pytest.raises(StorageError, match="stays inside"):
            storage.write(path, b"")


def test_a_storage_travels_as_its_uri(no_aws: pytest.MonkeyPatch):
    no_aws.setenv("AWS_ACCESS_KEY_ID", "key-in-environment")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", "secret-in-environment")
    storage = open_storage("s3://bucket/prefix/")
    storage.delta_options()
    text = pickle.dumps(storage)
    assert b"in-environment" not in text
    assert pickle.loads(text) == storage == Storage("s3://bucket/prefix")
    assert "in-environment" not in repr(storage)


def test_relative_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("a b").uri == f"{tmp_path}/a b"
    assert open_storage(f"file://{tmp_path}/a%20b").uri == f"{tmp_path}/a b"


@pytest.mark.parametrize(
    "uri", ["https://user:secret@host/x?X-Amz-Signature=secret", "gs://bucket/x", "s3://ab/x", "s3:///x"]
)
def test_other_places_are_refused_without_their_secrets(uri: str):
    with pytest.raises(StorageError) as caught:
        open_storage(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://u:p@h.org/a.tif?X-Amz-Signature=1#f", "https://h.org/a.tif"),
        ("https://h.org/a.tif?sig=1", "https://h.org/a.tif"),
        ("s3://bucket/a?b#c.tif", "s3://bucket/a?b#c.tif"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("/data/what?.tif", "/data/what?.tif"),
    ],
)
def test_redact(uri: str, expected: str):
    assert redact(uri) == expected


def test_s3_uris():
    assert split_s3("s3://my.bucket-1/a/b/") == ("my.bucket-1", "a/b")
    assert open_storage("s3a://bucket").uri == "s3://bucket"


def test_a_file_in_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(StorageError, match="in the place of a folder"):
            open_storage(tmp_path / folder).write("x", b"")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk must have room"),
        (OSError(errno.EROFS, "Read-only file system"), "choose another location"),
        (PermissionError(errno.EACCES, "Permission denied"), "grant the permission"),
        (OSError("put failed: No space left on device (os error 28)"), "free some space"),
        (OSError("<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"), "AWS_SESSION_TOKEN"),
        (OSError("HTTP error: error sending request"), "AWS_ENDPOINT_URL"),
        (OSError("GET https://h/a?X-Amz-Credential=secret returned status code: 301"), "AWS_REGION"),
        (OSError("something else"), "run the same command again"),
    ],
)
def test_failures_are_worded_with_their_remedy(error: Exception, message: str):
    found = explain("write", "s3://bucket/a", error)
    assert isinstance(found, StorageError)
    assert message in str(found)
    assert "s3://bucket/a" in str(found)
    assert "secret" not in str(found)
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def test_without_credentials_requests_are_anonymous(no_aws: pytest.MonkeyPatch):
    assert resolve_access().credentials is None
    assert open_storage("s3://bucket").delta_options()["AWS_SKIP_SIGNATURE"] == "true"
    assert gdal_env()["AWS_NO_SIGN_REQUEST"] == "YES"
    no_aws.setenv("AWS_ACCESS_KEY_ID", "a")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert resolve_access().credentials is not None
    no_aws.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert resolve_access().credentials is None


def test_a_custom_endpoint_means_paths_and_perhaps_http(no_aws: pytest.MonkeyPatch):
    assert resolve_access().virtual_hosts
    no_aws.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    options = open_storage("s3://bucket").delta_options()
    assert (options["AWS_ENDPOINT_URL"], options["AWS_ALLOW_HTTP"]) == ("http://minio:9000", "true")
    assert gdal_env()["AWS_HTTPS"] == "NO"
    assert gdal_env()["AWS_VIRTUAL_HOSTING"] == "FALSE"
    no_aws.setenv("AWS_ENDPOINT_URL_S3", "https://other")
    assert resolve_access().endpoint_url == "https://other"
    assert not resolve_access().allow_http


def test_a_profile_brings_keys_region_and_endpoint(no_aws: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-north-1\nendpoint_url = https://s3.lab.org\n")
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n"
    )
    no_aws.setenv("AWS_PROFILE", "lab")
    options = open_storage("s3://bucket").delta_options()
    assert (options["AWS_REGION"], options["AWS_ENDPOINT_URL"]) == ("eu-north-1", "https://s3.lab.org")
    assert (options["AWS_ACCESS_KEY_ID"], options["AWS_SESSION_TOKEN"]) == ("a", "c")


def test_a_profile_that_is_not_there(no_aws: pytest.MonkeyPatch):
    no_aws.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="check AWS_PROFILE"):
        open_storage("s3://bucket").read("x")


def test_secrets_do_not_show(no_aws: pytest.MonkeyPatch):
    no_aws.setenv("AWS_ACCESS_KEY_ID", "a")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    assert "very-secret" not in repr(resolve_access())


def test_a_folder_without_permission():
    code = (
        "import os, sys; from segworker.errors import StorageError; from segworker.io.storage import open_storage\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"
        "try: open_storage(sys.argv[1]).write('x', b'')\n"
        "except StorageError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: another user has to reach it where tests run as root
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert "Permission denied" in done.stdout
    assert "grant the permission, or choose another location" in done.stdout
