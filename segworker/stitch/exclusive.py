"""Each pixel to one feature: overlapping masks resolved run by run, without painting an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segworker.jit import kernel
from segworker.masks import I32, I64, corners
from segworker.types import Runs, Window


def exclusive_runs(runs: Runs, *, groups: NDArray[np.integer], keys: I64, window: Window) -> tuple[Runs, I64]:
    """Return mask g = the pixels of `window` that go to group g: each to the group that comes first by its keys.

    Args:
        runs: N masks.
        groups: (N,) the group of each mask, 0 to G - 1.
        keys: (G, K) a total order: the group whose row is the smaller one, column by column, takes the pixel. Where two
            rows are equal, the lower group does.
        window: grid pixels; what lies outside is cut off.

    Cost grows with the runs, and with the pixels where masks overlap; no image is painted.

    Returns:
        The masks, and the pixels that each group would have without the others, (G,).
    """
    zone = corners(window)
    if not window.area_px:
        return Runs.empty(len(keys)), np.zeros(len(keys), np.int64)
    in_rows = _sort_in_rows(runs.rows, runs.starts, runs.stops, runs.offsets, groups.astype(np.int64), zone)
    rows, starts, stops, owner, claimed = _resolve(*in_rows, np.ascontiguousarray(keys, np.int64), zone)
    return Runs(*_by_group(rows, starts, stops, owner, len(keys))), claimed


@kernel
def _sort_in_rows(  # noqa: C901 - insertion and bucketing in one pass
    rows: I32, starts: I32, stops: I32, offsets: I64, groups: I64, zone: I64
) -> tuple[I64, I32, I32, I64]:
    """Return (first run of each row of the zone, start, stop and group of each run in it), by row and start."""
    first = np.zeros(zone[3] - zone[1] + 1, np.int64)
    for k in range(len(rows)):
        if zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]:
            first[rows[k] - zone[1] + 1] += 1
    for y in range(len(first) - 1):
        first[y + 1] += first[y]
    cursor = first[:-1].copy()
    left = np.empty(first[-1], np.int32)
    right = np.empty(first[-1], np.int32)
    owner = np.empty(first[-1], np.int64)
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            if zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]:
                y = rows[k] - zone[1]
                begin = max(np.int64(starts[k]), zone[0])
                n = cursor[y]
                if n > first[y] and left[n - 1] > begin and n - first[y] < 64:  # into its place, from behind
                    while n > first[y] and left[n - 1] > begin:
                        left[n], right[n], owner[n] = left[n - 1], right[n - 1], owner[n - 1]
                        n -= 1
                left[n], right[n], owner[n] = begin, min(np.int64(stops[k]), zone[2]), groups[i]
                cursor[y] += 1
    for y in range(len(first) - 1):
        if first[y + 1] - first[y] > 64:
            order = first[y] + np.argsort(left[first[y] : first[y + 1]], kind="mergesort")
            left[first[y] : first[y + 1]] = left[order]
            right[first[y] : first[y + 1]] = right[order]
            owner[first[y] : first[y + 1]] = owner[order]
    return first, left, right, owner


@kernel
def _resolve(  # noqa: C901 - one sweep over each row
    first: I64, left: I32, right: I32, owner: I64, keys: I64, zone: I64
) -> tuple[I32, I32, I32, I64, I64]:
    """Return (row, start, stop, group) of runs that do not overlap, by row and start; each group's pixels before."""
    capacity = 2 * len(left)  # n intervals on a line give at most 2 n - 1 pieces
    out = np.empty((3, capacity), np.int32)
    group = np.empty(capacity, np.int64)
    line = np.empty(max(np.int64(1), zone[2] - zone[0]), np.int64)
    claimed = np.zeros(len(keys), np.int64)
    reach = np.full(len(keys), np.int64(-1))  # how far each group's runs go in a row, rows one behind the other
    n = 0
    for y in range(len(first) - 1):
        row_begin = n
        shift = y * (zone[2] - zone[0]) - zone[0]
        for k in range(first[y], first[y + 1]):
            begin, end = left[k] + shift, right[k] + shift
            if end > reach[owner[k]]:
                claimed[owner[k]] += end - max(begin, reach[owner[k]])
                reach[owner[k]] = end
        i = first[y]
        while i < first[y + 1]:
            end, j = right[i], i + 1
            while j < first[y + 1] and left[j] < end:
                end = max(end, right[j])
                j += 1
            if j == i + 1:
                n = _emit(out, group, n, row_begin, y + zone[1], left[i], end, owner[i])
            else:
                line[: end - left[i]] = -1
                for k in range(i, j):
                    for x in range(left[k] - left[i], right[k] - left[i]):
                        if line[x] < 0 or (line[x] != owner[k] and _comes_first(keys, owner[k], line[x])):
                            line[x] = owner[k]
                x = 0
                while x < end - left[i]:
                    begin = x
                    while x < end - left[i] and line[x] == line[begin]:
                        x += 1
                    n = _emit(out, group, n, row_begin, y + zone[1], left[i] + begin, left[i] + x, line[begin])
            i = j
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy(), group[:n].copy(), claimed


@kernel
def _comes_first(keys: I64, a: int, b: int) -> bool:
    for c in range(keys.shape[1]):
        if keys[a, c] != keys[b, c]:
            return bool(keys[a, c] < keys[b, c])
    return bool(a < b)


@kernel
def _emit(out: I32, group: I64, n: int, row_begin: int, row: int, start: int, stop: int, owner: int) -> int:
    """Write one run, or lengthen the last one of the row where it touches and is of the same group."""
    if n > row_begin and group[n - 1] == owner and out[2, n - 1] == start:
        out[2, n - 1] = stop
        return n
    out[0, n], out[1, n], out[2, n], group[n] = row, start, stop, owner
    return n + 1


@kernel
def _by_group(rows: I32, starts: I32, stops: I32, group: I64, num_groups: int) -> tuple[I32, I32, I32, I64]:
    """Bring runs that are in row order together by group."""
    offsets = np.zeros(num_groups + 1, np.int64)
    for k in range(len(group)):
        offsets[group[k] + 1] += 1
    for g in range(num_groups):
        offsets[g + 1] += offsets[g]
    cursor = offsets[:-1].copy()
    out = np.empty((3, len(group)), np.int32)
    for k in range(len(group)):
        n = cursor[group[k]]
        out[0, n], out[1, n], out[2, n] = rows[k], starts[k], stops[k]
        cursor[group[k]] = n + 1
    return out[0], out[1], out[2], offsets
