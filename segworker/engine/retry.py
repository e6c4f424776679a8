"""Try again what a run gave up: its quarantined tiles and scenes, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from segworker.blocks import Block, SceneGrid, plan_blocks
from segworker.config import RETRIED
from segworker.engine.account import Account
from segworker.engine.harvest import missing_tiles, predict_job
from segworker.engine.job import Job, make_job
from segworker.engine.planned import configuration_of, job_of
from segworker.engine.restitch import changed, expired, find_run
from segworker.engine.run import RunSummary, carry_out, make_run_id
from segworker.errors import ConfigError, SceneError, StoreError
from segworker.io.quarantine import read_quarantine
from segworker.io.shards import TileId
from segworker.io.storage import Storage, open_storage
from segworker.io.table import read_scenes
from segworker.sources.identity import scene_identity

_log = logging.getLogger(__name__)


def retry(run: str, store: str, changes: Mapping[str, object]) -> RunSummary:
    """Predict the quarantined tiles of a run again, read its failed scenes again, and commit these scenes anew.

    Args:
        run: a run id, or 'latest' for the newest run whose tile results are kept.
        store: folder or s3:// prefix of the store.
        changes: options by name, of those in RETRIED, as text or already parsed; what is not among them stays as the
            run had it.

    Raises:
        ConfigError: for options that cannot change, and where model or weights are not those of the run any more.
        StoreError: where there is no such run, or its tile results are not kept.
        SceneError: where no scene can be read this time either.
    """
    from segworker.engine.predictor import describe_model

    storage = open_storage(store)
    run_id, plan, record = find_run(storage, run)
    failed = read_quarantine(storage, run_id)
    if record["status"] != "done":
        raise StoreError(f"a run is tried again once it is committed, got {run_id}: {record['status']}; run it again")
    config = changed(configuration_of(plan), changes, store=storage.uri, allowed=RETRIED)
    wanted = _not_replaced(storage, set(failed["scene_id"].to_pylist()), record)
    if not wanted:
        return RunSummary(0, f"nothing of {run_id} is left to be tried again", dict(record))
    account = Account(retry_of=run_id)
    facts = describe_model(config.model.model, dict(config.model.model_options), config.model.weights)
    fresh = make_job(config, facts, make_run_id(account.started_at))
    if fresh.common.tile_key != plan["tile_key"]:
        raise ConfigError(
            f"what is tried again has the model and weights of its run, got others than those of {run_id}; "
            "run the whole command again"
        )
    planned = job_of(plan, config, run_id=fresh.common.run_id)
    job = narrowed(fresh, planned, wanted)
    if not job.scenes:
        raise SceneError("; ".join(f"{f.scene_id}: {f.error}" for f in job.failures[:5]))
    given_up = {(row["scene_id"], row["row"], row["col"]) for row in failed.to_pylist()}
    _check_kept(job, {b.key for b in planned.blocks}, given_up, run_id)
    return carry_out(job, account, predict_job)


def narrowed(fresh: Job, planned: Job, wanted: set[str]) -> Job:
    """Return the job of some scenes alone, their tiles in the blocks of the earlier plan.

    Args:
        fresh: of the same configuration, as the scenes are now.
        planned: as the earlier run planned it.
        wanted: ids of scenes; those that are gone are left out, those that changed since are planned anew.
    """
    scenes = {i: s for i, s in fresh.scenes.items() if i in wanted}
    known = {i: scene_identity(planned.scenes[i]) for i in wanted & set(planned.scenes)}
    same = {i for i, s in scenes.items() if known.get(i) == scene_identity(s) and fresh.grids[i] == planned.grids[i]}
    kept = [(b, tuple(r for r in b.ranges if r.scene_id in same)) for b in planned.blocks]
    blocks = [(b.key, ranges, len(ranges) < len(b.ranges)) for b, ranges in kept if ranges]
    num_bands = fresh.common.model.spec.num_bands
    anew = [
        SceneGrid(fresh.grids[i], scene_identity(s), num_bands * np.dtype(s.dtype).itemsize)
        for i, s in scenes.items()
        if i not in same
    ]
    blocks += [(b.key, b.ranges, False) for b in plan_blocks(anew)]
    return replace(
        fresh,
        scenes=scenes,
        grids={i: fresh.grids[i] for i in scenes},
        blocks=tuple(Block(number, key, ranges) for number, (key, ranges, _) in enumerate(blocks)),
        failures=tuple(f for f in fresh.failures if f.scene_id in wanted),
        narrowed=frozenset(number for number, (_, _, part) in enumerate(blocks) if part),
    )


def _not_replaced(storage: Storage, wanted: set[str], record: Mapping[str, Any]) -> set[str]:
    """Return the scenes of which no later run has committed another version."""
    begun = datetime.fromisoformat(record["started_at"])
    rows: pa.Table = read_scenes(storage)
    later = {
        row["scene_id"]
        for row in rows.select(["scene_id", "run_id", "committed_at"]).to_pylist()
        if row["scene_id"] in wanted and row["run_id"] != record["run_id"] and row["committed_at"] > begun
    }
    if later:
        _log.warning("%d scenes are left as a later run has committed them: %s", len(later), ", ".join(sorted(later)))
    return wanted - later


def _check_kept(job: Job, planned: set[str], given_up: set[TileId], run_id: str) -> None:
    """Refuse to predict tiles that the run did have."""
    lost = [
        tile_id
        for block in job.blocks
        if block.key in planned
        for tile_id in missing_tiles(job, block)
        if tile_id not in given_up
    ]
    if lost:
        raise expired(run_id, f"{len(lost)} tiles that were good are missing")
