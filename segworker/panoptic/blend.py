"""One stuff class for each pixel, also where two windows disagree about it.

A tile keeps the best class of every pixel of its window, and the two best with their scores where another window sees
the pixel too. The owner of a pixel and its neighbours are heard, each with a weight that falls linearly to the cut
sides of its window, so that class borders do not show the grid. All sums are integers: the result depends neither on
the order of tiles nor on how a scene is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segworker.errors import PredictionError
from segworker.grid import Axis, Grid
from segworker.jit import kernel
from segworker.masks import I64
from segworker.types import Tile, Window

NOTHING = 255
"In a class map: no stuff here, because the pixel is invalid, not predicted, or a thing's."
MAX_STUFF = 254
"Stuff classes a model may have."

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class StuffTile:
    """What one tile saw of stuff. Classes are positions among the model's stuff categories."""

    tile: Tile
    best_HW: U8
    "(H, W) of the window; NOTHING where a pixel is invalid."
    second_HW: U8
    "(H, W); NOTHING where no other window sees the pixel, or the model has one class."
    scores_2HW: U8
    "(2, H, W) of both, 0..255; 0 where no other window sees the pixel."

    def __post_init__(self) -> None:
        shape = self.tile.window.shape_yx
        if self.best_HW.shape != shape or self.second_HW.shape != shape or self.scores_2HW.shape != (2, *shape):
            raise ValueError(f"all arrays must have the window's shape {shape}, got {self.best_HW.shape}")


def compact_scores(
    scores_CHW: NDArray[np.floating], valid_HW: NDArray[np.bool_] | None, *, tile: Tile, grid: Grid
) -> StuffTile:
    """Return a tile's stuff scores in compact form.

    Args:
        scores_CHW: (C, H, W) in 0..1 of the stuff classes over the tile's window.
        valid_HW: (H, W); None: all pixels are valid.
        tile: the tile.
        grid: the scene's grid.

    Raises:
        PredictionError: for another shape, too many classes, or scores that are not finite.
    """
    _check(scores_CHW, tile)
    order = np.argsort(-scores_CHW, axis=0, kind="stable")[:2]
    best = order[0].astype(np.uint8)
    second = order[1].astype(np.uint8) if len(order) > 1 else np.full(best.shape, NOTHING, np.uint8)
    top = np.take_along_axis(scores_CHW, order, axis=0)
    scores = np.zeros((2, *best.shape), np.uint8)
    scores[: len(top)] = np.rint(np.clip(top, 0, 1) * 255)
    alone = ~shared_pixels(tile, grid)
    second[alone] = NOTHING
    scores[:, alone] = 0
    if valid_HW is not None:
        best[~valid_HW] = second[~valid_HW] = NOTHING
        scores[:, ~valid_HW] = 0
    return StuffTile(tile, best, second, scores)


def _check(scores_CHW: NDArray[np.floating], tile: Tile) -> None:
    where = f"tile ({tile.row}, {tile.col}) of {tile.scene_id}"
    shape = tile.window.shape_yx
    if scores_CHW.ndim != 3 or scores_CHW.shape[1:] != shape or not 1 <= len(scores_CHW) <= MAX_STUFF:
        raise PredictionError(
            f"semantic scores must be (C, {shape[0]}, {shape[1]}) for 1 to {MAX_STUFF} stuff classes, got "
            f"{scores_CHW.shape} in {where}; fix the model's predict()"
        )
    if not np.isfinite(scores_CHW).all():
        raise PredictionError(
            f"semantic scores must be finite, got NaN or infinity in {where}; check weights and precision"
        )


def shared_pixels(tile: Tile, grid: Grid) -> NDArray[np.bool_]:
    """Return (H, W) of the window: True where a neighbour's window sees the pixel too."""
    columns, rows = _shared(grid.x, tile.col), _shared(grid.y, tile.row)
    return np.asarray(columns[None, :] | rows[:, None])


def _shared(axis: Axis, k: int) -> NDArray[np.bool_]:
    start, stop = axis.window(k)
    seen = np.zeros(stop - start, np.bool_)
    for other in (k - 1, k + 1):
        if 0 <= other < axis.count:
            low, high = axis.window(other)
            seen[max(0, low - start) : max(0, high - start)] = True
    return seen


def window_weights(tile: Tile, grid: Grid) -> I64:
    """Return (H, W) weights of a window's pixels: 1 at a cut side, rising linearly over the width of the overlap."""
    columns, rows = _ramp(grid.x, tile.col), _ramp(grid.y, tile.row)
    return np.asarray(columns[None, :] * rows[:, None])


def _ramp(axis: Axis, k: int) -> I64:
    start, stop = axis.window(k)
    place = np.arange(start, stop, dtype=np.int64)
    weight = np.full(stop - start, max(1, axis.overlap), np.int64)
    if start > 0:
        weight = np.minimum(weight, place - start + 1)
    if stop < axis.size:
        weight = np.minimum(weight, stop - place)
    return weight


def blend_core(tiles: Mapping[tuple[int, int], StuffTile], row: int, col: int, *, grid: Grid) -> U8:
    """Return the class of each pixel of a tile's core: the one with the highest weighted score, ties to the first.

    Args:
        tiles: by (row, column): the owner and those of its 8 neighbours that have a result.
        row: of the owner.
        col: of the owner.
        grid: the scene's grid.

    Returns:
        (h, w) of the core; NOTHING where a pixel is invalid or the owner has no result.
    """
    owner = grid.tile(row, col)
    core = owner.core
    if (row, col) not in tiles:
        return np.full(core.shape_yx, NOTHING, np.uint8)
    inside = core.slices_in(owner.window)
    result = tiles[row, col].best_HW[inside].copy()
    at_y, at_x = np.nonzero(shared_pixels(owner, grid)[inside] & (result != NOTHING))
    classes = np.full((len(at_y), 18), NOTHING, np.uint8)
    values = np.zeros((len(at_y), 18), np.int64)
    around = [(row + y, col + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    for k, seen in enumerate(tiles[key] for key in around if key in tiles):
        _hear(seen, core, (at_y, at_x), grid, classes[:, 2 * k : 2 * k + 2], values[:, 2 * k : 2 * k + 2])
    result[at_y, at_x] = _strongest(classes, values)
    return result


def _hear(seen: StuffTile, core: Window, at_yx: tuple[I64, I64], grid: Grid, classes: U8, values: I64) -> None:
    """Fill in what one tile says of some pixels of a core."""
    window = seen.tile.window
    y, x = at_yx[0] + core.row_off - window.row_off, at_yx[1] + core.col_off - window.col_off
    here = np.flatnonzero((y >= 0) & (y < window.height) & (x >= 0) & (x < window.width))
    y, x = y[here], x[here]
    weight = window_weights(seen.tile, grid)[y, x]
    for rank, of_rank in enumerate((seen.best_HW, seen.second_HW)):
        classes[here, rank] = of_rank[y, x]
        values[here, rank] = weight * seen.scores_2HW[rank, y, x]


@kernel
def _strongest(classes: U8, values: I64) -> U8:
    result = np.full(len(classes), NOTHING, np.uint8)
    for p in range(len(classes)):
        most = np.int64(-1)
        for i in range(classes.shape[1]):
            here = classes[p, i]
            if here == NOTHING:
                continue
            total = np.int64(0)
            for j in range(classes.shape[1]):
                if classes[p, j] == here:
                    total += values[p, j]
            if total > most or (total == most and here < result[p]):
                most = total
                result[p] = here
    return result
