"""Sizes and options of the HydraNet, and what it is to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.input import InputRule
from segworker.types import InputSpec

RULE = InputRule((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), pad_multiple=1)
"The paper's images are shown as they are."
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
TASKS = ("semantic", "depth", "normals")
CHANNELS = {"depth": 1, "normals": 3}
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"MobileNetV2's stages: expansion, channels, blocks, stride of the first one."
IGNORED = 255
"In the semantic target: pixels that nobody labelled."


@dataclass(frozen=True, slots=True)
class HydraNetConfig:
    """The defaults are those of the official KITTI checkpoint."""

    tasks: tuple[str, ...] = ("semantic", "depth")
    "Heads on the shared encoder, of 'semantic', 'depth' and 'normals'; in options, a comma-separated text will do."
    num_classes: int = 6
    "Of the semantic head."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    decoder_channels: int = 256
    weights: tuple[float, ...] = (0.5, 0.5, 0.5)
    "Of the tasks' losses, in the order of `tasks`."

    def __post_init__(self) -> None:
        unknown = set(self.tasks) - set(TASKS)
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"tasks are some of {', '.join(TASKS)}, each once, got {', '.join(self.tasks)!r}")
        if self.num_classes < 1 or len(self.weights) < len(self.tasks):
            raise ConfigError(f"num_classes is at least 1 and weights has one for each task, got {self}")

    def channels(self, task: str) -> int:
        """Return how many maps a task's head gives."""
        return CHANNELS.get(task, self.num_classes)
