"""Pass D: indices by first pixel, and features put together in the block that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
from segworker.types import Window

EMPTY = 2**31 - 1
"Row and column of the first pixel of a part that others took all pixels of."


@dataclass(frozen=True, slots=True, eq=False)
class PieceSummary:
    """What pass D's ranking needs of one block's pieces: rows of whole features, sums of border parts."""

    region: Window
    "Grid pixels: the union of the block's cores."
    rows: I64
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
    sources: tuple[tuple[int, ...], ...]
    "For each of them the numbers of the blocks that hold parts."


def summarise(pieces: Pieces, region: Window) -> PieceSummary:
    """Return what `rank_blocks` needs."""
    first = masks.first_pixels_yx(pieces.runs).astype(np.int64)
    whole = pieces.features < 0
    rows = np.bincount(first[whole, 0] - region.row_off, minlength=region.height).astype(np.int64)
    first[first < 0] = EMPTY
    parts = np.column_stack([pieces.features, masks.areas_px(pieces.runs), first, pieces.claimed_px])[~whole]
    return PieceSummary(region, rows, parts.astype(np.int64))


def rank_blocks(summaries: Sequence[PieceSummary], *, options: StitchOptions) -> list[BlockRank]:
    """Give each block the indices of its features: dense, by first pixel in row order.

    Blocks that lie beside each other must span the same rows, as rectangles of a grid of blocks do. Memory: one integer
    for each pixel row of each block, and the border features.
    """
    home, sources, first_rows = _home_blocks(summaries, options)
    counts = [s.rows.copy() for s in summaries]
    for block, row in zip(home.values(), first_rows.values(), strict=True):
        counts[block][row - summaries[block].region.row_off] += 1
    order = sorted(range(len(summaries)), key=lambda b: (summaries[b].region.row_off, summaries[b].region.col_off))
    indices: list[I64] = [np.zeros(0, np.int64)] * len(summaries)
    total, position = 0, 0
    while position < len(order):
        top = summaries[order[position]].region.row_off
        band = [b for b in order[position:] if summaries[b].region.row_off == top]
        table = np.stack([counts[b] for b in band], axis=1)
        before = total + np.cumsum(table).reshape(table.shape) - table
        for column, block in enumerate(band):
            indices[block] = before[:, column]
        total += int(table.sum())
        position += len(band)
    of_block: list[list[int]] = [[] for _ in summaries]
    for feature, block in home.items():
        of_block[block].append(feature)
    return [
        BlockRank(indices[b], np.array(sorted(of_block[b]), np.int64), tuple(sources[f] for f in sorted(of_block[b])))
        for b in range(len(summaries))
    ]


def _home_blocks(
    summaries: Sequence[PieceSummary], options: StitchOptions
) -> tuple[dict[int, int], dict[int, tuple[int, ...]], dict[int, int]]:
    """Return for each kept border feature its home block, the blocks with parts of it, and its first row."""
    table = np.concatenate(
        [np.zeros((0, 6), np.int64)]
        + [np.column_stack([s.parts, np.full(len(s.parts), b)]) for b, s in enumerate(summaries)]
    )
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 0]))]
    features, begins = np.unique(table[:, 0], return_index=True)
    home, sources, rows = {}, {}, {}
    if len(features):
        kept = area_kept(np.add.reduceat(table[:, 1], begins), np.add.reduceat(table[:, 4], begins), options)
        ends = np.append(begins[1:], len(table))
        for feature, begin, end in zip(features[kept].tolist(), begins[kept], ends[kept], strict=True):
            home[feature] = int(table[begin, 5])
            rows[feature] = int(table[begin, 2])
            sources[feature] = tuple(sorted(table[begin:end, 5].tolist()))
    return home, sources, rows


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
    return Pieces(
        parts.class_ids[leader], parts.scores[leader], runs, claimed, num_tiles, seam, np.full(len(home), -1, np.int64)
    )
