"""Stitch the tile results of a run again, with other thresholds: no scene is read and no model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from segworker.config import AFTER_TILES, JobConfig, leaves
from segworker.config_load import flag, from_dict
from segworker.engine.account import Account
from segworker.engine.job import Job
from segworker.engine.planned import configuration_of, job_of, read_plan
from segworker.engine.run import RunSummary, TileResults, carry_out, make_run_id
from segworker.engine.tiles import TileFailure
from segworker.errors import ConfigError, StoreError
from segworker.io.shards import durable_blocks, shard_path, tiles_in_shard
from segworker.io.storage import Storage, open_storage

_PLAN = re.compile(r"work/[^/]+/plan-(.+)\.json\.gz")
_OF_RUN = ("name", "notes")
"Options that a run does not hand on."


def stitch(run: str, store: str, changes: Mapping[str, object]) -> RunSummary:
    """Stitch the kept tile results of a run again and commit the features in place of the scenes' older ones.

    Args:
        run: a run id, or 'latest' for the newest run whose tile results are kept.
        store: folder or s3:// prefix of the store.
        changes: options by name, of those in AFTER_TILES, as text or already parsed; what is not among them stays as
            the run had it.

    Raises:
        ConfigError: for options that cannot change any more.
        StoreError: where there is no such run, or its tile results are not kept.
    """
    storage = open_storage(store)
    run_id, plan, record = find_run(storage, run)
    config = changed(configuration_of(plan), changes, store=storage.uri)
    account = Account(stitched_from=run_id)
    job = job_of(plan, config, run_id=make_run_id(account.started_at))
    return carry_out(job, account, _kept_tiles(run_id, record))


def changed(
    config: JobConfig, changes: Mapping[str, object], *, store: str, allowed: Collection[str] = AFTER_TILES
) -> JobConfig:
    """Return a run's configuration with changes; what it ran on is not handed on.

    Raises:
        ConfigError: for an option that tile results depend on, and for values that are not usable.
    """
    for name, value in changes.items():
        if name not in allowed:
            raise ConfigError(
                f"{flag(name)} is part of the tile results and cannot change any more, got {value}; "
                "give it to `segworker run`, which predicts the tiles again"
            )
    tree: dict[str, dict[str, object]] = {name: {**keys} for name, keys in config.as_dict().items()}
    del tree["engine"]
    for name in _OF_RUN:
        del tree["output"][name]
    tree["output"]["output"] = store
    for name, value in changes.items():
        section = leaves()[name][0]
        tree.setdefault(section, {})[name] = value
    return from_dict(tree)


def find_run(storage: Storage, run: str) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
    """Return (run id, plan, run.json); of a killed run, run.json may be gone already."""
    plans = {match[1]: info.path for info in storage.list("work") if (match := _PLAN.fullmatch(info.path))}
    if run == "latest" and plans:
        run = max(plans)
    path = f"runs/{run}/run.json"
    if run not in plans and (storage.head(path) is not None or (run == "latest" and any(storage.list("runs")))):
        raise expired(run, "nothing of them is there")
    if run not in plans:
        near = f"the newest are {', '.join(sorted(plans)[-3:])}" if plans else "there is no run"
        raise StoreError(f"a run is named by its id, or latest, got {run!r} in {storage.uri}; {near}: check the path")
    record = json.loads(storage.read(path)) if storage.head(path) is not None else {"status": "killed"}
    return run, read_plan(storage, plans[run]), record


def expired(run_id: str, found: str) -> StoreError:
    """Return the error for tile results that are not there any more."""
    return StoreError(
        f"this needs the tile results of {run_id}, got: {found}; they are kept for --keep-work after a "
        "complete run, so raise it and run again"
    )


def _kept_tiles(run_id: str, record: Mapping[str, Any]) -> TileResults:
    """Return what gives the job as its shards are."""

    def tile_results(job: Job, account: Account) -> tuple[Job, dict[int, int]]:
        storage = open_storage(job.common.store_uri)
        whole, partial = durable_blocks(storage, job.common.tile_key, (b.key for b in job.blocks))
        sizes = {b.number: size for b in job.blocks if (size := (whole | partial).get(b.key)) is not None}
        job = replace(
            job,
            partial=frozenset(b.number for b in job.blocks if b.key in partial),
            lost=frozenset(b.number for b in job.blocks if b.number not in sizes),
        )
        account.fail(_missing(job, storage, run_id))
        num_missing = len(account.failures)
        # a run that was stopped may lack any tiles, a run that ended lacks those that failed in it
        allowed = record["counts"]["tiles_failed"] if record["status"] == "done" else job.num_tiles - 1
        if num_missing > allowed:
            raise expired(run_id, f"{num_missing} of {job.num_tiles} tiles are missing")
        account.tiles["reused"] = job.num_tiles - num_missing
        return job, sizes

    return tile_results


def _missing(job: Job, storage: Storage, run_id: str) -> list[TileFailure]:
    """Return the tiles that no shard holds."""
    failures = []
    for block in job.blocks:
        if block.number not in job.partial | job.lost:
            continue
        path = shard_path(job.common.tile_key, block.key, partial=True)
        held = tiles_in_shard(storage, path) if block.number in job.partial else set()
        failures += [
            TileFailure(tile_id, "predict", f"{run_id} has no result of it", "")
            for part in block.ranges
            for key in part.tile_keys()
            if (tile_id := (part.scene_id, *key)) not in held
        ]
    return failures
