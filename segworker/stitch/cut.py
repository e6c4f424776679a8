"""Pass C: the pixels of each core, each to one feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.masks import I64
from segworker.stitch.parts import (
    SCORE_ONE,
    SEAM_CUT,
    SEAM_MERGED,
    SEAM_MISSING,
    SEAM_NONE,
    BlockLinks,
    BorderFeatures,
    Pieces,
    Settled,
    StitchOptions,
    TileKey,
    area_kept,
)
from segworker.types import Instances, Runs, Window


def cut_block(
    own: Mapping[TileKey, Instances], links: BlockLinks, border: BorderFeatures, *, options: StitchOptions
) -> Pieces:
    """Return the pixels of a block's cores, each with one feature (with all that hold it if not exclusive).

    Features that the score and class filters refuse take no pixels. Whole features that are left without pixels, or
    fail the area limits, are dropped; the parts of border features are settled by `rank_blocks`.
    """
    settled = _settle(links, border)
    component = _joined(links.component, border)
    kept = settled.kept(options)
    priority = settled.priority()
    runs, components, seams = [], [], []
    beside_missing = np.zeros(len(settled.area), np.bool_)
    base = 0
    for key in sorted(own):
        tile = own[key]
        local = component[base : base + len(tile)]
        base += len(tile)
        chosen = np.flatnonzero(kept[local])
        cut, here = _cut_core(tile.take(chosen), local[chosen], priority, options)
        runs.append(cut)
        components.append(here)
        seams.append(_lost_share(tile, local, here))
        beside_missing[local[_touching(tile, links.missing)]] = True
    pieces = _gather_pieces(runs, components, np.concatenate([np.zeros(0, np.bool_), *seams]))
    feature = np.full(len(settled.area), -1, np.int64)
    feature[border.components] = border.features
    present, merged, num_tiles, cut_flag = pieces
    result = _make_pieces(settled.take(present), merged, num_tiles, cut_flag, feature[present])
    result.seam[beside_missing[present]] = SEAM_MISSING
    return result.take(np.flatnonzero((result.features >= 0) | area_kept(masks.areas_px(merged), options)))


def _joined(component: I64, border: BorderFeatures) -> I64:
    """Return the component of each instance, those of one feature under the number of the first: joined elsewhere."""
    _, first, inverse = np.unique(border.features, return_index=True, return_inverse=True)
    number = np.arange(int(component.max(initial=-1)) + 1)
    number[border.components] = border.components[first[inverse.ravel()]]
    return np.asarray(number[component], np.int64)


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
    group = group.ravel()
    if options.exclusive:
        runs = masks.exclusive_runs(tile.runs, groups=group, priority=priority[present], window=core)
    else:
        runs = masks.merge_runs(masks.clip_runs(tile.runs, core), group, len(present))
    filled = np.flatnonzero(np.diff(runs.offsets))
    return runs.take(filled), present[filled]


def _lost_share(tile: Instances, local: I64, present: I64) -> NDArray[np.bool_]:
    """Return for each present component whether a good part of it lies beyond the core: it is cut if nobody took it."""
    mine = np.flatnonzero(np.isin(local, present))
    place = np.searchsorted(present, local[mine])
    full, core = np.zeros(len(present), np.int64), np.zeros(len(present), np.int64)
    np.add.at(full, place, masks.areas_px(tile.runs)[mine])
    np.add.at(core, place, masks.sums_in(tile.runs, tile.tile.core)[0][mine])
    return np.asarray(full - core > np.minimum(64, 0.1 * full))


def _touching(tile: Instances, missing: Sequence[Window]) -> I64:
    """Return the instances that reach the core of a missing tile, or its border: they may go on there unseen."""
    touched = np.zeros(len(tile), np.bool_)
    for core in missing:
        around = Window(max(0, core.col_off - 1), max(0, core.row_off - 1), core.width + 2, core.height + 2)
        near = tile.tile.window.intersect(around)
        if near.area_px:
            touched |= masks.sums_in(tile.runs, near)[0] > 0
    return np.flatnonzero(touched).astype(np.int64)


def _gather_pieces(
    runs: Sequence[Runs], components: Sequence[I64], lost: NDArray[np.bool_]
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
