"""What the bundled nuclei model is made of and what it wants to see."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.maskrcnn.config import MaskRCNNConfig
from segworker.types import Category, InputSpec

CONFIG = MaskRCNNConfig()
CATEGORIES = (Category(1, "nucleus"),)
SPEC = InputSpec(num_bands=3, scaling="unit", stride=CONFIG.stride, cut_trust_px=16, tile_px=512, overlap_px=128)


@dataclass(frozen=True, slots=True)
class NucleiOptions:
    """What may be changed without training again."""

    detections: int = CONFIG.detections
    "Nuclei of a tile, at most."
    score_threshold: float = CONFIG.score_threshold
    "Fainter ones are not returned at all."

    class_names: tuple[str, ...] = ("nucleus",)
    "For training: the classes of your own; in options, a comma-separated text will do."

    def __post_init__(self) -> None:
        if not self.class_names:
            raise ConfigError("a model has at least one class, got no class_names; name one")
        if self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"detections is at least 1 and score_threshold in 0..1, got {self}; check the model options"
            )
