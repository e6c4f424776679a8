"""Stuff in phase 2: between cutting things and ranking features, the pixels that no thing took become pieces, too.

Of a scene of several blocks the class maps stay in Ray's object store; only the runs of labels on block borders, and
where small regions touch regions that stay, come to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from segworker.blocks import Block
from segworker.engine.calls import in_order
from segworker.engine.job import BlockTask, Common, Job, with_grid_limits
from segworker.grid import Grid
from segworker.io.shards import read_shard, shard_path
from segworker.masks import I64
from segworker.panoptic.blend import U8, StuffTile
from segworker.panoptic.pieces import (
    Numbering,
    Segments,
    class_map,
    find_segments,
    first_places,
    stuff_pieces,
    without_things,
)
from segworker.panoptic.regions import (
    BlockBorder,
    JoinedRegions,
    border_contacts,
    find_regions,
    give_away,
    join_regions,
    new_classes,
    small_contacts,
)
from segworker.panoptic.scene import stitch_panoptic
from segworker.panoptic.scores import stuff_ids
from segworker.stitch import (
    BlockLinks,
    Features,
    Pieces,
    PieceSummary,
    StitchOptions,
    TileKey,
    find_homes,
    summarise,
)
from segworker.types import Instances, Window

Ring = Sequence[tuple[str, Sequence[TileKey]]]
"Where the tiles around a block are: shard paths and tile keys."


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What pass C gave of each block of a scene."""

    summaries: Sequence[PieceSummary]
    whole: Sequence[Any]
    "References to `Pieces`: whole features."
    parts: Sequence[Any]
    "References to `Pieces`: parts of border features."


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Things and stuff of a scene, ready to be ranked."""

    cut: Cut
    segments: Segments
    numbers: I64
    "All border features, sorted."
    places: I64
    "Their first pixels."


def stitch_stuff(
    tiles: Mapping[TileKey, Instances],
    stuff: Mapping[TileKey, StuffTile],
    *,
    grid: Grid,
    options: StitchOptions,
    common: Common,
) -> tuple[Features, BlockLinks, Segments]:
    """Stitch a scene that one task holds."""
    return stitch_panoptic(
        tiles,
        stuff,
        grid=grid,
        options=options,
        class_ids=stuff_ids(common.model.categories),
        min_stuff_px=common.min_stuff * grid.scale**2,
    )


def read_block_stuff(common: Common, tasks: Sequence[BlockTask], scene_id: str) -> dict[TileKey, StuffTile]:
    """Return the stuff of one scene's tiles in some blocks; tiles without a result are absent."""
    found: dict[TileKey, StuffTile] = {}
    for task in tasks:
        path = shard_path(common.tile_key, task.block.key, partial=task.partial)
        found |= _read(common, scene_id, task.grids[scene_id], path, None)
    return found


def _read(
    common: Common, scene_id: str, grid: Grid, path: str, keys: Sequence[TileKey] | None
) -> dict[TileKey, StuffTile]:
    wanted = None if keys is None else {(scene_id, *key) for key in keys}
    results = read_shard(common.storage, path, {scene_id: grid}, wanted=wanted, stuff=True)
    return {(r.tile_id[1], r.tile_id[2]): r.stuff for r in results if r.stuff is not None}


def add_stuff(
    job: Job, shared: ray.ObjectRef[Common], blocks: Sequence[Block], ring_of: Callable[[Block], Ring], things: Cut
) -> Ground:
    """Add the stuff of a scene of several blocks to its things."""
    common = job.common
    scene_id = blocks[0].ranges[0].scene_id
    grid = job.grids[scene_id]
    options = with_grid_limits(common.options, common, grid)
    kept = ray.put(find_homes(things.summaries, options=options).features)
    regions = [b.ranges[0].region(grid) for b in blocks]
    what = f"joining ground of {scene_id}"
    calls: Any = (
        (shared, job.task(b), ring_of(b), things.whole[k], things.parts[k], kept) for k, b in enumerate(blocks)
    )
    borders, maps = _columns(in_order(_blend, calls, what=what, num_returns=2))
    least = common.min_stuff * grid.scale**2
    if least > 0:
        borders, maps = _give_small_away(borders, maps, regions, least, what)
    joined = join_regions(borders)
    num_segments = max((int(j.segments.max(initial=-1)) for j in joined), default=-1) + 1
    base = max((int(s.parts[:, 0].max(initial=-1)) for s in things.summaries), default=-1) + 1
    numbering = Numbering(base, num_segments, grid)
    calls = (
        (shared, k, maps[k], regions[k], joined[k], numbering, options, things.whole[k], things.parts[k])
        for k in range(len(blocks))
    )
    cut = Cut(*_columns(in_order(_add_pieces, calls, what=what, num_returns=3), 3))
    numbers, places = first_places(cut.summaries)
    return Ground(cut, find_segments(numbers, places, numbering), numbers, places)


def _give_small_away(
    borders: Sequence[BlockBorder], maps: Sequence[Any], regions: Sequence[Window], least: float, what: str
) -> tuple[list[Any], list[Any]]:
    """Return (borders, references to class maps) after small regions have gone to their neighbours."""
    joined = join_regions(borders)
    calls: Any = ((maps[k], regions[k], joined[k], least) for k in range(len(regions)))
    told = list(in_order(_contacts, calls, what=what))
    chosen = new_classes(np.concatenate([*told, border_contacts(borders, joined, least)]))
    calls = (
        (
            maps[k],
            regions[k],
            joined[k],
            least,
            {s: chosen[s] for s in set(joined[k].segments.tolist()) if s in chosen},
        )
        for k in range(len(regions))
    )
    changed, settled = _columns(in_order(_give, calls, what=what, num_returns=2))
    return changed, settled


def _columns(rows: Any, count: int = 2) -> tuple[list[Any], ...]:  # noqa: ANN401 - results of any task
    columns: tuple[list[Any], ...] = tuple([] for _ in range(count))
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


# ------------------------------------------------------------------------------------------------ tasks


@ray.remote(num_returns=2, max_retries=3)
def _blend(
    common: Common, task: BlockTask, ring: Ring, whole: Pieces, parts: Pieces, kept: I64
) -> tuple[BlockBorder, U8]:
    """Return a block's border and its class map, without the pixels of things."""
    part = task.block.ranges[0]
    grid, scene_id = task.grids[part.scene_id], part.scene_id
    region = part.region(grid)
    tiles = read_block_stuff(common, [task], scene_id)
    for path, keys in ring:
        tiles |= _read(common, scene_id, grid, path, keys)
    classes = class_map(tiles, list(part.tile_keys()), region, grid)
    things = Pieces.concatenate([whole, parts.take(np.flatnonzero(np.isin(parts.features, kept)))])
    classes = without_things(classes, things, region)
    return find_regions(classes, region).border(), classes


@ray.remote(max_retries=3)
def _contacts(classes: U8, region: Window, joined: JoinedRegions, least: float) -> I64:
    """Return where small regions on the block's border touch regions that stay."""
    return small_contacts(find_regions(classes, region), joined, least)[1]


@ray.remote(num_returns=2, max_retries=3)
def _give(
    classes: U8, region: Window, joined: JoinedRegions, least: float, segments: Mapping[int, int]
) -> tuple[BlockBorder, U8]:
    """Give a block's small regions away."""
    found = find_regions(classes, region)
    inner = new_classes(small_contacts(found, joined, least)[0])
    settled = give_away(found, joined, inner, segments)
    return find_regions(settled, region).border(), settled


@ray.remote(num_returns=3, max_retries=3)
def _add_pieces(
    common: Common,
    block: int,
    classes: U8,
    region: Window,
    joined: JoinedRegions,
    numbering: Numbering,
    options: StitchOptions,
    whole: Pieces,
    parts: Pieces,
) -> tuple[PieceSummary, Pieces, Pieces]:
    """Return what pass C would have, had stuff been things."""
    ids = stuff_ids(common.model.categories)
    found = find_regions(classes, region)
    ground = stuff_pieces(found, joined, block=block, class_ids=ids, numbering=numbering, options=options)
    every = Pieces.concatenate([whole, parts, ground])
    alone = every.features < 0
    return summarise(every, region), every.take(np.flatnonzero(alone)), every.take(np.flatnonzero(~alone))
