"""Dense nuclei by the hundred thousand, as tiles' instances in memory: what stitching speed is measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from segworker.decode import edge_bits
from segworker.grid import Grid
from segworker.synthetic.noise import Noise, noisy_tile, perfect_tile
from segworker.synthetic.virtual import VirtualScene
from segworker.types import Instances, Runs, Tile

CELL_PX = 28
TILE_PX, OVERLAP_PX = 512, 64
PERIOD_TILES = 3
"The scene repeats after this many tiles: those are drawn, the others are moved copies of them."


class DenseScene:
    """Tiles 512/64 with about `num` instances in all, made when they are asked for."""

    def __init__(self, num: int, *, noisy: bool = False, seed: int = 0) -> None:
        per_tile = 0.94 * (TILE_PX / CELL_PX + 1) ** 2
        side = max(1, round(math.sqrt(num / per_tile)))
        rows, cols = max(1, round(num / per_tile / side)), side
        step = TILE_PX - OVERLAP_PX
        self.grid = Grid("dense", cols * step + OVERLAP_PX, rows * step + OVERLAP_PX, TILE_PX, OVERLAP_PX)
        self._base = _base_tiles(noisy, seed)

    def tile(self, row: int, col: int) -> Instances:
        """Return one tile's instances."""
        return _copy(self._base[row % PERIOD_TILES][col % PERIOD_TILES], self.grid.tile(row, col), self.grid)


def dense_instances(num: int, *, noisy: bool = False, seed: int = 0) -> tuple[Grid, list[Instances]]:
    """Return a grid of 512/64 tiles and their instances, about `num` of them in all, in row order of tiles."""
    scene = DenseScene(num, noisy=noisy, seed=seed)
    return scene.grid, [scene.tile(t.row, t.col) for t in scene.grid.tiles()]


def _base_tiles(noisy: bool, seed: int) -> list[list[Instances]]:
    """Return the tiles of one period from the middle of a larger scene, so that all their sides are cut."""
    step = TILE_PX - OVERLAP_PX
    assert step * PERIOD_TILES % CELL_PX == 0
    side = step * (2 * PERIOD_TILES + 3) + OVERLAP_PX
    scene = VirtualScene(side, side, seed, cell_px=CELL_PX, period_cells=step * PERIOD_TILES // CELL_PX)
    grid = Grid("base", side, side, TILE_PX, OVERLAP_PX)
    classes = np.ones(scene.max_label + 1, np.int32)
    found = []
    for row in range(PERIOD_TILES, 2 * PERIOD_TILES):
        found.append([])
        for col in range(PERIOD_TILES, 2 * PERIOD_TILES):
            tile = grid.tile(row, col)
            labels = scene.labels(tile.window)
            if noisy:
                seen = noisy_tile(labels, classes, tile, grid, noise=Noise(), seed=seed)
            else:
                seen = perfect_tile(labels, classes, tile, grid, cut_trust_px=16)
            found[-1].append(seen.instances)
    return found


def _copy(base: Instances, tile: Tile, grid: Grid) -> Instances:
    """Return the instances moved to another tile."""
    dx = tile.window.col_off - base.tile.window.col_off
    dy = tile.window.row_off - base.tile.window.row_off
    boxes = base.boxes_xyxy + np.array([dx, dy, dx, dy], np.int32)
    runs = Runs(
        base.runs.rows + np.int32(dy),
        base.runs.starts + np.int32(dx),
        base.runs.stops + np.int32(dx),
        base.runs.offsets,
    )
    edges = edge_bits(boxes, tile.window, grid=grid, margin_px=16)
    return Instances(tile, base.class_ids, base.scores, boxes, edges, runs)


def count(tiles: Sequence[Instances]) -> int:
    """Return the number of instances."""
    return sum(len(t) for t in tiles)
