"""The official files: torchvision's names in the ResNet's blocks, the pyramid from its top down."""

from __future__ import annotations

from segworker.models.common.layouts import Layout, shift

_TOP = 2
"Index of C5, which the official files count from."
_PROTONET = {"0": "protonet.0", "2": "protonet.1", "4": "protonet.2", "8": "protonet.3", "10": "prototypes"}
OFFICIAL = Layout(
    "YOLACT",
    "backbone.layers.0.0.conv1.weight",
    (
        (r"^backbone\.layers\.(\d+)", shift(1, "body.layer")),
        (r"^backbone\.", "body."),
        (r"^fpn\.lat_layers\.(\d)", lambda match: f"lateral.{_TOP - int(match[1])}"),
        (r"^fpn\.pred_layers\.(\d)", lambda match: f"output.{_TOP - int(match[1])}"),
        (r"^fpn\.downsample_layers\.", "downsample."),
        (r"^proto_net\.(0|2|4|8|10)\.", lambda match: f"{_PROTONET[match[1]]}."),
        (r"^prediction_layers\.0\.upfeature\.0\.", "head."),
        (r"^prediction_layers\.0\.bbox_layer\.", "boxes."),
        (r"^prediction_layers\.0\.conf_layer\.", "classes."),
        (r"^prediction_layers\.0\.mask_layer\.", "coefficients."),
        (r"^semantic_seg_conv\.", "semantic."),
    ),
    ignored=(r"backbone\.layer\d", r"fpn\.downsample_layers\.[2-9]"),
)
"Ignored are a second name of the ResNet's stages and layers of the pyramid that the published network never used."
