"""Passes A and B: links within blocks, then over block borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I64, find_root, unite
from segworker.seams import FORWARD, SeamRule, link
from segworker.stitch.parts import BlockLinks, BorderFeatures, BorderLinks, Guests
from segworker.stitch.sums import MAX_INSTANCES, SCORE_ONE, VIEW_TILE, Sums, TileKey, tile_number
from segworker.types import Instances, Window


def link_block(
    own: Mapping[TileKey, Instances], ring: Mapping[TileKey, Instances], *, grid: Grid, rule: SeamRule
) -> BlockLinks:
    """Link the instances of a block with each other and with those of the ring of tiles around it.

    Args:
        own: the block's tiles by (row, column). Tiles without instances are there, those without a result are not.
        ring: tiles around the block that were read; each pair of tiles over the border is judged by both blocks alike.
        grid: the scene's grid.
        rule: thresholds.
    """
    keys = sorted(own)
    bases = dict(zip(keys, np.cumsum([0, *(len(own[k]) for k in keys)]).tolist(), strict=False))
    num_nodes = sum(len(own[k]) for k in keys)
    inner, outer, outer_local, seen, ious = [], [], [], [], []
    for first, second in _neighbour_pairs(own, ring):
        a, b = (own[k] if k in own else ring[k] for k in (first, second))
        if not (len(a) or len(b)):
            continue
        found = link(a, b, grid=grid, rule=rule)
        if first in own:  # the statistics of a pair count once in the scene
            seen.append(found.seen)
            ious.append(
                np.column_stack([a.class_ids[found.pairs[:, 0]], np.rint(found.iou * SCORE_ONE)]).astype(np.int64)
            )
        if first in own and second in own:
            inner.append(found.pairs + np.array([bases[first], bases[second]]))
        else:
            mine, other, side = (first, second, 0) if first in own else (second, first, 1)
            nodes = _nodes(grid, mine, found.pairs[:, side]), _nodes(grid, other, found.pairs[:, 1 - side])
            outer.append(np.column_stack(nodes))
            outer_local.append(found.pairs[:, side] + bases[mine])
    component = _components(num_nodes, _stack(inner, 2))
    sums = Sums.of_instances(own, component, grid=grid)
    local = component[np.concatenate([np.zeros(0, np.int64), *outer_local]).astype(np.int64)]
    guests, guest_local = _leaving(own, component, grid)
    reaching = np.unique(np.concatenate([local, guest_local]))
    border = BorderLinks(
        components=reaching,
        sums=sums.take(reaching),
        nodes=_stack(outer, 2),
        place=np.searchsorted(reaching, local),
        guests=np.stack([guests, np.searchsorted(reaching, guest_local)], axis=1),
        ring=np.array(sorted(tile_number(grid, k) for k in ring), np.int64),
    )
    tables = _seen_table(_stack(seen, 2)), _iou_table(_stack(ious, 2))
    return BlockLinks(component, sums, border, *tables, _missing_cores(own, ring, grid))


def _neighbour_pairs(
    own: Mapping[TileKey, Instances], ring: Mapping[TileKey, Instances]
) -> list[tuple[TileKey, TileKey]]:
    """Return pairs of neighbouring tiles, earlier first, of which at least one is the block's own."""
    pairs = []
    for row, col in sorted([*own, *ring]):
        for step_row, step_col in FORWARD:
            other = (row + step_row, col + step_col)
            if (other in own or other in ring) and ((row, col) in own or other in own):
                pairs.append(((row, col), other))
    return pairs


def _missing_cores(
    own: Mapping[TileKey, Instances], ring: Mapping[TileKey, Instances], grid: Grid
) -> tuple[Window, ...]:
    """Return the cores of the neighbours of the block's tiles that are in the grid and have no result."""
    rows, cols = grid.shape_yx
    steps = [(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
    around = {(key[0] + row, key[1] + col) for key in own for row, col in steps}
    missing = (k for k in around if 0 <= k[0] < rows and 0 <= k[1] < cols and k not in own and k not in ring)
    return tuple(grid.tile(*key).core for key in sorted(missing))


def _leaving(own: Mapping[TileKey, Instances], component: I64, grid: Grid) -> tuple[I64, I64]:
    """Return (nodes, local components) of the instances whose boxes reach into a neighbouring tile of another block."""
    rows, cols = grid.shape_yx
    nodes, local = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    base = 0
    for row, col in sorted(own):
        tile = own[row, col]
        away = [
            (y, x)
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
            if 0 <= row + y < rows and 0 <= col + x < cols and (row + y, col + x) not in own
        ]
        if away and len(tile):
            left, top, right, bottom = tile.boxes_xyxy.T
            core = tile.tile.core
            beyond_y = {-1: top < core.row_off, 0: np.True_, 1: bottom > core.row_end}
            beyond_x = {-1: left < core.col_off, 0: np.True_, 1: right > core.col_end}
            out = np.flatnonzero(np.logical_or.reduce([beyond_y[y] & beyond_x[x] for y, x in away]))
            nodes.append(_nodes(grid, (row, col), out))
            local.append(component[base + out])
        base += len(tile)
    return np.concatenate(nodes), np.concatenate(local)


def _nodes(grid: Grid, key: TileKey, indices: I64) -> I64:
    return np.asarray(tile_number(grid, key) * MAX_INSTANCES + indices, np.int64)


def _stack(parts: Sequence[I64], width: int) -> I64:
    return np.concatenate([np.zeros((0, width), np.int64), *parts]).astype(np.int64)


def _seen_table(rows: I64) -> I64:
    classes, inverse = np.unique(rows[:, 0], return_inverse=True)
    hits = np.bincount(inverse, weights=rows[:, 1], minlength=len(classes)).astype(np.int64)
    return np.column_stack([classes, np.bincount(inverse, minlength=len(classes)), hits]).astype(np.int64)


def _iou_table(rows: I64) -> I64:
    classes, inverse = np.unique(rows[:, 0], return_inverse=True)
    sums = np.zeros(len(classes), np.int64)
    np.add.at(sums, inverse, rows[:, 1])
    return np.column_stack([classes, np.bincount(inverse, minlength=len(classes)), sums]).astype(np.int64)


def _components(num_nodes: int, links: I64) -> I64:
    """Return the component of each node, numbered by first node."""
    roots = _union(num_nodes, np.ascontiguousarray(links[:, 0]), np.ascontiguousarray(links[:, 1]))
    component: I64 = np.unique(roots, return_inverse=True)[1].astype(np.int64).ravel()
    return component


@kernel
def _union(num_nodes: int, a: I64, b: I64) -> I64:
    parent = np.arange(num_nodes)
    for k in range(len(a)):
        unite(parent, a[k], b[k])
    for k in range(num_nodes):
        parent[k] = find_root(parent, k)
    return parent


def join_blocks(blocks: Sequence[BorderLinks]) -> list[BorderFeatures]:
    """Join the components of all blocks of a scene over block borders.

    Only components with a link or a box over a border come here; memory and time grow with their number.
    """
    bases = np.cumsum([0, *(len(b.components) for b in blocks)])
    linked = _stack([b.nodes for b in blocks], 2)
    place = np.concatenate(
        [np.zeros(0, np.int64), *(base + b.place for base, b in zip(bases, blocks, strict=False))]
    ).astype(np.int64)
    nodes, first = np.unique(linked[:, 0], return_index=True)
    partner = np.searchsorted(nodes, linked[:, 1])
    feature = _components(int(bases[-1]), np.column_stack([place, place[first][partner]]).astype(np.int64))
    num_features = int(feature.max()) + 1 if len(feature) else 0
    settled = Sums.merge(Sums.concatenate([b.sums for b in blocks]), feature, num_features).settle()
    split = np.split(feature, bases[1:-1])
    everyone = _stack([b.guests + np.array([0, base]) for base, b in zip(bases, blocks, strict=False)], 2)
    everyone = everyone[np.argsort(everyone[:, 0])]
    result = []
    for block, own in zip(blocks, split, strict=True):
        begins, ends = (np.searchsorted(everyone[:, 0], (block.ring + k) * MAX_INSTANCES) for k in (0, 1))
        counts = ends - begins
        here = everyone[np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())]
        of_guest = feature[here[:, 1]]
        viewing = settled.table[of_guest, VIEW_TILE] == here[:, 0] // MAX_INSTANCES
        guests = Guests(here[viewing, 0], of_guest[viewing], settled.take(of_guest[viewing]))
        result.append(BorderFeatures(block.components, own, settled.take(own), guests))
    return result
