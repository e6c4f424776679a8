"""What a committed run found, as any reader of the table sees it, in scene pixels."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.geo import reproject, to_scene_px
from segworker.grid import Grid
from segworker.io.storage import Storage
from segworker.io.table import read_features, read_scenes, require_store
from segworker.io.table_crs import TableCrs
from segworker.masks import areas_px, merge_runs
from segworker.rasterise import runs_of_polygons
from segworker.types import Category, Runs, Scene

COLUMNS = ("feature_id", "segment_id", "run_id", "class_id", "class_name", "is_thing", "score", "geometry")


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """A run whose features are in the table now."""

    run_id: str
    record: Mapping[str, Any]
    "Its run.json."
    scenes: tuple[Scene, ...]
    "Those of which this run committed the newest version, by scene_id."
    num_replaced: int
    "Scenes of the run that a later one replaced; they are not judged."
    table_crs: TableCrs
    grids: Mapping[str, Grid]
    "By scene_id; empty where the run's tile results, and with them its plan, have expired."
    categories: tuple[Category, ...]
    "The model's, from the plan; empty without it."


@dataclass(frozen=True, slots=True, eq=False)
class FoundObjects:
    """The N objects that a run found on one scene."""

    feature_ids: NDArray[np.int64]
    "(N,) of segments in several pieces the segment_id."
    class_names: NDArray[np.object_]
    "(N,)."
    scores: NDArray[np.float32]
    "(N,)."
    runs: Runs
    "N masks in scene pixels, none empty."

    def __len__(self) -> int:
        return len(self.scores)


def load_run(storage: Storage, run: str) -> RunResult:
    """Return what a run committed.

    Args:
        storage: the store's root.
        run: a run id, or 'latest' for the newest run of which the table holds something.

    Raises:
        StoreError: no store, no such run, or all of its scenes were replaced since.
    """
    info = require_store(storage)
    rows = read_scenes(storage)
    if run == "latest":
        if not len(rows):
            raise StoreError(
                f"a run to judge has committed scenes, got none in {storage.uri}; run `segworker run` first"
            )
        run = max(zip(rows["committed_at"].to_pylist(), rows["run_id"].to_pylist(), strict=True))[1]
    path = f"runs/{run}/run.json"
    if storage.head(path) is None:
        known = sorted({str(name) for name in rows["run_id"].to_pylist()})[-3:]
        raise StoreError(
            f"a run is named by its id, or latest, got {run!r} in {storage.uri}; the newest with scenes are "
            f"{', '.join(known) or 'none'}: check the path"
        )
    record = json.loads(storage.read(path))
    mine = [row for row in rows.to_pylist() if row["run_id"] == run]
    if not mine:
        raise StoreError(
            f"a run is judged by what the table holds of it, got nothing of {run} any more in {storage.uri}; judge the "
            "run that replaced its scenes (`latest`)"
        )
    plan = _plan(storage, run)
    grids = _grids(plan)
    categories = tuple(Category(c["id"], c["name"], c["isthing"]) for c in plan.get("model", {}).get("categories", ()))
    committed = int(record.get("counts", {}).get("scenes", len(mine)))
    scenes = tuple(sorted(map(_scene_of, mine), key=lambda scene: scene.scene_id))
    return RunResult(run, record, scenes, max(0, committed - len(mine)), info.table_crs, grids, categories)


def found_on(storage: Storage, result: RunResult, scene: Scene) -> FoundObjects:
    """Return the objects of a scene; pieces of one segment are one object, and what has no pixel is left out.

    Raises:
        SceneError: the table's coordinates do not lead to the scene.
    """
    rows = read_features(storage, columns=COLUMNS, scene_ids=[scene.scene_id])
    rows = rows.filter(pa.compute.equal(rows["run_id"], result.run_id))
    shapes = shapely.from_wkb(rows["geometry"].to_numpy(zero_copy_only=False))
    if scene.crs is not None and result.table_crs.wkt is not None:
        shapes = to_scene_px(reproject(shapes, result.table_crs.wkt, scene.crs), scene.transform)
        shapes = _snapped(shapes)
    runs = runs_of_polygons(shapes, width=scene.width, height=scene.height)
    ids, first, groups = np.unique(rows["segment_id"].to_numpy(), return_index=True, return_inverse=True)
    runs = merge_runs(runs, groups, len(ids))
    names = np.array(rows["class_name"].to_pylist(), object)[first]
    scores = rows["score"].to_numpy().astype(np.float32)[first]
    kept = areas_px(runs) > 0
    return FoundObjects(ids[kept], names[kept], scores[kept], runs.take(kept))


def _snapped(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return outlines with vertices on the pixels' corners where projecting them there and back moved them a little."""
    xy = shapely.get_coordinates(shapes)
    whole = np.rint(xy)
    near = np.abs(xy - whole) < 1e-3
    return np.asarray(shapely.set_coordinates(shapes.copy(), np.where(near, whole, xy)), dtype=object)


def _scene_of(row: Mapping[str, Any]) -> Scene:
    return Scene(
        row["scene_id"],
        row["uri"],
        int(row["width"]),
        int(row["height"]),
        int(row["num_bands"]),
        "uint8",
        row["crs"],
        tuple(row["transform"]),
        row["pixel_size_um"],
    )


def _plan(storage: Storage, run_id: str) -> dict[str, Any]:
    """Return a run's plan, or an empty one where it has expired or cannot be read."""
    name = re.compile(rf"work/[^/]+/plan-{re.escape(run_id)}\.json\.gz")
    path = next((info.path for info in storage.list("work") if name.fullmatch(info.path)), None)
    if path is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(gzip.decompress(storage.read(path)))
    except (OSError, EOFError, ValueError):
        return {}
    return found


def _grids(plan: Mapping[str, Any]) -> dict[str, Grid]:
    scenes: Sequence[Mapping[str, Any]] = plan.get("scenes", ())
    return {s["scene_id"]: Grid(s["scene_id"], *entry) for s, entry in zip(scenes, plan.get("grids", ()), strict=True)}
