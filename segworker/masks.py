"""Masks as runs: from label images and back, clipped, merged, measured.

Every function keeps the order that `types.Runs` promises: by row, then column, no two runs of a mask touching in a row.
Kernels take and return plain arrays; the public functions wrap them in `Runs`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.jit import kernel
from segworker.types import Runs, Window

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Int: TypeAlias = int | np.int64
"A number in a kernel."


def runs_from_labels(labels_HW: NDArray[np.integer], num_labels: int, *, window: Window) -> Runs:
    """Return mask i = the pixels of label i + 1.

    Args:
        labels_HW: (H, W) integers, 0 is background; labels above `num_labels` are not looked at.
        num_labels: number of masks to return; a label without pixels gives an empty mask.
        window: where the array lies, in grid pixels; its shape must be the array's.
    """
    labels = np.ascontiguousarray(labels_HW, dtype=np.int32)
    counts = _count_label_runs(labels, num_labels)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    rows, starts, stops = _fill_label_runs(labels, offsets, window.row_off, window.col_off)
    return Runs(rows, starts, stops, offsets)


def runs_from_mask(mask_HW: NDArray[np.bool_], *, window: Window) -> Runs:
    """Return one mask (an empty one where nothing is True)."""
    return runs_from_labels(mask_HW.astype(np.int32), 1, window=window)


def labels_from_runs(runs: Runs, *, window: Window, labels: NDArray[np.integer] | None = None) -> I32:
    """Paint masks into a (H, W) int32 image of `window`: mask i as labels[i] (default i + 1), later over earlier."""
    values = np.arange(1, len(runs) + 1, dtype=np.int32) if labels is None else labels.astype(np.int32)
    image = np.zeros(window.shape_yx, np.int32)
    order = np.arange(len(runs), dtype=np.int64)
    _paint(runs.rows, runs.starts, runs.stops, runs.offsets, order, values, image, window.row_off, window.col_off)
    return image


def areas_px(runs: Runs) -> I64:
    """Return the number of pixels of each mask, (N,) int64."""
    return _segment_sums((runs.stops - runs.starts).astype(np.int64), runs.offsets)


def boxes_xyxy(runs: Runs) -> I32:
    """Return tight half-open boxes, (N, 4) int32; zeros for empty masks."""
    return _boxes(runs.rows, runs.starts, runs.stops, runs.offsets)


def first_pixels_yx(runs: Runs) -> I32:
    """Return the first pixel of each mask in row order, (N, 2) int32 (row, column); -1 for empty masks."""
    result = np.full((len(runs), 2), -1, np.int32)
    filled = np.flatnonzero(np.diff(runs.offsets))
    first = runs.offsets[:-1][filled]
    result[filled, 0], result[filled, 1] = runs.rows[first], runs.starts[first]
    return result


def coordinate_sums_xy2(runs: Runs) -> I64:
    """Return twice the sums of pixel-centre coordinates, (N, 2) int64: exact, so that partial sums add up in any order.

    Half of them divided by the area is the centroid.
    """
    lengths = (runs.stops - runs.starts).astype(np.int64)
    sum_x2 = _segment_sums(lengths * (runs.starts.astype(np.int64) + runs.stops), runs.offsets)
    sum_y2 = _segment_sums(lengths * (2 * runs.rows.astype(np.int64) + 1), runs.offsets)
    return np.column_stack([sum_x2, sum_y2])


def clip_runs(runs: Runs, window: Window) -> Runs:
    """Return the parts of the masks inside a window; masks outside become empty, none is dropped."""
    starts, stops = np.maximum(runs.starts, window.col_off), np.minimum(runs.stops, window.col_end)
    keep = (runs.rows >= window.row_off) & (runs.rows < window.row_end) & (starts < stops)
    counts = _segment_sums(keep.astype(np.int64), runs.offsets)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Runs(runs.rows[keep], starts[keep].astype(np.int32), stops[keep].astype(np.int32), offsets)


def merge_runs(runs: Runs, groups: NDArray[np.integer], num_groups: int) -> Runs:
    """Return mask g = the union of the masks of group g, sorted and joined where runs touch or overlap.

    Args:
        runs: N masks.
        groups: (N,) the group of each mask, 0 to num_groups - 1.
        num_groups: number of masks to return.
    """
    order, sizes = group_order(groups, num_groups)
    gathered = runs.take(order)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    offsets = gathered.offsets[bounds]
    rows, starts, stops = gathered.rows, gathered.starts, gathered.stops
    many = np.repeat(sizes > 1, np.diff(offsets))
    if not many.any():
        return Runs(rows, starts, stops, offsets)
    group_of_run = np.repeat(np.arange(num_groups), np.diff(offsets))[many]
    by_place = np.lexsort((starts[many], rows[many], group_of_run))
    place = np.arange(len(rows))
    place[many] = np.flatnonzero(many)[by_place]
    return Runs(*_join_touching(rows[place], starts[place], stops[place], offsets))


def group_order(groups: NDArray[np.integer], num_groups: int) -> tuple[I64, I64]:
    """Return (stable order that brings groups together, size of each group)."""
    order = np.argsort(groups, kind="stable").astype(np.int64)
    return order, np.bincount(groups, minlength=num_groups).astype(np.int64)


def sums_in(runs: Runs, window: Window) -> tuple[I64, I64]:
    """Return ((N,) pixels inside a window, (N, 2) row and column of the first of them; -1 where there is none)."""
    return _sums_in(runs.rows, runs.starts, runs.stops, runs.offsets, corners(window))


def fingerprints(runs: Runs) -> I64:
    """Return a number for each mask that depends on its set of pixels alone, (N,) int64; 0 for empty masks.

    Fingerprints of disjoint masks add up, modulo 2^64, to that of their union. Two different masks have the same one
    with a probability of 2^-64.
    """
    return _fingerprints(runs.rows, runs.starts, runs.stops, runs.offsets)


def _segment_sums(values: I64, offsets: I64) -> I64:
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.asarray(total[offsets[1:]] - total[offsets[:-1]])


@kernel
def _count_label_runs(labels: I32, num_labels: int) -> I64:
    counts = np.zeros(num_labels, np.int64)
    for y in range(labels.shape[0]):
        before = 0
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label != before:
                if 0 < label <= num_labels:
                    counts[label - 1] += 1
                before = label
    return counts


@kernel
def _fill_label_runs(labels: I32, offsets: I64, row_off: int, col_off: int) -> tuple[I32, I32, I32]:
    num_labels = len(offsets) - 1
    rows = np.empty(offsets[-1], np.int32)
    starts = np.empty(offsets[-1], np.int32)
    stops = np.empty(offsets[-1], np.int32)
    cursor = offsets[:-1].copy()
    height, width = labels.shape
    for y in range(height):
        x = 0
        while x < width:
            label = labels[y, x]
            begin = x
            while x < width and labels[y, x] == label:
                x += 1
            if 0 < label <= num_labels:
                k = cursor[label - 1]
                cursor[label - 1] = k + 1
                rows[k] = y + row_off
                starts[k] = begin + col_off
                stops[k] = x + col_off
    return rows, starts, stops


@kernel
def _paint(
    rows: I32, starts: I32, stops: I32, offsets: I64, order: I64, labels: I32, image: I32, row_off: int, col_off: int
) -> None:
    height, width = image.shape
    for i in order:
        for k in range(offsets[i], offsets[i + 1]):
            y = rows[k] - row_off
            if 0 <= y < height:
                for x in range(max(0, starts[k] - col_off), min(width, stops[k] - col_off)):
                    image[y, x] = labels[i]


def corners(window: Window) -> I64:
    """Return (left, top, right, bottom) of a window, as kernels take it."""
    return np.array([window.col_off, window.row_off, window.col_end, window.row_end], np.int64)


@kernel
def find_root(parent: I64, k: int) -> int:
    """Return the root of k in a union-find forest, halving the path to it."""
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@kernel
def unite(parent: I64, a: int, b: int) -> None:
    """Join the sets of a and b; the smaller root stays, so that the result does not depend on the order of joins."""
    i, j = find_root(parent, a), find_root(parent, b)
    parent[max(i, j)] = min(i, j)


@kernel
def run_fingerprint(row: Int, start: Int, stop: Int) -> np.int64:
    """Return a run's share of a fingerprint: a telescoping sum over its pixels, modulo 2^64."""
    return _mixed(row, stop) - _mixed(row, start)


@kernel
def _mixed(row: Int, col: Int) -> np.int64:
    """Return a hash of a pixel's corner (the finaliser of splitmix64, https://doi.org/10.1145/2660193.2660195)."""
    z = (np.uint64(row) << np.uint64(32)) + np.uint64(col) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(z ^ (z >> np.uint64(31)))


@kernel
def _fingerprints(rows: I32, starts: I32, stops: I32, offsets: I64) -> I64:
    result = np.zeros(len(offsets) - 1, np.int64)
    for i in range(len(result)):
        for k in range(offsets[i], offsets[i + 1]):
            result[i] += run_fingerprint(rows[k], starts[k], stops[k])
    return result


@kernel
def _sums_in(rows: I32, starts: I32, stops: I32, offsets: I64, zone: I64) -> tuple[I64, I64]:
    areas = np.zeros(len(offsets) - 1, np.int64)
    first = np.full((len(offsets) - 1, 2), -1, np.int64)
    for i in range(len(areas)):
        for k in range(offsets[i], offsets[i + 1]):
            if zone[1] <= rows[k] < zone[3]:
                begin, end = max(np.int64(starts[k]), zone[0]), min(np.int64(stops[k]), zone[2])
                if end > begin:
                    if areas[i] == 0:
                        first[i, 0], first[i, 1] = rows[k], begin
                    areas[i] += end - begin
    return areas, first


@kernel
def _boxes(rows: I32, starts: I32, stops: I32, offsets: I64) -> I32:
    boxes = np.zeros((len(offsets) - 1, 4), np.int32)
    for i in range(len(offsets) - 1):
        first, last = offsets[i], offsets[i + 1] - 1
        if last < first:
            continue
        boxes[i, 0], boxes[i, 2] = starts[first], stops[first]
        boxes[i, 1], boxes[i, 3] = rows[first], rows[last] + 1
        for k in range(first, last + 1):
            boxes[i, 0] = min(boxes[i, 0], starts[k])
            boxes[i, 2] = max(boxes[i, 2], stops[k])
    return boxes


@kernel
def _join_touching(rows: I32, starts: I32, stops: I32, offsets: I64) -> tuple[I32, I32, I32, I64]:
    out_rows, out_starts, out_stops = rows.copy(), starts.copy(), stops.copy()
    out_offsets = np.zeros_like(offsets)
    n = 0
    for i in range(len(offsets) - 1):
        begin = n
        for k in range(offsets[i], offsets[i + 1]):
            if n > begin and out_rows[n - 1] == rows[k] and starts[k] <= out_stops[n - 1]:
                out_stops[n - 1] = max(out_stops[n - 1], stops[k])
            else:
                out_rows[n], out_starts[n], out_stops[n] = rows[k], starts[k], stops[k]
                n += 1
        out_offsets[i + 1] = n
    return out_rows[:n].copy(), out_starts[:n].copy(), out_stops[:n].copy(), out_offsets
