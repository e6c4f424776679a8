"""Sizes and options of Panoptic FPN."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.models.common.detectron2 import Detectron2Config

NUM_COCO_STUFF = 53
SEMANTIC_WEIGHT = 0.5
"Of the semantic loss beside the instance losses (detectron2's recipe)."
IGNORED = 255
"In the semantic target: pixels that nobody labelled."


@dataclass(frozen=True, slots=True)
class PanopticFPNConfig(Detectron2Config):
    """The defaults are those of the official R50 3x checkpoint."""

    num_stuff: int = NUM_COCO_STUFF
    "Classes of the semantic head besides the one that stands for all things."
    stuff_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    semantic_channels: int = 128
