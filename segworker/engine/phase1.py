"""Phase 1 on Ray Data: read (tasks) -> predict (a fixed pool of actors) -> decode and write shards (tasks).

A row is a block of tiles, pickled: Ray moves it between stages without looking inside, and each stage hands on only what
the next one needs. Ray Data's own checkpoints and writers are not used: docs/design/durability.md says why.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common
from segworker.engine.tiles import BlockReceipt, BlockWork, decode_block, read_block

__all__ = ["predict_blocks"]
Row = dict[str, Any]


def predict_blocks(tasks: Sequence[BlockTask], common: Common, workers: Workers) -> Iterator[BlockReceipt]:
    """Yield a receipt for each block as its shard becomes durable, in no particular order."""
    if not tasks:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    shared = ray.put(common)
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    stages = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(_read, fn_kwargs={"shared": shared}, compute=TaskPoolStrategy(), num_cpus=1)
        .map(
            _Predict,
            fn_constructor_args=(shared, workers.precision, workers.device, workers.threads),
            compute=ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus_each,
            num_gpus=workers.gpus_each or None,
        )
        .map(_decode, fn_kwargs={"shared": shared}, compute=TaskPoolStrategy(), num_cpus=1)
    )
    for row in stages.iter_rows():
        yield pickle.loads(row["receipt"])


def _read(row: Row, shared: ray.ObjectRef[Common]) -> Row:
    return {"work": pickle.dumps(read_block(pickle.loads(row["task"]), _got(shared)), protocol=5)}


class _Predict:
    def __init__(self, shared: ray.ObjectRef[Common], precision: str, device: str, threads: int) -> None:
        from segworker.engine.predictor import Predictor

        self.predictor = Predictor(_got(shared).model, precision=precision, device=device, threads=threads)

    def __call__(self, row: Row) -> Row:
        work: BlockWork = pickle.loads(row["work"])
        self.predictor.predict(work)
        return {"work": pickle.dumps(work, protocol=5)}


def _decode(row: Row, shared: ray.ObjectRef[Common]) -> Row:
    return {"receipt": pickle.dumps(decode_block(pickle.loads(row["work"]), _got(shared)))}


def _got(shared: ray.ObjectRef[Common] | Common) -> Common:
    """Return the object, whether or not Ray has fetched it already."""
    return ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
