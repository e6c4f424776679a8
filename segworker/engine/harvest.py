"""Phase 1 of a job: what is not durable is predicted, what failed is run again alone, what still fails is given up."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

from segworker.blocks import Block
from segworker.engine.account import Account
from segworker.engine.cluster import Workers, choose_workers
from segworker.engine.job import Job
from segworker.engine.phase1 import MAX_RETRIES, mend_blocks, predict_blocks
from segworker.engine.progress import Progress
from segworker.engine.record import announce
from segworker.engine.tiles import BlockReceipt, TileFailure, tile_ids
from segworker.errors import StorageError
from segworker.io.settings import keep_settings, why_not_used
from segworker.io.shards import TileId, durable_blocks, shard_path, tiles_in_shard
from segworker.io.storage import open_storage
from segworker.killpoints import reached

HOPELESS = 3
"Blocks in a row of which no tile could be mended, in a run that has no good tile: the rest is not tried."
_log = logging.getLogger(__name__)


def predict_job(job: Job, account: Account) -> tuple[Job, dict[int, int]]:
    """Make every tile of a job durable that can be; return the job knowing what is missing, and the shards' sizes.

    Raises:
        StorageError: where tiles failed and the store cannot be written to any more.
    """
    workers = account.workers = choose_workers(job.config)
    side = max((grid.tile_px for grid in job.grids.values()), default=1)
    account.meter.begin(tiles_per_batch=job.common.tiles_per_batch((side, side)), num_predictors=workers.count)
    storage = open_storage(job.common.store_uri)
    whole, partial = durable_blocks(storage, job.common.tile_key, (b.key for b in job.blocks))
    job = replace(job, partial=frozenset(b.number for b in job.blocks if b.key in partial))
    todo = [b for b in job.blocks if b.key not in whole]
    account.tiles["reused"] += sum(b.num_tiles for b in job.blocks if b.key in whole)
    keep_settings(storage, job.common.tile_key, job.settings)
    if not (whole or partial) and (reasons := why_not_used(storage, job.common.tile_key, job.settings)):
        _log.info("tile results of earlier runs with other settings are not used: %s", reasons)
    with account.timed("predict"):
        receipts = _predict(job, todo, workers, account)
        if any(f.stage in ("read", "write") for receipt in receipts.values() for f in receipt.failures):
            announce(job, account)  # where the store or the credentials are what failed, the run ends here, and says so
        job, receipts = _mend(job, todo, receipts, workers, account)
    if account.tiles["reused"]:
        _log.info("%d tiles of an earlier run with the same settings were used again", account.tiles["reused"])
    sizes = {b.number: whole[b.key] for b in job.blocks if b.key in whole}
    sizes |= {number: receipt.shard_bytes for number, receipt in receipts.items() if receipt.shard_bytes}
    failed = frozenset(number for number, receipt in receipts.items() if receipt.failures)
    lost = frozenset(b.number for b in job.blocks) - set(sizes)
    narrowed = job.narrowed & {b.number for b in todo}  # their shards stay partial: other scenes' tiles may be missing
    return replace(job, partial=(failed | narrowed) - lost, lost=lost), sizes


def _predict(job: Job, todo: list[Block], workers: Workers, account: Account) -> dict[int, BlockReceipt]:
    receipts: dict[int, BlockReceipt] = {}
    total = sum(b.num_tiles for b in todo)
    with Progress("predict", total, mode=job.config.engine.progress) as progress:
        for receipt in predict_blocks([job.task(b) for b in todo], job.common, workers):
            account.add(receipt)
            progress.add(job.blocks[receipt.number].num_tiles - len(receipt.failures), receipt.num_instances)
            receipts[receipt.number] = receipt
            reached("some-shards")
    return receipts


def _mend(
    job: Job, todo: list[Block], receipts: dict[int, BlockReceipt], workers: Workers, account: Account
) -> tuple[Job, dict[int, BlockReceipt]]:
    """Run again, in processes of their own, the tiles that failed and the blocks whose process died."""
    broken = [b for b in todo if b.number not in receipts or receipts[b.number].failures]
    tries = {b.number: _tries(job, b, receipts.get(b.number)) for b in broken}
    if not broken:
        return job, receipts
    total = sum(len(of_block) for of_block in tries.values())
    _log.warning("%d tiles of %d blocks failed; they are run again in processes of their own", total, len(broken))
    mended: dict[int, BlockReceipt] = {}
    with (
        Progress("run again", total, mode=job.config.engine.progress) as progress,
        closing(mend_blocks([(job.task(b), tries[b.number]) for b in broken], job.common, workers)) as found,
    ):
        for receipt in found:
            account.add(receipt)
            account.fail(receipt.failures)
            mended[receipt.number] = receipt
            progress.add(len(tries[receipt.number]), receipt.num_instances)
            if _hopeless(job, account, mended):
                break
    for block in broken:
        if block.number not in mended:
            mended[block.number] = _unmended(job, block, receipts.get(block.number))
            account.fail(mended[block.number].failures)
    return job, receipts | mended


def _hopeless(job: Job, account: Account, mended: dict[int, BlockReceipt]) -> bool:
    """Whether more tiles failed than the run may lose, or nothing at all has worked."""
    limit = job.config.engine.max_failed_tiles
    if limit is not None and limit.exceeded(account.tiles["failed"], job.num_tiles):
        return True
    return len(mended) >= HOPELESS and not account.tiles["done"] + account.tiles["skipped"] + account.tiles["reused"]


def _tries(job: Job, block: Block, receipt: BlockReceipt | None) -> dict[TileId, int]:
    if receipt is not None:
        return {f.tile_id: f.tries for f in receipt.failures}
    return dict.fromkeys(missing_tiles(job, block), 1 + MAX_RETRIES)


def _unmended(job: Job, block: Block, receipt: BlockReceipt | None) -> BlockReceipt:
    """Return the receipt of a block that was not run again to its end: what its partial shard lacks has failed."""
    known = {f.tile_id: f for f in receipt.failures} if receipt is not None else {}
    died = "the processes that worked on it died"
    missing = list(missing_tiles(job, block))
    failures = [known.get(i) or TileFailure(i, "predict", died, "", 1 + MAX_RETRIES) for i in missing]
    held = block.num_tiles - len(missing)
    return BlockReceipt(block.number, 0, 0, 0, 0, tuple(failures), {}, 0, held)


def missing_tiles(job: Job, block: Block) -> list[TileId]:
    """Return the tiles that neither a whole nor a partial shard of a block holds."""
    storage, task = open_storage(job.common.store_uri), job.task(block)
    found: set[TileId] = set()
    for partial in (False, True):
        path = shard_path(job.common.tile_key, block.key, partial=partial)
        try:
            found |= tiles_in_shard(storage, path) if storage.head(path) else set()
        except StorageError:  # it went while we looked
            continue
    return [i for i in tile_ids(task) if i not in found]
