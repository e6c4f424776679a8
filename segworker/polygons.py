"""Masks to polygons along pixel edges, exactly.

A ring runs through the corners of pixels, without collinear vertices, so a mask has one polygon whatever tiles it came
from. Parts that touch in a corner only are separate polygons, and a hole may touch its shell or another hole in a
corner: always valid in the sense of OGC Simple Features.

How: each run has a left and a right vertical edge. Between two rows the ends of the vertical edges alternate between
entering and leaving the mask, so that neighbours in x order are joined by a horizontal edge, unless an edge simply goes
on. Following the joins gives the rings. A ring that passes one corner twice is split there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.jit import kernel
from segworker.masks import I32, I64, find_root, unite
from segworker.types import Runs


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """N multipolygons in the ragged form of GeoArrow: coordinates, then three levels of offsets."""

    xy: I32
    "(V, 2) grid pixels; rings are closed (first vertex repeated)."
    ring_offsets: I64
    "(rings + 1,) into `xy`."
    polygon_offsets: I64
    "(polygons + 1,) into the rings; the first ring of a polygon is its shell."
    feature_offsets: I64
    "(N + 1,) into the polygons."

    def __len__(self) -> int:
        return len(self.feature_offsets) - 1

    def geometries(self, xy: NDArray[np.float64] | None = None) -> NDArray[np.object_]:
        """Return shapely Polygons, MultiPolygons where a feature has several parts.

        Args:
            xy: (V, 2) other coordinates for the same vertices (map coordinates, say); grid pixels by default.
        """
        coordinates = self.xy.astype(np.float64) if xy is None else xy
        polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, coordinates, (self.ring_offsets, self.polygon_offsets)
        )
        counts = np.diff(self.feature_offsets)
        result = np.empty(len(self), dtype=object)
        single = counts == 1
        result[single] = polygons[self.feature_offsets[:-1][single]]
        for i in np.flatnonzero(~single):
            result[i] = shapely.multipolygons(polygons[self.feature_offsets[i] : self.feature_offsets[i + 1]])
        return result


def trace(runs: Runs) -> Outlines:
    """Return the outlines of N masks.

    Shells run anticlockwise on screen (y down), holes clockwise; polygons are ordered by their first pixel, and a
    polygon's holes by theirs. Nothing depends on how the mask was cut into tiles.
    """
    return Outlines(*_trace(runs.rows, runs.starts, runs.stops, runs.offsets))


@kernel
def _trace(rows: I32, starts: I32, stops: I32, offsets: I64) -> tuple[I32, I64, I64, I64]:
    num_runs = len(rows)
    links, corner = _link_ends(rows, starts, stops, offsets)
    component = _components(rows, starts, stops, offsets)
    xy = np.empty((6 * num_runs, 2), np.int32)
    ring_offsets = np.zeros(2 * num_runs + 1, np.int64)
    ring_component = np.empty(2 * num_runs, np.int64)
    ring_is_shell = np.zeros(2 * num_runs, np.bool_)
    visited = np.zeros(2 * num_runs, np.bool_)
    num_rings, num_xy = 0, 0
    for first in range(2 * num_runs):
        if visited[first]:
            continue
        begin = num_xy
        num_xy, twice = _follow(first, rows, starts, stops, links, corner, visited, xy, num_xy)
        if twice:
            num_xy = _split_loops(xy, begin, num_xy, ring_offsets, num_rings)
            added = 0
            while ring_offsets[num_rings + added] < num_xy:
                added += 1
        else:
            xy[num_xy] = xy[begin]
            num_xy += 1
            ring_offsets[num_rings + 1] = num_xy
            added = 1
        for _ in range(added):
            ring_component[num_rings] = component[first // 2]
            ring_is_shell[num_rings] = _doubled_area(xy, ring_offsets[num_rings], ring_offsets[num_rings + 1]) < 0
            num_rings += 1
    return _assemble(xy, ring_offsets[: num_rings + 1], ring_component[:num_rings], ring_is_shell, component, offsets)


@kernel
def _link_ends(rows: I32, starts: I32, stops: I32, offsets: I64) -> tuple[I64, NDArray[np.bool_]]:
    """Join the ends of vertical edges: end 2e is the top and 2e + 1 the bottom of edge e (2k left, 2k + 1 right)."""
    links = np.full(4 * len(rows), -1, np.int64)
    corner = np.zeros(4 * len(rows), np.bool_)
    for i in range(len(offsets) - 1):
        upper, lower = offsets[i], offsets[i]
        while lower < offsets[i + 1]:
            stop = lower
            while stop < offsets[i + 1] and rows[stop] == rows[lower]:
                stop += 1
            if upper < lower and rows[upper] + 1 < rows[lower]:
                _link_boundary(starts, stops, upper, lower, lower, lower, links, corner)
                upper = lower
            _link_boundary(starts, stops, upper, lower, lower, stop, links, corner)
            upper, lower = lower, stop
        _link_boundary(starts, stops, upper, lower, lower, lower, links, corner)
    return links, corner


@kernel
def _edge_x(starts: I32, stops: I32, edge: int) -> np.int64:
    return np.int64(starts[edge // 2] if edge % 2 == 0 else stops[edge // 2])


@kernel
def _link_boundary(
    starts: I32,
    stops: I32,
    upper: int,
    upper_stop: int,
    lower: int,
    lower_stop: int,
    links: I64,
    corner: NDArray[np.bool_],
) -> None:
    """Join edge ends along one boundary between two rows. Edges of a row are in x order: left, right, left, right."""
    u, u_stop, v, v_stop = 2 * upper, 2 * upper_stop, 2 * lower, 2 * lower_stop
    waiting = -1
    while u < u_stop or v < v_stop:
        take_upper = v >= v_stop
        if u < u_stop and v < v_stop:
            ux, vx = _edge_x(starts, stops, u), _edge_x(starts, stops, v)
            if ux == vx and u % 2 == v % 2:
                links[2 * u + 1], links[2 * v] = 2 * v, 2 * u + 1
                u += 1
                v += 1
                continue
            if ux == vx:
                corner[2 * u + 1] = corner[2 * v] = True
            take_upper = bool(ux < vx) or (bool(ux == vx) and u % 2 == 1)
        if take_upper:
            end = 2 * u + 1
            u += 1
        else:
            end = 2 * v
            v += 1
        if waiting < 0:
            waiting = end
        else:
            links[waiting], links[end] = end, waiting
            waiting = -1


@kernel
def _follow(
    first: int,
    rows: I32,
    starts: I32,
    stops: I32,
    links: I64,
    corner: NDArray[np.bool_],
    visited: NDArray[np.bool_],
    xy: I32,
    n: int,
) -> tuple[int, bool]:
    """Write one ring's vertices (not closed) from `n` on; say whether it may pass a corner twice."""
    edge = first
    corners = 0
    while not visited[edge]:
        visited[edge] = True
        leaving = 2 * edge + (1 if edge % 2 == 0 else 0)  # left edges go down, right edges go up
        entering = links[leaving]
        after = entering // 2
        x, next_x = _edge_x(starts, stops, edge), _edge_x(starts, stops, after)
        if x != next_x:
            y = rows[edge // 2] + (leaving & 1)
            xy[n, 0], xy[n, 1] = x, y
            xy[n + 1, 0], xy[n + 1, 1] = next_x, y
            n += 2
            corners += corner[leaving]
            corners += corner[entering]
        edge = after
    return n, corners > 1


@kernel
def _doubled_area(xy: I32, begin: int, end: int) -> np.int64:
    total = np.int64(0)
    for k in range(begin, end - 1):
        total += np.int64(xy[k, 0]) * xy[k + 1, 1] - np.int64(xy[k + 1, 0]) * xy[k, 1]
    return total


@kernel
def _split_loops(xy: I32, begin: int, end: int, ring_offsets: I64, num_rings: int) -> int:
    """Split the open ring xy[begin:end] where it passes a vertex twice; write closed simple rings in its place."""
    count = end - begin
    ring = xy[begin:end].copy()
    key = ring[:, 1].astype(np.int64) * (np.int64(1) << 32) + ring[:, 0]
    order = np.argsort(key)
    vertex = np.empty(count, np.int64)
    for i in range(count):
        same = i > 0 and key[order[i]] == key[order[i - 1]]
        vertex[order[i]] = vertex[order[i - 1]] if same else i
    depth = np.full(count, -1, np.int64)
    stack = np.empty(count, np.int64)
    size, n = 0, begin
    for i in range(count + 1):
        k = i if i < count else 0
        seen = depth[vertex[k]]
        if seen >= 0:
            for j in range(seen, size):
                xy[n] = ring[stack[j]]
                n += 1
                if j > seen:
                    depth[vertex[stack[j]]] = -1
            xy[n] = ring[k]
            n += 1
            num_rings += 1
            ring_offsets[num_rings] = n
            size = seen + 1
        else:
            depth[vertex[k]] = size
            stack[size] = k
            size += 1
    return n


@kernel
def _components(rows: I32, starts: I32, stops: I32, offsets: I64) -> I64:
    """Return for each run the first run of its 4-connected component."""
    parent = np.arange(len(rows))
    for i in range(len(offsets) - 1):
        upper = offsets[i]
        for lower in range(offsets[i], offsets[i + 1]):
            while upper < lower and (
                rows[upper] < rows[lower] - 1 or (rows[upper] == rows[lower] - 1 and stops[upper] <= starts[lower])
            ):
                upper += 1
            k = upper
            while k < lower and rows[k] == rows[lower] - 1 and starts[k] < stops[lower]:
                unite(parent, k, lower)
                k += 1
    for k in range(len(rows)):
        parent[k] = find_root(parent, k)
    return parent


@kernel
def _assemble(
    xy: I32,
    ring_offsets: I64,
    ring_component: I64,
    ring_is_shell: NDArray[np.bool_],
    component: I64,
    offsets: I64,
) -> tuple[I32, I64, I64, I64]:
    """Order rings as polygons: by component, its shell first, then its holes as they were found."""
    num_rings = len(ring_component)
    rank = np.empty(num_rings, np.int64)
    for r in range(num_rings):
        rank[r] = 2 * ring_component[r] + (0 if ring_is_shell[r] else 1)
    order = np.argsort(rank, kind="mergesort")
    out_xy = np.empty((ring_offsets[-1], 2), np.int32)
    out_rings = np.zeros(num_rings + 1, np.int64)
    num_polygons = 0
    for k in range(len(component)):
        num_polygons += component[k] == k
    polygon_offsets = np.zeros(num_polygons + 1, np.int64)
    p = -1
    for i in range(num_rings):
        r = order[i]
        size = ring_offsets[r + 1] - ring_offsets[r]
        out_xy[out_rings[i] : out_rings[i] + size] = xy[ring_offsets[r] : ring_offsets[r + 1]]
        out_rings[i + 1] = out_rings[i] + size
        if ring_is_shell[r]:
            p += 1
        polygon_offsets[p + 1] = i + 1
    feature_offsets = np.zeros(len(offsets), np.int64)
    for f in range(len(offsets) - 1):
        feature_offsets[f + 1] = feature_offsets[f]
        for k in range(offsets[f], offsets[f + 1]):
            feature_offsets[f + 1] += component[k] == k
    return out_xy, out_rings, polygon_offsets, feature_offsets
