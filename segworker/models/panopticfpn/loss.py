"""The semantic loss of Panoptic FPN; the instance losses are those of `common.roi_heads`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.panopticfpn.config import IGNORED, SEMANTIC_WEIGHT


def semantic_loss(logits_BCHW: Tensor, targets: Sequence[Tensor], class_ids: Sequence[int]) -> Tensor:
    """Return the weighted mean cross-entropy over all labelled pixels.

    Args:
        logits_BCHW: one channel for each of `class_ids`, at full resolution.
        targets: (H, W) integers of each image: ids of stuff classes, 255 where unknown; all other ids are things.
        class_ids: 0 for all things, then the ids of the stuff classes.
    """
    ids = torch.stack(list(targets)).long()
    wanted = torch.zeros_like(ids)
    wanted[ids == IGNORED] = IGNORED
    for channel, number in enumerate(class_ids[1:], start=1):
        wanted[ids == number] = channel
    total = F.cross_entropy(logits_BCHW, wanted, ignore_index=IGNORED, reduction="sum")
    return SEMANTIC_WEIGHT * total / (wanted != IGNORED).sum().clamp(min=1)
