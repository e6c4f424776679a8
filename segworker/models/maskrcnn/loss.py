"""The training loss of a Mask R-CNN made of torchvision's parts.

B images, C bands, H and W pixels, N objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

Target = Mapping[str, Tensor]


def detection_loss(
    backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module, images_BCHW: Tensor, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Return the named losses of a batch; their sum is what is minimised.

    Args:
        backbone: images -> {level: features}; the only part that runs in lower precision under autocast.
        rpn: torchvision's proposal network.
        roi_heads: torchvision's heads, with masks.
        images_BCHW: normalised images, sides multiples of the model's stride.
        targets: one for each image: `boxes` (N, 4) float xyxy pixels, `labels` (N,) int64 from 1,
            `masks` (N, H, W) uint8. N may be 0.
    """
    sizes = [(images_BCHW.shape[-2], images_BCHW.shape[-1])] * len(images_BCHW)
    wanted = [dict(target) for target in targets]
    features = {name: level.float() for name, level in backbone(images_BCHW).items()}
    with torch.autocast(images_BCHW.device.type, enabled=False):
        proposals, rpn_losses = rpn(ImageList(images_BCHW, sizes), features, wanted)
        _, roi_losses = roi_heads(features, proposals, sizes, wanted)
    return {**rpn_losses, **roi_losses}
