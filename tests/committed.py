"""Stores with a committed run whose objects a test chooses, without a model and without Ray."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from segworker.geo import to_map
from segworker.io.commit import commit_run
from segworker.io.ids import feature_ids, reserve_scene_numbers
from segworker.io.storage import open_storage
from segworker.io.table import write_part
from segworker.io.table_crs import TableCrs
from segworker.masks import areas_px
from segworker.polygons import trace
from segworker.schema import COMMIT_COLUMNS, FEATURES, SCENES
from segworker.types import Runs, Scene


def commit_objects(
    store: Path,
    scene: Scene,
    runs: Runs,
    names: Sequence[str],
    scores: np.ndarray,
    *,
    run_id: str = "20261125T100000Z-abc123",
    grid: tuple[int, int] | None = None,
    pieces: Sequence[int] | None = None,
    seams: Sequence[str] | None = None,
) -> None:
    """Commit objects of one scene as a run would.

    `grid` is the tile and the overlap, `pieces` the segment of each object, `seams` what the seam column says of it.
    """
    storage = open_storage(store)
    table_crs = TableCrs.of(scene.crs)
    number = reserve_scene_numbers(storage, [scene.scene_id])[scene.scene_id]
    outlines = trace(runs)
    shapes = (
        to_map(outlines.geometries(outlines.xy), scene.transform) if scene.crs else outlines.geometries(outlines.xy)
    )
    count, bounds = len(runs), shapely.bounds(shapes).reshape(-1, 4)
    ids = feature_ids(number, np.arange(count))
    class_ids = {name: k for k, name in enumerate(sorted(set(names)), start=1)}
    columns = {
        "feature_id": ids,
        "run_id": [run_id] * count,
        "scene_id": [scene.scene_id] * count,
        "class_id": [class_ids[name] for name in names],
        "class_name": list(names),
        "is_thing": [True] * count,
        "segment_id": ids if pieces is None else ids[np.asarray(pieces)],
        "score": scores.astype(np.float32),
        "area_px": areas_px(runs).astype(float),
        "centroid_x": bounds[:, 0],
        "centroid_y": bounds[:, 1],
        "bbox": pa.StructArray.from_arrays(list(map(pa.array, bounds.T)), fields=list(FEATURES.field("bbox").type)),
        "num_tiles": np.ones(count, np.int32),
        "seam": ["none"] * count if seams is None else list(seams),
        "geometry": shapely.to_wkb(shapes),
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in FEATURES]
    parts = [write_part(storage, run_id, 0, pa.table(arrays, schema=FEATURES), table_crs)] if count else []
    row = {
        "scene_no": number,
        "scene_id": scene.scene_id,
        "uri": scene.uri,
        "crs": scene.crs,
        "transform": list(scene.transform),
        "width": scene.width,
        "height": scene.height,
        "num_bands": scene.num_bands,
        "tile_key": "t",
        "stitch_key": "s",
        "run_id": run_id,
        "num_tiles": 1,
        "num_failed_tiles": 0,
        "num_features": count,
    }
    schema = pa.schema([f for f in SCENES if f.name not in COMMIT_COLUMNS])
    scenes = pa.Table.from_pylist([{**dict.fromkeys(schema.names), **row}], schema=schema)
    commit_run(storage, run_id=run_id, parts=parts, scenes=scenes, table_crs=table_crs)
    storage.write(f"runs/{run_id}/run.json", json.dumps({"run_id": run_id, "counts": {"scenes": 1}}).encode())
    if grid:
        plan = {
            "scenes": [{"scene_id": scene.scene_id}],
            "grids": [[scene.width, scene.height, *grid, 1.0]],
            "model": {"categories": [{"id": k, "name": n, "isthing": True} for n, k in class_ids.items()]},
        }
        storage.write(f"work/t/plan-{run_id}.json.gz", gzip.compress(json.dumps(plan).encode()))
