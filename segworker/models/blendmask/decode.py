"""From BlendMask's raw heads to detections with masks.

D objects, K bases, h and w cells at stride 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from segworker.models.blendmask.config import ATTENTION, MASK, BlendMaskConfig
from segworker.models.common import fcos


def blend(bases_Khw: Tensor, attention: Tensor, boxes: Tensor) -> Tensor:
    """Return (D, 56, 56) mask logits: what the bases show in each box, weighted by the softmax of its attention maps.

    Args:
        bases_Khw: of the image, at stride 4.
        attention: (D, K * 14 * 14) of each object.
        boxes: (D, 4) xyxy in pixels.
    """
    seen = roi_align(bases_Khw[None], [boxes], MASK, spatial_scale=0.25, sampling_ratio=1, aligned=True)
    maps = attention.reshape(len(boxes), len(bases_Khw), ATTENTION, ATTENTION)
    weights = F.interpolate(maps, (MASK, MASK), mode="bilinear", align_corners=False).softmax(1)
    logits: Tensor = (seen * weights).sum(1)
    return logits


def detect(raw: Mapping[str, Tensor], k: int, size_yx: tuple[int, int], config: BlendMaskConfig) -> dict[str, Tensor]:
    """Return one image's detections.

    Args:
        raw: what `BlendMask.forward` returns.
        k: which image of the batch.
        size_yx: boxes may reach beyond it, but not lie beyond it.
        config: thresholds.

    Returns:
        boxes (D, 4), labels (D,) from 0, scores (D,), cells (D,), masks (D, 1, 56, 56) probabilities, best first.
    """
    found = fcos.detect(raw, k, config.fcos)
    keep = fcos.seen_boxes(found["boxes"], size_yx)
    found = {name: values[keep] for name, values in found.items()}
    attention = fcos.flat(raw, "attention", config.levels)[k, found["cells"]]
    return {**found, "masks": blend(raw["bases"][k], attention, found["boxes"]).sigmoid()[:, None]}
