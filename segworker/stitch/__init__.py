"""From instances of tiles to features of a scene, block of tiles by block of tiles.

Four passes, each a set of independent tasks per block; only ids and sums of border objects meet between them:

A. `link_block`: links between the instances of a block's tiles and of the ring of tiles around it; local components.
B. `join_blocks`: components that reach over block borders become one; their class, score and rank are settled.
C. `cut_block`: the pixels of each core, each to one feature by a total order over whole features; a feature that one
   tile saw as a whole comes from that tile.
D. `rank_blocks` and `assemble_block`: emptied features are gone, indices are given by first pixel, and each feature is
   put together in the block that holds its first pixel.

A block here is any rectangle of tiles; results do not depend on how a scene is cut into blocks. Sums are integers, so
they do not depend on the order of addition either.
"""

from __future__ import annotations

from collections.abc import Sequence

from segworker.grid import Grid
from segworker.stitch.cut import cut_block
from segworker.stitch.link import join_blocks, link_block
from segworker.stitch.parts import (
    SEAM_NAMES,
    BlockLinks,
    BorderFeatures,
    BorderLinks,
    Features,
    Pieces,
    StitchOptions,
    sure_tiles,
)
from segworker.stitch.rank import (
    BlockRank,
    Homes,
    PieceSummary,
    assemble_block,
    find_homes,
    iter_ranks,
    rank_blocks,
    summarise,
)
from segworker.stitch.sums import SCORE_ONE, TileKey
from segworker.types import Instances, Window

__all__ = [
    "SCORE_ONE",
    "SEAM_NAMES",
    "BlockLinks",
    "BlockRank",
    "BorderFeatures",
    "BorderLinks",
    "Features",
    "Homes",
    "PieceSummary",
    "Pieces",
    "StitchOptions",
    "TileKey",
    "assemble_block",
    "cut_block",
    "find_homes",
    "iter_ranks",
    "join_blocks",
    "link_block",
    "rank_blocks",
    "stitch_linked",
    "stitch_scene",
    "summarise",
    "sure_tiles",
]


def stitch_scene(tiles: Sequence[Instances], *, grid: Grid, options: StitchOptions) -> Features:
    """Stitch a whole scene in memory, as one block: for small scenes, tests and benchmarks."""
    return stitch_linked(tiles, grid=grid, options=options)[0]


def stitch_linked(tiles: Sequence[Instances], *, grid: Grid, options: StitchOptions) -> tuple[Features, BlockLinks]:
    """Stitch a whole scene in memory, as one block; return its features, and the links with their statistics."""
    own = sure_tiles({(t.tile.row, t.tile.col): t for t in tiles}, options)
    links = link_block(own, {}, grid=grid, rule=options.rule)
    border = join_blocks([links.border])[0]
    pieces = cut_block(own, {}, links, border, grid=grid, options=options)
    region = Window(0, 0, grid.width, grid.height)
    rank = rank_blocks([summarise(pieces, region)], options=options)[0]
    return assemble_block(pieces, pieces, rank, region), links
