"""Reading at another resolution: a resampler whose answer for a pixel never depends on the window around it. Pure.

Grid pixel i covers source pixels [i * ratio, (i + 1) * ratio). Shrinking takes the mean over that range, each source
pixel by its overlap; growing interpolates linearly between pixel centres. Invalid source pixels have no weight.
Validity itself is that of the source pixel under the grid pixel's centre. Weights are computed from the absolute index
and summed in a fixed order, so two windows agree bit for bit where they overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.generic]
Valid: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """What each of N grid pixels along one axis is made of."""

    indices: NDArray[np.int64]
    "(N, K) source pixels, within the source."
    weights: NDArray[np.float64]
    "(N, K), zero for taps that are not needed."
    nearest: NDArray[np.int64]
    "(N,) the source pixel under the centre."

    @classmethod
    def of_range(cls, start: int, stop: int, ratio: float, size: int) -> Taps:
        """Return the taps of grid pixels [start, stop).

        Args:
            start: first grid pixel.
            stop: first grid pixel behind the range.
            ratio: source pixels per grid pixel.
            size: source pixels along the axis.
        """
        grid = np.arange(start, stop, dtype=np.float64)
        centres = (grid + 0.5) * ratio
        nearest = np.clip(np.floor(centres).astype(np.int64), 0, size - 1)
        if ratio > 1:
            first = np.floor(grid * ratio).astype(np.int64)
            indices = first[:, None] + np.arange(math.ceil(ratio) + 1)
            low, high = (grid * ratio)[:, None], ((grid + 1) * ratio)[:, None]
            weights = np.minimum(indices + 1, high) - np.maximum(indices, low)
            weights = np.where(indices < size, np.clip(weights, 0.0, 1.0), 0.0)
            weights[weights.sum(axis=1) < 1e-9, 0] = 1.0  # the rim of a grid that ends a hair behind the source
        else:
            first = np.floor(centres - 0.5).astype(np.int64)
            share = centres - 0.5 - first
            indices = first[:, None] + np.arange(2)
            weights = np.column_stack([1 - share, share])
        return cls(np.clip(indices, 0, size - 1), weights, nearest)

    @property
    def span(self) -> tuple[int, int]:
        """Half-open range of source pixels that are needed."""
        return int(self.indices.min()), int(self.indices.max()) + 1

    def rows(self, start: int, stop: int) -> Taps:
        """Return the taps of some of the grid pixels."""
        return Taps(self.indices[start:stop], self.weights[start:stop], self.nearest[start:stop])


def resample(pixels: Pixels, valid: Valid, x: Taps, y: Taps) -> tuple[Pixels, Valid]:
    """Return pixels and validity on the grid.

    Args:
        pixels: (C, h, w) covering exactly the spans of y and x.
        valid: (h, w).
        x: taps of the columns.
        y: taps of the rows.

    Returns:
        (C, len(y), len(x)) in the dtype of `pixels`, integers rounded; 0 where nothing valid is near. And (h, w) valid.
    """
    wide = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
    weight = valid.astype(wide)
    total = np.stack([*(band.astype(wide) * weight for band in pixels), weight])
    total = _weighted(total, x.indices - x.span[0], x.weights.astype(wide), axis=2)
    total = _weighted(total, y.indices - y.span[0], y.weights.astype(wide), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(total[-1] > 0, total[:-1] / total[-1], wide(0))
    kept = valid[np.ix_(y.nearest - y.span[0], x.nearest - x.span[0])]
    return _as_dtype(mean, pixels.dtype), kept


def _weighted(values: NDArray[Any], indices: NDArray[np.int64], weights: NDArray[Any], *, axis: int) -> NDArray[Any]:
    shape = (-1, 1) if axis == 1 else (1, -1)
    total = np.take(values, indices[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for k in range(1, indices.shape[1]):
        total += np.take(values, indices[:, k], axis=axis) * weights[:, k].reshape(shape)
    return total


def _as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> Pixels:
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return np.clip(np.rint(values), info.min, info.max).astype(dtype)
    return values.astype(dtype)
