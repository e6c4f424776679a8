"""The nightly run: what is new or changed since the last commit, and nothing else.

A scene is up to date where the scenes table has it with the same etag (or size and time), the same tile settings
(model, weights, grid ...) and the same thresholds. The lock spares double work; the commit keeps the result right.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segworker.config import JobConfig
from segworker.engine.backlog import (
    Backlog,
    batches_within,
    cost_hours,
    hours_per_byte_of,
    look,
    manifest_of,
    write_batch,
)
from segworker.engine.run import make_run_id, run
from segworker.errors import ExitCode, SegworkerError
from segworker.io.commit import features_version
from segworker.io.failures import redact_text
from segworker.io.lock import Lock, locked
from segworker.io.storage import Storage, open_storage
from segworker.io.table import read_scenes, read_store_info
from segworker.query.diff import diff
from segworker.sources.find import SceneFiles

LOCK = "nightly"
FOLDER = "nightly"
MAX_LISTED = 1000
"Scenes and changes listed in a night's record; the counts are of all."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NightOptions:
    """What a night may do."""

    since_s: float | None = None
    "Seconds since the epoch: files older than this are left alone."
    limit: int | None = None
    "Scenes at most, those of the oldest files first."
    max_cost_hours: float | None = None
    "Hours at most, counted for each process that holds the model: GPU-hours, where there are GPUs."
    lock_expiry_s: float = 1200.0
    "A night on another machine that has not refreshed its lock for this long counts as dead."


@dataclass(frozen=True, slots=True)
class Night:
    """What a night did, for people (`text`), schedulers (`exit_code`) and hooks (`record`)."""

    exit_code: int
    text: str
    record: dict[str, Any]


@dataclass(slots=True)
class _Account:
    """What a night has done so far."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    over_budget: list[str] = field(default_factory=list)
    "Scenes that alone would cost more than what was left."
    postponed: int = 0
    cost_hours: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        """The gravest of the runs' codes."""
        order = (ExitCode.FAILED, ExitCode.USAGE, ExitCode.INCOMPLETE, ExitCode.BUSY)
        return next((code for code in order if code in self.codes), ExitCode.DONE)


def nightly(config: JobConfig, options: NightOptions) -> Night:
    """Run what is new or changed, in one run, or with a budget in several.

    The night's record is `nightly/<night_id>.json` in the store.

    Raises:
        LockedError: where another night is at work on the store.
        SegworkerError: where nothing could be begun. What fails later is in the record and in the exit code.
    """
    started = datetime.now(UTC)
    night_id = make_run_id(started)
    storage = open_storage(config.output.output)
    with locked(storage, LOCK, f"night {night_id}", expiry_s=options.lock_expiry_s) as lock:
        backlog = look(config, since_s=options.since_s, limit=options.limit)
        before = features_version(storage)
        account = _Account()
        _run_all(config, options, backlog, account, lock, night_id)
        record = {
            "night_id": night_id,
            "store": storage.uri,
            "exit_code": int(account.exit_code),
            "started_at": started.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "counts": {**backlog.counts, "over_budget": account.postponed},
            "cost_hours": round(account.cost_hours, 4),
            "runs": account.runs,
            "errors": account.errors,
            "scenes_over_budget": account.over_budget[:MAX_LISTED],
            "table_version_before": before,
            "table_version": features_version(storage),
            "changes": _changes(storage, before),
        }
        storage.write(f"{FOLDER}/{night_id}.json", json.dumps(record, indent=2).encode())
    return Night(int(account.exit_code), _text(record), record)


def _run_all(
    config: JobConfig, options: NightOptions, backlog: Backlog, account: _Account, lock: Lock, night_id: str
) -> None:
    """Run the backlog: at once, or in batches as long as the budget lasts."""
    todo, budget = list(backlog.todo), options.max_cost_hours
    rate = None if budget is None else _known_rate(lock.storage)
    number = 0
    while todo and not account.errors:
        if budget is None:
            batch, todo = todo, []
        else:
            batch, todo, too_large = batches_within(todo, budget - account.cost_hours, rate)
            account.over_budget += [files.scene_id for files in too_large]
            account.postponed += len(too_large)
        if not batch:
            break
        if not lock.is_held():
            account.errors.append("another night took the lock over, as this one stood still; it goes on with the rest")
            account.codes.add(ExitCode.BUSY)
            break
        _run_batch(config, batch, account, lock.storage, f"{FOLDER}/{night_id}-scenes-{number}.csv")
        size = sum(files.size_bytes or 0 for files in batch)
        rate = account.runs[-1]["cost_hours"] / size if account.runs and size else rate
        number += 1
    account.postponed += len(todo)


def _run_batch(config: JobConfig, batch: Sequence[SceneFiles], account: _Account, storage: Storage, path: str) -> None:
    """Run some scenes as one run; what it comes to is in the account."""
    with tempfile.TemporaryDirectory(prefix="segworker-") as scratch:
        manifest = write_batch(storage, path, batch)
        if manifest is None:  # presigned: kept by nobody
            file = Path(scratch, "scenes.csv")
            file.write_text(manifest_of(batch), "utf-8")
            manifest = str(file)
        inputs = config.inputs.model_copy(
            update={"scenes": (), "manifest": manifest, "mosaic": False, "mosaic_id": None}
        )
        try:
            summary = run(config.model_copy(update={"inputs": inputs}))
        except SegworkerError as error:
            account.codes.add(int(error.exit_code))
            account.errors.append(redact_text(str(error)))
            return
    record = summary.record
    cost = cost_hours(record)
    account.cost_hours += cost
    account.codes.add(summary.exit_code)
    counts = record["counts"]
    account.runs.append(
        {
            "run_id": record["run_id"],
            "exit_code": summary.exit_code,
            **{key: counts[key] for key in ("scenes", "failed_scenes", "tiles", "tiles_failed", "features")},
            "seconds": record["seconds"]["total"],
            "cost_hours": round(cost, 4),
        }
    )


def _known_rate(storage: Storage) -> float | None:
    """Return what a byte of scenes has cost in this store, by its newest whole run."""
    if read_store_info(storage) is None:
        return None
    sizes: dict[str, int] = {}
    for row in read_scenes(storage).select(["run_id", "size_bytes"]).to_pylist():
        sizes[row["run_id"]] = sizes.get(row["run_id"], 0) + (row["size_bytes"] or 0)

    def records() -> Iterator[dict[str, Any]]:
        for run_id in sorted(sizes, reverse=True):
            if storage.head(f"runs/{run_id}/run.json") is not None:
                yield json.loads(storage.read(f"runs/{run_id}/run.json"))

    return hours_per_byte_of(records(), sizes)


def _changes(storage: Storage, before: int) -> dict[str, Any] | None:
    """Return what the night changed by class, and in how many scenes; None where nothing was committed."""
    if features_version(storage) == before:
        return None
    try:
        found = diff(storage, before)
    except SegworkerError as error:  # a vacuum or a compaction meanwhile; the night is no worse for it
        return {"error": redact_text(str(error))}
    told = found.record()
    by_scene = told.pop("by_scene")
    return {**told, "num_changed_scenes": len({row["scene_id"] for row in by_scene}), "by_scene": by_scene[:MAX_LISTED]}


def _text(record: dict[str, Any]) -> str:
    counts = record["counts"]
    ran = sum(one["scenes"] for one in record["runs"])
    failed = sum(one["failed_scenes"] for one in record["runs"])
    lines = [
        f"night     {record['night_id']}",
        (
            f"inputs    {counts['inputs']:,} scenes: {counts['new']:,} new, {counts['changed']:,} changed, "
            f"{counts['settings']:,} of other settings, {counts['done']:,} up to date"
        ),
        f"ran       {ran:,} scenes in {len(record['runs']):,} runs" + (f", {failed:,} failed" if failed else ""),
    ]
    later = [
        f"{counts[key]:,} {words}"
        for key, words in (
            ("before_since", "older than --since"),
            ("over_limit", "over --limit"),
            ("over_budget", "over --max-cost-hours"),
            ("unreadable", "not to be found"),
        )
        if counts[key]
    ]
    lines += [f"not run   {', '.join(later)}"] if later else []
    lines.append(f"cost      {record['cost_hours']:.2f} predictor-hours")
    for row in (record["changes"] or {}).get("by_class", []):
        lines.append(
            f"changed   {row['class_name']}: {row['before']:,} to {row['after']:,} (+{row['new']:,} -{row['gone']:,})"
        )
    lines += [f"error     {error}" for error in record["errors"]]
    lines.append(f"record    {record['store']}/{FOLDER}/{record['night_id']}.json")
    return "\n".join(lines)
