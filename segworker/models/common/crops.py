"""Masks on a coarse lattice become boolean crops at full resolution, one object at a time.

N objects, h and w cells of the lattice, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segworker.types import CroppedMasks


def crop_masks(probs_Nhw: Tensor, size_yx: tuple[int, int], *, threshold: float = 0.5) -> CroppedMasks:
    """Stretch each mask over the window bilinearly and keep what is above the threshold, as `F.interpolate` would do.

    Only the surroundings of cells above the threshold are stretched: a pixel elsewhere cannot be above it.

    Args:
        probs_Nhw: in 0..1.
        size_yx: height and width of the window in pixels.
        threshold: exclusive.
    """
    crops = [_crop(probs, size_yx, threshold) for probs in probs_Nhw.float()]
    corners = np.array([corner for _, corner in crops], np.int64).reshape(-1, 2)
    return CroppedMasks(tuple(mask for mask, _ in crops), corners)


def boxes_of_crops(found: CroppedMasks) -> NDArray[np.float32]:
    """Return (N, 4) xyxy tight half-open boxes; an empty mask gives an empty box."""
    boxes = np.zeros((len(found.masks), 4), np.float32)
    for k, (mask, (left, top)) in enumerate(zip(found.masks, found.corners_xy.tolist(), strict=True)):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            boxes[k] = left + cols[0], top + rows[0], left + cols[-1] + 1, top + rows[-1] + 1
    return boxes


def _crop(probs_hw: Tensor, size_yx: tuple[int, int], threshold: float) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    above = probs_hw > threshold
    rows, cols = above.any(1).nonzero()[:, 0], above.any(0).nonzero()[:, 0]
    if not len(rows):
        return np.zeros((0, 0), bool), (0, 0)
    ranges = [
        _pixels(int(index[0]), int(index[-1]), cells, pixels)
        for index, cells, pixels in zip((rows, cols), probs_hw.shape, size_yx, strict=True)
    ]
    values = probs_hw
    for dim, ((begin, end), cells, pixels) in enumerate(zip(ranges, probs_hw.shape, size_yx, strict=True)):
        place = ((torch.arange(begin, end, device=values.device) + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
        low = place.floor().long()
        high, share = (low + 1).clamp(max=cells - 1), place - low
        share = share[:, None] if dim == 0 else share[None]
        values = values.index_select(dim, low) * (1 - share) + values.index_select(dim, high) * share
    return (values > threshold).cpu().numpy(), (ranges[1][0], ranges[0][0])


def _pixels(first: int, last: int, cells: int, pixels: int) -> tuple[int, int]:
    """Return the half-open range of pixels that cells from `first` to `last` have a share in."""
    per_cell = pixels / cells
    begin = max(0, int((first - 0.5) * per_cell) - 1)
    return begin, min(pixels, int((last + 1.5) * per_cell) + 2)
