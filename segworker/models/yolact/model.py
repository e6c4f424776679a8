"""YOLACT (Bolya et al., 2019, arXiv:1904.02689): prototypes for the image, coefficients for each box.

B tiles, N priors, C classes, K prototypes, H and W pixels, h and w cells of the prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from segworker.models.common.backbone import build_resnet, out_channels
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.dense_model import DenseModel, Target
from segworker.models.common.init import set_bias
from segworker.models.common.options import parse_options
from segworker.models.yolact.config import RULE, SPEC, YolactConfig
from segworker.models.yolact.decode import to_prediction
from segworker.models.yolact.loss import yolact_losses
from segworker.types import Prediction


class Yolact(DenseModel):
    """The contract of `segworker.models.protocol.Model`, and trainable."""

    def __init__(self, config: YolactConfig) -> None:
        named = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        super().__init__(categories=named, spec=SPEC, rule=RULE)
        self.config = config
        stages, width = (2, 3, 4), config.channels
        body = build_resnet(config.backbone, norm=config.norm)
        self.body = IntermediateLayerGetter(body, {f"layer{stage}": str(stage) for stage in stages})
        self.lateral = nn.ModuleList(nn.Conv2d(n, width, 1) for n in out_channels(config.backbone, stages))
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in stages)
        self.downsample = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2))
        self.protonet = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.prototypes = nn.Conv2d(width, config.prototypes, 1)
        per_cell = len(config.ratios)
        self.head = nn.Conv2d(width, width, 3, padding=1)
        self.boxes = nn.Conv2d(width, per_cell * 4, 3, padding=1)
        self.classes = nn.Conv2d(width, per_cell * (config.num_classes + 1), 3, padding=1)
        self.coefficients = nn.Conv2d(width, per_cell * config.prototypes, 3, padding=1)
        self.semantic = nn.Conv2d(width, config.num_classes, 1)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d) and not name.startswith("body."):
                nn.init.xavier_uniform_(layer.weight)
                set_bias(layer)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the raw heads on normalised images.

        Returns:
            offsets (B, N, 4), logits (B, N, C + 1) with the background first, coefficients (B, N, K), prototypes
            (B, K, h, w), semantic (B, C, H / 8, W / 8) logits for training, priors_xyxy (N, 4) in pixels.
        """
        levels = self.pyramid(images_BCHW)
        heads = [self._heads(level) for level in levels]
        found = {name: torch.cat([head[name] for head in heads], dim=1) for name in heads[0]}
        return {
            **found,
            "prototypes": self._prototypes(levels[0]),
            "semantic": self.semantic(levels[0]),
            "priors_xyxy": self.priors(levels, images_BCHW.shape[-2:]),
        }

    def pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the five levels, of strides 8 to 128."""
        features = list(self.body(images_BCHW).values())
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        for k in (1, 0):
            above = F.interpolate(merged[k + 1], merged[k].shape[-2:], mode="bilinear", align_corners=False)
            merged[k] = merged[k] + above
        levels = [F.relu(output(level)) for output, level in zip(self.output, merged, strict=True)]
        for conv in self.downsample:
            levels.append(conv(levels[-1]))
        return levels

    def _prototypes(self, finest: Tensor) -> Tensor:
        for conv in self.protonet[:3]:
            finest = F.relu(conv(finest))
        finest = F.interpolate(finest, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.prototypes(F.relu(self.protonet[3](finest))))

    def _heads(self, level: Tensor) -> dict[str, Tensor]:
        shared = F.relu(self.head(level))
        rows = {
            "offsets": (self.boxes(shared), 4),
            "logits": (self.classes(shared), self.config.num_classes + 1),
            "coefficients": (torch.tanh(self.coefficients(shared)), self.config.prototypes),
        }
        return {
            name: values.permute(0, 2, 3, 1).reshape(len(values), -1, width) for name, (values, width) in rows.items()
        }

    def priors(self, levels: Sequence[Tensor], size_yx: Sequence[int]) -> Tensor:
        """Return (N, 4) xyxy in pixels: around each cell's middle, of the same pixels whatever the image's size."""
        height, width = size_yx
        device = levels[0].device
        roots = torch.tensor(self.config.ratios, device=device).sqrt()
        priors = []
        for k, level in enumerate(levels):
            rows, cols = level.shape[-2:]
            y = (torch.arange(rows, device=device) + 0.5) * (height / rows)
            x = (torch.arange(cols, device=device) + 0.5) * (width / cols)
            centres = torch.stack([x[None].expand(rows, cols), y[:, None].expand(rows, cols)], dim=2)
            halves = (self.config.prior_px * 2**k / 2) * roots[:, None].expand(-1, 2)
            middle = centres.reshape(-1, 1, 2)
            priors.append(torch.cat([middle - halves, middle + halves], dim=2).reshape(-1, 4))
        return torch.cat(priors)

    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the four losses of a batch, see `yolact_losses`."""
        return yolact_losses(raw, targets)

    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return what is seen in the k-th tile of a batch."""
        return to_prediction(raw, k, valid_HW, self.config, self.categories)


def build_yolact(backbone: str = "resnet50", **options: object) -> Yolact:
    """Return the network with random weights; options are fields of `YolactConfig`."""
    return Yolact(parse_options(YolactConfig, {"backbone": backbone, **options}))
