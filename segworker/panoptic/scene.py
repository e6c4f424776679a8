"""A panoptic scene of one block: things, then stuff where no thing is, then both as features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from segworker.grid import Grid
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
    CELL_PX,
    border_contacts,
    find_regions,
    give_away,
    join_regions,
    new_classes,
    small_contacts,
)
from segworker.stitch import (
    BlockLinks,
    Features,
    Pieces,
    StitchOptions,
    TileKey,
    assemble_block,
    cut_block,
    join_blocks,
    link_block,
    rank_blocks,
    summarise,
    sure_tiles,
)
from segworker.types import Instances, Window


def stitch_panoptic(
    tiles: Mapping[TileKey, Instances],
    stuff: Mapping[TileKey, StuffTile],
    *,
    grid: Grid,
    options: StitchOptions,
    class_ids: Sequence[int],
    min_stuff_px: float = 0.0,
    cell_px: int = CELL_PX,
) -> tuple[Features, BlockLinks, Segments]:
    """Stitch a whole scene in memory: every pixel that has a class belongs to exactly one feature.

    Args:
        tiles: instances by (row, column).
        stuff: of the same tiles; those without a result are absent.
        grid: the scene's grid.
        options: thresholds and filters of things.
        class_ids: of each stuff class.
        min_stuff_px: smaller regions go to their neighbours, grid pixels.
        cell_px: side of the lattice that cuts large regions.
    """
    region = Window(0, 0, grid.width, grid.height)
    own = sure_tiles(tiles, options)
    links = link_block(own, {}, grid=grid, rule=options.rule)
    things = cut_block(own, {}, links, join_blocks([links.border])[0], grid=grid, options=options)
    keys = [(row, col) for row in range(grid.shape_yx[0]) for col in range(grid.shape_yx[1])]
    classes = without_things(class_map(stuff, keys, region, grid), things, region)
    if min_stuff_px > 0:
        classes = _settled(classes, region, min_stuff_px)
    found = find_regions(classes, region)
    joined = join_regions([found.border()])[0]
    numbering = Numbering(0, int(joined.segments.max(initial=-1)) + 1, grid, cell_px)
    ground = stuff_pieces(found, joined, block=0, class_ids=class_ids, numbering=numbering, options=options)
    pieces = Pieces.concatenate([things, ground])
    summary = summarise(pieces, region)
    rank = rank_blocks([summary], options=options)[0]
    features = assemble_block(pieces, pieces, rank, region)
    return features, links, find_segments(*first_places([summary]), numbering)


def _settled(classes_HW: U8, region: Window, min_px: float) -> U8:
    found = find_regions(classes_HW, region)
    border = found.border()
    joined = join_regions([border])
    inner, told = small_contacts(found, joined[0], min_px)
    segments = new_classes(np.concatenate([told, border_contacts([border], joined, min_px)]))
    return give_away(found, joined[0], new_classes(inner), segments)
