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

from segworker.jit import kernel

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
    left, top = x.span[0], y.span[0]
    sums = np.zeros((len(pixels) + 1, pixels.shape[1], len(x.nearest)), wide)
    _sum_along_rows(np.ascontiguousarray(pixels, wide), valid, x.indices - left, x.weights.astype(wide), sums)
    mean = np.zeros((len(pixels), len(y.nearest), len(x.nearest)), wide)
    _mean_along_columns(sums, y.indices - top, y.weights.astype(wide), mean)
    return _as_dtype(mean, pixels.dtype), valid[np.ix_(y.nearest - top, x.nearest - left)]


@kernel
def _sum_along_rows(
    pixels: NDArray[Any], valid: Valid, indices: NDArray[np.int64], weights: NDArray[Any], sums: NDArray[Any]
) -> None:
    """Add up (C + 1, h, W): the weighted valid pixels of each band, and at last the weights themselves."""
    num_bands, height, _ = pixels.shape
    width, num_taps = indices.shape
    for row in range(height):
        for col in range(width):
            for k in range(num_taps):
                source = indices[col, k]
                if valid[row, source]:
                    sums[num_bands, row, col] += weights[col, k]
                    for band in range(num_bands):
                        sums[band, row, col] += weights[col, k] * pixels[band, row, source]


@kernel
def _mean_along_columns(
    sums: NDArray[Any], indices: NDArray[np.int64], weights: NDArray[Any], mean: NDArray[Any]
) -> None:
    """Fill (C, H, W): the weighted sums of the rows over their weights; what has no weight stays 0."""
    num_bands, _, width = mean.shape
    total = np.empty((num_bands + 1, width), mean.dtype)
    for row in range(len(indices)):
        total[:] = 0
        for k in range(indices.shape[1]):
            total += weights[row, k] * sums[:, indices[row, k], :]
        for band in range(num_bands):
            for col in range(width):
                if total[num_bands, col] > 0:
                    mean[band, row, col] = total[band, col] / total[num_bands, col]


def _as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> Pixels:
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    return np.asarray(values.astype(dtype))
