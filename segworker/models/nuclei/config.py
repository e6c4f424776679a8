"""What the bundled nuclei model is made of and what it wants to see."""

from __future__ import annotations

from segworker.models.maskrcnn.config import MaskRCNNConfig
from segworker.types import Category, InputSpec

CONFIG = MaskRCNNConfig()
CATEGORIES = (Category(1, "nucleus"),)
SPEC = InputSpec(num_bands=3, scaling="unit", stride=CONFIG.stride, cut_trust_px=16, tile_px=512, overlap_px=128)
