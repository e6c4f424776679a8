"""The second stage of CenterMask: masks with spatial attention, and how good a mask is.

D boxes, C classes, K channels, M lattice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from segworker.models.common.init import set_bias
from segworker.models.common.roi import MaskHead


def pool_by_share(levels: Sequence[Tensor], boxes: Sequence[Tensor], areas_px: Sequence[float], size: int) -> Tensor:
    """Pool each box from the level that fits its share of the image's area (equation 2).

    Args:
        levels: strides 8, 16 and 32.
        boxes: of each image, (D, 4) xyxy in pixels.
        areas_px: of each image.
        size: cells of the result's sides.

    Returns:
        (sum of D, K, size, size).
    """
    together = torch.cat(list(boxes))
    rois = torch.cat([torch.cat([torch.full_like(some[:, :1], k) for k, some in enumerate(boxes)]), together], dim=1)
    shares = torch.cat(
        [(some[:, 2:] - some[:, :2]).clamp(min=0).prod(1) / area for some, area in zip(boxes, areas_px, strict=True)]
    )
    level = torch.ceil(len(levels) + 2 + torch.log2(shares + 1e-12)).clamp(3, len(levels) + 2) - 3
    pooled = levels[0].new_zeros((len(rois), levels[0].shape[1], size, size))
    for k, features in enumerate(levels):
        chosen = (level == k).nonzero()[:, 0]
        part = roi_align(features, rois[chosen], size, spatial_scale=0.125 / 2**k, sampling_ratio=0, aligned=True)
        pooled = pooled.index_put((chosen,), part)
    return pooled


class AttentiveMaskHead(MaskHead):
    """A mask head whose features are weighed cell by cell before they are upsampled."""

    def __init__(self, channels: int, num_classes: int, convs: int) -> None:
        super().__init__(channels, num_classes)
        self.convs = self.convs[:convs]
        self.attention = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def features(self, pooled: Tensor) -> Tensor:
        """Return what the convolutions make of pooled boxes, weighed by their mean and maximum over the channels."""
        inner = super().features(pooled)
        seen = torch.cat([inner.mean(1, keepdim=True), inner.amax(1, keepdim=True)], dim=1)
        weighed: Tensor = inner * self.attention(seen).sigmoid()
        return weighed


class MaskIoUHead(nn.Module):
    """From a box's features and its mask, for each class, how well the mask will overlap the object."""

    def __init__(self, channels: int, num_classes: int, units: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + (k == 0), channels, 3, 2 if k == convs - 1 else 1, padding=1) for k in range(convs)
        )
        self.fc1, self.fc2 = nn.Linear(channels * 49, units), nn.Linear(units, units)
        self.last = nn.Linear(units, num_classes)
        for conv in self.convs:
            set_bias(conv)
        nn.init.normal_(self.last.weight, std=0.01)
        set_bias(self.last)

    def forward(self, pooled: Tensor, masks_D1MM: Tensor) -> Tensor:
        """Return (D, C).

        Args:
            pooled: (D, K, 14, 14).
            masks_D1MM: of 28 cells a side.
        """
        features = torch.cat([pooled, F.max_pool2d(masks_D1MM, 2)], dim=1)
        for conv in self.convs:
            features = F.relu(conv(features))
        overlaps: Tensor = self.last(F.relu(self.fc2(F.relu(self.fc1(features.flatten(1))))))
        return overlaps
