"""Pass D: indices by first pixel, and features put together in the block that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.masks import I64
from segworker.stitch.parts import (
    SEAM_CUT,
    SEAM_MERGED,
    SEAM_MISSING,
    SEAM_NONE,
    Features,
    Pieces,
    StitchOptions,
    area_kept,
)
from segworker.stitch.points import best_points
from segworker.types import Window

EMPTY = 2**31 - 1
"Row and column of the first pixel of a part that others took all pixels of."


@dataclass(frozen=True, slots=True, eq=False)
class PieceSummary:
    """What pass D's ranking needs of one block's pieces: rows of whole features, sums of border parts."""

    region: Window
    "Grid pixels: the union of the block's cores."
    rows: NDArray[np.uint32]
    "(height of the region,) whole features whose first pixel lies in each row."
    parts: I64
    "(P, 5) of border parts: feature, area, first pixel's row and column (past every other where empty), claimed area."


@dataclass(frozen=True, slots=True, eq=False)
class BlockRank:
    """What one block needs to finish its features."""

    row_index: I64
    "(height of the region,) index of the first feature of each row."
    home: I64
    "Border features that this block puts together, sorted."
    sources: tuple[int, ...]
    "Numbers of the blocks that hold parts of them, sorted."


@dataclass(frozen=True, slots=True, eq=False)
class Homes:
    """Which block puts which border feature together: F features, by block and number."""

    starts: I64
    "(B + 1,) the features of block b are starts[b]:starts[b + 1]."
    features: I64
    "(F,)."
    rows: I64
    "(F,) of their first pixel."
    source_starts: I64
    "(F + 1,) the blocks with parts of feature f are sources[source_starts[f]:source_starts[f + 1]]."
    sources: I64

    def of_block(self, block: int) -> slice:
        """Return the places of a block's features."""
        return slice(int(self.starts[block]), int(self.starts[block + 1]))

    def sources_of(self, block: int) -> tuple[int, ...]:
        """Return the blocks that hold parts of a block's features."""
        first, last = self.source_starts[self.starts[block]], self.source_starts[self.starts[block + 1]]
        return tuple(np.unique(self.sources[first:last]).tolist())


def summarise(pieces: Pieces, region: Window) -> PieceSummary:
    """Return what `rank_blocks` needs."""
    first = masks.first_pixels_yx(pieces.runs).astype(np.int64)
    whole = pieces.features < 0
    rows = np.bincount(first[whole, 0] - region.row_off, minlength=region.height).astype(np.uint32)
    first[first < 0] = EMPTY
    parts = np.column_stack([pieces.features, masks.areas_px(pieces.runs), first, pieces.claimed_px])[~whole]
    return PieceSummary(region, rows, parts.astype(np.int64))


def rank_blocks(summaries: Sequence[PieceSummary], *, options: StitchOptions) -> list[BlockRank]:
    """Give each block the indices of its features: dense, by first pixel in row order."""
    ranks = dict(iter_ranks(summaries, find_homes(summaries, options=options)))
    return [ranks[b] for b in range(len(summaries))]


def iter_ranks(summaries: Sequence[PieceSummary], homes: Homes) -> Iterator[tuple[int, BlockRank]]:
    """Yield (block, its rank) from top to bottom and left to right, holding one band of blocks at a time.

    Blocks that lie beside each other must span the same rows, as rectangles of a grid of blocks do.
    """
    order = sorted(range(len(summaries)), key=lambda b: (summaries[b].region.row_off, summaries[b].region.col_off))
    total = 0
    for top, band in groupby(order, key=lambda b: summaries[b].region.row_off):
        blocks = list(band)
        table = np.stack([summaries[b].rows for b in blocks], axis=1).astype(np.int64)
        for column, block in enumerate(blocks):
            np.add.at(table[:, column], homes.rows[homes.of_block(block)] - top, 1)
        before = total + np.cumsum(table).reshape(table.shape) - table
        for column, block in enumerate(blocks):
            home = homes.features[homes.of_block(block)]
            yield block, BlockRank(before[:, column].copy(), home, homes.sources_of(block))
        total += int(table.sum())


def find_homes(summaries: Sequence[PieceSummary], *, options: StitchOptions) -> Homes:
    """Return the homes of the border features that the area limits keep: the block that holds the first pixel."""
    numbered = [np.column_stack([s.parts, np.full(len(s.parts), b)]) for b, s in enumerate(summaries)]
    table = np.concatenate([np.zeros((0, 6), np.int64), *numbered])
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 0]))]
    begins = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    counts = np.diff(np.append(begins, len(table)))
    areas, claimed = (np.add.reduceat(table[:, k], begins) if len(begins) else begins for k in (1, 4))
    kept = np.flatnonzero(area_kept(areas, claimed, options))
    kept = kept[np.argsort(table[begins[kept], 5], kind="stable")]
    lead, counts = table[begins[kept]], counts[kept]
    source_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = np.arange(int(counts.sum())) + np.repeat(begins[kept] - source_starts[:-1], counts)
    starts = np.searchsorted(lead[:, 5], np.arange(len(summaries) + 1))
    return Homes(starts.astype(np.int64), lead[:, 0], lead[:, 2], source_starts, table[places, 5])


def assemble_block(pieces: Pieces, parts: Pieces, rank: BlockRank, region: Window) -> Features:
    """Put a block's features together.

    Args:
        pieces: the block's own pieces from `cut_block`; parts of border features in it are ignored.
        parts: all parts, from all blocks, of the border features in `rank.home`, in any order.
        rank: the block's share of `rank_blocks`.
        region: the union of the block's cores.
    """
    whole = pieces.take(np.flatnonzero(pieces.features < 0))
    parts = parts.take(np.flatnonzero(np.isin(parts.features, rank.home)))
    merged = _merge_parts(parts, rank.home)
    every = Pieces.concatenate([whole, merged])
    first = masks.first_pixels_yx(every.runs).astype(np.int64)
    order = _place_order(every, (first[:, 0] << 32) + first[:, 1])
    rows = first[order, 0] - region.row_off
    _, begins, counts = np.unique(rows, return_index=True, return_counts=True)
    within = np.arange(len(rows)) - np.repeat(begins, counts)
    return Features(rank.row_index[rows] + within, every.take(order))


def _place_order(pieces: Pieces, place: I64) -> I64:
    """Return the order by first pixel, then (of features that may overlap) class, area, score and shape."""
    order = np.argsort(place, kind="stable")
    if (np.diff(place[order]) > 0).all():
        return order
    prints, areas = masks.fingerprints(pieces.runs), masks.areas_px(pieces.runs)
    return np.lexsort((prints, -pieces.scores, areas, pieces.class_ids, place))


def _merge_parts(parts: Pieces, home: I64) -> Pieces:
    group = np.searchsorted(home, parts.features)
    runs = masks.merge_runs(parts.runs, group, len(home))
    leader = np.zeros(len(home), np.int64)
    leader[group[::-1]] = np.arange(len(parts))[::-1]
    num_tiles = np.bincount(group, weights=parts.num_tiles, minlength=len(home)).astype(np.int64)
    cut = np.zeros(len(home), np.bool_)
    np.logical_or.at(cut, group, parts.seam == SEAM_CUT)
    seam = np.where(num_tiles > 1, SEAM_MERGED, np.where(cut, SEAM_CUT, SEAM_NONE)).astype(np.uint8)
    seam[group[parts.seam == SEAM_MISSING]] = SEAM_MISSING
    claimed = np.bincount(group, weights=parts.claimed_px, minlength=len(home)).astype(np.int64)
    points = parts.keypoints_NK4
    return Pieces(
        parts.class_ids[leader],
        parts.scores[leader],
        runs,
        claimed,
        num_tiles,
        seam,
        np.full(len(home), -1, np.int64),
        None if points is None else best_points(points, group, len(home)),
    )
