"""SOLO, Decoupled SOLO (Wang et al., 2019, arXiv:1912.04488) and SOLOv2 (Wang et al., 2020, arXiv:2003.10152).

B tiles, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.dense_model import DenseModel, Target
from segworker.models.common.options import change_options
from segworker.models.solo.config import RULE, SOLOV2, SPEC, SoloConfig
from segworker.models.solo.decode import to_prediction
from segworker.models.solo.heads import DecoupledHead, SoloHead, SoloV2Head
from segworker.models.solo.loss import solo_losses
from segworker.types import Prediction

_HEADS: Mapping[str, Callable[[SoloConfig], nn.Module]] = {
    "solo": SoloHead,
    "decoupled": DecoupledHead,
    "solov2": SoloV2Head,
}
_BASES = {"solo": SoloConfig(), "decoupled": SoloConfig(variant="decoupled"), "solov2": SOLOV2}


class Solo(DenseModel):
    """The contract of `segworker.models.protocol.Model`, and trainable."""

    def __init__(self, config: SoloConfig) -> None:
        named = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        super().__init__(categories=named, spec=SPEC, rule=RULE)
        self.config = config
        self.backbone = resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm)
        self.head = _HEADS[config.variant](config)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the raw heads on normalised images, see the classes in `heads`."""
        found: dict[str, Tensor] = self.head(list(self.backbone(images_BCHW).values()))
        return found

    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the two losses of a batch, see `solo_losses`."""
        return solo_losses(raw, targets, self.config)

    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return what is seen in the k-th tile of a batch."""
        return to_prediction(raw, k, valid_HW, self.config, self.categories)


def build_solo(variant: str = "solo", **options: object) -> Solo:
    """Return a network with random weights.

    Args:
        variant: 'solo', 'decoupled' or 'solov2'.
        options: fields of `SoloConfig`.
    """
    return Solo(change_options(_BASES[variant], options, fixed=("variant",)))
