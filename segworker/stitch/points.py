"""Keypoints of features: each from the tile that owns the place where it saw it.

A feature's keypoints come from the instances that give its pixels, each keypoint by itself: one seen in its tile's own
core before one seen elsewhere, then the higher score, then the place. That order is over values alone, so that neither
the order of tiles nor blocks matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.masks import I64
from segworker.types import Instances

F32 = NDArray[np.float32]
X, Y, SCORE, OWNED = 0, 1, 2, 3
"Columns of a keypoint: grid pixels, score, and 1 where its tile owns the place, 0 where not, -1 where nobody saw it."


def unseen(num: int, num_points: int) -> F32:
    """Return (num, num_points, 4) keypoints that nobody saw."""
    points = np.zeros((num, num_points, 4), np.float32)
    points[..., OWNED] = -1
    return points


def points_of(tile: Instances, chosen: I64) -> tuple[I64, F32] | None:
    """Return (those of `chosen` that have pixels in the tile's core, their (N, K, 4) keypoints); None without any."""
    if tile.keypoints_NK3 is None or not len(chosen):
        return None
    core = tile.tile.core
    inside = chosen[masks.sums_in(tile.runs, core)[0][chosen] > 0]
    points = tile.keypoints_NK3[inside]
    x, y = points[..., X], points[..., Y]
    owned = (x >= core.col_off) & (x < core.col_end) & (y >= core.row_off) & (y < core.row_end)
    owned &= points[..., SCORE] > 0
    return inside, np.concatenate([points, owned[..., None]], axis=2).astype(np.float32)


def best_points(points_NK4: F32, groups: I64, num_groups: int) -> F32:
    """Return (num_groups, K, 4): of each keypoint the best that the members of a group saw."""
    result = unseen(num_groups, points_NK4.shape[1])
    if not len(groups):
        return result
    for k in range(points_NK4.shape[1]):
        own = points_NK4[:, k]
        order = np.lexsort((own[:, X], own[:, Y], own[:, SCORE], own[:, OWNED], groups))
        last = order[np.append(groups[order][1:] != groups[order][:-1], True)]
        result[groups[last], k] = own[last]
    return result
