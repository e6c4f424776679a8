"""SOLO, Decoupled SOLO (Wang et al., 2019, arXiv:1912.04488) and SOLOv2 (Wang et al., 2020, arXiv:2003.10152).

B tiles, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.options import change_options
from segworker.models.solo.config import RULE, SOLOV2, SPEC, SoloConfig
from segworker.models.solo.decode import to_prediction
from segworker.models.solo.heads import DecoupledHead, SoloHead, SoloV2Head
from segworker.models.solo.loss import Target, solo_losses
from segworker.types import Prediction

_HEADS: Mapping[str, Callable[[SoloConfig], nn.Module]] = {
    "solo": SoloHead,
    "decoupled": DecoupledHead,
    "solov2": SoloV2Head,
}
_BASES = {"solo": SoloConfig(), "decoupled": SoloConfig(variant="decoupled"), "solov2": SOLOV2}


class Solo(nn.Module):
    """The contract of `segworker.models.protocol.Model`, and trainable."""

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        self.config, self.spec, self.rule = config, SPEC, RULE
        self.categories = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        self.backbone = resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm)
        self.head = _HEADS[config.variant](config)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Return the images as the network was trained to see them."""
        return self.rule.normalise(images_BCHW)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the raw heads on normalised images, see the classes in `heads`."""
        found: dict[str, Tensor] = self.head(list(self.backbone(images_BCHW).values()))
        return found

    def loss(self, images_BCHW: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named losses of a batch; their sum is what is minimised.

        Args:
            images_BCHW: in 0..1, sides multiples of the model's stride.
            targets: one for each image: `boxes` (N, 4) float xyxy pixels, `labels` (N,) int64 category ids, `masks`
                (N, H, W) uint8. N may be 0.
        """
        raw = {name: values.float() for name, values in self(self.normalise(images_BCHW)).items()}
        ids = [category.id for category in self.categories]
        labels = [torch.tensor([ids.index(k) for k in t["labels"].tolist()], dtype=torch.int64) for t in targets]
        placed = [
            {**target, "labels": label.to(images_BCHW.device)} for target, label in zip(targets, labels, strict=True)
        ]
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return solo_losses(raw, placed, self.config)

    @torch.inference_mode()
    def predict(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[Prediction]:
        """Return what is seen in each tile; a tile's result does not depend on its batch mates.

        Args:
            images_BCHW: float32 on the model's device, in 0..1, sides multiples of `spec.stride`.
            valid_BHW: bool; invalid pixels are shown to the network as its mean colour.
        """
        normal = self.normalise(images_BCHW).masked_fill(~valid_BHW[:, None], 0.0)
        raw = {name: values.float() for name, values in self(normal).items()}
        with torch.autocast(normal.device.type, enabled=False):
            return [
                to_prediction(raw, k, valid_HW, self.config, self.categories) for k, valid_HW in enumerate(valid_BHW)
            ]


def build_solo(variant: str = "solo", **options: object) -> Solo:
    """Return a network with random weights.

    Args:
        variant: 'solo', 'decoupled' or 'solov2'.
        options: fields of `SoloConfig`.
    """
    return Solo(change_options(_BASES[variant], options, fixed=("variant",)))
