"""A run from configuration to commit."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from segworker.config import JobConfig
from segworker.engine.account import Account
from segworker.engine.cluster import cluster
from segworker.engine.harvest import predict_job
from segworker.engine.job import Job, make_job
from segworker.engine.memory import fit_memory
from segworker.engine.phase2 import Stitched, stitch_blocks
from segworker.engine.planned import write_plan
from segworker.engine.progress import Progress
from segworker.engine.record import announce, run_record, summary_text, write_record
from segworker.engine.seam_figures import agreement_of
from segworker.engine.shift_check import check_shift
from segworker.errors import ExitCode, SceneError, SegworkerError
from segworker.io.commit import commit_run, features_version
from segworker.io.failures import redact
from segworker.io.ids import reserve_scene_numbers
from segworker.io.lease import Held, held, keys_in_use
from segworker.io.orphans import tidy_up
from segworker.io.quarantine import Quarantined, write_quarantine
from segworker.io.shards import expire_shards
from segworker.io.storage import Storage, open_storage
from segworker.killpoints import reached
from segworker.report.overview import draw_overviews
from segworker.report.run_report import gather, write_report
from segworker.schema import COMMIT_COLUMNS, SCENES
from segworker.sources.find import SceneFailure

TileResults: TypeAlias = Callable[[Job, Account], tuple[Job, dict[int, int]]]
"Gives the job as it is once tile results are durable (which blocks are partial or lost), and the size of each shard."
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did, for people (`text`) and for schedulers (`exit_code`)."""

    exit_code: int
    text: str
    record: dict[str, Any]
    "What run.json holds."


def make_run_id(now: datetime | None = None) -> str:
    """Return a new run id: the time in UTC, sortable to a quarter of a millisecond, and five random hex digits."""
    now = now or datetime.now(UTC)
    return f"{now.strftime('%Y%m%dT%H%M%SZ')}-{now.microsecond * 4096 // 1_000_000:03x}{secrets.token_hex(3)[:5]}"


def run(config: JobConfig) -> RunSummary:
    """Segment the scenes of a configuration and commit the features.

    Raises:
        SegworkerError: where nothing could be done; what was durable stays, and the same command goes on from it.
    """
    from segworker.engine.predictor import describe_model  # it imports torch, which stitch tasks do without

    account = Account()
    run_id = make_run_id(account.started_at)
    facts = describe_model(config.model.model, dict(config.model.model_options), config.model.weights)
    job = make_job(config, facts, run_id)
    _log.info("run %s: %d scenes, %d tiles, %d blocks", run_id, len(job.scenes), job.num_tiles, len(job.blocks))
    if not job.scenes:
        raise _nothing_readable(job)
    return carry_out(fit_memory(job), account, predict_job)


def carry_out(job: Job, account: Account, tile_results: TileResults) -> RunSummary:
    """Do the work of a job that can begin and keep its record: get tile results, stitch, commit, and tell."""
    storage = open_storage(job.common.store_uri)
    with held(storage, job.common.run_id, tile_key=job.common.tile_key) as lease:
        announce(job, account)
        reached("planned")
        try:
            if account.stitched_from is None:
                write_plan(job)
            return _carry_out(job, account, tile_results, lease)
        except SegworkerError as error:
            with suppress(SegworkerError):  # the store may be what failed
                announce(job, account, error)
            raise


def _carry_out(job: Job, account: Account, tile_results: TileResults, lease: Held) -> RunSummary:
    config = job.config
    storage = open_storage(job.common.store_uri)
    base_version = features_version(storage)
    with cluster(config):
        whole_job = job
        job, shard_bytes = tile_results(job, account)
        job = _without_lost_scenes(job, account)
        _quarantine(job, whole_job, account)
        _check_failed(job, account)
        scene_nos = reserve_scene_numbers(storage, job.scenes)
        with account.timed("stitch"), Progress("stitch", job.num_tiles, mode=config.engine.progress) as progress:
            stitched = stitch_blocks(job, scene_nos, shard_bytes, tell=progress.add)
        reached("parts")
        counts = _counts_by_scene(stitched)
        with account.timed("commit"):
            lease.confirm()
            commit = commit_run(
                storage,
                run_id=job.common.run_id,
                parts=[g.part for g in stitched.groups if g.part is not None],
                scenes=_scene_rows(job, scene_nos, counts, account),
                table_crs=job.common.table_crs,
                base_version=base_version,
            )
        reached("committed")
        account.meter.stitched(sum(counts.values(), Counter()), agreement_of(stitched.seams))
        if account.stitched_from is not None:
            write_plan(job)  # not before: what fails for missing tiles must not look like a run that was stopped
        shift = None
        if config.engine.check_shift and account.workers is not None:
            with account.timed("check_shift"):
                shift = check_shift(job, scene_nos, account.workers, table_version=commit.features_version)
    with account.timed("overview"):
        shown = list(job.scenes.values())[: config.output.overview]
        failed = [f.tile_id for f in account.failures]
        pictures = draw_overviews(storage, job.common.run_id, shown, job.grids, job.common.table_crs, failed=failed)
    with account.timed("report"):
        findings = _attempted(
            "its report could not be made",
            lambda: gather(
                storage,
                job.common.run_id,
                scenes=job.scenes,
                grids=job.grids,
                table_crs=job.common.table_crs,
                version=commit.features_version,
                overviews=pictures,
            ),
        )
    if not (job.failures or account.failures or account.stitched_from):
        keep_s = config.output.keep_work.total_seconds()
        in_use = keys_in_use(storage, but=job.common.run_id)
        expire_shards(storage, job.common.tile_key, keep_s=keep_s, now_s=time.time(), in_use=in_use)
    _tidy_up(storage)
    account.seconds["total"] = time.perf_counter() - account.started
    exit_code = int(_exit_code(job, account))
    record = run_record(job, account, stitched, counts, pictures, commit.features_version, exit_code, shift)
    if findings is not None:
        record["outputs"]["report"] = _attempted(
            "its report could not be written", lambda: write_report(storage, record, findings)
        )
    write_record(job, record)
    return RunSummary(exit_code, summary_text(record, storage), record)


def _attempted(what: str, make: Callable[[], T]) -> T | None:
    """Return what `make` gives; None where it fails, which is logged: the run is committed and must not fail for it."""
    try:
        return make()
    except Exception:  # noqa: BLE001 - whatever it is, the features are there
        _log.warning("the run is committed, but %s", what, exc_info=True)
        return None


def _tidy_up(storage: Storage) -> None:
    """Remove what dead runs left; where that fails the next run will do it."""
    try:
        removed = tidy_up(storage)
    except SegworkerError as error:
        _log.warning("what dead runs left stays for now: %s", error)
        return
    if removed:
        _log.info("%d files that dead runs left were removed", len(removed))


def _without_lost_scenes(job: Job, account: Account) -> Job:
    """Take scenes of which every tile failed out of the job: what an earlier run committed of them stays."""
    failed = Counter(f.tile_id[0] for f in account.failures)
    lost = {i for i, count in failed.items() if count == job.grids[i].num_tiles}
    if not lost:
        return job
    reasons = {f.tile_id[0]: f for f in reversed(account.failures)}
    failures = [
        SceneFailure(redact(job.scenes[i].uri), i, SceneError(f"every tile failed; the first: {reasons[i].error}"))
        for i in sorted(lost)
    ]
    return replace(
        job,
        scenes={i: s for i, s in job.scenes.items() if i not in lost},
        failures=tuple(sorted([*job.failures, *failures], key=lambda f: f.scene_id)),
        blocks=tuple(
            replace(b, ranges=kept)
            for b in job.blocks
            if (kept := tuple(r for r in b.ranges if r.scene_id not in lost))
        ),
    )


def _quarantine(job: Job, whole: Job, account: Account) -> None:
    """Write down what failed, before the run fails for it, if it does."""
    scenes = [Quarantined(f.scene_id, f.uri, "scene", f"{type(f.error).__name__}: {f.error}") for f in job.failures]
    tiles = [
        Quarantined(
            f.tile_id[0],
            whole.scenes[f.tile_id[0]].uri,
            f.stage,
            f.error,
            f.trace,
            f.tries,
            whole.grids[f.tile_id[0]].tile(*f.tile_id[1:]),
        )
        for f in account.failures
    ]
    if scenes or tiles:
        write_quarantine(open_storage(job.common.store_uri), job.common.run_id, [*scenes, *tiles])


def _check_failed(job: Job, account: Account) -> None:
    """Fail the run where more tiles failed than it may lose, or no scene is left."""
    limit = job.config.engine.max_failed_tiles
    num_failed = account.tiles["failed"]
    if limit is not None and limit.exceeded(num_failed, job.num_tiles):
        raise SegworkerError(
            f"at most {limit} failed tiles are allowed, got {num_failed} of {job.num_tiles} (first: "
            f"{account.failures[0].error}); nothing was committed, the same command goes on from the good tiles"
        )
    if not job.scenes:
        raise SceneError("; ".join(f"{f.scene_id}: {f.error}" for f in job.failures[:5]))


def _counts_by_scene(stitched: Stitched) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for group in stitched.groups:
        for scene_id, found in group.counts.items():
            counts.setdefault(scene_id, Counter()).update(found)
    return counts


def _scene_rows(job: Job, scene_nos: dict[str, int], counts: dict[str, Counter[str]], account: Account) -> pa.Table:
    """Return the scenes' rows of the scenes table."""
    failed = Counter(f.tile_id[0] for f in account.failures)
    rows = [
        {
            "scene_no": scene_nos[scene_id],
            "scene_id": scene_id,
            "uri": redact(scene.uri),
            "etag": scene.etag,
            "size_bytes": scene.size_bytes,
            "mtime_s": scene.mtime_s,
            "crs": scene.crs,
            "transform": list(scene.transform),
            "pixel_size_um": scene.pixel_size_um,
            "width": scene.width,
            "height": scene.height,
            "num_bands": scene.num_bands,
            "tile_key": job.common.tile_key,
            "stitch_key": job.common.stitch_key,
            "run_id": job.common.run_id,
            "num_tiles": job.grids[scene_id].num_tiles,
            "num_failed_tiles": failed[scene_id],
            "num_features": sum(counts.get(scene_id, Counter()).values()),
        }
        for scene_id, scene in job.scenes.items()
    ]
    schema = pa.schema([f for f in SCENES if f.name not in COMMIT_COLUMNS])
    return pa.Table.from_pylist(rows, schema=schema)


def _exit_code(job: Job, account: Account) -> ExitCode:
    incomplete = bool(job.failures or account.failures) and not job.config.output.partial_ok
    return ExitCode.INCOMPLETE if incomplete else ExitCode.DONE


def _nothing_readable(job: Job) -> SceneError:
    more = f" (and {len(job.failures) - 1} more scenes)" if len(job.failures) > 1 else ""
    return SceneError(f"{job.failures[0].error}{more}")
