"""ResNets with a feature pyramid in the three layouts in which their weights are published.

torchvision's own modules; what differs is the norm, and where a bottleneck strides: detectron2's weights (from MSRA)
want the stride in the first 1x1 convolution, all others in the 3x3 one. Names and shapes do not tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from segworker.errors import ConfigError
from segworker.models.common.init import set_bias

Norm = Literal["frozen", "batch", "group"]
_NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 16),
}


class LevelsP6P7(ExtraFPNBlock):
    """Levels of twice the stride from the coarsest one by strided convolutions, with ReLU between them."""

    def __init__(self, channels: int, count: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(count))
        for conv in self.convs:
            set_bias(conv)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:  # noqa: ARG002
        """Append 'p6', 'p7' and so on."""
        for k, conv in enumerate(self.convs):
            results.append(conv(F.relu(results[-1]) if k else results[-1]))
            names.append(f"p{6 + k}")
        return results, names


BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")


def build_resnet(name: str, *, norm: str = "batch", stride_in_1x1: bool = False) -> nn.Module:
    """Return torchvision's ResNet with random weights.

    Args:
        name: one of `BACKBONES`.
        norm: 'frozen' (published statistics, never changed), 'batch', or 'group' (for small batches).
        stride_in_1x1: bottlenecks stride in their first convolution.

    Raises:
        ConfigError: a name that is not known.
    """
    if name not in BACKBONES or norm not in _NORMS:
        raise ConfigError(
            f"backbone is one of {', '.join(BACKBONES)} and norm one of {', '.join(_NORMS)}, got {name!r} and {norm!r}"
        )
    body: nn.Module = getattr(resnet, name)(weights=None, norm_layer=_NORMS[norm])
    if stride_in_1x1:
        for block in body.modules():
            if isinstance(block, resnet.Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return body


def out_channels(name: str, stages: Sequence[int]) -> list[int]:
    """Return the channels of a ResNet's stages, 1-based: stage 1 has stride 4, each further one twice that."""
    first = 64 if name in ("resnet18", "resnet34") else 256
    return [first * 2 ** (stage - 1) for stage in stages]


def resnet_fpn(
    name: str,
    *,
    channels: int,
    norm: str = "batch",
    stride_in_1x1: bool = False,
    extra: ExtraFPNBlock | None = None,
    stages: Sequence[int] = (1, 2, 3, 4),
) -> nn.Module:
    """Return a ResNet with a pyramid of levels '0' to '3' (strides 4 to 32) and 'pool' (stride 64, by subsampling).

    Lin et al., 2017, arXiv:1612.03144: nearest upsampling, 3x3 outputs, no norm.

    Args:
        name: see `build_resnet`, as norm and stride_in_1x1.
        channels: of every level.
        norm: of the ResNet.
        stride_in_1x1: of the ResNet.
        extra: instead of the level 'pool'.
        stages: those with a level, which is named by its place among them.
    """
    body = build_resnet(name, norm=norm, stride_in_1x1=stride_in_1x1)
    layers = {f"layer{stage}": str(level) for level, stage in enumerate(stages)}
    pyramid: nn.Module = BackboneWithFPN(
        body, layers, out_channels(name, stages), channels, extra or LastLevelMaxPool()
    )
    return pyramid
