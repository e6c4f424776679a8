"""What a run would do (`--dry-run`): headers and overviews are read, nothing is predicted or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from segworker.config import JobConfig
from segworker.engine.job import Job, make_job
from segworker.engine.memory import fit_memory, worker_bytes
from segworker.engine.mosaics import count_sheets
from segworker.errors import SegworkerError
from segworker.geo import pixel_size_m
from segworker.io.ids import read_scene_numbers
from segworker.io.mosaic import MOSAIC
from segworker.io.scaling import valid_share
from segworker.io.shards import durable_blocks
from segworker.io.storage import open_storage
from segworker.types import Scene

MAX_SHARES = 200
"Scenes whose nodata share is estimated; beyond that a sample, evenly spread."
MAX_LISTED = 40


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan for people (`text`) and programs (`record`)."""

    text: str
    record: dict[str, Any]


def plan(config: JobConfig) -> PlanSummary:
    """Return what a run of this configuration would read, predict and write."""
    from segworker.engine.predictor import describe_model  # it imports torch, which stitch tasks do without

    facts = describe_model(config.model.model, dict(config.model.model_options), config.model.weights)
    job = make_job(config, facts, "dry-run")
    job = fit_memory(job)
    storage = open_storage(config.output.output)
    whole, _ = durable_blocks(storage, job.common.tile_key, (b.key for b in job.blocks))
    reused = sum(b.num_tiles for b in job.blocks if b.key in whole)
    known = read_scene_numbers(storage)
    shares = _shares(job)
    lines = [_scene_line(job, scene, shares) for scene in list(job.scenes.values())[:MAX_LISTED]]
    if len(job.scenes) > MAX_LISTED:
        lines.append(f"  ... and {len(job.scenes) - MAX_LISTED:,} more scenes")
    record: dict[str, Any] = {
        "scenes": len(job.scenes),
        "failed_scenes": sum(not f.is_sheet for f in job.failures),
        "failed_sheets": sum(f.is_sheet for f in job.failures),
        "tiles": job.num_tiles,
        "tiles_reused": reused,
        "blocks": len(job.blocks),
        "pixels": sum(g.width * g.height for g in job.grids.values()),
        "valid_share": float(np.mean(list(shares.values()))) if shares else None,
        "worker_bytes": worker_bytes(job),
        "table_crs": job.common.table_crs.label,
    }
    share = record["valid_share"]
    empty = "" if share is None else f", about {1 - share:.0%} of them without data"
    done = f", {reused:,} of them done by an earlier run" if reused else ""
    more = f" and {len(facts.categories) - 8} more classes" if len(facts.categories) > 8 else ""
    text = [
        f"model     {facts.ref}: {', '.join(c.name for c in facts.categories[:8])}{more}",
        f"scenes    {len(job.scenes):,} ({len(set(job.scenes) & set(known)):,} of them in the store already)",
        *lines,
        f"pixels    {record['pixels'] / 1e6:,.1f} million{empty}",
        f"tiles     {job.num_tiles:,} in {len(job.blocks):,} blocks{done}",
        f"memory    about {record['worker_bytes'] / 1e9:.1f} GB for the tiles of one worker, besides its model",
        (
            f"writes    {storage.location('features')} in {job.common.table_crs.label}: "
            f"{len(job.scenes):,} scenes, replacing older versions of the same scenes"
        ),
    ]
    text += [
        f"cannot    {f.uri + ' of ' if f.is_sheet else ''}{f.scene_id}: {f.error}" for f in job.failures[:MAX_LISTED]
    ]
    return PlanSummary("\n".join(text), record)


def _shares(job: Job) -> dict[str, float]:
    scenes = list(job.scenes.values())
    step = max(1, len(scenes) // MAX_SHARES)
    shares = {}
    for scene in scenes[::step]:
        try:
            shares[scene.scene_id] = valid_share(scene, bands=job.common.bands, spec=job.common.model.spec)
        except SegworkerError:  # a damaged scene: the run will say so, the plan goes on
            shares[scene.scene_id] = 0.0
    return shares


def _scene_line(job: Job, scene: Scene, shares: dict[str, float]) -> str:
    grid = job.grids[scene.scene_id]
    metres = pixel_size_m(scene)
    size = f"{metres:.3g} m/px" if metres else f"{scene.pixel_size_um:.3g} um/px" if scene.pixel_size_um else "no scale"
    scale = f", read at {grid.scale:.3g}x" if grid.scale != 1 else ""
    share = shares.get(scene.scene_id)
    empty = "" if share is None else f", {1 - share:.0%} nodata"
    crs = "no CRS" if scene.crs is None else _crs_name(scene.crs)
    sheets = ""
    if scene.source == MOSAIC:
        told = count_sheets(scene)
        warped = f" ({told['resampled']:,} resampled)" if told["resampled"] else ""
        sheets = f", {told['sheets']:,} sheets{warped}"
    return (
        f"  {scene.scene_id}: {scene.width:,} x {scene.height:,} px, {scene.num_bands} x {scene.dtype}, {crs}, {size}"
        f"{scale}, {grid.num_tiles:,} tiles{sheets}{empty}"
    )


def _crs_name(wkt: str) -> str:
    from segworker.io.table_crs import TableCrs

    return TableCrs.of(wkt).label
