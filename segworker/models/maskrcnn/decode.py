"""From torchvision's detection dicts to `Prediction`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from segworker.types import BoxMasks, Prediction


def to_prediction(found: Mapping[str, Tensor], valid_HW: Tensor) -> Prediction:
    """Return one tile's detections as arrays, without those whose centre lies on an invalid pixel.

    Args:
        found: boxes (N, 4), labels (N,), scores (N,), masks (N, 1, M, M) probabilities.
        valid_HW: bool.
    """
    keep = centre_is_valid(found["boxes"], valid_HW)
    return Prediction(
        boxes_xyxy=found["boxes"][keep].float().cpu().numpy(),
        class_ids=found["labels"][keep].cpu().numpy().astype(np.int32),
        scores=found["scores"][keep].float().cpu().numpy(),
        masks=BoxMasks(found["masks"][keep, 0].to(torch.float16).cpu().numpy()),
    )


def centre_is_valid(boxes_xyxy: Tensor, valid_HW: Tensor) -> Tensor:
    """Return (N,) bool: whether the pixel under each box's centre is valid."""
    height, width = valid_HW.shape
    cols = ((boxes_xyxy[:, 0] + boxes_xyxy[:, 2]) / 2).long().clamp(0, width - 1)
    rows = ((boxes_xyxy[:, 1] + boxes_xyxy[:, 3]) / 2).long().clamp(0, height - 1)
    return valid_HW[rows, cols]


def valid_size_yx(valid_HW: Tensor) -> tuple[int, int]:
    """Return how many rows and columns, from the first, reach the last valid pixel; at least one of each."""
    rows, cols = valid_HW.any(1).nonzero(), valid_HW.any(0).nonzero()
    return (int(rows[-1]) + 1 if len(rows) else 1), (int(cols[-1]) + 1 if len(cols) else 1)
