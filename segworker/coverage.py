"""Outlines simplified so that neighbours go on sharing their borders, the same however a scene was tiled.

Where objects exclude each other they and the ground between them are a *coverage*: polygons whose borders match edge by
edge. GEOS simplifies a coverage border by border (Visvalingam-Whyatt, https://doi.org/10.1179/000870493786962263; no
border may cross another, none may vanish), but only what it is given at once, and which vertices go depends on all of
it. So the scene is cut along a lattice of *cells* that has nothing to do with tiles and blocks: each cell is simplified
by itself with its rim kept as it is, and a feature is put together from its cells. What a cell gives depends on its own
pixels alone; borders keep a vertex where they cross from cell to cell.

docs/design/stitching.md says what else was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker import masks
from segworker.jit import kernel
from segworker.masks import I32, I64
from segworker.polygons import Outlines, trace
from segworker.types import Runs, Window

CELL_PX = 1024
"Side of a cell in grid pixels."


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """Simplified polygons of features, each inside one cell."""

    keys: I64
    "(F,) which feature each belongs to."
    polygons: NDArray[np.object_]
    "(F,) Polygon or MultiPolygon, grid pixels."

    @classmethod
    def concatenate(cls, parts: Sequence[Fragments]) -> Fragments:
        """Return all fragments, one after the other."""
        keys = np.concatenate([np.zeros(0, np.int64), *(p.keys for p in parts)])
        return cls(keys, np.concatenate([np.zeros(0, object), *(p.polygons for p in parts)]))

    def take(self, keys: I64) -> Fragments:
        """Return the fragments of some features."""
        chosen = np.isin(self.keys, keys)
        return Fragments(self.keys[chosen], self.polygons[chosen])


def cells_in(window: Window, *, cell_px: int = CELL_PX) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of the cells whose first pixel lies in a window."""
    for row in range(-(-window.row_off // cell_px), -(-window.row_end // cell_px)):
        for col in range(-(-window.col_off // cell_px), -(-window.col_end // cell_px)):
            yield row, col


def cells_touching(window: Window, *, cell_px: int = CELL_PX) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of the cells that hold a pixel of a window."""
    for row in range(window.row_off // cell_px, -(-window.row_end // cell_px)):
        for col in range(window.col_off // cell_px, -(-window.col_end // cell_px)):
            yield row, col


def cell_window(row: int, col: int, width: int, height: int, *, cell_px: int = CELL_PX) -> Window:
    """Return the pixels of a cell inside a scene of a given size."""
    return Window(col * cell_px, row * cell_px, cell_px, cell_px).intersect(Window(0, 0, width, height))


def simplify_cell(runs: Runs, keys: I64, window: Window, tolerance_px: float) -> Fragments:
    """Return the simplified parts of features inside one cell.

    Args:
        runs: N masks that do not overlap, grid pixels; what lies outside of the window is not looked at.
        keys: (N,) the features that they belong to; several masks may be one feature's.
        window: the cell, inside the scene.
        tolerance_px: grid pixels; bends whose triangle is smaller than its square are taken out, the smallest first.
    """
    inside = masks.clip_runs(runs, window)
    filled = np.flatnonzero(np.diff(inside.offsets))
    present, group = np.unique(keys[filled], return_inverse=True)
    labels = masks.labels_from_runs(inside.take(filled), window=window, labels=group.ravel() + 1)
    ordered, numbers = np.unique(labels, return_index=True)  # features are numbered by first pixel, not by key
    rank = np.argsort(np.argsort(numbers))
    labels = (rank[np.searchsorted(ordered, labels)] + 1).astype(np.int32)
    outlines = _with_junctions(trace(masks.runs_from_labels(labels, len(ordered), window=window)), labels, window)
    polygons = shapely.coverage_simplify(outlines.geometries(), tolerance_px, simplify_boundary=False)
    is_feature = ordered > 0
    return Fragments(present[ordered[is_feature] - 1], polygons[rank[is_feature]])


def join_fragments(fragments: Fragments, keys: I64) -> NDArray[np.object_]:
    """Return the polygon of each of N features, whose keys are distinct; fragments come in the order of their cells."""
    order = np.argsort(fragments.keys, kind="stable")
    found, sorted_keys = fragments.polygons[order], fragments.keys[order]
    begins, ends = np.searchsorted(sorted_keys, keys, "left"), np.searchsorted(sorted_keys, keys, "right")
    single = ends - begins == 1
    result = np.empty(len(keys), dtype=object)
    result[single] = found[begins[single]]
    for i in np.flatnonzero(~single).tolist():
        result[i] = shapely.union_all(found[begins[i] : ends[i]])
    return result


def simplify_exclusive(runs: Runs, *, width: int, height: int, tolerance_px: float) -> NDArray[np.object_]:
    """Return N masks that do not overlap as simplified polygons, for a scene in memory."""
    keys = np.arange(len(runs))
    window = Window(0, 0, width, height)
    cells = (cell_window(row, col, width, height) for row, col in cells_in(window))
    parts = [simplify_cell(runs, keys, cell, tolerance_px) for cell in cells]
    return join_fragments(Fragments.concatenate(parts), keys)


def simplify_alone(polygons: NDArray[np.object_], tolerance_px: float) -> NDArray[np.object_]:
    """Return polygons simplified each by itself, for objects that may overlap: they have no borders to share."""
    result = np.empty(len(polygons), dtype=object)
    for i, polygon in enumerate(polygons):
        result[i] = shapely.coverage_simplify([polygon], tolerance_px)[0]
    return result


def _with_junctions(outlines: Outlines, labels_HW: I32, window: Window) -> Outlines:
    """Return outlines with a vertex wherever a border of others ends on one of their straight edges."""
    xy, ring_offsets = _insert_junctions(
        outlines.xy, outlines.ring_offsets, labels_HW, np.array([window.col_off, window.row_off], np.int64)
    )
    return Outlines(xy, ring_offsets, outlines.polygon_offsets, outlines.feature_offsets)


@kernel
def _label_at(labels: I32, row: int, col: int) -> int:
    return labels[row, col] if 0 <= row < labels.shape[0] and 0 <= col < labels.shape[1] else -1


@kernel
def _is_junction(labels: I32, x: int, y: int) -> bool:
    """Whether three labels meet at the corner of pixels (x, y), the outside of the cell being one of its own."""
    a, b = _label_at(labels, y - 1, x - 1), _label_at(labels, y - 1, x)
    c, d = _label_at(labels, y, x - 1), _label_at(labels, y, x)
    distinct = 1 + (b != a) + (c not in (a, b)) + (d not in (a, b, c))
    return bool(distinct > 2)


@kernel
def _insert_junctions(xy: I32, ring_offsets: I64, labels: I32, origin_xy: I64) -> tuple[I32, I64]:
    capacity = len(xy) + 1024
    out = np.empty((capacity, 2), np.int32)
    offsets = np.zeros_like(ring_offsets)
    n = 0
    for r in range(len(ring_offsets) - 1):
        for k in range(ring_offsets[r], ring_offsets[r + 1]):
            last = k == ring_offsets[r + 1] - 1
            steps = 1 if last else abs(xy[k + 1, 0] - xy[k, 0]) + abs(xy[k + 1, 1] - xy[k, 1])
            step_x = 0 if last else (xy[k + 1, 0] - xy[k, 0]) // steps
            step_y = 0 if last else (xy[k + 1, 1] - xy[k, 1]) // steps
            for s in range(steps):
                x, y = xy[k, 0] + s * step_x, xy[k, 1] + s * step_y
                if s > 0 and not _is_junction(labels, x - origin_xy[0], y - origin_xy[1]):
                    continue
                if n == capacity:
                    bigger = np.empty((2 * capacity, 2), np.int32)
                    bigger[:capacity] = out
                    out, capacity = bigger, 2 * capacity
                out[n, 0], out[n, 1] = x, y
                n += 1
        offsets[r + 1] = n
    return out[:n].copy(), offsets
