"""A whole run as its user starts it, on S3: no secret in what it writes or prints, and no server for the network."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segworker import cli
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.painted import PERFECT
from tests.seaweed import S3Server

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "pa55w0rd-of-somebody"
WRONG = "wr0ng-but-s3cret"
LISTENS = "0A"


@dataclass(frozen=True)
class Told:
    """What one run printed, logged and wrote, and to which addresses its processes listened."""

    code: int
    printed: str
    logs: dict[str, bytes]
    objects: dict[str, bytes]
    secrets: tuple[str, ...]
    listened: set[str]


@pytest.fixture(scope="module")
def told(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Run over a scene behind a presigned address, and two that fail: a wrong signature, a password."""
    bucket, folder = s3.new_bucket(), tmp_path_factory.mktemp("scenes")
    scene = paint_scene(make_scene("nuclei", 60, 1), folder / "scene.tif")
    s3.client().upload_file(str(scene), bucket, "in/scene.tif")
    signed = s3.client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": "in/scene.tif"})
    signature = signed.partition("Signature=")[2].partition("&")[0]
    forged = signed.replace("scene.tif", "other.tif")
    guarded = s3.endpoint_url.replace("http://", f"http://user:{PASSWORD}@") + f"/{bucket}/in/guarded.tif"
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets lie in it, and their paths must be short
    command = [sys.executable, "-m", "segworker.cli", "run", signed, forged, guarded, "--model", PERFECT]
    command += ["--output", f"s3://{bucket}/store", "--address", "local", "--cpus", "2", "--log-level", "debug"]
    variables = {"RAY_TMPDIR": temporary, "PYTHONPATH": str(ROOT), **s3.env()}
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with (folder / "printed").open("wb") as sink:
        copy = subprocess.Popen(["cat"], stdin=process.stdout, stdout=sink)
        listened = set[str]()
        while process.poll() is None:
            listened |= addresses(process.pid)
            time.sleep(0.2)
        copy.wait()
    assert process.stdout
    process.stdout.close()
    logs = {str(p): p.read_bytes() for p in Path(temporary).rglob("*") if p.is_file()}
    client, objects = s3.client(), {}
    for found in client.list_objects_v2(Bucket=bucket, Prefix="store/").get("Contents", []):
        objects[found["Key"]] = client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
    secrets = (s3.secret_key, signature, "Signature=", PASSWORD)
    yield Told(process.returncode, (folder / "printed").read_text(), logs, objects, secrets, listened)
    shutil.rmtree(temporary, ignore_errors=True)


def addresses(root: int) -> set[str]:
    """Return the addresses, in hex as /proc has them, at which a process and its descendants listen."""
    parents, sockets = {}, set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    mine = {root}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    for pid in mine:
        try:
            links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {fields[1].partition(":")[0] for fields in lines if fields[3] == LISTENS and fields[9] in sockets}


def readable(name: str, content: bytes) -> bytes:
    """Return what an object says, compressed or not."""
    if name.endswith(".gz"):
        return gzip.decompress(content)
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(content))
        return f"{table.schema.metadata} {table.to_pylist()}".encode() + content
    return content


def test_the_run_did_what_it_should(told: Told):
    assert told.code == 3, told.printed
    assert "1, 2 failed" in told.printed
    assert any(name.endswith("/run.json") for name in told.objects)
    assert any(name.startswith("store/features/part-") for name in told.objects)
    assert told.logs


@pytest.mark.parametrize("where", ["printed", "store", "Ray's logs"])
def test_no_secret_is_written_or_printed(told: Told, where: str):
    texts = {
        "printed": {"printed": told.printed.encode()},
        "store": {name: readable(name, content) for name, content in told.objects.items()},
        "Ray's logs": told.logs,
    }[where]
    leaks = [(name, secret) for name, text in texts.items() for secret in told.secrets if secret.encode() in text]
    assert leaks == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in /proc")
def test_servers_listen_to_this_machine_alone(told: Told):
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert told.listened, "Ray has servers"
    assert told.listened <= loopback


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_wrong_credentials_are_not_repeated(
    s3: S3Server,
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    bucket = s3.new_bucket()
    scene = paint_scene(make_scene("nuclei", 60, 1), tmp_path / "scene.tif")
    monkeypatch.setenv(variable, WRONG)
    run = ["run", str(scene), "--model", PERFECT, "--output", f"s3://{bucket}/store", "--log-level", "debug"]
    for command in (run, [*run[:1], f"s3://{bucket}/in/a.tif", *run[2:]], ["status", f"s3://{bucket}/store"]):
        assert cli.main(command) == 1
        captured = capfd.readouterr()
        assert "credentials" in captured.err
        assert WRONG not in captured.out + captured.err + caplog.text
