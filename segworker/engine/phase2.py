"""Phase 2 on Ray: the four stitch passes as tasks over shards, then parts.

Blocks that hold whole scenes are finished in one task each group. Scenes of several blocks go through the passes of
`stitch`; between them only border components, row counts and sums come to the driver, the rest stays in Ray's object
store, from where it may spill to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from segworker.blocks import Block, TileRange
from segworker.engine.cluster import cluster_resources
from segworker.engine.job import BlockTask, Common, Job, with_grid_limits
from segworker.engine.writing import GroupResult, finish, write_group
from segworker.grid import Grid
from segworker.io.shards import read_shard, shard_path
from segworker.killpoints import reached
from segworker.stitch import (
    BlockLinks,
    BlockRank,
    BorderFeatures,
    BorderLinks,
    Pieces,
    PieceSummary,
    TileKey,
    assemble_block,
    cut_block,
    join_blocks,
    link_block,
    rank_blocks,
    stitch_linked,
    summarise,
    sure_tiles,
)
from segworker.types import Instances

PART_FEATURES = 250_000
"Features of one part, and annotations of one COCO file."
SMALL_BYTES = 8_000_000
"Shard bytes of the small scenes that share a part: it comes out below 32 MB."
MAX_IN_FLIGHT = 4
"Tasks submitted for each CPU."


@dataclass(slots=True)
class SeamCounts:
    """Agreement of neighbouring tiles, by class id."""

    seen: dict[int, list[int]] = field(default_factory=dict)
    "[fragments that the other side should have seen, of them linked]."
    iou: dict[int, list[float]] = field(default_factory=dict)
    "[links, sum of IoU]."

    def add(self, seen: np.ndarray[Any, Any], iou_sums: np.ndarray[Any, Any]) -> None:
        """Add a block's tables."""
        for class_id, count, linked in seen.tolist():
            entry = self.seen.setdefault(class_id, [0, 0])
            entry[0] += count
            entry[1] += linked
        for class_id, links, total in iou_sums.tolist():
            sums = self.iou.setdefault(class_id, [0, 0.0])
            sums[0] += links
            sums[1] += total / (1 << 20)


@dataclass(slots=True)
class Stitched:
    """What phase 2 gave."""

    groups: list[GroupResult]
    seams: SeamCounts


def stitch_blocks(
    job: Job, scene_nos: Mapping[str, int], shard_bytes: Mapping[int, int], *, tell: Callable[[int], None]
) -> Stitched:
    """Stitch every block of a job and write all parts.

    Args:
        job: the job; each of its blocks has a shard (a partial one where tiles failed, none where all did).
        scene_nos: the store's number of each scene.
        shard_bytes: block number -> size of its shard.
        tell: called with the number of tiles whenever some are finished.
    """
    shared = ray.put(job.common)
    stitched = Stitched([], SeamCounts())
    small = [b for b in job.blocks if b.ranges[0].whole and b.number in shard_bytes]
    groups = list(_grouped(small, shard_bytes, SMALL_BYTES))
    arguments = [
        (shared, k, [job.task(b) for b in group], {r.scene_id: scene_nos[r.scene_id] for b in group for r in b.ranges})
        for k, group in enumerate(groups)
    ]
    for group, (result, counts) in zip(groups, _in_order(_finish_small, arguments), strict=True):
        stitched.groups.append(result)
        for seen, ious in counts:
            stitched.seams.add(seen, ious)
        tell(sum(b.num_tiles for b in group))
    large: dict[str, list[Block]] = {}
    for block in job.blocks:
        if not block.ranges[0].whole:
            large.setdefault(block.ranges[0].scene_id, []).append(block)
    for scene_id, blocks in large.items():
        _stitch_large(job, shared, scene_id, blocks, scene_nos, stitched, tell)
    return stitched


def _grouped(blocks: Sequence[Block], sizes: Mapping[int, int], limit: int) -> Iterator[list[Block]]:
    group: list[Block] = []
    total = 0
    for block in blocks:
        if group and total + sizes[block.number] > limit:
            yield group
            group, total = [], 0
        group.append(block)
        total += sizes[block.number]
    if group:
        yield group


def _in_order(  # a remote function has no public type
    function: Any,  # noqa: ANN401
    arguments: Sequence[tuple[Any, ...]],
    num_returns: int = 1,
) -> Iterator[Any]:
    """Call a remote function with each of the arguments, a bounded number at a time; yield results in order."""
    limit = max(2, MAX_IN_FLIGHT * int(cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    for k, argument in enumerate(arguments):
        pending.append(function.remote(*argument))
        if k >= limit - 1:
            yield _first(pending[k - limit + 1], num_returns)
            pending[k - limit + 1] = None
    for reference in pending[max(0, len(arguments) - limit + 1) :]:
        yield _first(reference, num_returns)


def _first(reference: Any, num_returns: int) -> Any:  # noqa: ANN401 - whatever the task returns
    """Return the task's result; where it has several, the fetched first one and the references to the others."""
    if num_returns == 1:
        return ray.get(reference)
    return (ray.get(reference[0]), *reference[1:])


# ------------------------------------------------------------------------------------------------ tasks


@ray.remote(max_retries=3)
def _finish_small(
    common: Common, number: int, tasks: Sequence[BlockTask], scene_nos: Mapping[str, int]
) -> tuple[GroupResult, list[tuple[Any, Any]]]:
    """Stitch blocks of whole scenes and write them as one part."""
    found = []
    counts = []
    for task in tasks:
        tiles = _read_tiles(common, task)
        for part in task.block.ranges:
            scene, grid = task.scenes[part.scene_id], task.grids[part.scene_id]
            own = tiles.get(part.scene_id, {})
            if not own:
                continue
            options = with_grid_limits(common.options, common, grid)
            features, links = stitch_linked(list(own.values()), grid=grid, options=options)
            counts.append((links.seen, links.iou_sums))
            found.append(finish(features, scene=scene, scene_no=scene_nos[scene.scene_id], grid=grid, common=common))
    return write_group(number, found, scene_nos=scene_nos, common=common), counts


@ray.remote(num_returns=2, max_retries=3)
def _link(common: Common, task: BlockTask, ring: Sequence[tuple[str, Sequence[TileKey]]]) -> tuple[Any, BlockLinks]:
    """Pass A. Returns (border links and statistics, all links)."""
    part = task.block.ranges[0]
    grid = task.grids[part.scene_id]
    own = _read_tiles(common, task).get(part.scene_id, {})
    reached("link")
    around: dict[TileKey, Instances] = {}
    for key, wanted in ring:
        around.update(_read_some(common, part.scene_id, grid, key, wanted))
    links = link_block(own, around, grid=grid, rule=common.options.rule)
    return (links.border, links.seen, links.iou_sums), links


@ray.remote(num_returns=3, max_retries=3)
def _cut(
    common: Common,
    task: BlockTask,
    ring: Sequence[tuple[str, Sequence[TileKey]]],
    links: BlockLinks,
    border: BorderFeatures,
) -> tuple[PieceSummary, Pieces, Pieces]:
    """Pass C. Returns (summary, whole features, parts of border features)."""
    part = task.block.ranges[0]
    grid = task.grids[part.scene_id]
    own = _read_tiles(common, task).get(part.scene_id, {})
    hosts = set(border.guests.tile_keys(grid))
    around: dict[TileKey, Instances] = {}
    for path, keys in ring:
        wanted = [key for key in keys if key in hosts]
        if wanted:
            around.update(_read_some(common, part.scene_id, grid, path, wanted))
    options = with_grid_limits(common.options, common, grid)
    pieces = cut_block(own, around, links, border, grid=grid, options=options)
    whole = pieces.features < 0
    return summarise(pieces, part.region(grid)), pieces.take(np.flatnonzero(whole)), pieces.take(np.flatnonzero(~whole))


@ray.remote(max_retries=3)
def _assemble(
    common: Common,
    number: int,
    tasks: Sequence[BlockTask],
    whole: Sequence[ray.ObjectRef[Pieces]],
    parts: Mapping[int, ray.ObjectRef[Pieces]],
    ranks: Sequence[BlockRank],
    scene_no: int,
) -> GroupResult:
    """Pass D for a group of blocks of one scene, and their part."""
    found = []
    for task, mine, rank in zip(tasks, whole, ranks, strict=True):
        block_range = task.block.ranges[0]
        scene, grid = task.scenes[block_range.scene_id], task.grids[block_range.scene_id]
        pieces: Pieces = ray.get(mine)
        foreign = _home_parts(rank, parts)
        features = assemble_block(
            pieces, Pieces.concatenate([pieces.take(np.zeros(0, np.int64)), *foreign]), rank, block_range.region(grid)
        )
        found.append(finish(features, scene=scene, scene_no=scene_no, grid=grid, common=common))
    scene_id = tasks[0].block.ranges[0].scene_id
    return write_group(number, found, scene_nos={scene_id: scene_no}, common=common)


def _home_parts(rank: BlockRank, parts: Mapping[int, ray.ObjectRef[Pieces]]) -> list[Pieces]:
    """Fetch the parts of a block's border features from each block that holds some, one after the other."""
    found = []
    for source in sorted({s for sources in rank.sources for s in sources}):
        pieces: Pieces = ray.get(parts[source])
        found.append(pieces.take(np.flatnonzero(np.isin(pieces.features, rank.home))))
    return found


def _read_tiles(common: Common, task: BlockTask) -> dict[str, dict[TileKey, Instances]]:
    """Return the sure instances of a block's tiles by scene; tiles that failed are absent."""
    storage = common.storage
    path = shard_path(common.tile_key, task.block.key, partial=task.partial)
    tiles: dict[str, dict[TileKey, Instances]] = {}
    for result in read_shard(storage, path, task.grids):
        scene_id, row, col = result.tile_id
        tiles.setdefault(scene_id, {})[row, col] = result.instances
    return {scene_id: sure_tiles(found, common.options) for scene_id, found in tiles.items()}


def _read_some(
    common: Common, scene_id: str, grid: Grid, path: str, wanted: Sequence[TileKey]
) -> dict[TileKey, Instances]:
    results = read_shard(common.storage, path, {scene_id: grid}, wanted={(scene_id, *key) for key in wanted})
    return sure_tiles({(r.tile_id[1], r.tile_id[2]): r.instances for r in results}, common.options)


# ------------------------------------------------------------------------------------------------ large scenes


def _stitch_large(
    job: Job,
    shared: ray.ObjectRef[Common],
    scene_id: str,
    blocks: Sequence[Block],
    scene_nos: Mapping[str, int],
    stitched: Stitched,
    tell: Callable[[int], None],
) -> None:
    """Take one scene of several blocks through the four passes."""
    grid = job.grids[scene_id]
    options = with_grid_limits(job.common.options, job.common, grid)
    tasks = [job.task(b) for b in blocks if b.number not in job.lost]
    rings = _rings(job.common, tasks, grid)
    borders: list[BorderLinks] = []
    links = []
    for (border, seen, ious), full in _in_order(_link, [(shared, t, r) for t, r in zip(tasks, rings, strict=True)], 2):
        borders.append(border)
        links.append(full)
        stitched.seams.add(seen, ious)
    reached("linked")
    joined = join_blocks(borders)
    arguments = [(shared, *each) for each in zip(tasks, rings, links, joined, strict=True)]
    cut = list(_in_order(_cut, arguments, 3))
    summaries, whole, parts = (list(column) for column in zip(*cut, strict=True))
    reached("cut")
    ranks = rank_blocks(summaries, options=options)
    counts = {k: int(s.rows.sum()) + len(r.home) for k, (s, r) in enumerate(zip(summaries, ranks, strict=True))}
    numbered = [Block(k, "", t.block.ranges) for k, t in enumerate(tasks)]
    groups = [[b.number for b in group] for group in _grouped(numbered, counts, PART_FEATURES)]
    first = len(stitched.groups)
    calls = []
    for k, group in enumerate(groups):
        sources = {s for b in group for of_one in ranks[b].sources for s in of_one}
        calls.append(
            (
                shared,
                first + k,
                [tasks[b] for b in group],
                [whole[b] for b in group],
                {s: parts[s] for s in sources},
                [ranks[b] for b in group],
                scene_nos[scene_id],
            )
        )
    for group, result in zip(groups, _in_order(_assemble, calls), strict=True):
        stitched.groups.append(result)
        tell(sum(tasks[b].block.num_tiles for b in group))


def _rings(common: Common, tasks: Sequence[BlockTask], grid: Grid) -> list[list[tuple[str, list[TileKey]]]]:
    """Return for each block where the tiles around it are: shard paths and tile keys."""
    corners = {(t.block.ranges[0].row_start, t.block.ranges[0].col_start): t for t in tasks}
    rows = sorted({key[0] for key in corners})
    cols = sorted({key[1] for key in corners})

    def task_at(row: int, col: int) -> BlockTask | None:
        top, left = rows[np.searchsorted(rows, row, "right") - 1], cols[np.searchsorted(cols, col, "right") - 1]
        found = corners.get((top, left))
        return found if found is not None and _holds(found.block.ranges[0], row, col) else None

    result = []
    for task in tasks:
        wanted: dict[str, list[TileKey]] = {}
        for row, col in task.block.ranges[0].ring(grid):
            other = task_at(row, col)
            if other is not None:
                path = shard_path(common.tile_key, other.block.key, partial=other.partial)
                wanted.setdefault(path, []).append((row, col))
        result.append(sorted(wanted.items()))
    return result


def _holds(part: TileRange, row: int, col: int) -> bool:
    return part.row_start <= row < part.row_stop and part.col_start <= col < part.col_stop
