"""Pass C: the pixels of each core, each to one feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64
from segworker.stitch.exclusive import exclusive_runs
from segworker.stitch.parts import (
    SEAM_CUT,
    SEAM_MERGED,
    SEAM_MISSING,
    SEAM_NONE,
    BlockLinks,
    BorderFeatures,
    Pieces,
    StitchOptions,
    area_kept,
    passes,
)
from segworker.stitch.points import F32, best_points, points_of
from segworker.stitch.sums import MAX_INSTANCES, SCORE_ONE, VIEW_TILE, Settled, TileKey, tile_number
from segworker.stitch.views import cores, unconfirmed, whole_views
from segworker.types import Instances, Runs, Window


@dataclass(frozen=True, slots=True, eq=False)
class _Members:
    """The block's features, and which of its own instances give them pixels."""

    settled: Settled
    "Of the local components, then of features that only guests belong to."
    feature: I64
    "(N,) number over the whole scene, -1 for those that do not leave the block."
    component: I64
    "(nodes,) position in `settled` of each own instance."
    gives: NDArray[np.bool_]
    "(nodes,) whether an own instance gives pixels."
    whole: NDArray[np.bool_]
    "(nodes,) whether it gives those beyond its tile's core, too: it is a whole view."


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The components in one core."""

    runs: Runs
    components: I64
    claimed_px: I64
    "Pixels that each would have without the others."
    is_cut: NDArray[np.bool_]
    "Whether each is cut off at the core's border, unless another tile goes on with it."


def cut_block(
    own: Mapping[TileKey, Instances],
    ring: Mapping[TileKey, Instances],
    links: BlockLinks,
    border: BorderFeatures,
    *,
    grid: Grid,
    options: StitchOptions,
) -> Pieces:
    """Return the pixels of a block's cores, each with one feature (with all that hold it if not exclusive).

    A core's pixels come from its own tile, except that a feature that one tile saw as a whole comes from that tile
    alone, also where it reaches into the cores around it. Features that the score and class filters refuse take no
    pixels, nor do those that only a tile saw which does not own them. Whole features that lose more than
    `options.min_kept_share` allows, or fail the area limits, are dropped; `rank_blocks` settles the parts of border
    features.

    Args:
        own: the block's tiles by (row, column), as in `link_block`.
        ring: tiles around the block; those of `border.guests` are looked at.
        links: of `link_block`.
        border: of `join_blocks`.
        grid: the scene's grid.
        options: thresholds and filters.
    """
    members, strangers = _members(own, links, border, grid, options)
    guests = _guests(own, ring, members, strangers, border, grid)
    keys = members.settled.keys() if options.exclusive else None
    found: list[_Cut] = []
    points: list[tuple[I64, F32]] = []
    beside_missing = np.zeros(len(members.settled), np.bool_)
    base = 0
    for key in sorted(own):
        tile, span = own[key], slice(base, base + len(own[key]))
        base += len(tile)
        chosen = np.flatnonzero(members.gives[span])
        if links.missing:
            beside = _touching(tile.take(chosen), links.missing)
            beside_missing[members.component[span][chosen[beside]]] = True
        seen = points_of(tile, chosen)
        if seen is not None:
            points.append((members.component[span][seen[0]], seen[1]))
        local = members.component[span][chosen]
        runs = tile.runs if len(chosen) == len(tile) else tile.runs.take(chosen)
        whole = members.whole[span][chosen]
        if key in guests:
            runs = Runs.concatenate([runs, guests[key][0]])
            local = np.concatenate([local, guests[key][1]])
            whole = np.concatenate([whole, np.ones(len(guests[key][1]), np.bool_)])
        found.append(_cut_core(runs, local, whole, tile, keys))
    result = _pieces(members, found, beside_missing, points)
    kept = area_kept(masks.areas_px(result.runs), result.claimed_px, options)
    return result.take(np.flatnonzero((result.features >= 0) | kept))


def _members(
    own: Mapping[TileKey, Instances],
    links: BlockLinks,
    border: BorderFeatures,
    grid: Grid,
    options: StitchOptions,
) -> tuple[_Members, tuple[I64, I64]]:
    """Return the features, and (position among the guests, position in `settled`) of those that give pixels."""
    local = links.sums.settle()
    num_local = len(local)
    # Components of one feature that are joined elsewhere go under the number of the first.
    known, first, inverse = np.unique(border.features, return_index=True, return_inverse=True)
    number = np.arange(num_local)
    number[border.components] = border.components[first[inverse.ravel()]]
    # Guests that belong to no feature of the block's own tiles follow.
    found, guest_first, of_guest = np.unique(border.guests.features, return_index=True, return_inverse=True)
    foreign = ~np.isin(found, known)
    place = np.full(len(found), -1, np.int64)
    place[foreign] = num_local + np.arange(foreign.sum())
    place[~foreign] = border.components[first[np.searchsorted(known, found[~foreign])]]
    settled = Settled.concatenate([local, border.guests.settled.take(guest_first[foreign])])
    for column, values in (
        (settled.class_ids, border.settled.class_ids),
        (settled.score, border.settled.score),
        (settled.table, border.settled.table),
    ):
        column[border.components] = values
    feature = np.full(len(settled), -1, np.int64)
    feature[border.components] = border.features
    feature[num_local:] = found[foreign]
    kept = passes(settled, options) & ~unconfirmed(settled.table)
    whole = whole_views(settled.table, grid=grid, rule=options.rule)
    component = number[links.component]
    tile = np.repeat([tile_number(grid, k) for k in sorted(own)] or [0], [len(own[k]) for k in sorted(own)] or [0])
    viewed = settled.table[component, VIEW_TILE] == tile
    members = _Members(
        settled, feature, component, kept[component] & (viewed | ~whole[component]), viewed & whole[component]
    )
    guest = place[of_guest.ravel()]
    gives = kept[guest] & whole[guest]
    gives &= settled.table[guest, VIEW_TILE] == border.guests.nodes // MAX_INSTANCES
    chosen = np.flatnonzero(gives)
    return members, (chosen, guest[chosen])


def _guests(
    own: Mapping[TileKey, Instances],
    ring: Mapping[TileKey, Instances],
    members: _Members,
    strangers: tuple[I64, I64],
    border: BorderFeatures,
    grid: Grid,
) -> dict[TileKey, tuple[Runs, I64]]:
    """Return for each own tile the whole views of other tiles that reach into its core: (masks, components)."""
    runs, boxes, home, component = [Runs.empty()], [np.zeros((0, 4), np.int64)], [], []
    base = 0

    def add(tile: Instances, indices: I64, components: I64) -> None:
        runs.append(tile.runs.take(indices))
        boxes.append(tile.boxes_xyxy[indices].astype(np.int64))
        home.append(np.tile([[tile.tile.row, tile.tile.col]], (len(indices), 1)))
        component.append(components)

    for key in sorted(own):
        tile, span = own[key], slice(base, base + len(own[key]))
        base += len(tile)
        core = masks.corners(tile.tile.core)
        beyond = (tile.boxes_xyxy[:, :2] < core[:2]).any(axis=1) | (tile.boxes_xyxy[:, 2:] > core[2:]).any(axis=1)
        out = np.flatnonzero(beyond & members.whole[span] & members.gives[span])
        if len(out):
            add(tile, out, members.component[span][out])
    nodes = border.guests.nodes[strangers[0]]
    for number in np.unique(nodes // MAX_INSTANCES).tolist():
        key = divmod(number, grid.shape_yx[1])
        if key in ring:
            mine = nodes // MAX_INSTANCES == number
            add(ring[key], nodes[mine] % MAX_INSTANCES, strangers[1][mine])
    if not component:
        return {}
    return _by_target(
        own, Runs.concatenate(runs), np.concatenate(boxes), np.concatenate(home), np.concatenate(component), grid
    )


def _by_target(
    own: Mapping[TileKey, Instances], runs: Runs, boxes: I64, home_yx: I64, component: I64, grid: Grid
) -> dict[TileKey, tuple[Runs, I64]]:
    """Give each mask to the tiles around its home whose cores its box reaches into."""
    targets, sources = [], []
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            y, x = home_yx[:, 0] + step_y, home_yx[:, 1] + step_x
            inside = (y >= 0) & (y < grid.shape_yx[0]) & (x >= 0) & (x < grid.shape_yx[1])
            if step_y == step_x == 0 or not inside.any():
                continue
            at = np.flatnonzero(inside)
            (top, bottom), (left, right) = cores(grid.y, y[at]), cores(grid.x, x[at])
            box = boxes[at]
            meets = (box[:, 0] < right) & (box[:, 2] > left) & (box[:, 1] < bottom) & (box[:, 3] > top)
            sources.append(at[meets])
            targets.append(y[at[meets]] * grid.shape_yx[1] + x[at[meets]])
    target, source = np.concatenate(targets), np.concatenate(sources)
    order = np.lexsort((source, target))
    target, source = target[order], source[order]
    result = {}
    found, begins = np.unique(target, return_index=True)
    for number, begin, end in zip(found.tolist(), begins, [*begins[1:], len(target)], strict=True):
        key = divmod(number, grid.shape_yx[1])
        if key in own:
            result[key] = runs.take(source[begin:end]), component[source[begin:end]]
    return result


def _cut_core(runs: Runs, owner: I64, whole: NDArray[np.bool_], tile: Instances, keys: I64 | None) -> _Cut:
    """Return the pixels of a core by component.

    Cut off is one of which a good part lies beyond the core, unless it is a whole view; that holds if nobody took it.
    """
    core = tile.tile.core
    present, group = np.unique(owner, return_inverse=True)
    group = group.ravel()
    if keys is not None:
        cut, claimed = exclusive_runs(runs, groups=group, keys=keys[present], window=core)
    else:
        cut = masks.merge_runs(masks.clip_runs(runs, core), group, len(present))
        claimed = masks.areas_px(cut)
    patchy = np.where(whole, -1, group)
    lost = _is_cut_off(runs.rows, runs.starts, runs.stops, runs.offsets, patchy, len(present), masks.corners(core))
    if claimed.all():
        return _Cut(cut, present, claimed, lost)
    filled = np.flatnonzero(claimed)
    return _Cut(cut.take(filled), present[filled], claimed[filled], lost[filled])


@kernel
def _is_cut_off(
    rows: I32, starts: I32, stops: I32, offsets: I64, group: I64, num_groups: int, core: I64
) -> NDArray[np.bool_]:
    """Tell of which groups more than a tenth, or 64 px, lies beyond the core; masks of group -1 are left out."""
    full, inside = np.zeros(num_groups, np.int64), np.zeros(num_groups, np.int64)
    for i in range(len(group)):
        if group[i] >= 0:
            for k in range(offsets[i], offsets[i + 1]):
                full[group[i]] += stops[k] - starts[k]
                if core[1] <= rows[k] < core[3]:
                    begin, end = max(np.int64(starts[k]), core[0]), min(np.int64(stops[k]), core[2])
                    inside[group[i]] += max(0, end - begin)
    lost: NDArray[np.bool_] = full - inside > np.minimum(64.0, 0.1 * full)
    return lost


def _touching(tile: Instances, missing: Sequence[Window]) -> I64:
    """Return the instances in a core that reach that of a missing tile, or its border: they may go on there unseen."""
    touched = np.zeros(len(tile), np.bool_)
    for core in missing:
        around = Window(max(0, core.col_off - 1), max(0, core.row_off - 1), core.width + 2, core.height + 2)
        near = tile.tile.window.intersect(around)
        if near.area_px:
            touched |= masks.sums_in(tile.runs, near)[0] > 0
    touched &= masks.sums_in(tile.runs, tile.tile.core)[0] > 0  # so that the block has a part of the feature to mark
    return np.flatnonzero(touched).astype(np.int64)


def _pieces(
    members: _Members, found: Sequence[_Cut], beside_missing: NDArray[np.bool_], points: Sequence[tuple[I64, F32]]
) -> Pieces:
    """Join the tiles' pieces by component."""
    every = np.concatenate([np.zeros(0, np.int64), *(f.components for f in found)]).astype(np.int64)
    present, group = np.unique(every, return_inverse=True)
    group = group.ravel()
    cut_runs = Runs.concatenate([f.runs for f in found])
    num_tiles = np.bincount(group[np.diff(cut_runs.offsets) > 0], minlength=len(present)).astype(np.int64)
    wanted = np.zeros(len(present), np.int64)
    np.add.at(wanted, group, np.concatenate([np.zeros(0, np.int64), *(f.claimed_px for f in found)]))
    cut = np.zeros(len(present), np.bool_)
    np.logical_or.at(cut, group, np.concatenate([np.zeros(0, np.bool_), *(f.is_cut for f in found)]))
    seam = np.where(num_tiles > 1, SEAM_MERGED, np.where(cut, SEAM_CUT, SEAM_NONE)).astype(np.uint8)
    seam[beside_missing[present]] = SEAM_MISSING
    settled = members.settled.take(present)
    return Pieces(
        class_ids=settled.class_ids,
        scores=(settled.score / SCORE_ONE).astype(np.float32),
        runs=masks.merge_runs(cut_runs, group, len(present)),
        claimed_px=wanted,
        num_tiles=num_tiles,
        seam=seam,
        features=members.feature[present],
        keypoints_NK4=best_points(
            np.concatenate([own for _, own in points]),
            np.searchsorted(present, np.concatenate([components for components, _ in points])),
            len(present),
        )
        if points
        else None,
    )
