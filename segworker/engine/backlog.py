"""What a night has to do: scenes that are new, or changed since the last commit, in batches that fit a budget."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from segworker.config import JobConfig
from segworker.engine.job import keys_of
from segworker.io.failures import redact
from segworker.io.storage import Storage, open_storage
from segworker.io.table import read_scenes, read_store_info
from segworker.sources.find import SceneFiles, find_files
from segworker.sources.mosaic import MosaicOptions

State: TypeAlias = Literal["new", "changed", "settings", "done", "unreadable"]
"""Not in the store; in it from another version of the file; from the same one under other settings (model, weights,
grid, thresholds); up to date; or not to be found."""
_COLUMNS = ["scene_id", "uri", "etag", "size_bytes", "mtime_s", "tile_key", "stitch_key", "num_failed_tiles"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What there is to do."""

    todo: tuple[SceneFiles, ...]
    "Of the oldest files first."
    counts: dict[str, int]


def look(config: JobConfig, *, since_s: float | None = None, limit: int | None = None) -> Backlog:
    """Compare the inputs of a configuration with the scenes of its store, by listings: no scene is opened.

    Args:
        config: of the runs to come.
        since_s: seconds since the epoch: files older than this are left alone.
        limit: scenes at most.

    Raises:
        ConfigError, StorageError, StoreError: as a run of this configuration.
    """
    from segworker.engine.predictor import describe_model

    storage = open_storage(config.output.output)
    facts = describe_model(config.model.model, dict(config.model.model_options), config.model.weights)
    inputs = config.inputs
    options = MosaicOptions(inputs.mosaic or inputs.mosaic_id is not None, inputs.mosaic_id, inputs.mosaic_crs)
    found = find_files(inputs.scenes, manifest=inputs.manifest, mosaic=options, asset=inputs.asset)
    info = read_store_info(storage)
    rows = {} if info is None else {row["scene_id"]: row for row in read_scenes(storage).select(_COLUMNS).to_pylist()}
    keys = ("", "") if info is None else keys_of(config, facts, info.table_crs)
    states = {files.scene_id: state_of(files, rows.get(files.scene_id), keys) for files in found}
    wanted = [files for files in found if states[files.scene_id] in ("new", "changed", "settings")]
    young = [files for files in wanted if since_s is None or files.mtime_s is None or files.mtime_s >= since_s]
    young.sort(key=lambda files: (files.mtime_s or 0.0, files.scene_id))
    chosen = young if limit is None else young[:limit]
    counted = Counter(states.values())
    counts = {
        "inputs": len(found),
        **{state: counted[state] for state in ("new", "changed", "settings", "done", "unreadable")},
        "incomplete": sum(row["num_failed_tiles"] > 0 for i, row in rows.items() if states.get(i) == "done"),
        "before_since": len(wanted) - len(young),
        "over_limit": len(young) - len(chosen),
        "not_among_inputs": len(set(rows) - set(states)),
    }
    return Backlog(tuple(chosen), counts)


def state_of(files: SceneFiles, row: Mapping[str, Any] | None, keys: tuple[str, str]) -> State:
    """Return what a scene's row in the scenes table says of its files.

    Args:
        files: as a listing has them.
        row: None: the store does not list the scene.
        keys: tile key and stitch key of the runs to come.
    """
    if files.problem is not None:
        return "unreadable"
    if row is None:
        return "new"
    if files.is_mosaic:
        same = (row["size_bytes"], row["mtime_s"]) == (files.size_bytes, files.mtime_s)
    elif row["uri"] != redact(files.files[0].uri):
        same = False
    elif files.etag is not None and row["etag"] is not None:
        same = row["etag"] == files.etag
    else:
        same = (row["size_bytes"], row["mtime_s"]) == (files.size_bytes, files.mtime_s)
    if not same:
        return "changed"
    return "done" if (row["tile_key"], row["stitch_key"]) == keys else "settings"


def batches_within(
    todo: Sequence[SceneFiles], left_hours: float, hours_per_byte: float | None
) -> tuple[list[SceneFiles], list[SceneFiles], list[SceneFiles]]:
    """Return (the next batch, what stays for later, what alone would be over the budget).

    Args:
        todo: scenes in the order that they are wanted in.
        left_hours: of the budget.
        hours_per_byte: what a byte of scenes has cost so far; None: unknown, one scene is tried.
    """
    if left_hours <= 0 or not todo:
        return [], list(todo), []
    if hours_per_byte is None:
        return [todo[0]], list(todo[1:]), []
    batch: list[SceneFiles] = []
    later: list[SceneFiles] = []
    too_large: list[SceneFiles] = []
    for files in todo:
        cost = hours_per_byte * (files.size_bytes or 0)
        if cost > left_hours and not batch and not later:
            too_large.append(files)
        elif cost <= left_hours and not later:
            batch.append(files)
            left_hours -= cost
        else:
            later.append(files)
    return batch, later, too_large


def write_batch(storage: Storage, path: str, batch: Sequence[SceneFiles]) -> str | None:
    """Write a batch as a manifest into the store and return its uri; None where a uri holds a secret."""
    files = [(file.uri, one) for one in batch for file in one.files]
    if any(redact(uri) != uri for uri, _ in files):
        return None
    storage.write(path, manifest_of(batch).encode())
    return storage.location(path)


def manifest_of(batch: Sequence[SceneFiles]) -> str:
    """Return a CSV manifest that gives the scenes of a batch the ids that they have."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uri", "scene_id", "mosaic"])
    for one in batch:
        for file in one.files:
            writer.writerow([file.uri, "" if one.is_mosaic else one.scene_id, one.scene_id if one.is_mosaic else ""])
    return text.getvalue()


def hours_per_byte_of(records: Iterator[Mapping[str, Any]], sizes: Mapping[str, int]) -> float | None:
    """Return what a byte cost in the newest run that predicted all its tiles, or None.

    Args:
        records: run.json of runs, the newest first.
        sizes: bytes of the scenes that each run committed, by run id.
    """
    for record in records:
        counts, size = record.get("counts") or {}, sizes.get(record.get("run_id", ""), 0)
        if record.get("status") == "done" and size and counts.get("tiles_predicted") and not counts.get("tiles_reused"):
            return cost_hours(record) / size
    return None


def cost_hours(record: Mapping[str, Any]) -> float:
    """Return what a run cost: its hours, for each process that held the model."""
    workers = record.get("workers") or {}
    return float((record.get("seconds") or {}).get("total", 0.0)) / 3600 * int(workers.get("count", 0))
