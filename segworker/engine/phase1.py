"""Phase 1 on Ray Data: read (tasks) -> predict (a fixed pool of actors) -> decode and write shards (tasks).

A row is a block of tiles, pickled: Ray moves it between stages without looking inside, and each stage hands on only
what the next one needs. Ray Data's own checkpoints and writers are not used: docs/design/durability.md says why.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common, ModelFacts, Precision
from segworker.engine.tiles import BlockReceipt, BlockWork, decode_block, read_block
from segworker.killpoints import reached

MAX_RESTARTS = 16
"Of one predictor process that dies."
MAX_RETRIES = 2
"Of one block whose predictor died under it."
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
            fn_constructor_args=(common.model, workers.precision, workers.device, workers.threads),
            compute=ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus_each,
            num_gpus=workers.gpus_each or None,
            max_restarts=MAX_RESTARTS,  # Ray Data's own default is without end; it also keeps readers out of the actor
            max_task_retries=MAX_RETRIES,
        )
    plan = plan.map(_decode, fn_kwargs={"shared": shared}, compute=TaskPoolStrategy(), num_cpus=1)
    for row in plan.iter_rows():
        yield pickle.loads(row["receipt"])


def _read(row: Row, shared: ray.ObjectRef[Common]) -> Row:
    return {"work": pickle.dumps(read_block(pickle.loads(row["task"]), _got(shared)), protocol=5)}


class _Predict:
    def __init__(self, facts: ModelFacts, precision: Precision, device: str, threads: int) -> None:
        from segworker.engine.predictor import Predictor  # torch is for this process alone

        self.predictor = Predictor(facts, precision=precision, device=device, threads=threads)

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
