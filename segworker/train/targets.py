"""What there is to learn in a window, turned and resized with it.

N objects, K keypoints, S the side of a window.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segworker.types import Window

Target = dict[str, Tensor]
"boxes, labels, masks; keypoints and semantic where a model wants them: see `models.common.two_stage.TwoStage.loss`."


def boxes_of(masks_NHW: Tensor) -> Tensor:
    """Return (N, 4) float32 tight half-open boxes of masks; zeros for empty ones."""
    if not len(masks_NHW):
        return torch.zeros((0, 4))
    rows, cols = masks_NHW.amax(2).bool(), masks_NHW.amax(1).bool()
    size_y, size_x = masks_NHW.shape[1:]
    left, top = cols.int().argmax(1), rows.int().argmax(1)
    right, bottom = size_x - cols.flip(1).int().argmax(1), size_y - rows.flip(1).int().argmax(1)
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return boxes * rows.any(1)[:, None]


def turned(image_CHW: Tensor, target: Mapping[str, Tensor], which: int) -> tuple[Tensor, Target]:
    """Apply one of the eight symmetries of the square to a window and its target."""

    def turn(values: Tensor) -> Tensor:
        values = torch.rot90(values, which % 4, (-2, -1))
        return values.flip(-1) if which >= 4 else values

    result = {**target, "masks": turn(target["masks"])}
    result["boxes"] = boxes_of(result["masks"])
    if "semantic" in target:
        result["semantic"] = turn(target["semantic"])
    if "keypoints" in target:
        result["keypoints"] = _turned_points(target["keypoints"], float(image_CHW.shape[-1]), which)
    return turn(image_CHW), result


def _turned_points(points_NK3: Tensor, side: float, which: int) -> Tensor:
    x, y, seen = points_NK3.unbind(-1)
    for _ in range(which % 4):  # a quarter turn: the last column becomes the first row
        x, y = y, side - x
    if which >= 4:
        x = side - x
    return torch.stack([torch.where(seen > 0, x, 0), torch.where(seen > 0, y, 0), seen], dim=-1)


def placed_points(points_NK3: NDArray[np.float32], window: Window, size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """Return keypoints in pixels of the network's input; those outside of the window are not labelled."""
    result = points_NK3.copy()
    result[..., 0] = (result[..., 0] - window.col_off) * size_wh[0] / window.width
    result[..., 1] = (result[..., 1] - window.row_off) * size_wh[1] / window.height
    outside = (result[..., :2] < 0).any(axis=-1) | (result[..., 0] > size_wh[0]) | (result[..., 1] > size_wh[1])
    result[outside | (points_NK3[..., 2] <= 0)] = 0
    return result


def resized(values_HW: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Return (H, W) labels at another size, each pixel with the value of the nearest."""
    wide = values_HW[None, None].double()
    return F.interpolate(wide, (size_wh[1], size_wh[0]), mode="nearest-exact")[0, 0].to(values_HW.dtype)
