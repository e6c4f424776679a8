"""Regions of stuff: equal classes joined by pixel contact, block by block, with only block borders meeting.

Three steps, the first and the last a task for each block:

1. `find_regions`: the 4-connected regions of a block's class map; those on the block's border are told to the driver.
2. `join_regions`: regions of one class that touch over block borders become one; their areas are known.
3. `cut_pieces`: each region is cut by a lattice of `CELL_PX`, so that no polygon grows with the scene. A piece is a
   region's pixels in one cell, whatever tiles and blocks they came from; pieces of a region share its segment.

Regions below an area are given away between 2 and 3: `small_contacts` and `border_contacts` count along which classes
of regions that stay a small region's border runs, `new_classes` chooses the longest, `give_away` changes the class
map. A small region whose border runs along things, invalid pixels and the scene's rim alone stays. The choice is made
for all small regions at once, from what was there before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from skimage.measure import label

from segworker.jit import kernel
from segworker.masks import I32, I64
from segworker.panoptic.blend import NOTHING, U8
from segworker.types import Window

CELL_PX = 4096
"Side of the lattice that cuts large regions into pieces, grid pixels."
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True, eq=False)
class BlockRegions:
    """The regions of one block. Regions are numbered from 0 by their first pixel."""

    region: Window
    "Grid pixels: the union of the block's cores."
    labels_HW: I32
    "(H, W) number of the region + 1; 0: nothing."
    classes: U8
    "(N,)."
    areas: I64
    "(N,) pixels."

    def border(self) -> BlockBorder:
        """Return what the driver needs to know."""
        image = self.labels_HW
        lines = (image[:, 0], image[0], image[:, -1], image[-1])
        starts = (self.region.row_off, self.region.col_off, self.region.row_off, self.region.col_off)
        sides = tuple(_line_runs(np.ascontiguousarray(line), start) for line, start in zip(lines, starts, strict=True))
        numbers = np.unique(np.concatenate([s[:, 2] for s in sides]))
        return BlockBorder(self.region, numbers, self.classes[numbers], self.areas[numbers], sides)


@dataclass(frozen=True, slots=True, eq=False)
class BlockBorder:
    """The regions of a block that touch its border."""

    region: Window
    numbers: I64
    "(B,) in the block, sorted."
    classes: U8
    "(B,)."
    areas: I64
    "(B,) pixels in the block."
    sides: tuple[I64, ...]
    "For each of SIDES (K, 3): first row or column, the one behind, number of the region."


@dataclass(frozen=True, slots=True, eq=False)
class JoinedRegions:
    """What became of a block's border regions."""

    numbers: I64
    "(B,) in the block, sorted."
    segments: I64
    "(B,) number over the whole scene."
    areas: I64
    "(B,) pixels of the whole region."


def find_regions(classes_HW: U8, region: Window) -> BlockRegions:
    """Return the 4-connected regions of equal class; NOTHING is no region."""
    image = label(classes_HW.astype(np.int32), background=NOTHING, connectivity=1)  # type: ignore[no-untyped-call]
    labels = np.asarray(image, np.int32)
    areas = np.bincount(labels.ravel(), minlength=1).astype(np.int64)[1:]
    classes = np.zeros(len(areas) + 1, np.uint8)
    classes[labels.ravel()] = classes_HW.ravel()
    return BlockRegions(region, labels, classes[1:], areas)


def join_regions(borders: Sequence[BlockBorder]) -> list[JoinedRegions]:
    """Join regions of one class that touch over block borders.

    Args:
        borders: of all blocks of a scene, which partition it.

    Segments are numbered by the first block, then the region in it; memory grows with the block borders.
    """
    bases = np.cumsum([0, *(len(b.numbers) for b in borders)])
    pairs = [(_places(borders, bases, k, i), _places(borders, bases, n, j)) for k, i, n, j, _ in _touching(borders)]
    a = np.concatenate([np.zeros(0, np.int64), *(p[0] for p in pairs)]).astype(np.int64)
    b = np.concatenate([np.zeros(0, np.int64), *(p[1] for p in pairs)]).astype(np.int64)
    classes = np.concatenate([np.zeros(0, np.uint8), *(x.classes for x in borders)])
    same = classes[a] == classes[b]
    roots = _roots(int(bases[-1]), a[same], b[same])
    segments = np.unique(roots, return_inverse=True)[1].ravel().astype(np.int64)
    areas = np.zeros(int(segments.max(initial=-1)) + 1, np.int64)
    np.add.at(areas, segments, np.concatenate([np.zeros(0, np.int64), *(x.areas for x in borders)]).astype(np.int64))
    return [
        JoinedRegions(x.numbers, s, areas[s]) for x, s in zip(borders, np.split(segments, bases[1:-1]), strict=True)
    ]


def whole_areas(found: BlockRegions, joined: JoinedRegions) -> I64:
    """Return (N,) the area of the whole region behind each of a block's regions."""
    areas = found.areas.copy()
    areas[joined.numbers] = joined.areas
    return areas


# ------------------------------------------------------------------------------------------------ small regions


def small_contacts(found: BlockRegions, joined: JoinedRegions, min_area_px: float) -> tuple[I64, I64]:
    """Count where small regions border on regions that stay, within a block.

    Returns:
        (K, 3) region in the block, class, pixel edges, of regions that lie in the block alone; and the same with the
        segment in place of the region, of those that touch the block's border.
    """
    small = whole_areas(found, joined) < min_area_px
    image = found.labels_HW
    pairs = np.concatenate([_unequal(image[:, :-1], image[:, 1:]), _unequal(image[:-1], image[1:])])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[small[pairs[:, 0]] & ~small[pairs[:, 1]]]
    table = _add_up(pairs[:, 0], found.classes[pairs[:, 1]].astype(np.int64), np.ones(len(pairs), np.int64))
    on_border = np.isin(table[:, 0], joined.numbers)
    told = table[on_border]
    told[:, 0] = joined.segments[np.searchsorted(joined.numbers, told[:, 0])]
    return table[~on_border], told


def _unequal(a_HW: I32, b_HW: I32) -> I64:
    """Return (K, 2) regions of the neighbouring pixels that are of two regions."""
    at = (a_HW != b_HW) & (a_HW > 0) & (b_HW > 0)
    return np.column_stack([a_HW[at], b_HW[at]]).astype(np.int64) - 1


def border_contacts(borders: Sequence[BlockBorder], joined: Sequence[JoinedRegions], min_area_px: float) -> I64:
    """Return (K, 3) segment, class, pixel edges: where small regions meet regions that stay over a block border."""
    rows = [np.zeros((0, 3), np.int64)]
    for k, i, n, j, lengths in _touching(borders):
        for own, own_is, other, other_is in ((k, i, n, j), (n, j, k, i)):
            mine = np.searchsorted(joined[own].numbers, own_is)
            theirs = np.searchsorted(joined[other].numbers, other_is)
            counts = (joined[own].areas[mine] < min_area_px) & (joined[other].areas[theirs] >= min_area_px)
            segments, classes = joined[own].segments[mine], borders[other].classes[theirs].astype(np.int64)
            rows.append(np.column_stack([segments, classes, lengths])[counts])
    return _add_up(*np.concatenate(rows).astype(np.int64).T)


def new_classes(contacts: I64) -> dict[int, int]:
    """Return the class with the longest border for each region (or segment) of a table, ties to the first class."""
    table = _add_up(*contacts.T)
    order = np.lexsort((table[:, 1], -table[:, 2], table[:, 0]))
    chosen: dict[int, int] = {}
    for region, class_index, _ in table[order].tolist():
        chosen.setdefault(region, class_index)
    return chosen


def give_away(found: BlockRegions, joined: JoinedRegions, inner: Mapping[int, int], segments: Mapping[int, int]) -> U8:
    """Return the block's class map with small regions changed to other classes.

    Args:
        found: the block's regions.
        joined: of the same block.
        inner: region in the block -> class, from `new_classes` of the block's own table.
        segments: segment -> class, from `new_classes` of the tables of all blocks and `border_contacts` together.
    """
    classes = np.concatenate([np.array([NOTHING], np.uint8), found.classes])
    for region, class_index in inner.items():
        classes[region + 1] = class_index
    for region, segment in zip(joined.numbers.tolist(), joined.segments.tolist(), strict=True):
        classes[region + 1] = segments.get(segment, classes[region + 1])
    return np.asarray(classes[found.labels_HW], np.uint8)


def _add_up(regions: I64, classes: I64, lengths: I64) -> I64:
    """Return (K, 3) with one row for each region and class."""
    keys, inverse = np.unique(np.column_stack([regions, classes]), axis=0, return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, inverse.ravel(), lengths)
    return np.column_stack([keys, total]).astype(np.int64)


# ------------------------------------------------------------------------------------------------ pieces


def cut_pieces(found: BlockRegions, *, cell_px: int = CELL_PX) -> tuple[I32, I64, I64]:
    """Cut a block's regions by the lattice.

    Returns:
        (labels (H, W) of piece + 1, (P,) the region of each piece, (P,) its cell); numbered by first pixel.
        Cells are numbered `row << 32 | column` of the lattice.
    """
    height, width = found.labels_HW.shape
    rows = (np.arange(height, dtype=np.int64) + found.region.row_off) // cell_px
    cols = (np.arange(width, dtype=np.int64) + found.region.col_off) // cell_px
    num_cols = int(cols[-1] - cols[0]) + 1
    local = (rows - rows[0])[:, None] * num_cols + (cols - cols[0])[None, :]
    num_cells = int(local.max()) + 1
    keys = np.where(found.labels_HW > 0, (found.labels_HW.astype(np.int64) - 1) * num_cells + local, -1)
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    skipped = int(len(unique) > 0 and unique[0] < 0)
    order = np.argsort(first[skipped:], kind="stable")
    number = np.zeros(len(unique), np.int32)
    number[skipped:][order] = np.arange(1, len(order) + 1)
    unique = unique[skipped:][order]
    cell_row, cell_col = np.divmod(unique % num_cells, num_cols)
    cells = ((cell_row + rows[0]) << np.int64(32)) + cell_col + cols[0]
    return number[inverse].reshape(height, width), unique // num_cells, cells


# ------------------------------------------------------------------------------------------------ block borders


def _line_runs(line: I32, start: int) -> I64:
    """Return (K, 3) first place, place behind, region of the stretches of one label along a side."""
    change = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    stops = np.append(change[1:], len(line))
    labels = line[change].astype(np.int64)
    table = np.column_stack([change + start, stops + start, labels - 1])
    return np.asarray(table[labels > 0], np.int64)


def _touching(borders: Sequence[BlockBorder]) -> list[tuple[int, I64, int, I64, I64]]:
    """Return (block, its regions, block right of or below it, its regions, common pixel edges) for all contacts."""
    found = []
    for first, second in ((2, 0), (3, 1)):
        after = {_line_of(b.region, second): [] for b in borders}  # type: dict[int, list[int]]
        for n, border in enumerate(borders):
            after[_line_of(border.region, second)].append(n)
        for k, border in enumerate(borders):
            for n in after.get(_line_of(border.region, first), []):
                i, j, lengths = _meet(border.sides[first], borders[n].sides[second])
                if len(i):
                    found.append((k, i, n, j, lengths))
    return found


def _line_of(region: Window, side: int) -> int:
    return (region.col_off, region.row_off, region.col_end, region.row_end)[side]


def _meet(a: I64, b: I64) -> tuple[I64, I64, I64]:
    """Return (regions of a, regions of b, common length) of stretches that overlap; both are sorted."""
    low = np.searchsorted(b[:, 1], a[:, 0], side="right")
    high = np.maximum(np.searchsorted(b[:, 0], a[:, 1], side="left"), low)
    counts = high - low
    i = np.repeat(np.arange(len(a)), counts)
    j = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    lengths = np.minimum(a[i, 1], b[j, 1]) - np.maximum(a[i, 0], b[j, 0])
    return a[i, 2], b[j, 2], lengths


def _places(borders: Sequence[BlockBorder], bases: I64, block: int, regions: I64) -> I64:
    return np.asarray(bases[block] + np.searchsorted(borders[block].numbers, regions), np.int64)


@kernel
def _roots(num_nodes: int, a: I64, b: I64) -> I64:
    parent = np.arange(num_nodes)
    for k in range(len(a)):
        i, j = a[k], b[k]
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        while parent[j] != j:
            parent[j] = parent[parent[j]]
            j = parent[j]
        parent[max(i, j)] = min(i, j)
    for k in range(num_nodes):
        i = parent[k]
        while parent[i] != i:
            i = parent[i]
        parent[k] = i
    return parent
