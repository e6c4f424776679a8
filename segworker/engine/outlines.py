"""Simplified outlines of scenes of several blocks: cells as tasks, between giving indices and assembling features.

A cell of `coverage` may lie in several blocks; the block that holds its first pixel fetches the pieces around it. Whole
features are known by their first pixel here, parts of border features by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
import shapely
from numpy.typing import NDArray

from segworker import masks
from segworker.blocks import TileRange
from segworker.coverage import Fragments, cell_window, cells_in, cells_touching, simplify_cell
from segworker.engine.job import Common
from segworker.grid import Grid
from segworker.masks import I64
from segworker.stitch import Homes, Pieces
from segworker.types import Runs, Window

Packed = tuple[I64, NDArray[np.object_]]
"Keys, and polygons as WKB: one buffer each instead of a pickled object."


@dataclass(frozen=True, slots=True, eq=False)
class BlockOutlines:
    """Where a block finds the outlines of the features that it puts together."""

    tasks: Sequence[ray.ObjectRef[Packed]]

    def fragments(self, pieces: Pieces, home: Pieces) -> Fragments:
        """Fetch the fragments of a block's features, under their first pixels.

        Args:
            pieces: the block's own; those of whole features are looked for.
            home: all parts of the border features that it puts together.
        """
        home = home.take(np.flatnonzero(np.diff(home.runs.offsets)))  # parts may be without pixels
        numbers, group = np.unique(home.features, return_inverse=True)
        first = np.full(len(numbers), np.iinfo(np.int64).max)
        np.minimum.at(first, group.ravel(), pixel_keys(home.runs))
        wanted = np.concatenate([pixel_keys(pieces.runs)[pieces.features < 0], -1 - numbers])
        found = []
        for task in self.tasks:
            keys, wkb = ray.get(task)
            chosen = np.flatnonzero(np.isin(keys, wanted))
            found.append(Fragments(keys[chosen], shapely.from_wkb(wkb[chosen])))
        every = Fragments.concatenate(found)
        parts = every.keys < 0
        every.keys[parts] = first[np.searchsorted(numbers, -1 - every.keys[parts])]
        return every


def pixel_keys(runs: Runs) -> I64:
    """Return the first pixel of each mask as one number, (N,) not negative; distinct where masks exclude each other."""
    first = masks.first_pixels_yx(runs).astype(np.int64)
    return np.asarray((first[:, 0] << 32) + first[:, 1])


def simplify_blocks(
    common: Common,
    grid: Grid,
    ranges: Sequence[TileRange],
    pieces: tuple[Sequence[ray.ObjectRef[Pieces]], Sequence[ray.ObjectRef[Pieces]]],
    homes: Homes,
) -> list[BlockOutlines | None]:
    """Start the cells' tasks of a scene; return for each block where its features' outlines will be.

    Args:
        common: of the run.
        grid: of the scene.
        ranges: the blocks' tiles.
        pieces: (whole features, parts of border features) of each block.
        homes: of the border features; one that no block puts together takes no part.
    """
    if not common.simplify_px or not common.options.exclusive:
        return [None] * len(ranges)
    regions = [r.region(grid) for r in ranges]
    near = _Near(regions, margin=grid.tile_px)
    kept = ray.put(homes.features)
    tolerance = common.simplify_px * grid.scale
    owned: dict[tuple[int, int], int] = {}
    tasks: dict[int, ray.ObjectRef[Packed]] = {}
    for number, region in enumerate(regions):
        cells = [cell_window(*cell, grid.width, grid.height) for cell in cells_in(region)]
        if cells:
            around = near.blocks(_hull(cells))
            found = [(pieces[0][b], pieces[1][b]) for b in around]
            tasks[number] = _simplify.remote(cells, found, kept, tolerance)
            owned |= dict.fromkeys(cells_in(region), number)
    outlines: list[BlockOutlines | None] = []
    for number in range(len(ranges)):
        sources = {number, *homes.sources_of(number)}
        cells_of = {c for s in sources for c in cells_touching(_grown(regions[s], grid.tile_px, grid))}
        outlines.append(BlockOutlines([tasks[n] for n in sorted({owned[c] for c in cells_of if c in owned})]))
    return outlines


@ray.remote(max_retries=3)
def _simplify(
    cells: Sequence[Window],
    around: Sequence[tuple[ray.ObjectRef[Pieces], ray.ObjectRef[Pieces]]],
    kept: NDArray[np.int64],
    tolerance_px: float,
) -> Packed:
    """Simplify a block's cells."""
    hull = _hull(cells)
    runs, keys = [Runs.empty()], [np.zeros(0, np.int64)]
    for whole_ref, parts_ref in around:
        whole, parts = ray.get(whole_ref), ray.get(parts_ref)
        parts = parts.take(np.flatnonzero(np.isin(parts.features, kept)))
        runs += [masks.clip_runs(whole.runs, hull), masks.clip_runs(parts.runs, hull)]
        keys += [pixel_keys(whole.runs), -1 - parts.features]
    every, all_keys = Runs.concatenate(runs), np.concatenate(keys)
    found = Fragments.concatenate([simplify_cell(every, all_keys, cell, tolerance_px) for cell in cells])
    return found.keys, shapely.to_wkb(found.polygons)


class _Near:
    """Which blocks may hold pieces in a window."""

    def __init__(self, regions: Sequence[Window], *, margin: int) -> None:
        corners = [[r.col_off - margin, r.row_off - margin, r.col_end + margin, r.row_end + margin] for r in regions]
        self.corners = np.array(corners, np.int64).reshape(-1, 4)

    def blocks(self, window: Window) -> list[int]:
        left, top, right, bottom = self.corners.T
        meets = (left < window.col_end) & (right > window.col_off) & (top < window.row_end) & (bottom > window.row_off)
        return [int(b) for b in np.flatnonzero(meets)]


def _hull(windows: Sequence[Window]) -> Window:
    left, top = min(w.col_off for w in windows), min(w.row_off for w in windows)
    right, bottom = max(w.col_end for w in windows), max(w.row_end for w in windows)
    return Window(left, top, right - left, bottom - top)


def _grown(window: Window, margin: int, grid: Grid) -> Window:
    left, top = max(0, window.col_off - margin), max(0, window.row_off - margin)
    right, bottom = min(grid.width, window.col_end + margin), min(grid.height, window.row_end + margin)
    return Window(left, top, right - left, bottom - top)
