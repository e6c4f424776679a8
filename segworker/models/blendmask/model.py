"""BlendMask (Chen et al., 2020, arXiv:2001.00309): FCOS, bases for the image, and attention maps for each object.

B tiles, D objects, K bases, C classes, H and W pixels, h and w cells at stride 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segworker.models.blendmask.config import ATTENTION, RT, RULE, SPEC, BlendMaskConfig
from segworker.models.blendmask.decode import detect
from segworker.models.blendmask.loss import blendmask_losses
from segworker.models.common.backbone import LevelsP6P7, resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.dense_model import DenseModel, Target
from segworker.models.common.fcos import FCOSHead
from segworker.models.common.init import set_bias
from segworker.models.common.options import change_options
from segworker.models.common.two_stage import to_prediction, valid_size_yx
from segworker.types import Prediction


class BasisModule(nn.Module):
    """Levels of strides 8, 16 and 32 become bases at stride 4; a further head learns the classes of pixels."""

    def __init__(self, config: BlendMaskConfig) -> None:
        super().__init__()
        width, norm = config.basis_channels, config.basis_norm
        self.refine = nn.ModuleList(_conv(config.channels, width, norm) for _ in range(3))
        self.convs = nn.ModuleList(_conv(width, width, norm) for _ in range(config.basis_convs))
        self.last_conv = _conv(width, width, norm)
        self.last = nn.Conv2d(width, config.bases, 1)
        self.semantic = nn.Sequential(
            _conv(config.channels, width, norm), _conv(width, width, norm), nn.Conv2d(width, config.num_classes + 1, 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (B, K, h, w) bases and (B, C + 1, H / 8, W / 8) logits, the background first, for training."""
        total = self.refine[0](levels[0])
        for conv, level in zip(self.refine[1:], levels[1:3], strict=True):
            total = total + F.interpolate(conv(level), total.shape[-2:], mode="bilinear", align_corners=False)
        for conv in self.convs:
            total = conv(total)
        total = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(self.last_conv(total)), self.semantic(levels[0])


def _conv(channels: int, width: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(16, width), nn.ReLU())


class BlendMask(DenseModel):
    """The network."""

    def __init__(self, config: BlendMaskConfig) -> None:
        named = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        super().__init__(categories=named, spec=SPEC, rule=RULE)
        self.config = config
        self.backbone = resnet_fpn(
            config.backbone,
            channels=config.channels,
            norm=config.norm,
            stride_in_1x1=True,
            extra=LevelsP6P7(config.channels, config.levels - 3) if config.convolved_levels else None,
            stages=(2, 3, 4),
        )
        self.fcos = FCOSHead(config.fcos)
        self.basis = BasisModule(config)
        self.attention = nn.Conv2d(config.channels, config.bases * ATTENTION**2, 3, padding=1)
        nn.init.normal_(self.attention.weight, std=0.01)
        set_bias(self.attention)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the raw heads on normalised images.

        Returns:
            What `FCOSHead` returns, attention_k (B, K 14 14, h, w) for each level, bases (B, K, H / 4, W / 4), semantic
            (B, C + 1, H / 8, W / 8).
        """
        levels = list(self.backbone(images_BCHW).values())
        found, features = self.fcos(levels)
        for k, level in enumerate(features):
            found[f"attention_{k}"] = self.attention(level)
        found["bases"], found["semantic"] = self.basis(levels)
        return dict(found)

    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch, see `blendmask_losses`."""
        return blendmask_losses(raw, targets, self.config)

    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return what is seen in the k-th tile of a batch."""
        found = detect(raw, k, valid_size_yx(valid_HW), self.config)
        return to_prediction(found, valid_HW, {label: c.id for label, c in enumerate(self.categories)})


def build_blendmask(variant: str = "full", **options: object) -> BlendMask:
    """Return a network with random weights.

    Args:
        variant: 'full' or 'rt'.
        options: fields of `BlendMaskConfig`.
    """
    return BlendMask(change_options(RT if variant == "rt" else BlendMaskConfig(), options))
