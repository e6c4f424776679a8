"""The semantic loss of HTC; those of boxes and masks are `common.roi`'s, weighted in `heads.HTCHeads.losses`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.common.roi import Target
from segworker.models.htc.config import IGNORED, SEMANTIC_WEIGHT


def semantic_loss(logits_BChw: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the weighted mean cross-entropy over all labelled cells; 0 where the targets have no `semantic`.

    Args:
        logits_BChw: of the semantic branch.
        targets: of each image; `semantic` (H, W) is the number of each pixel's class from 0, 255 where unknown.
    """
    if not all("semantic" in target for target in targets):
        return logits_BChw.sum() * 0
    maps = torch.stack([target["semantic"] for target in targets])[:, None].float()
    wanted = F.interpolate(maps, logits_BChw.shape[-2:], mode="nearest")[:, 0].long()
    total = F.cross_entropy(logits_BChw, wanted, ignore_index=IGNORED, reduction="sum")
    return SEMANTIC_WEIGHT * total / (wanted != IGNORED).sum().clamp(min=1)
