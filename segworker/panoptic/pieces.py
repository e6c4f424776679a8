"""Stuff as pieces of features: after it, pixels of things and of stuff are ranked and put together alike.

A region that one block holds and one cell of the lattice holds is a whole feature. Every other region becomes parts: a
part's number says its segment and its cell, so that blocks need not agree about numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segworker import masks
from segworker.grid import Grid
from segworker.masks import I64
from segworker.panoptic.blend import NOTHING, U8, StuffTile, blend_core
from segworker.panoptic.regions import CELL_PX, BlockRegions, JoinedRegions, cut_pieces
from segworker.stitch import Pieces, PieceSummary, TileKey
from segworker.stitch.parts import SEAM_MERGED, SEAM_NONE, StitchOptions
from segworker.types import Window

REGIONS_BITS = 25
"Of the regions of one block."
NO_CLAIM = -1
"`Pieces.claimed_px` of stuff: area limits and what things took of it do not count."
SCORE = 1.0
"Of stuff: a region has a class, not a score of its own."


@dataclass(frozen=True, slots=True)
class Numbering:
    """How the parts of a scene's regions are numbered, behind the numbers of its things."""

    base: int
    "The first number."
    num_segments: int
    "Segments of `join_regions`; regions inside one block follow."
    grid: Grid
    cell_px: int = CELL_PX

    @property
    def num_cells(self) -> int:
        """Cells of the lattice over the scene."""
        return -(-self.grid.width // self.cell_px) * -(-self.grid.height // self.cell_px)

    def numbers(self, segments: I64, cells: I64) -> I64:
        """Return the numbers of (segment, cell) pairs; cells as `cut_pieces` numbers them."""
        columns = -(-self.grid.width // self.cell_px)
        cell = (cells >> np.int64(32)) * columns + (cells & 0xFFFFFFFF)
        return np.asarray(self.base + segments * self.num_cells + cell, np.int64)

    def segments(self, numbers: I64) -> I64:
        """Return the segment of each number."""
        return (numbers - self.base) // self.num_cells


def class_map(tiles: Mapping[TileKey, StuffTile], keys: Collection[TileKey], region: Window, grid: Grid) -> U8:
    """Return the class of each pixel of a block, things not yet taken out.

    Args:
        tiles: the block's and those around it; those without a result are absent.
        keys: of the block's tiles.
        region: the union of their cores.
        grid: the scene's grid.
    """
    classes = np.full(region.shape_yx, NOTHING, np.uint8)
    for row, col in keys:
        core = grid.tile(row, col).core
        classes[core.slices_in(region)] = blend_core(tiles, row, col, grid=grid)
    return classes


def without_things(classes_HW: U8, things: Pieces, region: Window) -> U8:
    """Return the class map without the pixels of things."""
    taken = masks.labels_from_runs(things.runs, window=region)
    return np.where(taken > 0, np.uint8(NOTHING), classes_HW)


def stuff_pieces(
    found: BlockRegions,
    joined: JoinedRegions,
    *,
    block: int,
    class_ids: Sequence[int],
    numbering: Numbering,
    options: StitchOptions,
) -> Pieces:
    """Return a block's stuff, of the classes that are kept.

    Args:
        found: the block's regions.
        joined: of the same block.
        block: its position in the scene.
        class_ids: of each stuff class.
        numbering: of the scene's parts.
        options: its class filter is stuff's, too.
    """
    labels, region_of, cells = cut_pieces(found, cell_px=numbering.cell_px)
    segments = numbering.num_segments + (block << REGIONS_BITS) + np.arange(len(found.areas), dtype=np.int64)
    segments[joined.numbers] = joined.segments
    alone = np.bincount(region_of, minlength=len(found.areas)) == 1
    alone[joined.numbers] = False
    numbers = np.where(
        alone[region_of], -1 - np.arange(len(cells)), numbering.numbers(segments[region_of], cells)
    )  # regions of one segment that meet in other blocks only are one part here: a tile counts once
    numbers, first, group = np.unique(numbers, return_index=True, return_inverse=True)
    labels = np.concatenate([[0], group.ravel() + 1]).astype(np.int32)[labels]
    num_tiles = _tiles_of(labels, len(first), found.region, numbering.grid)
    pieces = Pieces(
        np.array(class_ids, np.int64)[found.classes[region_of[first]]],
        np.full(len(first), SCORE, np.float32),
        masks.runs_from_labels(labels, len(first), window=found.region),
        np.full(len(first), NO_CLAIM, np.int64),
        num_tiles,
        np.where(num_tiles > 1, SEAM_MERGED, SEAM_NONE).astype(np.uint8),
        np.maximum(numbers, -1),
    )
    if options.class_ids is None:
        return pieces
    return pieces.take(np.flatnonzero(np.isin(pieces.class_ids, options.class_ids)))


def _tiles_of(labels_HW: masks.I32, num_pieces: int, region: Window, grid: Grid) -> I64:
    """Return in how many cores each piece has pixels."""
    rows, row_of = _owners(region.row_off, region.row_end, grid, vertical=True)
    cols, col_of = _owners(region.col_off, region.col_end, grid, vertical=False)
    tile = (row_of[:, None] * cols + col_of[None, :]).astype(np.int64)
    held = np.unique(labels_HW.astype(np.int64) * (rows * cols) + tile)
    return np.bincount(held // (rows * cols), minlength=num_pieces + 1)[1:].astype(np.int64)


def _owners(start: int, stop: int, grid: Grid, *, vertical: bool) -> tuple[int, I64]:
    """Return (how many tiles, (n,) which of them owns each line from start to stop)."""
    axis = grid.y if vertical else grid.x
    first, last = axis.owner(start), axis.owner(stop - 1)
    ends = np.array([axis.core(k)[1] for k in range(first, last + 1)])
    return last - first + 1, np.searchsorted(ends, np.arange(start, stop), side="right").astype(np.int64)


# ------------------------------------------------------------------------------------------------ segments


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Which features are pieces of one region: K features that are not alone in their segment."""

    places: I64
    "(K,) their first pixels, row << 32 | column, sorted. No two features of a panoptic scene share one."
    ranks: I64
    "(K,) their segments, ranked by first pixel."

    def of_places(self, places: I64) -> I64:
        """Return the segment of features by their first pixels, -1 for those that are alone."""
        if not len(self.places):
            return np.full(len(places), -1, np.int64)
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[at] == places, self.ranks[at], -1)


def first_places(summaries: Sequence[PieceSummary]) -> tuple[I64, I64]:
    """Return (numbers of all border features, sorted; their first pixels, row << 32 | column)."""
    rows = np.concatenate([np.zeros((0, 5), np.int64), *(s.parts for s in summaries)])
    numbers, inverse = np.unique(rows[:, 0], return_inverse=True)
    places = np.full(len(numbers), np.iinfo(np.int64).max)
    np.minimum.at(places, inverse.ravel(), (rows[:, 2] << 32) | rows[:, 3])
    return numbers, places


def find_segments(numbers: I64, places: I64, numbering: Numbering) -> Segments:
    """Return the segments that consist of several features; arguments are those of `first_places`."""
    stuff = numbers >= numbering.base
    places, segments = places[stuff], numbering.segments(numbers[stuff])
    _, inverse, counts = np.unique(segments, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    first = np.full(len(counts), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, places)
    rank = np.full(len(counts), -1, np.int64)
    several = np.flatnonzero(counts > 1)
    rank[several[np.argsort(first[several])]] = np.arange(len(several))
    kept = np.flatnonzero(counts[inverse] > 1)
    kept = kept[np.argsort(places[kept])]
    return Segments(places[kept], rank[inverse[kept]])
