"""Passes A and B: links within blocks, then over block borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from segworker import masks
from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I64
from segworker.seams import FORWARD, SeamRule, link
from segworker.stitch.parts import (
    MAX_INSTANCES,
    NOWHERE,
    SCORE_ONE,
    BlockLinks,
    BorderFeatures,
    BorderLinks,
    Sums,
    TileKey,
)
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
    sums = _instance_sums([own[k] for k in keys], component)
    local = component[np.concatenate([np.zeros(0, np.int64), *outer_local]).astype(np.int64)]
    reaching = np.unique(local)
    border = BorderLinks(reaching, sums.take(reaching), _stack(outer, 2), np.searchsorted(reaching, local))
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


def _nodes(grid: Grid, key: TileKey, indices: I64) -> I64:
    return (np.int64(key[0]) * grid.shape_yx[1] + key[1]) * MAX_INSTANCES + indices


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


def _instance_sums(tiles: Sequence[Instances], component: I64) -> Sums:
    """Return the sums of local components over the cores of their tiles."""
    cores = [masks.sums_in(t.runs, t.tile.core) for t in tiles]
    area = np.concatenate([np.zeros(0, np.int64), *(c[0] for c in cores)])
    scores = np.concatenate([np.zeros(0), *(t.scores for t in tiles)])
    first = np.concatenate([np.zeros((0, 2), np.int64), *(c[1] for c in cores)])
    first[area == 0] = NOWHERE
    class_ids = np.concatenate([np.zeros(0, np.int64), *(t.class_ids for t in tiles)]).astype(np.int64)
    nodes = np.arange(len(area))
    single = Sums(
        area, area * np.rint(scores * SCORE_ONE).astype(np.int64), first, np.column_stack([nodes, class_ids, area])
    )
    return Sums.merge(single, component, int(component.max()) + 1 if len(component) else 0)


def join_blocks(blocks: Sequence[BorderLinks]) -> list[BorderFeatures]:
    """Join the components of all blocks of a scene over block borders.

    Only components with a link over a border come here; memory and time grow with their number.
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
    return [BorderFeatures(b.components, f, settled.take(f)) for b, f in zip(blocks, split, strict=True)]
