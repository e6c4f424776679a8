"""From a HydraNet's raw maps to a prediction without instances.

C classes, h and w cells at a quarter of the resolution, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segworker.types import Prediction

NORMAL_AXES = ("normal_x", "normal_y", "normal_z")


def to_prediction(raw: Mapping[str, Tensor], valid_HW: Tensor, class_ids: Sequence[int]) -> Prediction:
    """Return one tile's class probabilities on the heads' lattice, and its dense maps at full resolution."""
    semantic = raw["semantic"].softmax(0).half().cpu().numpy() if "semantic" in raw else None
    return Prediction(
        boxes_xyxy=np.zeros((0, 4), np.float32),
        class_ids=np.zeros(0, np.int32),
        scores=np.zeros(0, np.float32),
        semantic_scores_CHW=semantic,
        semantic_class_ids=None if semantic is None else np.array(class_ids, np.int32),
        dense=dense_maps(raw, (valid_HW.shape[0], valid_HW.shape[1])),
    )


def dense_maps(raw: Mapping[str, Tensor], size_yx: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """Return `depth` (H, W), in metres where the training was, and the axes of unit normals."""
    maps: dict[str, NDArray[np.float32]] = {}
    if "depth" in raw:
        maps["depth"] = _stretched(raw["depth"], size_yx)[0].abs().cpu().numpy()
    if "normals" in raw:
        normals = F.normalize(_stretched(raw["normals"], size_yx), dim=0).cpu().numpy()
        maps |= dict(zip(NORMAL_AXES, normals, strict=True))
    return maps


def _stretched(maps_Chw: Tensor, size_yx: tuple[int, int]) -> Tensor:
    return F.interpolate(maps_Chw[None], size_yx, mode="bicubic", align_corners=False)[0]
