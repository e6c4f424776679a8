"""`--check-shift`: some tiles predicted again on a grid shifted by half a tile, and compared with the result.

Whole blocks are drawn by seed. Each is tiled so that the borders between its cores lie where the plain grid has the
middles of its cores, predicted, and stitched on its own; its objects are matched with the committed ones. Objects that
reach the block's rim are left out: there the sample knows less of the scene than the run did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import shapely
from numpy.typing import NDArray

from segworker.agreement import Judgement, judge
from segworker.blocks import Block, TileRange
from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common, Job, with_grid_limits
from segworker.engine.phase1 import predict_blocks
from segworker.engine.writing import finish
from segworker.geo import reproject, to_map, to_scene_px
from segworker.grid import Grid
from segworker.io.shards import read_shard, shard_path
from segworker.io.table import read_features
from segworker.stitch import stitch_linked
from segworker.types import Category, Instances, Scene


@dataclass(slots=True)
class ShiftCheck:
    """What the check found."""

    share: float
    blocks: int = 0
    tiles: int = 0
    "Of the shifted grid."
    blocks_failed: int = 0
    "Blocks of which a tile failed; they are not judged."
    left_out: int = 0
    iou_sum: float = 0.0
    by_class: dict[int, list[int]] = field(default_factory=dict)
    "[matched pairs, objects of the run, objects of the shifted grid]."

    def add(self, found: Judgement) -> None:
        """Add a block's judgement."""
        self.left_out += found.left_out
        self.iou_sum += found.iou_sum
        for class_id, *counts in found.table.tolist():
            entry = self.by_class.setdefault(class_id, [0, 0, 0])
            entry[:] = [a + b for a, b in zip(entry, counts, strict=True)]

    def record(self, categories: Mapping[int, Category]) -> dict[str, Any]:
        """Return what run.json says."""
        total = [sum(column) for column in zip(*self.by_class.values(), strict=True)] or [0, 0, 0]
        return {
            "share": self.share,
            "blocks": self.blocks,
            "blocks_failed": self.blocks_failed,
            "tiles": self.tiles,
            **_f1(total),
            "left_out": self.left_out,
            "mean_iou": round(self.iou_sum / total[0], 4) if total[0] else None,
            "by_class": {categories[c].name: _f1(counts) for c, counts in sorted(self.by_class.items())},
        }


def _f1(counts: Sequence[int]) -> dict[str, float | None]:
    matched, objects, shifted = counts
    f1 = round(2 * matched / (objects + shifted), 4) if objects + shifted else None
    return {"f1": f1, "matched": matched, "objects": objects, "objects_shifted": shifted}


def check_shift(job: Job, scene_nos: Mapping[str, int], workers: Workers, *, table_version: int) -> ShiftCheck:
    """Predict a sample of a committed run again on the shifted grid, and compare.

    Args:
        job: the run.
        scene_nos: the store's number of each scene.
        workers: the pool of predictors to start.
        table_version: of the features table, as the run committed it.
    """
    share, seed = job.config.engine.check_shift, job.config.engine.seed
    sample = _shifted(job, draw_blocks(job, share=share, seed=seed))
    check = ShiftCheck(share, len(sample.blocks), sample.num_tiles)
    tasks = {b.number: sample.task(b) for b in sample.blocks}
    shared = ray.put(sample.common)
    failed = set(tasks)
    for receipt in predict_blocks(list(tasks.values()), sample.common, workers):
        if not receipt.failures:
            failed.discard(receipt.number)
    check.blocks_failed = len(failed)
    pending = [_judge.remote(shared, t, dict(scene_nos), table_version) for n, t in tasks.items() if n not in failed]
    for reference in pending:
        for found in ray.get(reference):
            check.add(found)
    work = sample.common.tile_key
    paths = [shard_path(work, b.key, partial=partial) for b in sample.blocks for partial in (False, True)]
    sample.common.storage.delete(paths)  # nothing else can use them
    return check


def draw_blocks(job: Job, *, share: float, seed: int) -> list[Block]:
    """Return blocks with at least a share of the tiles of those that have seams at all, drawn by seed."""
    seamed = []
    for block in job.blocks:
        kept = tuple(r for r in block.ranges if r.scene_id in job.scenes and job.grids[r.scene_id].num_tiles > 1)
        if kept and block.number not in job.lost:
            seamed.append(replace(block, ranges=kept))
    wanted = share * sum(b.num_tiles for b in seamed)
    drawn: list[Block] = []
    for k in np.random.default_rng(seed).permutation(len(seamed)).tolist():
        if sum(b.num_tiles for b in drawn) >= wanted:
            break
        drawn.append(seamed[k])
    return sorted(drawn, key=lambda b: b.number)


def _shifted(job: Job, blocks: Sequence[Block]) -> Job:
    """Return a job over the same rectangles of tiles of the shifted grid, with shards of its own."""
    grids = {r.scene_id: replace(job.grids[r.scene_id], is_shifted=True) for b in blocks for r in b.ranges}
    moved = [
        Block(
            number,
            hashlib.sha256(f"shifted {b.key} {len(b.ranges)}".encode()).hexdigest()[:24],
            tuple(_reaching(r, job.grids[r.scene_id], grids[r.scene_id]) for r in b.ranges),
        )
        for number, b in enumerate(blocks)
    ]
    common = replace(job.common, tile_key=f"{job.common.tile_key}-shifted")
    return replace(
        job, common=common, grids=grids, blocks=tuple(moved), partial=frozenset(), lost=frozenset(), failures=()
    )


def _reaching(part: TileRange, grid: Grid, shifted: Grid) -> TileRange:
    """Return the same range, its last row and column those of the shifted grid where it has one more."""
    rows, cols = grid.shape_yx
    new_rows, new_cols = shifted.shape_yx
    return replace(
        part,
        row_stop=new_rows if part.row_stop == rows else part.row_stop,
        col_stop=new_cols if part.col_stop == cols else part.col_stop,
    )


@ray.remote(max_retries=3)
def _judge(common: Common, task: BlockTask, scene_nos: Mapping[str, int], table_version: int) -> list[Judgement]:
    """Stitch one shifted block on its own and compare it with the committed features."""
    tiles: dict[str, list[Instances]] = {}
    for result in read_shard(common.storage, shard_path(common.tile_key, task.block.key), task.grids):
        tiles.setdefault(result.tile_id[0], []).append(result.instances)
    found = []
    for part in task.block.ranges:
        scene, grid = task.scenes[part.scene_id], task.grids[part.scene_id]
        options = with_grid_limits(common.options, common, grid)
        features, _ = stitch_linked(tiles.get(part.scene_id, []), grid=grid, options=options)
        shifted, _ = finish(features, scene=scene, scene_no=scene_nos[part.scene_id], grid=grid, common=common)
        region, rim = _region_and_rim(part, grid)
        polygons, class_ids = _committed(common, scene, region, table_version)
        shifted_ids = shifted.features.pieces.class_ids
        found.append(judge(polygons, shifted.polygons, class_ids=(class_ids, shifted_ids), rim=rim))
    return found


def _region_and_rim(part: TileRange, grid: Grid) -> tuple[shapely.Geometry, shapely.Geometry]:
    """Return (the union of a range's cores, the part of its outline inside the scene), in scene pixels."""
    window = part.region(grid)
    left, top, right, bottom = (
        v / grid.scale for v in (window.col_off, window.row_off, window.col_end, window.row_end)
    )
    sides = [
        (window.col_off > 0, (left, top), (left, bottom)),
        (window.row_off > 0, (left, top), (right, top)),
        (window.col_end < grid.width, (right, top), (right, bottom)),
        (window.row_end < grid.height, (left, bottom), (right, bottom)),
    ]
    rim = shapely.MultiLineString([[a, b] for inside, a, b in sides if inside])
    return shapely.box(left, top, right, bottom), rim


def _committed(
    common: Common, scene: Scene, region: shapely.Geometry, table_version: int
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return (polygons in scene pixels, class ids) of the committed features that meet a region."""
    outline = np.array([region], dtype=object)
    crs, own = common.table_crs.wkt, scene.crs
    if crs is not None and own is not None:
        outline = reproject(shapely.segmentize(to_map(outline, scene.transform), 1000), own, crs)
    rows = read_features(
        common.storage,
        columns=["class_id", "geometry"],
        scene_ids=[scene.scene_id],
        bbox=tuple(shapely.bounds(outline[0]).tolist()),
        version=table_version,
    )
    polygons = shapely.from_wkb(rows["geometry"].to_numpy(zero_copy_only=False))
    if crs is not None and own is not None:
        polygons = to_scene_px(reproject(polygons, crs, own), scene.transform)
    near = shapely.intersects(polygons, shapely.buffer(region, -1e-3, join_style="mitre"))
    return polygons[near], rows["class_id"].to_numpy().astype(np.int64)[near]
