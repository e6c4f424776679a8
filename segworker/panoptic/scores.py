"""From a prediction's semantic scores, on whatever lattice, to what a tile keeps of stuff."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segworker.errors import PredictionError
from segworker.grid import Grid
from segworker.panoptic.blend import StuffTile, compact_scores
from segworker.types import Category, Prediction, Tile

STRIP_ROWS = 256
"Rows that are brought to the window's resolution at once: scores of all classes are large."


def stuff_ids(categories: Sequence[Category]) -> tuple[int, ...]:
    """Return the class ids of stuff in the order of the categories: classes of a `StuffTile` are positions in it."""
    return tuple(c.id for c in categories if not c.isthing)


def stuff_of(
    prediction: Prediction,
    tile: Tile,
    *,
    grid: Grid,
    categories: Sequence[Category],
    valid_HW: NDArray[np.bool_] | None = None,
    stride: int = 1,
) -> StuffTile:
    """Return a tile's stuff in compact form. Channels of things, whose pixels instances take, do not count.

    Args:
        prediction: the model's answer for the tile's window.
        tile: the tile.
        grid: the scene's grid.
        categories: of the model, at least one of them stuff.
        valid_HW: (H, W) of the window; None: all pixels are valid.
        stride: `InputSpec.stride`: a lattice that is not the window's own lies over the window padded to it.

    Raises:
        PredictionError: for scores that are missing, no numbers, or not one channel for each class.
    """
    scores = _channels(prediction, tile, categories)
    if scores.shape[1:] != tile.window.shape_yx:
        scores = _stretched(scores, tile.window.shape_yx, stride)
    return compact_scores(scores, valid_HW, tile=tile, grid=grid)


def _channels(prediction: Prediction, tile: Tile, categories: Sequence[Category]) -> NDArray[np.floating]:
    """Return (S, h, w) scores in the order of `stuff_ids`."""
    where = f"tile ({tile.row}, {tile.col}) of {tile.scene_id}"
    scores, told = prediction.semantic_scores_CHW, prediction.semantic_class_ids
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.ndim != 3 or not scores.size:
        got = f"{scores.dtype} {scores.shape}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise PredictionError(
            f"a model with stuff gives semantic_scores_CHW, floats of (C, h, w), got {got} in {where}; fix the model's "
            "predict()"
        )
    ids = [c.id for c in categories] if told is None else np.asarray(told).tolist()
    missing = sorted(set(stuff_ids(categories)) - set(ids))
    if len(ids) != len(scores) or missing:
        raise PredictionError(
            f"semantic scores have one channel for each class, got {len(scores)} channels for {len(ids)} classes, none "
            f"for {missing[:8]} in {where}; set semantic_class_ids in the model's predict()"
        )
    return np.asarray(scores[[ids.index(i) for i in stuff_ids(categories)]])


def _stretched(scores_Shw: NDArray[np.floating], shape_yx: tuple[int, int], stride: int) -> NDArray[np.float32]:
    """Stretch a lattice over the padded window bilinearly, pixel centres on pixel centres, and cut the window out."""
    padded = [size + -size % stride for size in shape_yx]
    (y0, y1, fy), (x0, x1, fx) = (
        _taps(size, have, whole) for size, have, whole in zip(shape_yx, scores_Shw.shape[1:], padded, strict=True)
    )
    source = scores_Shw.astype(np.float32)
    result = np.empty((len(source), *shape_yx), np.float32)
    for top in range(0, shape_yx[0], STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        weight = fy[rows][:, None]
        lines = source[:, y0[rows]] * (1 - weight) + source[:, y1[rows]] * weight
        result[:, rows] = lines[:, :, x0] * (1 - fx) + lines[:, :, x1] * fx
    return result


def _taps(size: int, have: int, padded: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return (lower cell, upper cell, weight of the upper) of each pixel along an axis."""
    place = np.clip((np.arange(size) + 0.5) * (have / padded) - 0.5, 0, have - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, have - 1), (place - low).astype(np.float32)
