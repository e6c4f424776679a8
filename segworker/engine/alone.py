"""Tiles that failed, or whose process died under them: run again in a process of their own, a limited number of times.

A block whose predictor died takes its good tiles down with it. Here its planned batches run again one at a time, so
that they see the very batch they were planned in; only the batch that kills the process is taken apart, and its tiles
run alone. What is good is made durable as it comes; what fails `MAX_TRIES` times is given up.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from segworker.engine.child import Child, ChildDied
from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common
from segworker.engine.tiles import BlockReceipt, TileFailure, durable_tiles, save_block, tile_ids
from segworker.errors import StorageError
from segworker.io.shards import TileId, TileResult, shard_path

MAX_TRIES = 2
"Of one tile in processes of their own; one that runs alone into the time limit is not tried again."
MAX_LOADS = 2
"Children in a row that may die while they load the model."


def mend_block(task: BlockTask, common: Common, workers: Workers, tries: Mapping[TileId, int]) -> BlockReceipt:
    """Run what is missing of a block in processes of its own and make it durable.

    Args:
        task: the block; what its partial shard holds is done.
        common: what all tasks share.
        workers: device, precision and threads of a predictor.
        tries: how often each tile has been tried already.
    """
    begin = time.perf_counter()
    mending = _Mending(task, common, workers, tries)
    try:
        mending.run()
    finally:
        mending.close()
    return mending.receipt(time.perf_counter() - begin)


class _Mending:
    def __init__(self, task: BlockTask, common: Common, workers: Workers, tries: Mapping[TileId, int]) -> None:
        partial = shard_path(common.tile_key, task.block.key, partial=True)
        self.task = replace(task, partial=common.storage.head(partial) is not None)
        self.common, self.workers, self.before = common, workers, tries
        self.earlier = durable_tiles(self.task, common)
        self.fresh: dict[TileId, TileResult] = {}
        self.failures: dict[TileId, TileFailure] = {}
        self.tries: Counter[TileId] = Counter()
        self.bytes_read = self.shard_bytes = self.num_halved = self.failed_loads = 0
        missing = [i for i in tile_ids(task) if i not in self.earlier]
        self.queue: deque[list[TileId]] = deque([missing] if missing else [])
        self.child: Child | None = None

    def run(self) -> None:
        """Attempt group after group until each tile is done or given up."""
        while self.queue:
            group = self.queue.popleft()
            try:
                child = self.child = self.child or Child(self.common, self.workers)
            except ChildDied as died:
                self._blame_load(group, died)
                continue
            self.failed_loads = 0
            self._attempt(child, group)
        self._save(complete=not self.failures)

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def receipt(self, seconds: float) -> BlockReceipt:
        """Return what became of the block."""
        found = self.fresh.values()
        return BlockReceipt(
            self.task.block.number,
            sum(r.status == "done" for r in found),
            sum(r.status != "done" for r in found),
            0,
            sum(len(r.instances) for r in found),
            tuple(self.failures[i] for i in tile_ids(self.task) if i in self.failures),
            {"alone": seconds},
            self.bytes_read,
            self.shard_bytes,
            self.num_halved,
        )

    def _attempt(self, child: Child, group: list[TileId]) -> None:
        """Run a group batch by batch; a death of the child blames the batch at work and puts off those behind it."""
        batches, stage, done = [group], "read", 0
        try:
            batches, skipped, failures, num_bytes = child.read(self.task, group)
            self.bytes_read += num_bytes
            self.fresh.update((r.tile_id, r) for r in skipped)
            for failure in failures:
                self._give_up(failure)
            while done < len(batches):
                stage = "predict"
                raised, halved = child.predict(done)
                self.num_halved += halved
                stage = "decode"
                results, refused = child.decode(done)
                done += 1
                self._settle(results, [*raised, *refused], more=done < len(batches))
                if raised and self.workers.device != "cpu":  # an error on the GPU may have left it unusable
                    self.close()
                    break
        except ChildDied as died:
            self.child = None
            self._blame(batches[done], stage, died)
            done += 1
        rest = [tile_id for batch in batches[done:] for tile_id in batch]
        if rest:
            self.queue.appendleft(rest)

    def _settle(self, results: Sequence[TileResult], failures: Sequence[TileFailure], *, more: bool) -> None:
        """Keep the results of a batch, durably where there is more to come that might end us."""
        self.fresh.update((r.tile_id, r) for r in results)
        for failure in failures:
            self._again(failure)
        if results and (more or self.queue):
            self._save(complete=False)

    def _blame(self, group: Sequence[TileId], stage: str, died: ChildDied) -> None:
        for tile_id in group:
            failure = TileFailure(tile_id, stage, str(died), died.trace)
            if died.timed_out and len(group) == 1:
                self._give_up(failure)
            else:
                self._again(failure)

    def _blame_load(self, group: list[TileId], died: ChildDied) -> None:
        self.failed_loads += 1
        if self.failed_loads < MAX_LOADS:
            self.queue.appendleft(group)
            return
        for tile_id in [*group, *(i for other in self.queue for i in other)]:
            self._give_up(TileFailure(tile_id, "load", str(died), died.trace))
        self.queue.clear()

    def _again(self, failure: TileFailure) -> None:
        """Put a tile behind all others to run alone, or give it up."""
        if self.tries[failure.tile_id] + 1 >= MAX_TRIES:
            self._give_up(failure)
        else:
            self.tries[failure.tile_id] += 1
            self.queue.append([failure.tile_id])

    def _give_up(self, failure: TileFailure) -> None:
        tile_id = failure.tile_id
        self.failures[tile_id] = replace(failure, tries=self.before.get(tile_id, 0) + self.tries[tile_id] + 1)

    def _save(self, *, complete: bool) -> None:
        """Make what is new durable; where that fails at the end, it is not done."""
        try:
            self.shard_bytes = save_block(self.task, self.common, list(self.fresh.values()), complete=complete)
            self.task = replace(self.task, partial=self.shard_bytes > 0)
        except StorageError as error:
            if self.queue:
                return  # the last word is the last write
            self.failures.update((i, TileFailure.of(i, "write", error)) for i in self.fresh)
            self.fresh, self.shard_bytes = {}, 0
