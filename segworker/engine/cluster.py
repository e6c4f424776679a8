"""Where a run runs: joining or starting Ray, and how many predictors it gets."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants

from segworker.config import JobConfig
from segworker.engine.job import Precision
from segworker.errors import ConfigError, SegworkerError

STARTS = 3
"Attempts to start a local Ray."


@dataclass(frozen=True, slots=True)
class Workers:
    """The pool of predictors."""

    count: int
    cpus_each: float
    gpus_each: float
    threads: int
    "Torch threads of each: Ray allows its workers one only, so it is set."
    device: str
    precision: Precision


@contextmanager
def cluster(config: JobConfig) -> Iterator[None]:
    """Join the cluster of this job, of RAY_ADDRESS or of `--address`; otherwise start a local Ray and stop it again."""
    if ray.is_initialized():
        yield
        return
    address = config.engine.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": config.engine.log_level == "debug", "logging_level": logging.ERROR}
    if address in (None, "local"):
        # Where the driver runs in `uv run`, Ray would run every worker through it too, in a copy of the working
        # directory: slow, it may ask the network, and modules beside the script are not found. Ray reads the variable
        # of this name when it is imported, which a script may have done before us. In a cluster's job Ray's way stays.
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
        # By this machine's address Ray's servers would listen to the whole network, and it replaces a loopback address
        # that it is given by that one, unless it knows that no other machine will join, as by default on macOS.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine is slow, not broken
        if config.engine.log_level != "debug":  # its own remarks go to the terminal; errors of tasks still come to us
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        _start(num_cpus=config.engine.cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(
                f"--address must be a running Ray cluster, got {address!r} ({error}); start it"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:  # noqa: ANN401 - Ray's own
    """Start a local Ray. Its daemons give each other seconds to come up, and die where a busy machine takes longer."""
    for tries_left in reversed(range(STARTS)):
        try:
            ray.init(address="local", **options)
        except Exception as error:  # Ray raises a bare one
            ray.shutdown()
            if not tries_left:
                raise SegworkerError(
                    f"a local Ray must start, got {error} in {STARTS} attempts; try again when the machine is less "
                    "busy, or name a cluster by --address"
                ) from error
        else:
            return


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has, by resource name."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def choose_workers(config: JobConfig) -> Workers:
    """Size the pool from the flags and what the cluster has: a process for each GPU, else one for every four CPUs."""
    resources = cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    use_gpu = config.model.device != "cpu" and gpus > 0
    gpus_each = config.engine.gpus_per_worker if config.engine.gpus_per_worker is not None else float(use_gpu)
    if gpus_each > 0 and gpus < gpus_each:
        raise ConfigError(f"a worker needs {gpus_each:g} GPUs, got {gpus:g} in the cluster; lower --gpus-per-worker")
    fitting = int(gpus / gpus_each) if gpus_each else max(1, cpus // 4)
    count = config.engine.workers or max(1, fitting)
    precision: Precision = "fp32" if config.model.precision == "auto" else config.model.precision
    device = "cuda" if gpus_each else ("cpu" if config.model.device == "auto" else config.model.device)
    cpus_each = 1.0 if cpus > count else cpus / (2 * count)  # readers and decoders need a CPU beside them
    return Workers(count, cpus_each, gpus_each, max(1, cpus // count), device, precision)
