"""Phase 1 on Ray Data: read (tasks) -> predict (a fixed pool of actors) -> decode and write shards (tasks).

A row is a block of tiles, pickled: Ray moves it between stages without looking inside, and each stage hands on only
what the next one needs. Ray Data's own checkpoints and writers are not used: docs/design/durability.md says why.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import ray
import ray.data
from ray._private.state import actors
from ray._private.worker import global_worker
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError

from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common, ModelFacts
from segworker.engine.tiles import BlockReceipt, BlockWork, decode_block, read_block
from segworker.io.shards import TileId
from segworker.killpoints import reached

_log = logging.getLogger(__name__)

MAX_RETRIES = 1
"Of one block whose predictor died under it; after that its batches run in processes of their own."
MAX_RESTARTS = 16
"Of one predictor process that dies, besides those that its blocks may cause."
MEND_RETRIES = 2
"Of the mending of one block, where a node is lost; it goes on from what is durable."
Row: TypeAlias = dict[str, Any]


def predict_blocks(tasks: Sequence[BlockTask], common: Common, workers: Workers) -> Iterator[BlockReceipt]:
    """Yield a receipt for each block as its shard becomes durable, in no particular order."""
    if not tasks:
        return
    context = DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    context.print_on_execution_start = False
    context.target_max_block_size = None
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    shared = ray.put(common)
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    plan: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    plan = plan.map(_read, fn_kwargs={"shared": shared}, compute=TaskPoolStrategy(), num_cpus=1)
    with warnings.catch_warnings():  # these limits have no named parameter yet, and Ray warns of all others
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        plan = plan.map(
            _Predict,
            fn_constructor_args=(common.model, workers, common.tile_timeout_s),
            compute=ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus_each,
            num_gpus=workers.gpus_each or None,
            # Ray Data's defaults are without end. A pool whose actors have used up their restarts waits for ever, so
            # there are more of them than blocks can cause. A limit of any kind also keeps readers out of the actor.
            max_restarts=MAX_RESTARTS + (1 + MAX_RETRIES) * len(tasks),
            max_task_retries=MAX_RETRIES,
        )
    plan = plan.map(_decode, fn_kwargs={"shared": shared}, compute=TaskPoolStrategy(), num_cpus=1)
    try:
        for row in plan.iter_rows():
            yield pickle.loads(row["receipt"])
    finally:
        _end_predictors()


def _end_predictors() -> None:
    """End the predictors of this process's runs.

    Ray Data lets go of them and leaves the rest to the counting of references. One that was restarted after a crash can
    live on by that, with its CPUs or its GPU, and the next run of the same process would wait for them for ever.
    """
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    core: Any = global_worker.core_worker  # type: ignore[attr-defined]
    for actor_id, told in actors(job_id=job).items():
        if _Predict.__name__ in told["ActorClassName"] and told["State"] != "DEAD":
            with suppress(ValueError):  # where this process has no handle of it, nobody has
                core.kill_actor(ray.ActorID.from_hex(actor_id), True)


def mend_blocks(
    tasks: Sequence[tuple[BlockTask, Mapping[TileId, int]]], common: Common, workers: Workers
) -> Generator[BlockReceipt, None, None]:
    """Yield a receipt for each block that was run again in processes of its own, as many at once as there are workers.

    Args:
        tasks: block, and how often each of its missing tiles has been tried.
        common: what all tasks share.
        workers: the resources of a predictor, which each block gets.

    A block whose task died as well is left out. Closing the iterator ends what is at work.
    """
    shared = ray.put(common)
    mend = _mend.options(num_cpus=workers.cpus_each, num_gpus=workers.gpus_each or None)
    waiting, pending = list(reversed(tasks)), set[ray.ObjectRef[bytes]]()
    try:
        while waiting or pending:
            while waiting and len(pending) < workers.count:
                task, tries = waiting.pop()
                pending.add(mend.remote(pickle.dumps(task), shared, workers, dict(tries)))
            ready, _ = ray.wait(list(pending))
            pending -= set(ready)
            try:
                yield pickle.loads(ray.get(ready[0]))
            except RayError as error:
                _log.warning("a block could not be run again: %s", str(error).splitlines()[0])
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


@ray.remote(max_retries=MEND_RETRIES)
def _mend(task: bytes, shared: Common, workers: Workers, tries: dict[TileId, int]) -> bytes:
    from segworker.engine.alone import mend_block

    return pickle.dumps(mend_block(pickle.loads(task), shared, workers, tries))


def _read(row: Row, shared: ray.ObjectRef[Common]) -> Row:
    return {"work": pickle.dumps(read_block(pickle.loads(row["task"]), _got(shared)), protocol=5)}


class _Predict:
    def __init__(self, facts: ModelFacts, workers: Workers, tile_timeout_s: float) -> None:
        from segworker.engine.predictor import Predictor  # torch is for this process alone

        self.predictor = Predictor(
            facts,
            precision=workers.precision,
            device=workers.device,
            threads=workers.threads,
            tile_timeout_s=tile_timeout_s,
        )

    def __call__(self, row: Row) -> Row:
        work: BlockWork = pickle.loads(row["work"])
        reached("predict")
        self.predictor.predict(work)
        return {"work": pickle.dumps(work, protocol=5)}


def _decode(row: Row, shared: ray.ObjectRef[Common]) -> Row:
    receipt = decode_block(pickle.loads(row["work"]), _got(shared))
    reached("shard")
    return {"receipt": pickle.dumps(receipt)}


def _got(shared: ray.ObjectRef[Common] | Common) -> Common:
    """Return the object, whether or not Ray has fetched it already."""
    return ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
