"""Training on Ray Train: one worker on a laptop, one for each GPU of a cluster.

Ray starts the workers, joins them into a process group, and starts them again when one dies; `train.fit` goes on from
the checkpoints in the store then. Figures reach TensorBoard through Ray Train's callbacks, in the controller's process.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback

from segworker import errors
from segworker.config_load import from_dict
from segworker.engine.cluster import cluster, cluster_resources
from segworker.errors import ConfigError, SegworkerError, StorageError, TrainingError
from segworker.io.storage import open_storage
from segworker.train.fit import LOG, FitPlan, fit, read_latest
from segworker.train.team import Team

FOLLOW_S = 2.0
FAILURE = "failure.json"
"What ended a training that trying again would end too."


def train(
    plan: FitPlan,
    *,
    workers: int | None = None,
    address: str | None = None,
    cpus: int | None = None,
    max_failures: int = 3,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a plan on a cluster and return what train.json says.

    Args:
        plan: what to train.
        workers: that train together; default: one for each GPU, else one.
        address: of a cluster; default: this job's, else a local Ray.
        cpus: of a local Ray.
        max_failures: deaths of workers after which it is given up.
        tensorboard: write events below the output, a local folder.
        log: receives the lines that the first worker tells.

    Raises:
        ConfigError, TrainingError, StorageError: as `fit`.
    """
    callbacks: list[UserCallback] = [TensorBoard(plan.output)] if tensorboard else []
    engine = {"address": address, "cpus": cpus}
    config = from_dict({"engine": {name: value for name, value in engine.items() if value is not None}})
    with cluster(config), tempfile.TemporaryDirectory(prefix="segworker-train-") as folder:
        from ray.train.torch import TorchTrainer

        gpus = int(cluster_resources().get("GPU", 0)) if plan.device != "cpu" else 0
        trainer = TorchTrainer(
            _work,
            train_loop_config={"plan": plan},
            scaling_config=ScalingConfig(num_workers=workers or max(1, gpus), use_gpu=gpus > 0),
            run_config=RunConfig(
                name="train",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=callbacks,  # type: ignore[arg-type]  # as the annotation of Tune's has it
            ),
        )
        open_storage(plan.output).delete([FAILURE])
        with _followed(plan.output, log):
            try:
                trainer.fit()
            except Exception as error:
                raise _cause(error) from error
    return _record(plan)


def _work(config: dict[str, Any]) -> None:
    """Train in a worker. An error that trying again cannot mend is told through the store, not by dying."""
    plan: FitPlan = config["plan"]
    team = RayTeam()
    try:
        fit(plan, team, log=_silent)
    except SegworkerError as error:
        if team.size > 1:
            raise  # the others wait for this worker: Ray ends them
        told = {"kind": type(error).__name__, "message": str(error)}
        open_storage(plan.output).write(FAILURE, json.dumps(told).encode())


def _silent(_: str) -> None:
    """Leave a line to the log in the store, which the driver follows."""


@contextmanager
def _followed(output: str, log: Callable[[str], None]) -> Iterator[None]:
    """Tell the lines that are added to a training's log while the block runs."""
    storage, ended = open_storage(output), threading.Event()

    def lines() -> list[str]:
        with suppress(StorageError):
            return storage.read(LOG).decode().splitlines() if storage.head(LOG) is not None else []
        return []

    told = len(lines())

    def follow() -> None:
        nonlocal told
        while True:
            last = ended.wait(FOLLOW_S)
            for line in lines()[told:]:
                log(line)
                told += 1
            if last:
                return

    thread = threading.Thread(target=follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class RayTeam(Team):
    """Workers that Ray Train has joined."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Hand figures to Ray Train, which hands them to its callbacks; all workers call it together."""
        import ray.train

        ray.train.report(dict(metrics))


class TensorBoard(UserCallback):
    """Writes every figure that the first worker reports as a TensorBoard scalar."""

    def __init__(self, output: str) -> None:
        if "://" in output and not output.startswith("file://"):
            raise ConfigError(f"TensorBoard's events are written to a local folder, got {output}; leave it out")
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("--tensorboard needs the package tensorboard; install segworker[train]")
        self.folder = str(Path(output.removeprefix("file://")) / "tensorboard")
        self.writer: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401, ARG002 - Ray's interface
        """Write one report."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder)
        figures = dict(metrics[0])
        step = int(figures.pop("step", 0))
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


def _cause(error: BaseException) -> SegworkerError:
    """Return the error of ours that ended a training, or a TrainingError that names what did."""
    failures = getattr(error, "worker_failures", None) or getattr(error, "_worker_failures", None) or {}
    for failure in [*failures.values(), error, error.__cause__]:
        found = getattr(failure, "_base_exc", failure)
        if isinstance(found, SegworkerError):
            return found
    told = next((line for line in reversed(str(error).splitlines()) if line.strip(" ^")), type(error).__name__)
    return TrainingError(f"a training's workers must live, got {told.strip()[:300]}; see the logs of Ray's workers")


def _record(plan: FitPlan) -> dict[str, Any]:
    storage = open_storage(plan.output)
    if storage.head(FAILURE) is not None:
        told = json.loads(storage.read(FAILURE))
        raise getattr(errors, told["kind"], TrainingError)(told["message"])
    if read_latest(storage) is None:
        raise TrainingError(f"a training leaves checkpoints, got none in {storage.uri}; see the log of the workers")
    record: dict[str, Any] = json.loads(storage.read("train.json"))
    return record
