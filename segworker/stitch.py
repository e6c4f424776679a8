"""From instances of tiles to features of a scene, block of tiles by block of tiles.

Four passes, each a set of independent tasks per block, with only the ids and sums of border objects meeting between them:

A. `link_block`: links between the instances of a block's tiles and of the ring of tiles around it; local components.
B. `join_blocks`: components that reach over block borders become one; their class, score and rank are settled.
C. `cut_block`: the pixels of each core, each to one feature by a total order over whole features.
D. `rank_blocks` and `assemble_block`: emptied features are gone, indices are given by first pixel, and each feature is put
   together in the block that holds its first pixel.

A block here is any rectangle of tiles; results do not depend on how a scene is cut into blocks. Sums are integers, so
they do not depend on the order of addition either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I64
from segworker.seams import FORWARD, SeamRule, link
from segworker.types import Instances, Runs, Window

SCORE_ONE = 1 << 20
"Scores are summed as integers of this many parts."
MAX_INSTANCES = 1 << 20
"Instances a tile can hold: a node is tile index times this plus the instance's index."

TileKey: TypeAlias = tuple[int, int]
SEAM_NONE, SEAM_MERGED, SEAM_CUT = 0, 1, 2
SEAM_NAMES = ("none", "merged", "cut")


@dataclass(frozen=True, slots=True)
class StitchOptions:
    """What decides which features a run keeps, and how instances become features."""

    rule: SeamRule = field(default_factory=SeamRule)
    exclusive: bool = True
    "A pixel belongs to one feature at most."
    min_score: float = 0.0
    class_min_score: tuple[tuple[int, float], ...] = ()
    "Pairs (class id, least score), over `min_score`."
    class_ids: tuple[int, ...] | None = None
    "Classes to keep; None keeps all."
    min_area_px: float = 0.0
    "Grid pixels."
    max_area_px: float = float("inf")
    "Grid pixels."


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What is known of N components, as sums and extremes that add up in any order."""

    area: I64
    "(N,) core pixels before exclusivity."
    score: I64
    "(N,) area times score in 1 / SCORE_ONE."
    first_yx: I64
    "(N, 2) first pixel in row order; the largest int32 where there is none."
    classes: I64
    "(K, 3) component, class id, area of the members that voted for it."

    @classmethod
    def merge(cls, parts: Sums, groups: I64, num_groups: int) -> Sums:
        """Return the sums of groups of components."""
        area, score = np.zeros(num_groups, np.int64), np.zeros(num_groups, np.int64)
        np.add.at(area, groups, parts.area)
        np.add.at(score, groups, parts.score)
        key = np.full(num_groups, _key(np.array([[_NOWHERE, _NOWHERE]]))[0])
        np.minimum.at(key, groups, _key(parts.first_yx))
        classes = parts.classes.copy()
        classes[:, 0] = groups[classes[:, 0]]
        return cls(area, score, _unkey(key), _add_classes(classes))

    def settle(self) -> Settled:
        """Return class and score of each component: the class with most area, ties to the lowest id."""
        order = np.lexsort((self.classes[:, 1], -self.classes[:, 2], self.classes[:, 0]))
        lead = self.classes[order]
        keep = np.ones(len(lead), np.bool_)
        keep[1:] = lead[1:, 0] != lead[:-1, 0]
        class_ids = np.zeros(len(self.area), np.int64)
        class_ids[lead[keep, 0]] = lead[keep, 1]
        return Settled(class_ids, self.score // np.maximum(self.area, 1), self.area, self.first_yx)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What decides the total order of N features."""

    class_ids: I64
    score: I64
    "(N,) in 1 / SCORE_ONE."
    area: I64
    first_yx: I64

    def priority(self) -> I64:
        """Return each feature's rank: higher score, then larger, then earlier first pixel, then class. 0 wins."""
        y, x = self.first_yx[:, 0], self.first_yx[:, 1]
        order = np.lexsort((self.class_ids, x, y, -self.area, -self.score))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def take(self, indices: I64) -> Settled:
        """Return the features at `indices`."""
        return Settled(self.class_ids[indices], self.score[indices], self.area[indices], self.first_yx[indices])

    def kept(self, options: StitchOptions) -> NDArray[np.bool_]:
        """Return which features pass the score and class filters."""
        least = np.full(len(self.score), options.min_score)
        for class_id, score in options.class_min_score:
            least[self.class_ids == class_id] = score
        keep = (self.score >= np.floor(least * SCORE_ONE)) & (self.area > 0)
        return keep if options.class_ids is None else keep & np.isin(self.class_ids, options.class_ids)


@dataclass(frozen=True, slots=True, eq=False)
class BlockLinks:
    """Pass A's result for one block."""

    component: I64
    "(nodes of the block's tiles in row order,) local component of each instance."
    sums: Sums
    "of the local components."
    outer_nodes: I64
    "(L, 2) linked nodes across the block's border: own, foreign."
    outer_components: I64
    "(L,) the own node's local component."
    seen: I64
    "(C, 3) class id, instances that a neighbour should have seen, of them linked."
    iou_sums: I64
    "(C, 3) class id, links, sum of their IoU in 1 / SCORE_ONE."


@dataclass(frozen=True, slots=True, eq=False)
class BorderFeatures:
    """Pass B's result for one block: what became of its components that reach over its border."""

    components: I64
    "(B,) local components, sorted."
    features: I64
    "(B,) their feature, numbered over the whole scene."
    settled: Settled
    "(B,) of the whole features."


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Pixels of N features, or of their parts in one block."""

    class_ids: I64
    scores: NDArray[np.float32]
    runs: Runs
    num_tiles: I64
    "(N,) tiles whose cores gave pixels."
    seam: NDArray[np.uint8]
    "(N,) SEAM_NONE, SEAM_MERGED or SEAM_CUT."
    features: I64
    "(N,) number over the whole scene for parts of border features, -1 for whole ones."

    def __len__(self) -> int:
        return len(self.class_ids)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Pieces:
        """Return the pieces at `indices`."""
        return Pieces(
            self.class_ids[indices],
            self.scores[indices],
            self.runs.take(indices),
            self.num_tiles[indices],
            self.seam[indices],
            self.features[indices],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Pieces]) -> Pieces:
        """Return all pieces, one after the other."""
        return cls(
            np.concatenate([p.class_ids for p in parts]),
            np.concatenate([p.scores for p in parts]),
            Runs.concatenate([p.runs for p in parts]),
            np.concatenate([p.num_tiles for p in parts]),
            np.concatenate([p.seam for p in parts]),
            np.concatenate([p.features for p in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Finished objects of a scene, in the order of their index."""

    index: I64
    "(N,) dense rank in the scene by first pixel, class and area."
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.index)


_NOWHERE = 2**31 - 1


def _key(first_yx: I64) -> I64:
    return (first_yx[:, 0].astype(np.int64) << 32) + first_yx[:, 1]


def _unkey(key: I64) -> I64:
    return np.column_stack([key >> 32, key & 0xFFFFFFFF]).astype(np.int64)


def _add_classes(rows: I64) -> I64:
    """Sum the areas of equal (component, class) rows."""
    unique, inverse = np.unique(rows[:, :2], axis=0, return_inverse=True)
    areas = np.zeros(len(unique), np.int64)
    np.add.at(areas, inverse.ravel(), rows[:, 2])
    return np.column_stack([unique, areas]).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- pass A


def link_block(
    own: Mapping[TileKey, Instances], ring: Mapping[TileKey, Instances], *, grid: Grid, rule: SeamRule
) -> BlockLinks:
    """Link the instances of a block with each other and with those of the ring of tiles around it.

    Args:
        own: the block's tiles by (row, column); tiles without instances or without a result may be absent.
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
            ious.append(np.column_stack([a.class_ids[found.pairs[:, 0]], np.rint(found.iou * SCORE_ONE)]).astype(np.int64))
        if first in own and second in own:
            inner.append(found.pairs + [bases[first], bases[second]])
        else:
            mine, other, side = (first, second, 0) if first in own else (second, first, 1)
            nodes = _nodes(grid, mine, found.pairs[:, side]), _nodes(grid, other, found.pairs[:, 1 - side])
            outer.append(np.column_stack(nodes))
            outer_local.append(found.pairs[:, side] + bases[mine])
    component = _components(num_nodes, _stack(inner, 2))
    sums = _instance_sums([own[k] for k in keys], component)
    local = np.concatenate([np.zeros(0, np.int64), *outer_local]).astype(np.int64)
    return BlockLinks(
        component, sums, _stack(outer, 2), component[local], _seen_table(_stack(seen, 2)), _iou_table(_stack(ious, 2))
    )


def _neighbour_pairs(own: Mapping[TileKey, Instances], ring: Mapping[TileKey, Instances]) -> list[tuple[TileKey, TileKey]]:
    """Return pairs of neighbouring tiles, earlier first, of which at least one is the block's own."""
    pairs = []
    for row, col in sorted([*own, *ring]):
        for step_row, step_col in FORWARD:
            other = (row + step_row, col + step_col)
            if (other in own or other in ring) and ((row, col) in own or other in own):
                pairs.append(((row, col), other))
    return pairs


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
    return np.unique(roots, return_inverse=True)[1].astype(np.int64).ravel()


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
    cores = [masks.clip_runs(t.runs, t.tile.core) for t in tiles]
    area = np.concatenate([np.zeros(0, np.int64), *(masks.areas_px(c) for c in cores)])
    scores = np.concatenate([np.zeros(0), *(t.scores for t in tiles)])
    first = np.concatenate([np.zeros((0, 2), np.int64), *(masks.first_pixels_yx(c) for c in cores)]).astype(np.int64)
    first[area == 0] = _NOWHERE
    class_ids = np.concatenate([np.zeros(0, np.int64), *(t.class_ids for t in tiles)]).astype(np.int64)
    nodes = np.arange(len(area))
    single = Sums(area, area * np.rint(scores * SCORE_ONE).astype(np.int64), first, np.column_stack([nodes, class_ids, area]))
    return Sums.merge(single, component, int(component.max()) + 1 if len(component) else 0)


# ---------------------------------------------------------------------------------------------------------- pass B


def join_blocks(blocks: Sequence[BlockLinks]) -> list[BorderFeatures]:
    """Join the components of all blocks of a scene over block borders.

    Only components with a link over a border come here; memory and time grow with their number.
    """
    local = [np.unique(b.outer_components) for b in blocks]
    bases = np.cumsum([0, *(len(c) for c in local)])
    own = np.concatenate([np.zeros((0, 2), np.int64), *(b.outer_nodes for b in blocks)])
    place = np.concatenate(
        [np.zeros(0, np.int64)]
        + [base + np.searchsorted(c, b.outer_components) for base, c, b in zip(bases, local, blocks, strict=False)]
    ).astype(np.int64)
    nodes, first = np.unique(own[:, 0], return_index=True)
    partner = np.searchsorted(nodes, own[:, 1])
    feature = _components(int(bases[-1]), np.column_stack([place, place[first][partner]]).astype(np.int64))
    num_features = int(feature.max()) + 1 if len(feature) else 0
    settled = Sums.merge(_concatenate_sums(blocks, local), feature, num_features).settle()
    split = np.split(feature, bases[1:-1])
    return [BorderFeatures(c, f, settled.take(f)) for c, f in zip(local, split, strict=True)]


def _concatenate_sums(blocks: Sequence[BlockLinks], local: Sequence[I64]) -> Sums:
    area, score, first, classes, base = [], [], [], [], 0
    for block, components in zip(blocks, local, strict=True):
        area.append(block.sums.area[components])
        score.append(block.sums.score[components])
        first.append(block.sums.first_yx[components])
        rows = block.sums.classes[np.isin(block.sums.classes[:, 0], components)].copy()
        rows[:, 0] = base + np.searchsorted(components, rows[:, 0])
        classes.append(rows)
        base += len(components)
    return Sums(np.concatenate(area), np.concatenate(score), np.concatenate(first), _stack(classes, 3))


# ---------------------------------------------------------------------------------------------------------- pass C


def cut_block(
    own: Mapping[TileKey, Instances], links: BlockLinks, border: BorderFeatures, *, options: StitchOptions
) -> Pieces:
    """Return the pixels of a block's cores, each with one feature (with all that hold it if not exclusive).

    Features that the score and class filters refuse take no pixels. Whole features that are left without pixels, or fail
    the area limits, are dropped; the parts of border features are settled by `rank_blocks`.
    """
    settled = _settle(links, border)
    kept = settled.kept(options)
    priority = settled.priority()
    runs, components, seams = [], [], []
    base = 0
    for key in sorted(own):
        tile = own[key]
        local = links.component[base : base + len(tile)]
        base += len(tile)
        chosen = np.flatnonzero(kept[local])
        cut, here = _cut_core(tile.take(chosen), local[chosen], priority, options)
        runs.append(cut)
        components.append(here)
        seams.append(_lost_share(tile, local, here))
    pieces = _gather_pieces(runs, components, np.concatenate([np.zeros(0, np.bool_), *seams]), settled)
    feature = np.full(len(settled.area), -1, np.int64)
    feature[border.components] = border.features
    present, merged, num_tiles, cut_flag = pieces
    result = _make_pieces(settled.take(present), merged, num_tiles, cut_flag, feature[present])
    return result.take(np.flatnonzero((result.features >= 0) | _area_kept(masks.areas_px(merged), options)))


def _settle(links: BlockLinks, border: BorderFeatures) -> Settled:
    """Return the whole features' class, score, area and first pixel for each local component."""
    local = links.sums.settle()
    class_ids, score = local.class_ids.copy(), local.score.copy()
    area, first = local.area.copy(), local.first_yx.copy()
    at = border.components
    class_ids[at], score[at] = border.settled.class_ids, border.settled.score
    area[at], first[at] = border.settled.area, border.settled.first_yx
    return Settled(class_ids, score, area, first)


def _cut_core(tile: Instances, local: I64, priority: I64, options: StitchOptions) -> tuple[Runs, I64]:
    """Return (core pixels by component, the components)."""
    core = tile.tile.core
    present, group = np.unique(local, return_inverse=True)
    runs = masks.merge_runs(masks.clip_runs(tile.runs, core), group.ravel(), len(present))
    if options.exclusive and len(present) > 1:
        runs = masks.exclusive_runs(runs, priority=priority[present], window=core)
    filled = np.flatnonzero(np.diff(runs.offsets))
    return runs.take(filled), present[filled]


def _lost_share(tile: Instances, local: I64, present: I64) -> NDArray[np.bool_]:
    """Return for each present component whether a good part of it lies beyond the core: it is cut if nobody took it."""
    full = np.zeros(int(local.max()) + 1 if len(local) else 0, np.int64)
    core = np.zeros_like(full)
    np.add.at(full, local, masks.areas_px(tile.runs))
    np.add.at(core, local, masks.areas_px(masks.clip_runs(tile.runs, tile.tile.core)))
    beyond = full - core
    return np.asarray(beyond[present] > np.minimum(64, 0.1 * full[present]))


def _gather_pieces(
    runs: Sequence[Runs], components: Sequence[I64], lost: NDArray[np.bool_], settled: Settled
) -> tuple[I64, Runs, I64, NDArray[np.bool_]]:
    """Join the tiles' pieces by component: (components, runs, tiles, cut)."""
    every = np.concatenate([np.zeros(0, np.int64), *components]).astype(np.int64)
    present, group = np.unique(every, return_inverse=True)
    group = group.ravel()
    merged = masks.merge_runs(Runs.concatenate(list(runs)), group, len(present))
    num_tiles = np.bincount(group, minlength=len(present)).astype(np.int64)
    cut = np.zeros(len(present), np.bool_)
    np.logical_or.at(cut, group, lost)
    return present, merged, num_tiles, cut


def _make_pieces(settled: Settled, runs: Runs, num_tiles: I64, cut: NDArray[np.bool_], features: I64) -> Pieces:
    seam = np.where(num_tiles > 1, SEAM_MERGED, np.where(cut, SEAM_CUT, SEAM_NONE)).astype(np.uint8)
    scores = (settled.score / SCORE_ONE).astype(np.float32)
    return Pieces(settled.class_ids, scores, runs, num_tiles, seam, features)


def _area_kept(area: I64, options: StitchOptions) -> NDArray[np.bool_]:
    return np.asarray((area > 0) & (area >= options.min_area_px) & (area <= options.max_area_px))


# ---------------------------------------------------------------------------------------------------------- pass D


@dataclass(frozen=True, slots=True, eq=False)
class PieceSummary:
    """What pass D's ranking needs of one block's pieces: rows of whole features, sums of border parts."""

    region: Window
    "Grid pixels: the union of the block's cores."
    rows: I64
    "(height of the region,) whole features whose first pixel lies in each row."
    parts: I64
    "(P, 4) of border parts: feature, area, first pixel's row and column."


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
    parts = np.column_stack([pieces.features, masks.areas_px(pieces.runs), first])[~whole]
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
        [np.zeros((0, 5), np.int64)]
        + [np.column_stack([s.parts, np.full(len(s.parts), b)]) for b, s in enumerate(summaries)]
    )
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 0]))]
    features, begins = np.unique(table[:, 0], return_index=True)
    home, sources, rows = {}, {}, {}
    if len(features):
        kept = _area_kept(np.add.reduceat(table[:, 1], begins), options)
        ends = np.append(begins[1:], len(table))
        for feature, begin, end in zip(features[kept].tolist(), begins[kept], ends[kept], strict=True):
            home[feature] = int(table[begin, 4])
            rows[feature] = int(table[begin, 2])
            sources[feature] = tuple(sorted(table[begin:end, 4].tolist()))
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
    order = np.lexsort((masks.areas_px(every.runs), every.class_ids, first[:, 1], first[:, 0]))
    rows = first[order, 0] - region.row_off
    _, begins, counts = np.unique(rows, return_index=True, return_counts=True)
    within = np.arange(len(rows)) - np.repeat(begins, counts)
    return Features(rank.row_index[rows] + within, every.take(order))


def _merge_parts(parts: Pieces, home: I64) -> Pieces:
    group = np.searchsorted(home, parts.features)
    runs = masks.merge_runs(parts.runs, group, len(home))
    leader = np.zeros(len(home), np.int64)
    leader[group[::-1]] = np.arange(len(parts))[::-1]
    num_tiles = np.bincount(group, weights=parts.num_tiles, minlength=len(home)).astype(np.int64)
    seam = np.where(num_tiles > 1, SEAM_MERGED, parts.seam[leader] if len(parts) else SEAM_NONE).astype(np.uint8)
    return Pieces(parts.class_ids[leader], parts.scores[leader], runs, num_tiles, seam, np.full(len(home), -1, np.int64))


# ------------------------------------------------------------------------------------------------------ in one go


def stitch_scene(tiles: Sequence[Instances], *, grid: Grid, options: StitchOptions) -> Features:
    """Stitch a whole scene in memory, as one block: for small scenes, tests and benchmarks."""
    own = {(t.tile.row, t.tile.col): t for t in tiles}
    links = link_block(own, {}, grid=grid, rule=options.rule)
    border = join_blocks([links])[0]
    pieces = cut_block(own, links, border, options=options)
    region = Window(0, 0, grid.width, grid.height)
    rank = rank_blocks([summarise(pieces, region)], options=options)[0]
    return assemble_block(pieces, pieces.take(np.zeros(0, np.int64)), rank, region)
