"""The losses of the HydraNet's tasks: cross-entropy, inverse Huber, angle between normals.

B images, C classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.common.dense_model import Target
from segworker.models.hydranet.config import IGNORED


def hydranet_losses(
    raw: Mapping[str, Tensor], targets: Sequence[Target], *, class_ids: Sequence[int], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Return one weighted loss for each task.

    Args:
        raw: maps of each task at a quarter of the resolution; they are stretched to that of the targets.
        targets: of each image, by the tasks: `semantic` (H, W) class ids, 255 where unknown; `depth` (H, W), 0 or less
            where unknown; `normals` (3, H, W), 0 where unknown.
        class_ids: of the channels of `raw["semantic"]`.
        weights: of the tasks, in the order of `raw`.
    """
    losses = {}
    for (task, maps), weight in zip(raw.items(), weights, strict=False):
        wanted = torch.stack([target[task] for target in targets])
        size = (wanted.shape[-2], wanted.shape[-1])
        stretched = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        if task == "semantic":
            value = _semantic(stretched, wanted, class_ids)
        elif task == "depth":
            value = inverse_huber(stretched[:, 0].abs(), wanted)
        else:
            value = _angles(stretched, wanted)
        losses[f"loss_{task}"] = weight * value
    return losses


def _semantic(logits_BCHW: Tensor, ids_BHW: Tensor, class_ids: Sequence[int]) -> Tensor:
    wanted = torch.full_like(ids_BHW, IGNORED, dtype=torch.int64)
    for channel, number in enumerate(class_ids):
        wanted[ids_BHW == number] = channel
    total = F.cross_entropy(logits_BCHW, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp(min=1)


def inverse_huber(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of |d|, or of (d^2 + c^2) / 2c beyond c, a fifth of the largest error (Laina et al., 2016)."""
    known = wanted > 0
    if not known.any():
        return found.sum() * 0
    errors = (found - wanted)[known].abs()
    limit = (0.2 * errors.detach().max()).clamp(min=1e-6)
    return torch.where(errors <= limit, errors, (errors.square() + limit.square()) / (2 * limit)).mean()


def _angles(found_B3HW: Tensor, wanted_B3HW: Tensor) -> Tensor:
    """Return one minus the mean cosine."""
    known = wanted_B3HW.square().sum(1) > 0
    cosines = F.cosine_similarity(found_B3HW, wanted_B3HW, dim=1)
    return ((1 - cosines) * known).sum() / known.sum().clamp(min=1)
