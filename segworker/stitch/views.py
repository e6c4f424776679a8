"""Whole views: which features take their pixels from the one tile that saw all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segworker.grid import Axis, Grid
from segworker.masks import I64
from segworker.seams import SeamRule
from segworker.stitch.sums import AREA, BOTTOM, LEFT, MEMBERS, RIGHT, TOP, VIEW_PX, VIEW_TILE


def whole_views(table: I64, *, grid: Grid, rule: SeamRule) -> NDArray[np.bool_]:
    """Return which components are taken whole from their view tile, (N,) bool.

    That is where everything that any tile saw of one lies in that tile's window, away from its cut sides by the margin
    that is not trusted, and where the tile holds `rule.view_share` of the pixels that the cores would give.

    Args:
        table: (N, NUM_COLUMNS) of `Sums`, of whole features.
        grid: the scene's grid.
        rule: margin and share.
    """
    seen = table[:, VIEW_TILE] >= 0
    row, col = np.divmod(np.maximum(table[:, VIEW_TILE], 0), grid.shape_yx[1])
    left, right = _trusted(grid.x, col, rule.cut_trust_px)
    top, bottom = _trusted(grid.y, row, rule.cut_trust_px)
    inside = (table[:, LEFT] >= left) & (table[:, RIGHT] <= right)
    inside &= (table[:, TOP] >= top) & (table[:, BOTTOM] <= bottom)
    return np.asarray(seen & inside & (table[:, VIEW_PX] >= rule.view_share * table[:, AREA]))


def unconfirmed(table: I64) -> NDArray[np.bool_]:
    """Return which components are one instance that has less than half of its pixels in its tile's core, (N,) bool.

    The tile that owns most of such a one saw the same pixels and found no such object there.
    """
    return np.asarray((table[:, MEMBERS] == 1) & (2 * table[:, AREA] < table[:, VIEW_PX]))


def cores(axis: Axis, numbers: I64) -> tuple[I64, I64]:
    """Return (begin, end) of the cores of tiles along an axis."""
    known, inverse = np.unique(numbers, return_inverse=True)
    ends = np.array([axis.core(k) for k in known.tolist()], np.int64).reshape(-1, 2)[inverse.ravel()]
    return ends[:, 0], ends[:, 1]


def _trusted(axis: Axis, numbers: I64, margin_px: int) -> tuple[I64, I64]:
    """Return where windows may be trusted: off their cut sides, and within the cores of the next tiles."""
    known, inverse = np.unique(numbers, return_inverse=True)
    ends = []
    for k in known.tolist():
        begin, end = axis.window(k)
        begin, end = begin + margin_px * (begin > 0), end - margin_px * (end < axis.size)
        ends.append((max(begin, axis.core(max(0, k - 1))[0]), min(end, axis.core(min(axis.count - 1, k + 1))[1])))
    found = np.array(ends, np.int64).reshape(-1, 2)[inverse.ravel()]
    return found[:, 0], found[:, 1]
