"""A HydraNet: MobileNetV2 and a light-weight RefineNet decoder, shared by dense heads chosen by configuration.

Nekrasov et al., 2018, arXiv:1809.04766 (tasks on one decoder); Sandler et al., 2018, arXiv:1801.04381 (encoder);
Nekrasov, Shen and Reid, 2018, arXiv:1810.03272 (decoder).

B tiles, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from segworker.models.common.coco import name_classes
from segworker.models.common.dense_model import DenseModel, Target
from segworker.models.common.options import parse_options
from segworker.models.hydranet.config import BLOCKS, RULE, SPEC, HydraNetConfig
from segworker.models.hydranet.decode import to_prediction
from segworker.models.hydranet.loss import hydranet_losses
from segworker.types import Prediction


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 convolution of each channel, a linear 1x1 projection."""

    def __init__(self, channels: int, out: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels * expansion
        self.expand = _conv_bn(channels, width, 1)
        self.depthwise = _conv_bn(width, width, 3, stride=stride, groups=width)
        self.project = _conv_bn(width, out, 1)
        self.adds = stride == 1 and channels == out

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the stage's channels, with the input added where sizes allow."""
        inner = F.relu6(self.depthwise(F.relu6(self.expand(features))))
        result: Tensor = self.project(inner)
        return features + result if self.adds else result


def _conv_bn(channels: int, out: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class ChainedPooling(nn.Module):
    """Four times a 5x5 maximum and a 1x1 convolution, all sums added up: context at little cost."""

    def __init__(self, channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 1, groups=groups, bias=False) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        top = features
        for conv in self.convs:
            top = conv(F.max_pool2d(top, 5, stride=1, padding=2))
            features = features + top
        return features


class DenseHead(nn.Module):
    """A factor for each channel, and a 3x3 convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.scale = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.last = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out, H / 4, W / 4)."""
        result: Tensor = self.last(F.relu6(self.scale(features)))
        return result


class HydraNet(DenseModel):
    """Encoder, decoder and heads; it sees no instances. Targets have maps by task, see `hydranet_losses`."""

    def __init__(self, config: HydraNetConfig) -> None:
        named = name_classes(config.num_classes, config.class_names, default=())
        super().__init__(categories=[replace(one, isthing=False) for one in named], spec=SPEC, rule=RULE)
        self.config = config
        self.stem = _conv_bn(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        channels, width = 32, config.decoder_channels
        for expansion, out, count, stride in BLOCKS:
            blocks = [
                InvertedResidual(out if k else channels, out, expansion=expansion, stride=1 if k else stride)
                for k in range(count)
            ]
            self.stages.append(nn.Sequential(*blocks))
            channels = out
        self.reduce = nn.ModuleList(nn.Conv2d(out, width, 1, bias=False) for _, out, _, _ in BLOCKS[1:])
        self.pooling = nn.ModuleList(ChainedPooling(width, groups=1 if k else width) for k in range(4))
        self.adapt = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(3))
        self.heads = nn.ModuleDict({task: DenseHead(width, config.channels(task)) for task in config.tasks})

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return each task's raw maps at a quarter of the resolution, of normalised images."""
        features, levels = F.relu6(self.stem(images_BCHW)), []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        shared = self._decoded([reduce(level) for reduce, level in zip(self.reduce, levels[1:], strict=True)])
        return {task: head(shared) for task, head in self.heads.items()}

    def _decoded(self, levels: Sequence[Tensor]) -> Tensor:
        """Merge levels of strides 4, 8, 16, 16, 32 and 32 from the coarsest to the finest."""
        l3, l4, l5, l6, l7, l8 = levels
        merged: Tensor = self.pooling[3](F.relu6(l7 + l8))
        for k, finer in ((2, l5 + l6), (1, l4), (0, l3)):
            coarser = F.interpolate(
                self.adapt[k](merged), tuple(finer.shape[-2:]), mode="bilinear", align_corners=False
            )
            merged = self.pooling[k](F.relu6(finer + coarser))
        return merged

    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the weighted loss of each task, see `hydranet_losses`."""
        ids = [category.id for category in self.categories]
        return hydranet_losses(raw, targets, class_ids=ids, weights=self.config.weights)

    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return the scores and maps of the k-th tile of a batch."""
        ids = [category.id for category in self.categories]
        return to_prediction({name: values[k] for name, values in raw.items()}, valid_HW, ids)


def build_hydranet(**options: object) -> HydraNet:
    """Return the network with random weights; options are fields of `HydraNetConfig`."""
    return HydraNet(parse_options(HydraNetConfig, options))
