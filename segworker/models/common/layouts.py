"""Published weights under the names their makers gave them, and the way from there to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from segworker.errors import WeightsError

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one published file names the tensors of a model."""

    name: str
    "Whose layout it is, for messages."
    marker: str
    "A key that files of this layout have, and a state dict of ours has not."
    renames: tuple[Rename, ...]
    "(pattern, replacement) of `re.sub`, applied to every key one after the other."
    ignored: tuple[str, ...] = ()
    "Patterns of keys (matched from their start) that the network does not need: aliases and derived values."

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Tell whether a state dict is in this layout."""
        return self.marker in state

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under our names; keys that no pattern knows keep theirs, and show up as unexpected.

        Raises:
            WeightsError: two keys lead to one name.
        """
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            if any(re.match(pattern, key) for pattern in self.ignored):
                continue
            name = key
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in found:
                raise WeightsError(f"two tensors of a file in {self.name}'s layout are {name!r}, one of them {key!r}")
            found[name] = value
        return found


def shift(by: int, prefix: str, suffix: str = "") -> Callable[[re.Match[str]], str]:
    """Return a replacement: the first group's number, shifted, between two texts, and the other groups behind."""
    return lambda match: f"{prefix}{int(match[1]) + by}{suffix}{''.join(match.groups()[1:])}"


DETECTRON2_RESNET: tuple[Rename, ...] = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.body.conv1."),
    (r"^backbone\.bottom_up\.res(\d)(\.\d+)", shift(-1, "backbone.body.layer")),
    (r"^(backbone\.body\.layer.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^(backbone\.body\.layer.*)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(backbone\.body\.layer.*)\.shortcut\.", r"\1.downsample.0."),
)
"detectron2's ResNet."


def detectron2_pyramid(finest: int) -> tuple[Rename, ...]:
    """Return the renames of detectron2's pyramid whose finest level has stride 2^finest."""
    return (
        (r"^backbone\.fpn_lateral(\d)", shift(-finest, "backbone.fpn.inner_blocks.", ".0")),
        (r"^backbone\.fpn_output(\d)", shift(-finest, "backbone.fpn.layer_blocks.", ".0")),
        (r"^backbone\.top_block\.p(\d)", shift(-6, "backbone.fpn.extra_blocks.convs.")),
    )


DETECTRON2_BACKBONE: tuple[Rename, ...] = (*DETECTRON2_RESNET, *detectron2_pyramid(2))
"detectron2's ResNet with a pyramid."
DETECTRON2_HEADS: tuple[Rename, ...] = (
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_(?:head|predictor)\.(\d\.)", r"roi_heads.stages.\1"),
    (r"^roi_heads\.box_(?:head|predictor)\.", "roi_heads.stages.0."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", shift(-1, "roi_heads.mask_head.convs.", ".")),
)
"detectron2's proposal network, box stages and mask head."
DETECTRON2_IGNORED = (r"pixel_(mean|std)$", r"proposal_generator\.anchor_generator\.")
"Constants of the configuration that some of its versions saved with the weights."
DETECTRON2_MARKER = "backbone.bottom_up.stem.conv1.weight"

MMDET_BACKBONE: tuple[Rename, ...] = (
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
)
"mmdetection's ResNet ('pytorch' style: torchvision's names) with a pyramid."
MMDET_MARKER = "neck.lateral_convs.0.conv.weight"
