"""The seam rule: when are two instances of neighbouring tiles one object?

Two neighbours both see a *strip*, the intersection of their windows. Near a window's cut side masks stop short and drift,
so they are compared in the strip's *trusted* middle, `cut_trust_px` away from the strip's ends. Each instance that shows
enough of itself there votes for the one partner that holds most of its pixels, if that partner holds at least
`min_agreement` of them. A vote from either side links the two: the legs of a U both vote for the arch that the neighbour
sees as one. Where the trusted middle shows too little of both, the whole strip is asked, and little evidence counts only
if the masks agree almost completely. docs/design/seams.md has the alternatives and the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64, areas_px, first_pixels_yx
from segworker.types import Instances, Tile, Window

FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
"Row and column steps to the four neighbours that come later in row order; each pair of tiles is met once."


@dataclass(frozen=True, slots=True)
class SeamRule:
    """Thresholds of the vote."""

    cut_trust_px: int = 16
    "Margin along cut window sides that is not trusted; the model's InputSpec states it."
    min_agreement: float = 0.5
    "Least share of the voter's pixels in the strip that its partner must hold."
    min_evidence_px: int = 64
    "A voter must show this many pixels in the strip, or half the strip's width (a line from core border to window side),"
    min_evidence_share: float = 0.2
    "or this share of the smaller object, whichever is least."
    full_agreement: float = 0.9
    "IoU in the whole strip from which less evidence suffices."


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Pairs of instances of two tiles that are one object, and how well the two sides agreed."""

    pairs: I64
    "(L, 2) index in the first tile, index in the second."
    seen: I64
    "(C, 2) class id and 1 if linked, for each instance of either side that the other side should have seen."
    iou: NDArray[np.float64]
    "(L,) IoU in the strip that was compared."


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
    near_a, near_b = _touching(first, strip), _touching(second, strip)
    if strip.area_px == 0 or not len(near_a) or not len(near_b):
        return _no_links(first, near_a, second, near_b, trusted, rule)
    a, b = first.take(near_a), second.take(near_b)
    pairs, common, shown_a, shown_b = _measure(a, b, strip, trusted)
    least = min(rule.min_evidence_px, min(strip.width, strip.height) // 2)
    evidence = np.minimum(least, rule.min_evidence_share * _smaller(a, b, pairs))
    zone = _zones(shown_a[pairs[:, 0]], shown_b[pairs[:, 1]], common, evidence)
    of_a, of_b = _picked(shown_a[pairs[:, 0]], zone), _picked(shown_b[pairs[:, 1]], zone)
    inter = _picked(common, zone)
    iou = inter / np.maximum(of_a + of_b - inter, 1)
    weak = np.minimum(of_a, of_b) < evidence
    sound = (~weak | (iou >= rule.full_agreement)) & (inter > 0)
    won = _votes(pairs[:, 0], pairs[:, 1], inter, of_a, sound, b, rule) | _votes(
        pairs[:, 1], pairs[:, 0], inter, of_b, sound, a, rule
    )
    linked = pairs[won]
    seen = np.concatenate([_seen(a, shown_a[:, 1], linked[:, 0], rule), _seen(b, shown_b[:, 1], linked[:, 1], rule)])
    return Links(np.column_stack([near_a[linked[:, 0]], near_b[linked[:, 1]]]).astype(np.int64), seen, iou[won])


def _no_links(
    first: Instances, near_a: I64, second: Instances, near_b: I64, trusted: Window, rule: SeamRule
) -> Links:
    none = np.zeros(0, np.int64)
    sides = [(first, near_a), (second, near_b)]
    seen = [_seen(s.take(n), _shown(s.take(n), trusted), none, rule) for s, n in sides if len(n)]
    return Links(np.zeros((0, 2), np.int64), np.concatenate([np.zeros((0, 2), np.int64), *seen]), np.zeros(0))


def _seen(side: Instances, shown_trusted: I64, linked: I64, rule: SeamRule) -> I64:
    """Return (class id, linked) of the instances that show enough in the trusted middle."""
    enough = shown_trusted >= np.minimum(rule.min_evidence_px, 0.5 * areas_px(side.runs))
    hit = np.zeros(len(side), np.int64)
    hit[linked] = 1
    return np.column_stack([side.class_ids.astype(np.int64), hit])[enough]


def _touching(instances: Instances, strip: Window) -> I64:
    box = instances.boxes_xyxy
    return np.flatnonzero(
        (box[:, 0] < strip.col_end)
        & (box[:, 2] > strip.col_off)
        & (box[:, 1] < strip.row_end)
        & (box[:, 3] > strip.row_off)
    )


def _smaller(a: Instances, b: Instances, pairs: I64) -> I64:
    return np.minimum(areas_px(a.runs)[pairs[:, 0]], areas_px(b.runs)[pairs[:, 1]])


def _zones(shown_a: I64, shown_b: I64, common: I64, evidence: NDArray[np.float64]) -> I64:
    """Return 1 (trusted middle) where both sides show enough there, else 0 (whole strip)."""
    return ((shown_a[:, 1] >= evidence) & (shown_b[:, 1] >= evidence) & (common[:, 1] > 0)).astype(np.int64)


def _picked(values: I64, zone: I64) -> I64:
    return values[np.arange(len(values)), zone]


def _votes(
    voter: I64,
    partner: I64,
    inter: I64,
    shown: I64,
    sound: NDArray[np.bool_],
    partners: Instances,
    rule: SeamRule,
) -> NDArray[np.bool_]:
    """Return which pairs are the one vote of their voter."""
    first = first_pixels_yx(partners.runs)[partner]
    order = np.lexsort((first[:, 1], first[:, 0], -inter, voter))
    best = np.zeros(len(voter), np.bool_)
    leads = np.ones(len(order), np.bool_)
    leads[1:] = voter[order][1:] != voter[order][:-1]
    best[order[leads]] = True
    return np.asarray(best & sound & (inter >= rule.min_agreement * shown))


def _shown(side: Instances, zone: Window) -> I64:
    """Return the pixels of each instance inside a window."""
    return _clipped_areas(
        side.runs.rows, side.runs.starts, side.runs.stops, side.runs.offsets, np.array(_corners(zone), np.int64)
    )


def _corners(window: Window) -> tuple[int, int, int, int]:
    return window.col_off, window.row_off, window.col_end, window.row_end


def _measure(a: Instances, b: Instances, strip: Window, trusted: Window) -> tuple[I64, I64, I64, I64]:
    """Return (pairs (P, 2), common pixels (P, 2), pixels of a (Na, 2), of b (Nb, 2)); columns: strip, trusted."""
    zones = np.array([_corners(strip), _corners(trusted)], np.int64)
    runs_a = _strip_runs(a.runs.rows, a.runs.starts, a.runs.stops, a.runs.offsets, zones[0])
    runs_b = _strip_runs(b.runs.rows, b.runs.starts, b.runs.stops, b.runs.offsets, zones[0])
    keys, in_strip, in_trusted = _overlaps(*runs_a, *runs_b, zones, len(b))
    order = np.argsort(keys, kind="stable")
    unique, begins = np.unique(keys[order], return_index=True)
    if not len(unique):
        common = np.zeros((0, 2), np.int64)
    else:
        common = np.column_stack(
            [np.add.reduceat(in_strip[order], begins), np.add.reduceat(in_trusted[order], begins)]
        )
    pairs = np.column_stack([unique // len(b), unique % len(b)]).astype(np.int64)
    shown_a = np.column_stack([_shown(a, strip), _shown(a, trusted)])
    shown_b = np.column_stack([_shown(b, strip), _shown(b, trusted)])
    return pairs, common, shown_a, shown_b


@kernel
def _clipped_areas(rows: I32, starts: I32, stops: I32, offsets: I64, zone: I64) -> I64:
    areas = np.zeros(len(offsets) - 1, np.int64)
    for i in range(len(areas)):
        for k in range(offsets[i], offsets[i + 1]):
            if zone[1] <= rows[k] < zone[3]:
                areas[i] += max(0, min(np.int64(stops[k]), zone[2]) - max(np.int64(starts[k]), zone[0]))
    return areas


@kernel
def _strip_runs(rows: I32, starts: I32, stops: I32, offsets: I64, zone: I64) -> tuple[I32, I64, I32, I32, I32]:
    """Return (row, first run of each strip row, start, stop, instance) of the runs in a zone, by row and start."""
    count = 0
    for k in range(len(rows)):
        count += zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]
    key = np.empty(count, np.int64)
    data = np.empty((4, count), np.int32)
    n = 0
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            if zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]:
                data[0, n], data[3, n] = rows[k] - zone[1], i
                data[1, n] = max(np.int64(starts[k]), zone[0])
                data[2, n] = min(np.int64(stops[k]), zone[2])
                key[n] = (np.int64(data[0, n]) << 32) + data[1, n]
                n += 1
    order = np.argsort(key)
    first = np.zeros(zone[3] - zone[1] + 1, np.int64)
    for k in range(count):
        first[data[0, k] + 1] += 1
    for y in range(len(first) - 1):
        first[y + 1] += first[y]
    return data[0][order], first, data[1][order], data[2][order], data[3][order]


@kernel
def _overlaps(
    rows_a: I32,
    first_a: I64,
    starts_a: I32,
    stops_a: I32,
    who_a: I32,
    rows_b: I32,
    first_b: I64,
    starts_b: I32,
    stops_b: I32,
    who_b: I32,
    zones: I64,
    num_b: int,
) -> tuple[I64, I64, I64]:
    """Return (pair key, common pixels in the strip, in the trusted middle) for each pair of runs that overlap."""
    capacity = np.int64(len(rows_a) + len(rows_b) + 16)
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
