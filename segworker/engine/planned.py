"""The plan of a run as a record beside its shards: all that stitching them again needs, and no more.

A shard is runs of pixels in a grid. To make features of it one must know the scenes' headers (size, CRS, transform),
their grids, which tiles are in which shard, the model's classes and the area of interest. The record holds these, so
that neither scenes nor model nor weights have to be there again; docs/design/durability.md says what was rejected.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, fields, replace
from typing import Any

import shapely

from segworker.blocks import Block, TileRange
from segworker.config import JobConfig
from segworker.config_load import from_dict
from segworker.engine.job import Job, ModelFacts, make_common
from segworker.errors import SceneError, StoreError
from segworker.grid import Grid
from segworker.io.aoi import Aoi
from segworker.io.failures import redact
from segworker.io.storage import Storage, open_storage
from segworker.io.table_crs import TableCrs
from segworker.sources.find import SceneFailure
from segworker.types import Category, InputSpec, Scene

FORMAT = 1
_UNKEPT = {"sheets"}
"Fields of scenes that only reading pixels needs, and that may be large."


def plan_path(tile_key: str, run_id: str) -> str:
    """Return where a run's plan lies in the store."""
    return f"work/{tile_key}/plan-{run_id}.json.gz"


def write_plan(job: Job) -> None:
    """Write the plan of a run beside its shards, with which it will expire. It holds no secret of any uri."""
    common = job.common
    crss = sorted({s.crs for s in job.scenes.values() if s.crs is not None})
    places = {crs: k for k, crs in enumerate(crss)}
    numbers = {scene_id: k for k, scene_id in enumerate(job.scenes)}
    told = {
        "format": FORMAT,
        "configuration": job.config.record(),
        "tile_key": common.tile_key,
        "table_crs": [common.table_crs.kind, common.table_crs.wkt],
        "model": {
            "ref": common.model.ref,
            "options": dict(common.model.options),
            "weights": None if common.model.weights is None else redact(common.model.weights),
            "spec": asdict(common.model.spec),
            "categories": [asdict(c) for c in common.model.categories],
            "digest": common.model.digest,
        },
        "aoi": None
        if common.aoi is None
        else [common.aoi.crs, [g.hex() for g in shapely.to_wkb(common.aoi.polygons).tolist()]],
        "crss": crss,
        "scenes": [_scene_told(s, places) for s in job.scenes.values()],
        "grids": [[g.width, g.height, g.tile_px, g.overlap_px, g.scale] for g in job.grids.values()],
        "blocks": [
            [
                b.key,
                [[numbers[r.scene_id], r.row_start, r.row_stop, r.col_start, r.col_stop, r.whole] for r in b.ranges],
            ]
            for b in job.blocks
        ],
        "failures": [[redact(f.uri), f.scene_id, str(f.error)] for f in job.failures],
    }
    content = gzip.compress(json.dumps(told).encode(), compresslevel=5, mtime=0)
    open_storage(common.store_uri).write(plan_path(common.tile_key, common.run_id), content)


def read_plan(storage: Storage, path: str) -> dict[str, Any]:
    """Return a plan's content.

    Raises:
        StorageError: it is not there.
        StoreError: it is damaged, or of another format.
    """
    try:
        told: dict[str, Any] = json.loads(gzip.decompress(storage.read(path)))
    except (OSError, EOFError, ValueError) as error:
        raise StoreError(f"a plan must be readable, got {storage.location(path)}: {error}; run again") from None
    if told.get("format") != FORMAT:
        raise StoreError(
            f"this segworker stitches plans of format {FORMAT}, got {told.get('format')} in {storage.location(path)}; "
            "use the version that wrote it, or run again"
        )
    return told


def configuration_of(plan: dict[str, Any]) -> JobConfig:
    """Return the configuration of the planned run, without secrets."""
    return from_dict(plan["configuration"])


def job_of(plan: dict[str, Any], config: JobConfig, *, run_id: str) -> Job:
    """Return the job of a plan under another configuration, which differs in what acts after phase 1 alone.

    Raises:
        ConfigError: for classes that the model does not have.
    """
    kind, wkt = plan["table_crs"]
    aoi = None if plan["aoi"] is None else Aoi(shapely.from_wkb(plan["aoi"][1]), plan["aoi"][0])
    scenes = [_scene_of(entry, plan["crss"]) for entry in plan["scenes"]]
    grids = [Grid(s.scene_id, *entry) for s, entry in zip(scenes, plan["grids"], strict=True)]
    common = make_common(
        config,
        _model_of(plan["model"]),
        run_id=run_id,
        table_crs=TableCrs(kind, wkt),
        aoi=aoi,
        tile_key=plan["tile_key"],
    )
    blocks = [
        Block(number, key, tuple(TileRange(scenes[k].scene_id, *rest) for k, *rest in ranges))
        for number, (key, ranges) in enumerate(plan["blocks"])
    ]
    return Job(
        config,
        common,
        {s.scene_id: s for s in scenes},
        {g.scene_id: g for g in grids},
        tuple(blocks),
        tuple(SceneFailure(uri, scene_id, SceneError(error)) for uri, scene_id, error in plan["failures"]),
    )


def _scene_told(scene: Scene, crs_places: dict[str, int]) -> dict[str, Any]:
    told = {f.name: getattr(scene, f.name) for f in fields(scene) if f.name not in _UNKEPT}
    crs = None if scene.crs is None else crs_places[scene.crs]
    return told | {"uri": redact(scene.uri), "crs": crs}


def _scene_of(told: dict[str, Any], crss: list[str]) -> Scene:
    tuples = {name: _as_tuple(value) for name, value in told.items()}
    scene = Scene(**tuples)
    return replace(scene, crs=None if told["crs"] is None else crss[told["crs"]])


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 - any value of JSON
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value


def _model_of(told: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        told["ref"],
        tuple(sorted(told["options"].items())),
        told["weights"],
        InputSpec(**{name: _as_tuple(value) for name, value in told["spec"].items()}),
        tuple(Category(**{name: _as_tuple(value) for name, value in entry.items()}) for entry in told["categories"]),
        told["digest"],
    )
