"""Phase 2 on Ray: the four stitch passes as tasks over shards, then parts.

Scenes whose shards fit a task together are stitched in one, several of them in each. Larger ones go through the passes
of `stitch`; between them only border components, row counts and sums come to the driver, the rest stays in Ray's object
store: results of tasks, which Ray spills to disk where memory is short and makes again where a node is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from segworker.blocks import Block
from segworker.engine.calls import in_order
from segworker.engine.job import BlockTask, Common, Job, with_grid_limits
from segworker.engine.neighbours import Neighbours
from segworker.engine.outlines import BlockOutlines, simplify_blocks
from segworker.engine.rasters import segment_table, write_large_rasters, write_scene_rasters
from segworker.engine.stuff import Cut, add_stuff, read_block_stuff, stitch_stuff
from segworker.engine.writing import GroupResult, finish, write_group
from segworker.grid import Grid
from segworker.io.shards import read_shard, shard_path
from segworker.killpoints import reached
from segworker.masks import I64
from segworker.panoptic.pieces import Segments
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
    find_homes,
    iter_ranks,
    join_blocks,
    link_block,
    stitch_linked,
    summarise,
    sure_tiles,
)
from segworker.types import Instances

PART_FEATURES = 60_000
"Features of one part, and annotations of one COCO file."
SMALL_BYTES = 1_000_000
"Shard bytes of the scenes that share a task and a part, about as large: all are written anew when one changes."
WHOLE_BYTES = 8_000_000
"Shard bytes of a scene of several blocks that one task stitches."
WHOLE_PX = 2**25
"Pixels of such a scene, where the model has stuff."


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
    small, large = _units(job, shard_bytes)
    sizes = [sum(shard_bytes[b.number] for b in unit) for unit in small]
    groups = _grouped(sizes, SMALL_BYTES)
    arguments = (
        (
            shared,
            k,
            [[job.task(b) for b in small[u]] for u in group],
            {r.scene_id: scene_nos[r.scene_id] for u in group for b in small[u] for r in b.ranges},
        )
        for k, group in enumerate(groups)
    )
    results = in_order(_finish_small, arguments, what="stitching small scenes")
    for group, (result, counts) in zip(groups, results, strict=True):
        stitched.groups.append(result)
        for seen, ious in counts:
            stitched.seams.add(seen, ious)
        tell(sum(b.num_tiles for u in group for b in small[u]))
    for blocks in large:
        _stitch_large(job, shared, blocks, scene_nos, stitched, tell)
    return stitched


def _units(job: Job, shard_bytes: Mapping[int, int]) -> tuple[list[list[Block]], list[list[Block]]]:
    """Return (what one task can stitch: a block of whole scenes, or all blocks of one; blocks of larger scenes)."""
    small: list[list[Block]] = []
    scenes: dict[str, list[Block]] = {}
    for block in job.blocks:
        if block.number not in shard_bytes:  # nothing of it is durable: all of its tiles failed
            continue
        if block.ranges[0].whole:
            small.append([block])
        else:
            scenes.setdefault(block.ranges[0].scene_id, []).append(block)
    large: list[list[Block]] = []
    for blocks in scenes.values():
        fits = sum(shard_bytes[b.number] for b in blocks) <= WHOLE_BYTES and not _paints_too_much(job, blocks)
        (small if fits else large).append(blocks)
    return small, large


def _paints_too_much(job: Job, blocks: Sequence[Block]) -> bool:
    """Whether a scene has a class for every pixel, and more pixels than one task should hold at once."""
    grid = job.grids[blocks[0].ranges[0].scene_id]
    return job.common.model.has_stuff and grid.width * grid.height > WHOLE_PX


def _grouped(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Return neighbouring positions in groups whose sizes add up to the limit at most."""
    groups: list[list[int]] = []
    total = 0
    for k, size in enumerate(sizes):
        if not groups or total + size > limit:
            groups.append([])
            total = 0
        groups[-1].append(k)
        total += size
    return groups


# ------------------------------------------------------------------------------------------------ tasks


@ray.remote(max_retries=3)
def _finish_small(
    common: Common, number: int, units: Sequence[Sequence[BlockTask]], scene_nos: Mapping[str, int]
) -> tuple[GroupResult, list[tuple[Any, Any]]]:
    """Stitch units of whole scenes and write them as one part."""
    found = []
    counts = []
    rasters: list[str] = []
    for tasks in units:
        tiles: dict[str, dict[TileKey, Instances]] = {}
        for task in tasks:
            for scene_id, own in _read_tiles(common, task).items():
                tiles.setdefault(scene_id, {}).update(own)
        for scene_id, own in tiles.items():
            scene, grid = tasks[0].scenes[scene_id], tasks[0].grids[scene_id]
            options = with_grid_limits(common.options, common, grid)
            segments = None
            if common.model.has_stuff:
                stuff = read_block_stuff(common, tasks, scene_id)
                features, links, segments = stitch_stuff(own, stuff, grid=grid, options=options, common=common)
            else:
                features, links = stitch_linked(list(own.values()), grid=grid, options=options)
            counts.append((links.seen, links.iou_sums))
            scene_no = scene_nos[scene.scene_id]
            done = finish(features, scene=scene, scene_no=scene_no, grid=grid, common=common, segments=segments)
            if common.model.has_stuff:
                rasters += write_scene_rasters(done[0], scene_no=scene_no, grid=grid, common=common)
            found.append(done)
    result = write_group(number, found, scene_nos=scene_nos, common=common)
    result.rasters = rasters
    return result, counts


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


@ray.remote(num_returns=2, max_retries=3)
def _assemble(
    common: Common,
    tasks: Sequence[BlockTask],
    whole: Sequence[ray.ObjectRef[Pieces]],
    parts: Mapping[int, ray.ObjectRef[Pieces]],
    ranks: Sequence[BlockRank],
    outlines: Sequence[BlockOutlines | None],
    number: int,
    scene_nos: Mapping[str, int],
    segments: Segments | None,
) -> tuple[GroupResult, list[I64]]:
    """Pass D for a group of blocks of one scene, and their part. Returns (what was written, each block's segments)."""
    found = []
    for task, mine, rank, places in zip(tasks, whole, ranks, outlines, strict=True):
        block_range = task.block.ranges[0]
        scene, grid = task.scenes[block_range.scene_id], task.grids[block_range.scene_id]
        pieces: Pieces = ray.get(mine)
        home = Pieces.concatenate([pieces.take(np.zeros(0, np.int64)), *_home_parts(rank, parts)])
        features = assemble_block(pieces, home, rank, block_range.region(grid))
        outlined = None if places is None else places.fragments(pieces, home)
        scene_no = scene_nos[scene.scene_id]
        done = finish(
            features, scene=scene, scene_no=scene_no, grid=grid, common=common, fragments=outlined, segments=segments
        )
        found.append(done)
    tables = [] if segments is None else [segment_table(features) for features, _ in found]
    return write_group(number, found, scene_nos=scene_nos, common=common), tables


def _home_parts(rank: BlockRank, parts: Mapping[int, ray.ObjectRef[Pieces]]) -> list[Pieces]:
    """Fetch the parts of a block's border features from each block that holds some, one after the other."""
    found = []
    for source in rank.sources:
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
    blocks: Sequence[Block],
    scene_nos: Mapping[str, int],
    stitched: Stitched,
    tell: Callable[[int], None],
) -> None:
    """Take one scene of several blocks through the four passes.

    What a pass needs of a block is made when its task is submitted, and let go of when the last task that needs it has
    finished: the driver holds references, border components and a count for each pixel row of a block.
    """
    scene_id = blocks[0].ranges[0].scene_id
    grid = job.grids[scene_id]
    options = with_grid_limits(job.common.options, job.common, grid)
    ring_of = Neighbours(job, blocks, grid).ring
    borders: list[BorderLinks] = []
    links: list[Any] = []
    calls: Iterator[tuple[Any, ...]] = ((shared, job.task(b), ring_of(b)) for b in blocks)
    for (border, seen, ious), full in in_order(_link, calls, what=f"linking tiles of {scene_id}", num_returns=2):
        borders.append(border)
        links.append(full)
        stitched.seams.add(seen, ious)
    reached("linked")
    joined = join_blocks(borders)
    borders.clear()
    calls = ((shared, job.task(b), ring_of(b), _taken(links, k), _taken(joined, k)) for k, b in enumerate(blocks))
    cut = list(in_order(_cut, calls, what=f"cutting objects of {scene_id}", num_returns=3))
    summaries, whole, parts = (list(column) for column in zip(*cut, strict=True))
    del cut
    reached("cut")
    ground = None
    if job.common.model.has_stuff:
        ground = add_stuff(job, shared, blocks, ring_of, Cut(summaries, whole, parts))
        summaries, whole, parts = list(ground.cut.summaries), list(ground.cut.whole), list(ground.cut.parts)
    homes = find_homes(summaries, options=options)
    outlines = simplify_blocks(job.common, grid, [b.ranges[0] for b in blocks], (whole, parts), homes)
    counts = [int(s.rows.sum()) + int(homes.starts[k + 1] - homes.starts[k]) for k, s in enumerate(summaries)]
    groups = _grouped(counts, PART_FEATURES)
    first = len(stitched.groups)
    ranks = iter_ranks(summaries, homes)
    numbers = {scene_id: scene_nos[scene_id]}
    calls = (
        (
            shared,
            *_assembly(job, [blocks[b] for b in group], [next(ranks) for _ in group], whole, parts),
            [outlines[b] for b in group],
            first + k,
            numbers,
            None if ground is None else ground.segments,
        )
        for k, group in enumerate(groups)
    )
    results = in_order(_assemble, calls, what=f"assembling {scene_id}", num_returns=2)
    tables: dict[int, tuple[ray.ObjectRef[list[I64]], int]] = {}
    for group, (result, own_tables) in zip(groups, results, strict=True):
        stitched.groups.append(result)
        tables |= {b: (own_tables, k) for k, b in enumerate(group)}
        tell(sum(blocks[b].num_tiles for b in group))
    if ground is not None:
        stitched.groups[-1].rasters = write_large_rasters(job, shared, blocks, ground, homes, tables, scene_nos)


def _assembly(
    job: Job,
    blocks: Sequence[Block],
    ranks: Sequence[tuple[int, BlockRank]],
    whole: list[Any],
    parts: Sequence[Any],
) -> tuple[Any, ...]:
    """Return the arguments of pass D for a group of blocks; blocks of a scene are in the order of their ranks."""
    sources = {s for _, rank in ranks for s in rank.sources}
    tasks, own = [job.task(b) for b in blocks], [_taken(whole, k) for k, _ in ranks]
    return tasks, own, {s: parts[s] for s in sources}, [rank for _, rank in ranks]


def _taken(items: list[Any], k: int) -> Any:  # noqa: ANN401 - of any type
    """Return an item that the list need not hold any more."""
    item, items[k] = items[k], None
    return item
