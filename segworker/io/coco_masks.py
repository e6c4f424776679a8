"""Polygons as COCO segmentations: lists of rings, and run lengths where there are holes.

COCO's runs go down the columns of a mask, left to right. A pixel is inside where its centre is inside the polygon
(even-odd rule, so that holes are holes). For rings along pixel edges that is the exact mask. Work and memory grow with
the outline's width in columns, never with the image.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segworker.rasterise import crossings_of_edges

Segmentation: TypeAlias = list[list[float]] | dict[str, Any]


def segmentations_of(polygons: NDArray[np.object_], height: int, width: int) -> list[Segmentation]:
    """Return each geometry's COCO segmentation: polygons, or compressed RLE where there are holes.

    Args:
        polygons: (N,) Polygon or MultiPolygon in the image's pixels.
        height: of the image.
        width: of the image.
    """
    parts, owner = shapely.get_parts(polygons, return_index=True)
    holed = np.zeros(len(polygons), bool)
    np.logical_or.at(holed, owner, shapely.get_num_interior_rings(parts) > 0)
    simple = ~holed[owner]
    result: list[Segmentation] = [[] for _ in polygons]
    for i, numbers in zip(owner[simple].tolist(), _outlines(parts[simple]), strict=True):
        result[i].append(numbers)
    for i in np.flatnonzero(holed).tolist():
        result[i] = _packed(polygons[i], height, width)
    return result


def _outlines(parts: NDArray[np.object_]) -> list[list[float]]:
    """Return the shells of polygons as flat lists x, y, x, y ... without the repeated first vertex."""
    xy, ring = shapely.get_coordinates(shapely.get_exterior_ring(parts), return_index=True)
    xy = np.round(xy, 2)
    ends = np.searchsorted(ring, np.arange(1, len(parts) + 1)).tolist()
    starts = [0, *ends[:-1]] if ends else []
    fractional = np.zeros(len(parts), bool)
    fractional[np.unique(ring[(xy != np.rint(xy)).any(axis=1)])] = True
    whole = xy.astype(np.int64)
    sources = [xy if part else whole for part in fractional.tolist()]
    return [xy_[a : b - 1].ravel().tolist() for xy_, a, b in zip(sources, starts, ends, strict=True)]


def _packed(polygon: shapely.Geometry, height: int, width: int) -> dict[str, Any]:
    raw = {"counts": rle_counts(polygon, height, width).tolist(), "size": [height, width]}
    packed = coco_mask.frPyObjects(raw, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


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
    _, column, row = crossings_of_edges(starts[:, ::-1], ends[:, ::-1], width=height, height=width)
    return column * height + row


def _edges(geometry: shapely.Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of all edges of all rings."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    return xy[:-1][joined], xy[1:][joined]
