"""Polygons as runs of pixels: a pixel is inside where its centre is (even-odd rule, so that holes are holes).

For rings along pixel edges that is the exact mask. Work grows with the outlines' height in rows, never with the scene.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.types import Runs

MAX_CROSSINGS = 20_000_000
"Of a batch of polygons; memory is about 60 bytes for each."


def runs_of_polygons(polygons: NDArray[np.object_], *, width: int, height: int) -> Runs:
    """Return mask i = the pixels of polygon i inside a scene; masks of polygons without pixels are empty.

    Args:
        polygons: (N,) Polygon or MultiPolygon, valid, in scene pixels. Other geometries give empty masks.
        width: of the scene; what lies outside is cut off.
        height: of the scene.
    """
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    rows = np.nan_to_num(np.clip(bounds[:, 3], 0, height) - np.clip(bounds[:, 1], 0, height))
    vertices = shapely.get_num_coordinates(polygons)
    batch = np.cumsum(2 * rows + vertices) // MAX_CROSSINGS
    parts = [polygons[batch == k] for k in np.unique(batch)]
    return Runs.concatenate([_runs_of_batch(part, width, height) for part in parts])


def _runs_of_batch(polygons: NDArray[np.object_], width: int, height: int) -> Runs:
    owner, row, col = _crossings(polygons, width, height)
    if not len(owner):
        return Runs.empty(len(polygons))
    order = np.lexsort((col, row, owner))
    owner, row, col = owner[order], row[order], col[order]
    same = (owner[1:] == owner[:-1]) & (row[1:] == row[:-1]) & (col[1:] == col[:-1])
    kept = ~_in_pairs(same)  # two crossings at one place cancel: nothing lies between them
    owner, row, col = owner[kept], row[kept], col[kept]
    starts, stops = col[0::2], col[1::2]
    counts = np.bincount(owner[0::2], minlength=len(polygons))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.int64)
    return Runs(row[0::2].astype(np.int32), starts.astype(np.int32), stops.astype(np.int32), offsets)


def _in_pairs(same: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which elements of a sorted sequence cancel: of equal ones all, or all but one where they are odd."""
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    lengths = np.diff(np.append(starts, len(same) + 1))
    place = np.arange(len(same) + 1) - np.repeat(starts, lengths)
    even = lengths - lengths % 2
    return np.asarray(place < np.repeat(even, lengths))


def _crossings(
    polygons: NDArray[np.object_], width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (polygon, row, first column right of the crossing) for all places where outlines cross rows' centres."""
    parts, part_owner = shapely.get_parts(polygons, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    starts, ends, edge_ring = xy[:-1][joined], xy[1:][joined], ring[:-1][joined]
    edge, row, col = crossings_of_edges(starts, ends, width=width, height=height)
    return part_owner[ring_part[edge_ring[edge]]].astype(np.int64), row, col


def crossings_of_edges(
    starts: NDArray[np.float64], ends: NDArray[np.float64], *, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (edge, row, first column right of the crossing) for each edge and row whose centre it crosses.

    Args:
        starts: (E, 2) x, y in pixels.
        ends: (E, 2) likewise. With x and y exchanged in both, columns are crossed instead.
        width: columns are clipped to 0..width.
        height: rows outside of 0..height - 1 are not crossed.
    """
    down = starts[:, 1] > ends[:, 1]
    upper, lower = np.where(down[:, None], ends, starts), np.where(down[:, None], starts, ends)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    rise = np.where(counts > 0, lower[:, 1] - upper[:, 1], 1.0)
    slope = (lower[:, 0] - upper[:, 0]) / rise
    x = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope[edge]
    col = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    return edge, row.astype(np.int64), col
