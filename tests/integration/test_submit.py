"""The same job on local files, on a real S3 server, and submitted to a real Ray head: the same features."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import rasterio

from segworker import cli
from segworker.io.storage import open_storage
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.painted import PERFECT, features, scenes, segment

ROOT = Path(__file__).resolve().parents[2]
GRID = {"tile": 160, "overlap": 32}
SAME = [
    "feature_id",
    "scene_id",
    "class_id",
    "class_name",
    "score",
    "area_px",
    "area_m2",
    "seam",
    "num_tiles",
    "geometry",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    (folder / "deep").mkdir()
    for k, (kind, shape_yx, path) in enumerate(
        (("aerial", (411, 390), "one.tif"), ("roads", (300, 512), "deep/two.tif"))
    ):
        place = rasterio.Affine(0.5, 0, 400_000 + 1000 * k, 0, -0.5, 30_000)
        paint_scene(make_scene(kind, shape_yx, k), folder / path, crs="EPSG:32636", transform=place)
    return folder


@pytest.fixture(scope="module")
def local(folder: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    del local_ray  # is running now
    store = tmp_path_factory.mktemp("local") / "store"
    assert segment(store, folder, **GRID).exit_code == 0
    found = features(store)
    assert len(found) > 50
    return found.select(SAME)


@pytest.fixture(scope="module")
def uploaded(s3, folder: Path) -> str:
    bucket = s3.new_bucket()
    for path in sorted(folder.rglob("*.tif")):
        s3.client().upload_file(str(path), bucket, f"in/{path.relative_to(folder).as_posix()}")
    return f"s3://{bucket}"


def test_s3_gives_what_local_files_give(local: pa.Table, uploaded: str) -> None:
    store = f"{uploaded}/stores/one"
    summary = segment(store, f"{uploaded}/in", overview=1, **GRID)
    assert summary.exit_code == 0, summary.text
    assert features(store).select(SAME).equals(local)
    again = segment(store, f"{uploaded}/in/**/*.tif", **GRID).record
    assert again["counts"]["tiles_predicted"] == 0
    assert features(store).select(SAME).equals(local)
    storage = open_storage(store)
    records = [info.path for info in storage.list() if info.path.endswith("run.json")]
    assert {json.loads(storage.read(path))["exit_code"] for path in records} == {0}
    assert len(records) == 2


def test_no_secret_is_written(
    s3,
    local: pa.Table,
    uploaded: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A presigned URL holds a key and a signature; the run reads by it and records neither."""
    del local  # it has started Ray
    bucket = uploaded.removeprefix("s3://")
    url = s3.client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "in/one.tif"})
    assert "Signature" in url
    store = tmp_path / "store"
    summary = segment(store, url, **GRID)
    assert summary.exit_code == 0, summary.text
    assert len(features(store)) > 10
    (row,) = scenes(store).values()
    assert row["uri"] == url.partition("?")[0]
    for path in store.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"Signature", s3.secret_key.encode(), s3.access_key.encode()):
                assert secret not in content, f"{secret!r} in {path.name}"
    caplog.clear()
    assert cli.main(["run", url.replace("Signature=", "Signature=x"), "--model", PERFECT, "--output", str(store)]) == 2
    assert "403" in (told := capsys.readouterr().err)
    assert "Signature" not in told + caplog.text


# -- ray job submit --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    address: str
    temp: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def head(s3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head of its own, on free ports of this machine, whose environment knows the S3 server."""
    del s3  # its variables are in this process's environment now
    log_path = tmp_path_factory.mktemp("head") / "log.txt"
    temp = Path(tempfile.mkdtemp(prefix="sw-ray-"))  # short: Ray's sockets lie below it
    env = _environment()
    ports = _free_ports(5)
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={ports[0]}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports[1]}",
        f"--ray-client-server-port={ports[2]}",
        f"--dashboard-agent-listen-port={ports[3]}",
        f"--metrics-export-port={ports[4]}",
        "--num-cpus=2",
        "--object-store-memory=300000000",
        f"--temp-dir={temp}",
        "--disable-usage-stats",
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=temp, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{ports[1]}"
        _wait_until_up(address, process, log_path)
        yield Head(address, temp, env)
    finally:
        _stop(process, temp)


def _environment() -> dict[str, str]:
    """Return an environment for Ray: this interpreter is `python`, no token, nothing of the Ray of this process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SEGWORKER_"))}
    env.pop("PYTHONPATH", None)
    return env | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"Ray did not start:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes], temp: Path) -> None:
    """Stop the head and what it started: `ray stop` would stop every Ray of this machine."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in _below(temp):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(temp, ignore_errors=True)


def _below(temp: Path) -> list[int]:
    """Return the processes that were started with this head's folder in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(temp) in arguments and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def _free_ports(count: int) -> list[int]:
    import socket
    from contextlib import ExitStack

    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def submit(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.address),
        *("--working-dir", ".", "--", "python", "pipelines/segment_tiles.py", *arguments),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.timeout(600)
def test_a_submitted_job_gives_what_local_files_give(head: Head, local: pa.Table, uploaded: str) -> None:
    store = f"{uploaded}/stores/submitted"
    flags = [f for key, value in GRID.items() for f in (f"--{key}", str(value))]
    done = submit(head, f"{uploaded}/in/", "--output", store, "--model", PERFECT, *flags)
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{len(local):,} " in done.stdout, "the summary reaches who submitted it"
    assert features(store).select(SAME).equals(local)
    runs = {row["run_id"] for row in scenes(store).values()}
    assert len(runs) == 1
    assert re.search(rf"run\s+{runs.pop()}", done.stdout)

    copies = list((head.temp / "session_latest" / "runtime_resources" / "working_dir_files").glob("_ray_pkg_*/"))
    assert len(copies) == 1
    names = {
        path.relative_to(copies[0]).as_posix(): path.stat().st_size
        for path in copies[0].rglob("*")
        if path.is_file() and "__pycache__" not in path.parts  # what ran there compiled itself
    }
    assert {"pyproject.toml", "pipelines/segment_tiles.py", "segworker/cli.py"} <= set(names)
    assert not any(name.startswith(("tests/", "docs/", ".git/", ".venv/")) for name in names)
    assert sum(size for name, size in names.items() if not name.endswith(".safetensors")) < 5e6, sorted(names)


@pytest.mark.timeout(600)
def test_a_job_that_cannot_run_fails(head: Head, uploaded: str) -> None:
    """Ray knows failed and not failed; the message says the rest."""
    failed = submit(head, f"{uploaded}/in/", "--output", "relative/store", "--model", PERFECT)
    assert failed.returncode == 1
    assert (
        "error: in a Ray job the output must outlive the job's working directory, got relative/store" in failed.stdout
    )
