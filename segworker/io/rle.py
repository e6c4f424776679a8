"""Polygons as the run lengths that COCO uses: columns of a mask, top to bottom, left to right.

A pixel is inside where its centre is inside the polygon (even-odd rule, so that holes are holes). For rings along pixel
edges that is the exact mask. Work and memory grow with the outline's width in columns, never with the image.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray


def rle_counts(geometry: shapely.Geometry, height: int, width: int) -> NDArray[np.int64]:
    """Return run lengths in column order, outside first; they sum up to height * width.

    Args:
        geometry: Polygon or MultiPolygon in the image's pixels; what lies outside of the image is cut off.
        height: of the image.
        width: of the image.
    """
    toggles = _toggles(geometry, height, width)
    values, times = np.unique(toggles, return_counts=True)
    flips = values[(times % 2 == 1) & (values < height * width)]
    bounds = np.concatenate([[0], flips, [height * width]])
    counts: NDArray[np.int64] = np.diff(bounds)
    return counts


def _toggles(geometry: shapely.Geometry, height: int, width: int) -> NDArray[np.int64]:
    """Return the places (column * height + row) at which a column's outline crosses from one side to the other.

    A crossing below the image's last row is the next column's first place: two of them cancel, as they must.
    """
    starts, ends = _edges(geometry)
    flip = starts[:, 0] > ends[:, 0]
    left, right = np.where(flip[:, None], ends, starts), np.where(flip[:, None], starts, ends)
    first = np.clip(np.ceil(left[:, 0] - 0.5), 0, width).astype(np.int64)
    last = np.clip(np.ceil(right[:, 0] - 0.5), 0, width).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    run = np.where(counts > 0, right[:, 0] - left[:, 0], 1.0)
    slope = (right[:, 1] - left[:, 1]) / run
    crossing = left[edge, 1] + (column + 0.5 - left[edge, 0]) * slope[edge]
    row = np.clip(np.ceil(crossing - 0.5), 0, height).astype(np.int64)
    toggles: NDArray[np.int64] = column * height + row
    return toggles


def _edges(geometry: shapely.Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of all edges of all rings."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    return xy[:-1][joined], xy[1:][joined]
