"""Straight edges: how much outline lies on the borders of cores, where nothing in the world puts any.

An object that was cut at a seam leaves a straight edge on the line where two cores meet. Outlines lie on such lines by
chance, too, and as much of that on lines half a core further on, where no tile ends. The difference is what the tiles
put there: 0 for results that do not know their tiles. Lengths are pixel edges before any simplification, and sums of
integers: they do not depend on blocks, workers or order.
"""

from __future__ import annotations

import numpy as np

from segworker.grid import Axis, Grid
from segworker.jit import kernel
from segworker.masks import I32, I64
from segworker.types import Runs


def line_lengths_px(grid: Grid) -> tuple[int, int]:
    """Return the lengths in grid pixels of (borders between cores, lines half a core behind them) in a scene."""
    borders = shifted = 0
    for axis, across in ((grid.x, grid.height), (grid.y, grid.width)):
        first, step, count, half, size = _lines(axis)
        borders += count * across
        shifted += sum(first + k * step + half < size for k in range(max(0, count - 2), count)) * across
        shifted += max(0, count - 2) * across  # only the last cores may be shorter than half of one
    return borders, shifted


def straight_edges_px(runs: Runs, grid: Grid) -> I64:
    """Return for each of N masks the length of its outline on (core borders, lines half a core behind), (N, 2)."""
    lines = np.array([_lines(grid.x), _lines(grid.y)], np.int64)
    return _measure(runs.rows, runs.starts, runs.stops, runs.offsets, lines)


def _lines(axis: Axis) -> tuple[int, int, int, int, int]:
    """Return (first border, distance of borders, number of borders, half a core, size) of an axis."""
    return axis.core(0)[1], axis.step, axis.count - 1, max(1, axis.step // 2), axis.size


@kernel
def _kind(position: int, line: I64) -> int:
    """Return 0 for a core border, 1 for a line half a core behind one, -1 for all other positions."""
    first, step, count, half, size = line[0], line[1], line[2], line[3], line[4]
    from_first = position - first
    if from_first >= 0 and from_first % step == 0 and from_first // step < count:
        return 0
    from_first -= half
    if from_first >= 0 and from_first % step == 0 and from_first // step < count and position < size:
        return 1
    return -1


@kernel
def _measure(rows: I32, starts: I32, stops: I32, offsets: I64, lines: I64) -> I64:
    found = np.zeros((len(offsets) - 1, 2), np.int64)
    for i in range(len(offsets) - 1):
        upper = offsets[i]
        for k in range(offsets[i], offsets[i + 1]):
            for x in (starts[k], stops[k]):
                kind = _kind(x, lines[0])
                if kind >= 0:
                    found[i, kind] += 1
            top, bottom = _kind(rows[k], lines[1]), _kind(rows[k] + 1, lines[1])
            if top >= 0:
                found[i, top] += stops[k] - starts[k]
            if bottom >= 0:
                found[i, bottom] += stops[k] - starts[k]
            if top < 0:
                continue
            while upper < k and (
                rows[upper] < rows[k] - 1 or (rows[upper] == rows[k] - 1 and stops[upper] <= starts[k])
            ):
                upper += 1
            other = upper
            while other < k and rows[other] == rows[k] - 1 and starts[other] < stops[k]:
                # what lies on both sides of the line is no outline, and was counted from both
                found[i, top] -= 2 * (min(stops[other], stops[k]) - max(starts[other], starts[k]))
                other += 1
    return found
