"""The official files: MobileNetV2's stages as layers 1 to 8, the decoder's parts numbered from the finest."""

from __future__ import annotations

import re

from segworker.models.common.layouts import Layout, shift

_PARTS = ("expand", "depthwise", "project")
_TASKS = {"segm": "semantic", "depth": "depth", "normal": "normals"}


def _part(match: re.Match[str]) -> str:
    return f"{match[1]}.{_PARTS[int(match[2])]}."


OFFICIAL = Layout(
    "multi-task RefineNet",
    "layer1.0.weight",
    (
        (r"^layer1\.", "stem."),
        (r"^layer(\d)(\.\d\.)output\.", lambda match: f"stages.{int(match[1]) - 2}{match[2]}output."),
        (r"^(stages\.\d\.\d)\.output\.(\d)\.", _part),
        (r"^conv(\d)\.", shift(-3, "reduce.", ".")),
        (r"^crp(\d)\.0\.(\d)_outvar_dimred\.", lambda m: f"pooling.{int(m[1]) - 1}.convs.{int(m[2]) - 1}."),
        (r"^conv_adapt(\d)\.", shift(-2, "adapt.", ".")),
        (r"^pre_(segm|depth|normal)\.", lambda match: f"heads.{_TASKS[match[1]]}.scale."),
        (r"^(segm|depth|normal)\.", lambda match: f"heads.{_TASKS[match[1]]}.last."),
    ),
)
