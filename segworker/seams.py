"""The seam rule: when are two instances of neighbouring tiles one object?

Two neighbours both see a *strip*, the intersection of their windows. Near a window's cut side masks stop short and
drift, so they are compared in the strip's *trusted* middle, `cut_trust_px` away from the strip's ends. What is compared
are *fragments*, the connected parts of an instance inside the strip: both tiles saw the very same pixels there, so
fragments correspond even where one tile sees a U as two legs and its neighbour as one arch. Each fragment votes for the
one partner with which it has the highest IoU, and the vote counts where that is at least `min_iou`. A vote from either
side links the two instances. Where the trusted middle shows too little of both, the whole strip is asked.
docs/design/seams.md has the alternatives and the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64, areas_px
from segworker.types import Instances, Tile, Window

FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
"Row and column steps to the four neighbours that come later in row order; each pair of tiles is met once."


@dataclass(frozen=True, slots=True)
class SeamRule:
    """Thresholds of the vote."""

    cut_trust_px: int = 16
    "Margin along cut window sides that is not trusted; the model's InputSpec states it."
    min_iou: float = 0.25
    "Least IoU of two fragments in the part of the strip that is compared."
    min_evidence_px: int = 64
    "The trusted middle is enough where both show this many pixels in it, or the halo's width,"
    min_evidence_share: float = 0.2
    "or this share of the smaller object, whichever is least; otherwise the whole strip is compared."


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Pairs of instances of two tiles that are one object, and how well the two sides agreed."""

    pairs: I64
    "(L, 2) index in the first tile, index in the second; distinct."
    seen: I64
    "(C, 2) class id and 1 if linked, for each fragment of either side that the other side should have seen."
    iou: NDArray[np.float64]
    "(L,) IoU of the fragments in the zone that was compared, the best where several linked the same pair."


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """The connected parts of one tile's instances inside a strip."""

    instance: I64
    "(F,) index of the instance in its tile."
    area: I64
    "(F, 2) pixels in the whole strip and in its trusted middle."
    total: I64
    "(F,) pixels of the whole instance in its window."
    class_ids: I64
    "(F,)."
    place: I64
    "(F,) row and column of the first pixel in the strip, as one number."
    runs: tuple[I64, I32, I32, I32]
    "First run of each strip row, then start, stop and fragment of each run, by row and start."

    def __len__(self) -> int:
        return len(self.instance)


def neighbours(grid: Grid, row: int, col: int) -> Iterator[tuple[int, int]]:
    """Yield the tiles after (row, col) in row order that share a strip with it."""
    rows, cols = grid.shape_yx
    for step_row, step_col in FORWARD:
        if 0 <= row + step_row < rows and 0 <= col + step_col < cols:
            yield row + step_row, col + step_col


def strips(first: Tile, second: Tile, grid: Grid, cut_trust_px: int) -> tuple[Window, Window]:
    """Return (strip, trusted middle): at most a quarter of the strip's side is distrusted on each cut end."""
    strip = first.window.intersect(second.window)
    margin_x, margin_y = min(cut_trust_px, strip.width // 4), min(cut_trust_px, strip.height // 4)
    left = strip.col_off + (margin_x if strip.col_off > 0 else 0)
    top = strip.row_off + (margin_y if strip.row_off > 0 else 0)
    right = strip.col_end - (margin_x if strip.col_end < grid.width else 0)
    bottom = strip.row_end - (margin_y if strip.row_end < grid.height else 0)
    return strip, Window(left, top, right - left, bottom - top)


def link(first: Instances, second: Instances, *, grid: Grid, rule: SeamRule) -> Links:
    """Return the links between the instances of two neighbouring tiles.

    Neither the order of the two tiles nor that of the instances in them changes which instances are linked.
    """
    strip, trusted = strips(first.tile, second.tile, grid, rule.cut_trust_px)
    a, b = fragments(first, strip, trusted), fragments(second, strip, trusted)
    pairs, common = _common(a, b, strip, trusted)
    inter, iou = _compare(a, b, pairs, common, grid, rule)
    i, j = pairs[:, 0], pairs[:, 1]
    voted = _votes(i, inter, iou, _tie_keys(b, j)) | _votes(j, inter, iou, _tie_keys(a, i))
    won = voted & (iou >= rule.min_iou)
    linked = pairs[won]
    seen = np.concatenate([_seen(a, linked[:, 0], rule), _seen(b, linked[:, 1], rule)])
    instance_pairs, best_iou = _by_instance(a, b, linked, iou[won])
    return Links(instance_pairs, seen, best_iou)


def fragments(instances: Instances, strip: Window, trusted: Window) -> Fragments:
    """Return the 8-connected parts of each instance inside a strip, ordered by instance and first pixel."""
    near = _touching(instances, strip) if strip.area_px else np.zeros(0, np.int64)
    part = instances.runs.take(near)
    zones = np.array([_corners(strip), _corners(trusted)], np.int64)
    runs, owner, area, place = _fragment_kernel(part.rows, part.starts, part.stops, part.offsets, zones)
    instance = near[owner]
    total = areas_px(part)[owner]
    return Fragments(instance, area, total, instances.class_ids[instance].astype(np.int64), place, runs)


def _compare(
    a: Fragments, b: Fragments, pairs: I64, common: I64, grid: Grid, rule: SeamRule
) -> tuple[I64, NDArray[np.float64]]:
    """Return (common pixels, IoU) of each pair, in the trusted middle where it shows enough of both."""
    i, j = pairs[:, 0], pairs[:, 1]
    least = min(rule.min_evidence_px, grid.overlap_px // 2)
    evidence = np.minimum(least, rule.min_evidence_share * np.minimum(a.total[i], b.total[j]))
    zone = ((a.area[i, 1] >= evidence) & (b.area[j, 1] >= evidence) & (common[:, 1] > 0)).astype(np.int64)
    inter = common[np.arange(len(pairs)), zone]
    return inter, inter / np.maximum(a.area[i, zone] + b.area[j, zone] - inter, 1)


def _votes(voter: I64, inter: I64, iou: NDArray[np.float64], ties: tuple[I64, ...]) -> NDArray[np.bool_]:
    """Return which pairs are the one vote of their voter: highest IoU, then most common pixels, then `ties`."""
    order = np.lexsort((*ties, -inter, -iou, voter))
    leads = np.ones(len(order), np.bool_)
    leads[1:] = voter[order][1:] != voter[order][:-1]
    best = np.zeros(len(voter), np.bool_)
    best[order[leads]] = True
    return best


def _tie_keys(side: Fragments, partner: I64) -> tuple[I64, ...]:
    """Return what orders partners that share equally many pixels, the first key last: place and size, not number."""
    return side.class_ids[partner], side.total[partner], side.area[partner, 0], side.place[partner]


def _seen(side: Fragments, linked: I64, rule: SeamRule) -> I64:
    """Return (class id, linked) of the fragments that show enough in the trusted middle."""
    enough = side.area[:, 1] >= np.minimum(rule.min_evidence_px, 0.5 * side.total)
    hit = np.zeros(len(side), np.int64)
    hit[linked] = 1
    return np.asarray(np.column_stack([side.class_ids, hit])[enough])


def _by_instance(a: Fragments, b: Fragments, linked: I64, iou: NDArray[np.float64]) -> tuple[I64, NDArray[np.float64]]:
    """Return distinct pairs of instances and the best IoU of each."""
    pairs = np.column_stack([a.instance[linked[:, 0]], b.instance[linked[:, 1]]])
    order = np.lexsort((-iou, pairs[:, 1], pairs[:, 0]))
    pairs, iou = pairs[order], iou[order]
    new = np.ones(len(pairs), np.bool_)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new].astype(np.int64), iou[new]


def _touching(instances: Instances, strip: Window) -> I64:
    box = instances.boxes_xyxy
    return np.flatnonzero(
        (box[:, 0] < strip.col_end)
        & (box[:, 2] > strip.col_off)
        & (box[:, 1] < strip.row_end)
        & (box[:, 3] > strip.row_off)
    ).astype(np.int64)


def _corners(window: Window) -> tuple[int, int, int, int]:
    return window.col_off, window.row_off, window.col_end, window.row_end


def _common(a: Fragments, b: Fragments, strip: Window, trusted: Window) -> tuple[I64, I64]:
    """Return (pairs (P, 2) of fragments with common pixels, the pixels (P, 2) in the strip and its trusted middle)."""
    zones = np.array([_corners(strip), _corners(trusted)], np.int64)
    keys, in_strip, in_trusted = _overlaps(*a.runs, *b.runs, zones, len(b))
    if not len(keys):
        return np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)
    order = np.argsort(keys, kind="stable")
    unique, begins = np.unique(keys[order], return_index=True)
    common = np.column_stack([np.add.reduceat(v[order], begins) for v in (in_strip, in_trusted)])
    return np.column_stack([unique // len(b), unique % len(b)]).astype(np.int64), common


@kernel
def _fragment_kernel(  # noqa: C901 - one pass over the runs, which a kernel cannot split without copies
    rows: I32, starts: I32, stops: I32, offsets: I64, zones: I64
) -> tuple[tuple[I64, I32, I32, I32], I64, I64, I64]:
    zone, trusted = zones[0], zones[1]
    count = 0
    for k in range(len(rows)):
        count += zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]
    parent = np.arange(count)
    owner = np.empty(count, np.int64)
    data = np.empty((3, count), np.int32)
    key = np.empty(count, np.int64)
    n = 0
    for i in range(len(offsets) - 1):
        upper = n
        for k in range(offsets[i], offsets[i + 1]):
            if not (zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]):
                continue
            y, begin, end = rows[k], max(np.int64(starts[k]), zone[0]), min(np.int64(stops[k]), zone[2])
            data[0, n], data[1, n], data[2, n] = y, begin, end
            key[n] = (np.int64(y) << 32) + begin
            owner[n] = i
            while upper < n and (data[0, upper] < y - 1 or (data[0, upper] == y - 1 and data[2, upper] < begin)):
                upper += 1
            j = upper
            while j < n and data[0, j] == y - 1 and data[1, j] <= end:
                p, q = _root(parent, j), _root(parent, n)
                parent[max(p, q)] = min(p, q)
                j += 1
            n += 1
    fragment = np.empty(count, np.int32)
    fragment_owner = np.empty(count, np.int64)
    area = np.zeros((count, 2), np.int64)
    place = np.empty(count, np.int64)
    num = 0
    for k in range(count):
        root = _root(parent, k)
        if root == k:
            fragment[k] = num
            fragment_owner[num] = owner[k]
            place[num] = key[k]
            num += 1
        else:
            fragment[k] = fragment[root]
        f = fragment[k]
        area[f, 0] += data[2, k] - data[1, k]
        if trusted[1] <= data[0, k] < trusted[3]:
            area[f, 1] += max(0, min(np.int64(data[2, k]), trusted[2]) - max(np.int64(data[1, k]), trusted[0]))
    first = np.zeros(zone[3] - zone[1] + 1, np.int64)
    for k in range(count):
        first[data[0, k] - zone[1] + 1] += 1
    for y in range(len(first) - 1):
        first[y + 1] += first[y]
    order = np.argsort(key)
    runs = (first, data[1][order], data[2][order], fragment[order])
    return runs, fragment_owner[:num].copy(), area[:num].copy(), place[:num].copy()


@kernel
def _root(parent: I64, k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@kernel
def _overlaps(
    first_a: I64,
    starts_a: I32,
    stops_a: I32,
    who_a: I32,
    first_b: I64,
    starts_b: I32,
    stops_b: I32,
    who_b: I32,
    zones: I64,
    num_b: int,
) -> tuple[I64, I64, I64]:
    """Return (pair key, common pixels in the strip, in the trusted middle) for each pair of runs that overlap."""
    capacity = np.int64(len(starts_a) + len(starts_b) + 16)
    out = np.empty((3, capacity), np.int64)
    n = np.int64(0)
    for y in range(len(first_a) - 1):
        row = y + zones[0, 1]
        low = first_b[y]
        for i in range(first_a[y], first_a[y + 1]):
            while low < first_b[y + 1] and stops_b[low] <= starts_a[i]:
                low += 1
            j = low
            while j < first_b[y + 1] and starts_b[j] < stops_a[i]:
                begin, end = max(starts_a[i], starts_b[j]), min(stops_a[i], stops_b[j])
                if end > begin:
                    if n == capacity:
                        bigger = np.empty((3, 2 * capacity), np.int64)
                        bigger[:, :capacity] = out
                        out, capacity = bigger, 2 * capacity
                    out[0, n] = np.int64(who_a[i]) * num_b + who_b[j]
                    out[1, n] = end - begin
                    trusted = min(np.int64(end), zones[1, 2]) - max(np.int64(begin), zones[1, 0])
                    out[2, n] = max(0, trusted) if zones[1, 1] <= row < zones[1, 3] else 0
                    n += 1
                j += 1
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy()
