"""run.json, the authority on what a run did, and the summary that a person reads."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from segworker.engine.account import Account
from segworker.engine.cluster import Workers
from segworker.engine.job import Job
from segworker.engine.mosaics import write_sheet_lists
from segworker.engine.phase2 import Stitched
from segworker.engine.seam_figures import seam_figures, seam_lines
from segworker.engine.shift_check import ShiftCheck
from segworker.engine.throughput import throughput
from segworker.engine.tiles import TileFailure
from segworker.errors import ExitCode
from segworker.io.failures import redact, redact_text
from segworker.io.quarantine import quarantine_path
from segworker.io.storage import Storage, open_storage
from segworker.sources.find import SceneFailure

MAX_LISTED = 1000
"Failures listed in run.json; the counts are of all."
PACKAGES = ("segworker", "ray", "torch", "torchvision", "numpy", "numba", "rasterio", "pyarrow", "deltalake", "shapely")


def run_record(
    job: Job,
    account: Account,
    stitched: Stitched,
    counts: Mapping[str, Counter[str]],
    pictures: list[str],
    table_version: int,
    exit_code: int,
    shift: ShiftCheck | None = None,
) -> dict[str, Any]:
    """Return what run.json is to hold. No secret of a configuration or a uri is recorded."""
    common = job.common
    return {
        "run_id": common.run_id,
        "name": job.config.output.name,
        "notes": job.config.output.notes,
        "status": "done",
        "stitched_from": account.stitched_from,
        "retry_of": account.retry_of,
        "exit_code": exit_code,
        "started_at": account.started_at.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "store": redact(common.store_uri),
        "table_version": table_version,
        "table_crs": common.table_crs.label,
        "keys": {"tile_key": common.tile_key, "stitch_key": common.stitch_key, "model": common.model.digest},
        "counts": _counts(job, account, stitched, sum(counts.values(), Counter())),
        "seconds": {k: round(v, 3) for k, v in account.seconds.items()},
        "stage_cpu_seconds": {k: round(v, 3) for k, v in account.stage_seconds.items()},
        "throughput": throughput(job, account),
        "seams": seam_figures(job, stitched, shift),
        "failed_scenes": [_told(f) for f in job.failures if not f.is_sheet][:MAX_LISTED],
        "failed_sheets": [_told(f) for f in job.failures if f.is_sheet][:MAX_LISTED],
        "failed_tiles": [_told_tile(f) for f in account.failures[:MAX_LISTED]],
        "mosaics": write_sheet_lists(open_storage(common.store_uri), common.run_id, job.scenes.values(), job.failures),
        "outputs": {
            "features": "features/",
            "parts": [f"features/{g.part.path}" for g in stitched.groups if g.part is not None],
            "coco": [g.coco for g in stitched.groups if g.coco is not None],
            "rasters": [path for g in stitched.groups for path in g.rasters],
            "overviews": pictures,
            "report": None,
            "quarantine": quarantine_path(common.run_id) if job.failures or account.failures else None,
        },
        "workers": _told_workers(account.workers),
        "configuration": job.config.record(),
        "versions": versions(),
    }


def write_record(job: Job, record: Mapping[str, Any]) -> None:
    """Write run.json in one step."""
    path = f"runs/{job.common.run_id}/run.json"
    open_storage(job.common.store_uri).write(path, json.dumps(record, indent=2).encode())


def _counts(job: Job, account: Account, stitched: Stitched, objects: Counter[str]) -> dict[str, Any]:
    return {
        "scenes": len(job.scenes),
        "failed_scenes": sum(not f.is_sheet for f in job.failures),
        "failed_sheets": sum(f.is_sheet for f in job.failures),
        "tiles": job.num_tiles,
        "tiles_predicted": account.tiles["done"],
        "tiles_skipped": account.tiles["skipped"],
        "tiles_reused": account.tiles["reused"],
        "tiles_failed": account.tiles["failed"],
        "batches_halved": account.tiles["halved"],
        "instances": account.instances,
        "features": sum(objects.values()),
        "features_by_class": dict(sorted(objects.items())),
        "parts": sum(g.part is not None for g in stitched.groups),
        "coco_files": sum(g.coco is not None for g in stitched.groups),
        "bytes_read": account.bytes_read,
    }


def _told_tile(failure: TileFailure) -> dict[str, Any]:
    scene_id, row, col = failure.tile_id
    told = {"scene_id": scene_id, "row": row, "col": col, "stage": failure.stage}
    return told | {"error": failure.error, "tries": failure.tries}


def _told(failure: SceneFailure) -> dict[str, str]:
    return {"scene_id": failure.scene_id, "uri": redact(failure.uri), "error": redact_text(str(failure.error))}


def announce(job: Job, account: Account, error: BaseException | None = None) -> None:
    """Write a first run.json before any work: a store that cannot be written to says so now. Or that of a failure."""
    write_record(
        job,
        {
            "run_id": job.common.run_id,
            "name": job.config.output.name,
            "status": "running" if error is None else "failed",
            "stitched_from": account.stitched_from,
            "retry_of": account.retry_of,
            "exit_code": None if error is None else int(getattr(error, "exit_code", ExitCode.FAILED)),
            "error": None if error is None else redact_text(str(error)),
            "started_at": account.started_at.isoformat(),
            "keys": {"tile_key": job.common.tile_key, "stitch_key": job.common.stitch_key},
            "configuration": job.config.record(),
            "versions": versions(),
        },
    )


def _told_workers(workers: Workers | None) -> dict[str, Any] | None:
    if workers is None:
        return None
    return {"count": workers.count, "device": workers.device, "precision": workers.precision}


def versions() -> dict[str, str]:
    """Return the versions of what results may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a working directory without installing
            found[name] = "not installed"
    return found


def summary_text(record: Mapping[str, Any], storage: Storage) -> str:
    """Return the summary that ends a run."""
    counts, seconds, outputs = record["counts"], record["seconds"], record["outputs"]
    classes = ", ".join(f"{n:,} {name}" for name, n in counts["features_by_class"].items()) or "none"
    tiles = ", ".join(
        f"{counts[f'tiles_{key}']:,} {words}"
        for key, words in (
            ("predicted", "predicted"),
            ("reused", "reused"),
            ("skipped", "without data"),
            ("failed", "failed"),
        )
        if counts[f"tiles_{key}"] or key == "predicted"
    )
    failed = f", {counts['failed_scenes']:,} failed" if counts["failed_scenes"] else ""
    lost = f", {counts['failed_sheets']:,} failed" if counts["failed_sheets"] else ""
    sheets = sum(m["sheets"] for m in record["mosaics"].values())
    mosaics = f"; {len(record['mosaics']):,} of {sheets:,} sheets{lost}" if sheets else ""
    origin = f", from the tiles of {record['stitched_from']}" if record["stitched_from"] else ""
    origin += f", what had failed in {record['retry_of']}" if record["retry_of"] else ""
    timed = ", ".join(f"{k} {seconds[k]:.1f}" for k in ("predict", "stitch") if k in seconds)
    lines = [
        f"run       {record['run_id']}{origin}",
        f"scenes    {counts['scenes']:,}{failed}{mosaics}",
        f"tiles     {counts['tiles']:,} ({tiles})",
        f"objects   {counts['features']:,} ({classes})",
        *(f"seams     {line}" for line in seam_lines(record["seams"])),
        f"seconds   {seconds['total']:.1f} ({timed})",
        f"table     {storage.location('features')}",
    ]
    if outputs["coco"]:
        more = f" and {len(outputs['coco']) - 1} more" if len(outputs["coco"]) > 1 else ""
        lines.append(f"COCO      {storage.location(outputs['coco'][0])}{more}")
    if outputs["rasters"]:
        more = f" and {len(outputs['rasters']) - 1} more" if len(outputs["rasters"]) > 1 else ""
        lines.append(f"rasters   {storage.location(outputs['rasters'][0])}{more}")
    if outputs["overviews"]:
        more = f" and {len(outputs['overviews']) - 1} more" if len(outputs["overviews"]) > 1 else ""
        lines.append(f"overview  {storage.location(outputs['overviews'][0])}{more}")
    if outputs["report"]:
        lines.append(f"report    {storage.location(outputs['report'])}")
    if outputs["quarantine"]:
        lines.append(f"failures  {storage.location(outputs['quarantine'])}")
    lines.append(f"record    {storage.location('runs/' + record['run_id'] + '/run.json')}")
    lines += [f"failed    {f['scene_id']}: {f['error']}" for f in record["failed_scenes"][:5]]
    lines += [f"failed    sheet {f['uri']} of {f['scene_id']}: {f['error']}" for f in record["failed_sheets"][:5]]
    lines += [
        f"failed    tile ({f['row']}, {f['col']}) of {f['scene_id']} in {f['stage']}: {f['error']}"
        for f in record["failed_tiles"][:5]
    ]
    return "\n".join(lines)
