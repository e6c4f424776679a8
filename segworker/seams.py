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
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.fragments import AREA, CLASS, PLACE, TOTAL, TRUSTED, RunTable, find_fragments, runs_by_fragment
from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64, corners
from segworker.types import Instances, Tile, Window

F64: TypeAlias = NDArray[np.float64]

FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
"Row and column steps to the four neighbours that come later in row order; each pair of tiles is met once."


@dataclass(frozen=True, slots=True)
class SeamRule:
    """Thresholds of the vote."""

    cut_trust_px: int = 16
    "Margin along cut window sides that is not trusted; the model's InputSpec states it."
    min_iou: float = 0.25
    "Least IoU, in the part of the strip that is compared, of two fragments that vote for each other."
    doubt: float = 1.6
    "Times as much is asked where only one of them votes for the other, or where they share too few pixels,"
    few_px: int = 16
    "less than this;"
    contained: float = 0.2
    "and times as much where they vote for each other and most of the smaller one lies in the other,"
    contained_share: float = 0.7
    "this share of it."
    min_evidence_px: int = 64
    "The trusted middle is enough where both show this many pixels in it, or the halo's width,"
    min_evidence_share: float = 0.2
    "or this share of the smaller object, whichever is least; otherwise the whole strip is compared."
    view_share: float = 0.8
    "A feature comes from the one tile that saw it whole where that holds this share of what the cores hold; see docs."

    def numbers(self, grid: Grid) -> F64:
        """Return the thresholds as the kernels take them."""
        least_px = min(self.min_evidence_px, grid.overlap_px // 2)
        asked = (self.min_iou, self.doubt, self.few_px, self.contained, self.contained_share)
        return np.array([*asked, least_px, self.min_evidence_share, self.min_evidence_px], np.float64)


MIN_IOU, DOUBT, FEW_PX, CONTAINED, CONTAINED_SHARE, LEAST_PX, LEAST_SHARE, EVIDENCE_PX = range(8)
"Places in `SeamRule.numbers`."


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Pairs of instances of two tiles that are one object, and how well the two sides agreed."""

    pairs: I64
    "(L, 2) index in the first tile, index in the second; distinct."
    iou: F64
    "(L,) IoU of the fragments in the zone that was compared, the best where several linked the same pair."
    seen: I64
    "(C, 2) class id and 1 if linked, for each fragment of either side that the other side should have seen."


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
    zones = np.stack([corners(strip), corners(trusted)])
    return Links(*_link(*_arrays(first), *_arrays(second), zones, rule.numbers(grid)))


def _arrays(tile: Instances) -> tuple[I32, I32, I32, I64, I32, I32]:
    runs = tile.runs
    return runs.rows, runs.starts, runs.stops, runs.offsets, tile.boxes_xyxy, tile.class_ids


@kernel
def _link(
    rows_a: I32,
    starts_a: I32,
    stops_a: I32,
    offsets_a: I64,
    boxes_a: I32,
    classes_a: I32,
    rows_b: I32,
    starts_b: I32,
    stops_b: I32,
    offsets_b: I64,
    boxes_b: I32,
    classes_b: I32,
    zones: I64,
    numbers: F64,
) -> tuple[I64, F64, I64]:
    """Return the fields of `Links`; all in one kernel, as a grid has four pairs for each tile."""
    instance_a, facts_a, runs_a = find_fragments(rows_a, starts_a, stops_a, offsets_a, boxes_a, classes_a, zones)
    instance_b, facts_b, runs_b = find_fragments(rows_b, starts_b, stops_b, offsets_b, boxes_b, classes_b, zones)
    best, iou, common, least = _vote(runs_a, runs_b, facts_a, facts_b, zones, numbers)
    num_a = len(facts_a)
    pairs, ious = np.empty((len(best), 2), np.int64), np.empty(len(best))
    hit = np.zeros(len(best), np.int64)
    n = 0
    for voter in range(len(best)):
        if best[voter] >= 0 and _counts(best, iou, common, least, voter, num_a, numbers):
            i, j = (voter, best[voter]) if voter < num_a else (best[voter], voter - num_a)
            hit[i], hit[num_a + j] = 1, 1
            pairs[n, 0], pairs[n, 1], ious[n] = instance_a[i], instance_b[j], iou[voter]
            n += 1
    seen = np.empty((len(best), 2), np.int64)
    num_seen = 0
    for v in range(len(best)):
        facts = facts_a[v] if v < num_a else facts_b[v - num_a]
        if facts[TRUSTED] >= min(numbers[EVIDENCE_PX], 0.5 * facts[TOTAL]):
            seen[num_seen, 0], seen[num_seen, 1] = facts[CLASS], hit[v]
            num_seen += 1
    num_pairs = _distinct(pairs, ious, n, len(offsets_b))
    return pairs[:num_pairs].copy(), ious[:num_pairs].copy(), seen[:num_seen].copy()


@kernel
def _counts(best: I64, iou: F64, common: I64, least: I64, voter: int, num_a: int, numbers: F64) -> bool:
    """Tell whether a vote counts."""
    own, other = (voter, num_a + best[voter]) if voter < num_a else (voter - num_a, best[voter])
    factor = numbers[DOUBT]
    if best[other] == own and common[voter] >= numbers[FEW_PX]:
        inside = common[voter] >= numbers[CONTAINED_SHARE] * least[voter]
        factor = numbers[CONTAINED] if inside else 1.0
    return bool(iou[voter] >= min(factor * numbers[MIN_IOU], 1.0))


@kernel
def _distinct(pairs: I64, ious: F64, n: int, width: int) -> int:
    """Sort the first n pairs, keep each once with its best IoU, and return how many there are."""
    key = pairs[:n, 0] * width + pairs[:n, 1]
    order = np.argsort(key, kind="mergesort")
    found, values = pairs[:n].copy(), ious[:n].copy()
    last, m = np.int64(-1), 0
    for k in order:
        if key[k] != last:
            pairs[m, 0], pairs[m, 1], ious[m] = found[k, 0], found[k, 1], values[k]
            last, m = key[k], m + 1
        else:
            ious[m - 1] = max(ious[m - 1], values[k])
    return m


@kernel
def _vote(  # noqa: C901 - votes are counted while the runs are met, so that no table of pairs is held
    runs_a: RunTable, runs_b: RunTable, facts_a: I64, facts_b: I64, zones: I64, numbers: F64
) -> tuple[I64, F64, I64, I64]:
    """Return the partner that each fragment votes for (-1: none), their IoU, common pixels, and those of the smaller.

    The fragments of b follow those of a. One fragment of a after the other meets the runs of b in its rows, so that
    memory does not grow with the pairs.
    """
    first_a, starts_a, stops_a, who_a = runs_a
    first_b, starts_b, stops_b, who_b = runs_b
    num_a, num_b = len(facts_a), len(facts_b)
    best = np.full(num_a + num_b, -1, np.int64)
    best_iou = np.zeros(num_a + num_b)
    best_common, best_least = np.zeros(num_a + num_b, np.int64), np.zeros(num_a + num_b, np.int64)
    begins, rows, order = runs_by_fragment(first_a, who_a, num_a)
    common = np.zeros((num_b, 2), np.int64)
    met = np.empty(num_b, np.int64)
    for i in range(num_a):
        num_met = 0
        for at in range(begins[i], begins[i + 1]):
            k, y = order[at], rows[order[at]]
            is_trusted = zones[1, 1] <= y + zones[0, 1] < zones[1, 3]
            for m in range(first_b[y], first_b[y + 1]):
                if starts_b[m] >= stops_a[k]:
                    break
                begin, end = max(starts_a[k], starts_b[m]), min(stops_a[k], stops_b[m])
                if end > begin:
                    j = who_b[m]
                    if common[j, 0] == 0:
                        met[num_met] = j
                        num_met += 1
                    common[j, 0] += end - begin
                    if is_trusted:
                        common[j, 1] += max(0, min(np.int64(end), zones[1, 2]) - max(np.int64(begin), zones[1, 0]))
        for n in range(num_met):
            j = met[n]
            least = min(numbers[LEAST_PX], numbers[LEAST_SHARE] * min(facts_a[i, TOTAL], facts_b[j, TOTAL]))
            enough = facts_a[i, TRUSTED] >= least and facts_b[j, TRUSTED] >= least and common[j, 1] > 0
            zone = 1 if enough else 0
            inter = common[j, zone]
            iou = inter / max(1, facts_a[i, AREA + zone] + facts_b[j, AREA + zone] - inter)
            for voter, partner, facts in ((i, j, facts_b), (num_a + j, i, facts_a)):
                old = best[voter]
                if old < 0 or _is_better(iou, inter, partner, best_iou[voter], best_common[voter], old, facts):
                    best[voter], best_iou[voter], best_common[voter] = partner, iou, inter
                    best_least[voter] = min(facts_a[i, AREA + zone], facts_b[j, AREA + zone])
            common[j, 0], common[j, 1] = 0, 0
    return best, best_iou, best_common, best_least


@kernel
def _is_better(iou: float, inter: int, partner: int, old_iou: float, old_inter: int, old: int, facts: I64) -> bool:
    """Compare two partners of one voter: IoU, common pixels, then place and size, which do not depend on numbering."""
    if iou != old_iou:
        return bool(iou > old_iou)
    if inter != old_inter:
        return bool(inter > old_inter)
    for c in (PLACE, AREA, TOTAL, CLASS):
        if facts[partner, c] != facts[old, c]:
            return bool(facts[partner, c] < facts[old, c])
    return bool(partner < old)
